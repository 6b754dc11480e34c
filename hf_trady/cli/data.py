"""The data of a run: a Hub dataset, a local folder of images, or local CSV / JSON files of texts."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from datasets.exceptions import DatasetGenerationError


SPLIT_NAMES = {"train": ("train",), "validation": ("val", "dev"), "test": ("test",)}
TEXT_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass
class DataArguments:
    """What to train on."""

    dataset_name: str = field(
        metadata={
            "help": "A dataset on the Hub, a local folder of images (one folder a class, optionally below train/ and "
            "validation/ or test/), or a local CSV / JSON file of texts, or a folder of these."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of a Hub dataset."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training data to evaluate on, where there is no such split."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the first column of images."})
    text_column_name: str | None = field(default=None, metadata={"help": "Default: the first column of strings."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "Default: 'label', 'labels' or the only column of classes."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most this many samples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on at most this many samples."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels square; default: what the model expects."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": "Metrics of the evaluate library to report beside the accuracy."}
    )


@dataclass
class ManyDataArguments(DataArguments):
    """What to train on: several tasks, loaded the same way."""

    dataset_name: list[str] = field(metadata={"help": "One data set a task, each as 'trady train' takes it."})

    def each(self) -> list[DataArguments]:
        """The arguments of every single task.

        Raises:
            ValueError: If two would have the same name.
        """
        names = [Path(name).stem for name in self.dataset_name]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"dataset_name: {len(names)} tasks, but more than one is called '{twice[0]}'; rename one")
        shared = {f.name: getattr(self, f.name) for f in fields(DataArguments)}
        return [DataArguments(**shared | {"dataset_name": name}) for name in self.dataset_name]


@dataclass
class Data:
    """Labelled data of one task.

    Attributes:
        train: Training samples.
        eval: Evaluation samples.
        rest: What `max_train_samples` and `max_eval_samples` leave of the training samples for other uses.
        input_column: Column of the images or the texts.
        label_column: Column of the class numbers.
        labels: Names of the classes.
        is_image: Whether the inputs are images rather than texts.
        args: The arguments that it was loaded by.
    """

    train: Dataset
    eval: Dataset
    rest: Dataset
    input_column: str
    label_column: str
    labels: list[str]
    is_image: bool
    args: DataArguments


def load_data(args: DataArguments, token: str | None = None) -> Data:
    """Load, split and label the data that `args` names; `token` is for the Hub.

    Raises:
        ValueError: If a column can't be found; the message lists those that are there.
        FileNotFoundError: If the dataset can't be found.
    """
    try:
        splits = _load_splits(args, token)
    except DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"can't read dataset_name='{args.dataset_name}' ({reason}); all files must have the same columns"
        ) from error
    features = splits["train"].features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    is_image = args.image_column_name is not None or bool(images and args.text_column_name is None)
    if is_image:
        column = _pick("image_column_name", args.image_column_name, images, features)
    else:
        strings = [name for name, f in features.items() if isinstance(f, Value) and f.dtype.endswith("string")]
        texts = [name for name in strings if name not in ("label", "labels", args.label_column_name)]
        column = _pick("text_column_name", args.text_column_name, texts, features)
    candidates = [name for name in ("label", "labels") if name in features]
    candidates += [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    label = _pick("label_column_name", args.label_column_name, candidates, features)
    if not isinstance(features[label], ClassLabel):
        splits = _encoded(splits, label)
    evaluation = next((splits[name] for name in ("validation", "test") if name in splits), None)
    if evaluation is None:
        parts = splits["train"].train_test_split(test_size=args.train_val_split, seed=0, stratify_by_column=label)
        splits["train"], evaluation = parts["train"], parts["test"]
    train, rest = _part(splits["train"], args.max_train_samples)
    return Data(
        train=train,
        eval=_part(evaluation, args.max_eval_samples)[0],
        rest=_part(rest, args.max_eval_samples)[0],
        input_column=column,
        label_column=label,
        labels=splits["train"].features[label].names,
        is_image=is_image,
        args=args,
    )


def _load_splits(args: DataArguments, token: str | None) -> DatasetDict:
    path = Path(args.dataset_name)
    if path.is_file():
        if path.suffix not in TEXT_FORMATS:
            raise ValueError(f"dataset_name='{path}' must end in one of {', '.join(TEXT_FORMATS)}")
        return load_dataset(TEXT_FORMATS[path.suffix], data_files={"train": str(path)}, **_delimiter(path))
    if path.is_dir():
        texts = sorted(file for file in path.iterdir() if file.suffix in TEXT_FORMATS)
        if texts and {file.stem for file in texts} != {"metadata"}:
            files = {_split_of(file, len(texts)): str(file) for file in texts}
            return load_dataset(TEXT_FORMATS[texts[0].suffix], data_files=files, **_delimiter(texts[0]))
        return load_dataset("imagefolder", data_dir=str(path))
    splits = load_dataset(args.dataset_name, args.dataset_config_name, token=token)
    if "train" not in splits:
        raise ValueError(f"dataset_name='{args.dataset_name}' has no split 'train', only {', '.join(splits)}")
    return splits


def _split_of(file: Path, files: int) -> str:
    for split, names in SPLIT_NAMES.items():
        if file.stem.startswith(names):
            return split
    if files == 1:
        return "train"
    raise ValueError(f"'{file}' must be named train, validation or test, as there are several files beside it")


def _delimiter(path: Path) -> dict:
    return {"delimiter": "\t"} if path.suffix == ".tsv" else {}


def _encoded(splits: DatasetDict, label: str) -> DatasetDict:
    """`splits` with the values of column `label` numbered, the same in all of them."""
    splits = splits.cast_column(label, Value("string"))
    names = {name for split in splits.values() for name in split.unique(label)} - {None}
    return splits.cast_column(label, ClassLabel(names=sorted(names)))


def _pick(name: str, given: str | None, candidates: list[str], features) -> str:
    """The column `given`, or the first of `candidates`."""
    if given is not None and given not in features:
        raise ValueError(f"{name}='{given}' is not a column; the columns are {', '.join(features)}")
    if given is None and not candidates:
        raise ValueError(f"can't tell which column is meant; give {name}, one of {', '.join(features)}")
    return given or candidates[0]


def _part(dataset: Dataset, most: int | None) -> tuple[Dataset, Dataset]:
    """At most `most` samples, drawn at random but always the same, and the others."""
    if most is None or most >= len(dataset):
        return dataset, dataset.select([])
    shuffled = dataset.shuffle(seed=0)
    return shuffled.select(range(most)), shuffled.select(range(most, len(shuffled)))
