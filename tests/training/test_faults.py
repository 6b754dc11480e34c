"""What goes wrong is said in one line, and nothing that was saved is lost or changed by it."""

import io
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers import TrainerCallback

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.history import DrawHistory
from hf_trady.training.checkpoints import STAGING, flaw, last_whole_checkpoint

from ..tiny import ConvNet, Rows, bert, conv_net, copy_of_state, different_keys, image_batch
from .runs import image_rows, make_trainer, token_dataset


class At(TrainerCallback):
    """Does something at the end of a step, before a checkpoint is written, or in the middle of one."""

    def __init__(self, step: int, action, within: bool = False):
        self.step, self.action, self.within = step, action, within

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.within:
            self.action()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step and self.within:
            self.action()


class Faulty(Rows):
    """Rows of which one is bad: `fault(sample)` instead."""

    def __init__(self, columns, row: int, fault):
        super().__init__(columns)
        self.row, self.fault = row, fault

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        return self.fault(sample) if i == self.row else sample


SAVES = {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "sequential"}


def fails(trainer, error: type, **kwargs) -> str:
    """The message, of one line, with which training ends."""
    with pytest.raises(error) as caught:
        trainer.train(**kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ---- The disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of its own with the given options on a directory, where that is permitted."""
    places = []

    def mount(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            pytest.skip("may not mount a file system here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


FREE = (0, 8_000, 30_000, 45_000)  # bytes, so that it is another file each time that finds no room


@pytest.mark.slow
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_costs_nothing_that_is_there(mounted):
    disk = mounted("size=16m")
    whole = make_trainer(disk / "whole", num_train_epochs=2, **SAVES)
    whole.train()
    written = set()
    for number, free in enumerate(FREE):
        path = disk / str(number)

        def fill(free=free):
            blocks = os.statvfs(disk)
            (disk / "ballast").write_bytes(b"x" * max(0, blocks.f_bavail * blocks.f_frsize - free))

        trainer = make_trainer(path, num_train_epochs=2, callbacks=[At(3, fill)], **SAVES)
        message = fails(trainer, OSError)
        assert message.startswith(f"can't write '{path / 'checkpoint-3'}' (")
        assert f"the one before it, '{path / 'checkpoint-2'}', is whole: make room and resume" in message
        written.add(message[message.index("(") : message.index(")")])
        (disk / "ballast").unlink()
        assert last_whole_checkpoint(path) == str(path / "checkpoint-2")
        assert not (path / STAGING).exists() and not (path / "checkpoint-3").exists()
        resumed = make_trainer(path, num_train_epochs=2, **SAVES)
        resumed.train(resume_from_checkpoint=True)
        assert different_keys(copy_of_state(resumed.model), copy_of_state(whole.model)) == []
        for old in path.glob("checkpoint-*"):
            assert flaw(old) is None
    assert len(written) > 1  # it was not the same file each time


def test_an_output_directory_that_cannot_be_written_is_refused_before_training(mounted):
    disk = mounted("size=4m")
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "trady"))
    trainer = make_trainer(disk, model=model, **SAVES)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    start = copy_of_state(model)
    message = fails(trainer, OSError)
    assert f"output_dir='{disk}' (Read-only file system)" in message
    assert model.layer_ranking is None and different_keys(copy_of_state(model), start) == []


def test_a_history_of_draws_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(history, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DrawHistory, "save_pretrained", full)
    make_trainer(tmp_path, **SAVES).train()
    warned = [message for message in caplog.messages if "trady_history.json" in message]
    assert warned and all("(No space left on device)" in message and "\n" not in message for message in warned)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


# ---- The data -------------------------------------------------------------------------------------------------------


def test_a_label_that_the_head_has_no_class_for_is_named(tmp_path):
    images, labels = image_batch(12, 16)
    labels[7] = 5
    data = Rows({"x": images, "labels": labels})
    assert "label 5 is none of the classes" in fails(make_trainer(tmp_path, train_dataset=data), ValueError)
    model = TraDyModel(bert(num_labels=2), TraDyConfig(0.3, "dynamic_full_random"))
    assert "label 2 is none of the classes" in fails(make_trainer(tmp_path, "bert", model=model), ValueError)


def test_ids_beyond_the_vocabulary_are_named(tmp_path):
    data = token_dataset().map(lambda row: {"input_ids": [id + 39 for id in row["input_ids"]]})
    assert "beyond the model's embedding" in fails(make_trainer(tmp_path, "bert", train_dataset=data), ValueError)


def larger(sample: dict) -> dict:
    return sample | {"x": torch.zeros(3, 20, 20)}


def test_images_of_another_size_go_in_batches_of_their_own(tmp_path):
    images, labels = image_batch(12, 16)
    data = Faulty({"x": images, "labels": labels}, 5, larger)
    message = fails(make_trainer(tmp_path, train_dataset=data), ValueError)
    assert "([3, 16, 16] and [3, 20, 20])" in message or "([3, 20, 20] and [3, 16, 16])" in message
    trainer = make_trainer(tmp_path, train_dataset=data, per_device_train_batch_size=1, num_train_epochs=2)
    start = copy_of_state(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 24 and len(different_keys(start, copy_of_state(trainer.model))) > 2


def test_a_last_batch_of_one_trains_unless_a_norm_that_learns_has_one_value_of_it(tmp_path):
    make_trainer(tmp_path, train_dataset=image_rows(5), config={"norm_mode": "train"}).train()  # 8 x 8 values
    tiny = image_rows(5, size=1)
    make_trainer(tmp_path, train_dataset=tiny).train()
    trainer = make_trainer(tmp_path, train_dataset=tiny, config={"norm_mode": "train"})
    assert "norm_mode='frozen'" in fails(trainer, ValueError)


def test_a_batch_without_a_sample_changes_nothing(tmp_path):
    """Its loss, a mean over nothing, is NaN."""

    def collate(samples: list[dict]) -> dict:
        columns = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return {name: column[:0] if len(column) < 4 else column for name, column in columns.items()}

    ends = []
    for rows in (9, 8):
        kwargs = {"data_collator": collate, "num_train_epochs": 1, "lr_scheduler_type": "constant"}
        kwargs |= {"train_sampling_strategy": "sequential"}
        trainer = make_trainer(tmp_path, train_dataset=image_rows(rows), **kwargs)
        trainer.train()
        ends.append((trainer.state.global_step, trainer._redraws.skipped_steps, copy_of_state(trainer.model)))
    assert [end[:2] for end in ends] == [(3, 1), (2, 0)]
    assert different_keys(ends[0][2], ends[1][2]) == []


class Wandering(ConvNet):
    """Passes over a layer in every other forward."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        x = torch.relu(self.norm1(self.stem(x)))
        if self.calls % 2:
            x = torch.relu(self.norm2(self.depthwise(x)))
        x = torch.relu(self.pointwise(x)).mean((2, 3))
        return self.classifier(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("lean", ["exact", "off"])
def test_a_model_that_calls_other_layers_each_time_trains_or_is_refused_in_one_line(lean, tmp_path):
    net = Wandering().eval()
    model = TraDyModel(net, TraDyConfig(0.5, "dynamic_full_random", lean_backward=lean))
    start = copy_of_state(model)
    make_trainer(tmp_path, model=model, num_train_epochs=3).train()
    assert len(different_keys(start, copy_of_state(model))) > 2
    assert all(torch.isfinite(value).all() for value in copy_of_state(model).values())


def die(sample: dict) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return sample


@pytest.mark.slow
def test_a_worker_of_the_data_loader_that_dies_is_named_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    images, labels = image_batch(24, 16)
    columns = {"x": images, "labels": labels}
    config = {"strategy": "static_full_random"}
    kwargs = SAVES | {"num_train_epochs": 1, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 1}
    example = TraDyModel(conv_net(), TraDyConfig(0.3, "static_full_random"), images[:1])
    trainer = make_trainer(tmp_path, model=example, train_dataset=Faulty(columns, 23, die), **kwargs)
    message = fails(trainer, ChildProcessError)
    assert "a worker of the data loader" in message and "dataloader_num_workers (now 1" in message
    assert last_whole_checkpoint(tmp_path) is not None
    resumed = make_trainer(tmp_path, config=config, train_dataset=Rows(columns), **kwargs)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", config=config, train_dataset=Rows(columns), **kwargs)
    whole.train()
    assert different_keys(copy_of_state(resumed.model), copy_of_state(whole.model)) == []


def unreadable(sample: dict) -> dict:
    return Image.open(io.BytesIO(b"no image"))


def test_an_image_that_a_worker_of_the_data_loader_cannot_read_is_one_line(tmp_path):
    images, labels = image_batch(12, 16)
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "static_full_random"), images[:1])
    data = Faulty({"x": images, "labels": labels}, 5, unreadable)
    trainer = make_trainer(tmp_path, model=model, train_dataset=data, dataloader_num_workers=1)
    assert fails(trainer, UnidentifiedImageError).startswith("cannot identify image file")


# ---- Signals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    """Those that Python starts with; a test run in the background may ignore SIGINT."""
    numbers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signals(*numbers: int):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


INTERRUPTED = {"save_strategy": "epoch", "train_sampling_strategy": "sequential"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The end of a run that gets no signal."""
    whole = make_trainer(tmp_path_factory.mktemp("undisturbed"), **INTERRUPTED | {"save_strategy": "no"})
    whole.train()
    return copy_of_state(whole.model)


@pytest.mark.parametrize("number, within", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, True)])
def test_the_first_signal_saves_and_exits_and_a_resume_is_exact(handlers, undisturbed, number, within, tmp_path):
    before = signal.getsignal(number)
    trainer = make_trainer(tmp_path, callbacks=[At(2, signals(number), within)], **INTERRUPTED)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        trainer.train()
    assert (caught.value.code == 143) if number == signal.SIGTERM else ("step 2" in str(caught.value))
    assert signal.getsignal(number) == before
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = make_trainer(tmp_path, **INTERRUPTED)
    resumed.train(resume_from_checkpoint=True)
    assert different_keys(copy_of_state(resumed.model), undisturbed) == []


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_signal_exits_at_once(handlers, numbers, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[At(2, signals(*numbers), True)], save_strategy="epoch")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1 and last_whole_checkpoint(tmp_path) is None


class AtTheEnd(TrainerCallback):
    def on_train_end(self, *args, **kwargs):
        signals(signal.SIGINT)()


def test_a_signal_after_the_last_step_ends_the_program_too(handlers, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[AtTheEnd()], save_strategy="epoch")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 6 and last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_a_signal_does_not_wait_for_an_evaluation_that_is_due(handlers, tmp_path):
    evaluates = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": image_rows(4)}
    trainer = make_trainer(tmp_path, callbacks=[At(2, signals(signal.SIGTERM))], save_strategy="epoch", **evaluates)
    with pytest.raises(SystemExit):
        trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1]
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_fork_that_trains_what_its_parent_made_takes_signals_as_well(handlers, tmp_path):
    """Without a step, as torch's backward can't go on in a fork of a process that has done one."""
    interruption = make_trainer(tmp_path, save_strategy="epoch")._interruption
    child = os.fork()
    if child == 0:
        with interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(143 if interruption._agree() == signal.SIGTERM else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_a_run_that_does_not_save_leaves_the_signals_alone(handlers, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[At(2, signals(signal.SIGINT), True)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1 and not list(tmp_path.glob("checkpoint-*"))


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.3, "4MiB"])
def test_running_out_of_memory_says_what_was_predicted_and_what_to_lower(budget, tmp_path):
    def allocate():
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, before[1]))
        try:
            torch.empty(2**34, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    trainer = make_trainer(tmp_path, config={"memory_budget": budget}, callbacks=[At(2, allocate, True)], **SAVES)
    message = fails(trainer, MemoryError)
    predicted = "the planner predicted" if budget == "4MiB" else "with a budget in bytes"
    assert f"out of memory at step 2 ({predicted}" in message
    assert "per_device_train_batch_size (now 4" in message and f"memory_budget (now {budget!r})" in message
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
