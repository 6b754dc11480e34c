"""A fresh model for every training, and for every trial of a search for hyperparameters."""

import pytest
from transformers import Trainer

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel, TraDyTrainer

from ..tiny import bert, conv_net, copy_of_state, different_keys, token_batch
from .runs import arguments, image_rows, token_dataset


optuna = pytest.importorskip("optuna")


class Models:
    """Makes models, and remembers them."""

    def __init__(self, make, example=None, **config):
        self.make, self.example = make, example
        self.config = {"memory_budget": 0.3, "strategy": "dynamic_full_random"} | config
        self.made = []

    def __call__(self) -> TraDyModel:
        self.made.append(TraDyModel(self.make(), TraDyConfig(**self.config), self.example))
        return self.made[-1]


def search(trainer: Trainer, **space):
    """Try out three learning rates; `space`: how many values each further argument may take."""

    def suggest(trial):
        choices = {name: trial.suggest_categorical(name, values) for name, values in space.items()}
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)} | choices

    sampler = optuna.samplers.RandomSampler(seed=0)
    return trainer.hyperparameter_search(suggest, n_trials=3, backend="optuna", direction="minimize", sampler=sampler)


def again(trainer: Trainer, parameters: dict) -> float:
    """The loss after training with `parameters`."""
    for name, value in parameters.items():
        setattr(trainer.args, name, value)
    trainer.train()
    return trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("config", [{}, {"strategy": "trady", "num_layers": 2}, {"memory_budget": "64MiB"}], ids=str)
def test_every_trial_trains_a_fresh_model_and_the_best_can_be_had_again(config, tmp_path):
    models = Models(conv_net, **config)
    args = arguments(tmp_path, eval_strategy="epoch", label_smoothing_factor=0.1)
    data = {"train_dataset": image_rows(), "eval_dataset": image_rows(6)}
    trainer = TraDyTrainer(model_init=models, args=args, ranking_steps=2, **data)
    best = search(trainer, per_device_train_batch_size=[2, 4])
    assert len(models.made) == 4 and models.made[0].active is None  # the first is only looked at
    start = copy_of_state(conv_net())
    assert all(different_keys(start, copy_of_state(model)) for model in models.made[1:])
    assert args.label_smoothing_factor == 0.1 and trainer.label_smoother is None
    assert again(trainer, best.hyperparameters) == pytest.approx(best.objective)


def test_a_plain_trainer_searches_too(tmp_path):
    models = Models(bert, token_batch(1))
    args = arguments(tmp_path, eval_strategy="epoch", save_strategy="epoch")
    trainer = Trainer(model_init=models, args=args, train_dataset=token_dataset(), eval_dataset=token_dataset(6))
    trainer.add_callback(TraDyCallback(trainer))
    best = search(trainer)
    assert again(trainer, best.hyperparameters) == pytest.approx(best.objective)
    checkpoints = list(tmp_path.glob("run-*/checkpoint-*"))
    assert len(checkpoints) == 6 and all((path / "trady_config.json").is_file() for path in checkpoints)


def test_without_a_search_every_training_starts_anew_and_resumes(tmp_path):
    models = Models(conv_net, strategy="trady", num_layers=2)
    args = arguments(tmp_path, save_strategy="epoch")
    trainer = TraDyTrainer(model_init=models, args=args, train_dataset=image_rows())
    ends = []
    for checkpoint in (None, None, str(tmp_path / "checkpoint-3")):
        trainer.train(checkpoint)
        ends.append(copy_of_state(trainer.model))
    assert len(models.made) == 4
    assert different_keys(ends[0], ends[1]) == [] and different_keys(ends[0], ends[2]) == []


def test_what_makes_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a TraDyModel, not a ConvNet"):
        TraDyTrainer(model_init=lambda: conv_net(), args=arguments(tmp_path))
