"""A progress bar and one line a finished epoch, instead of a dict a log."""

from transformers import ProgressCallback, Trainer


COLUMNS = {
    "epoch": "{epoch:>6.2f}",
    "loss": "{loss:>8.4f}",
    "eval loss": "{eval_loss:>9.4f}",
    "accuracy": "{eval_accuracy:>8.2%}",
    "act. sparsity": "{trady/activation_sparsity:>13.2%}",
    "weight sparsity": "{trady/weight_sparsity:>15.2%}",
    "FLOPs saved": "{trady/flops_saved:>11.2%}",
    "budget used": "{budget_used:>11.2%}",
    "channels": "{trady/active_channels:>8,}",
    "layers": "{trady/active_layers:>6}",
}


class EpochTableCallback(ProgressCallback):
    """Shows a progress bar and, after each evaluation, a row of loss, accuracy, sparsity and budget use.

    The sparsity is that of the channels which trained since the last redraw. A column for which a run logs nothing
    shows a dash.
    """

    def __init__(self):
        super().__init__()
        self.latest: dict[str, float] = {}
        self.rows = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.latest.update(logs or {})

    def on_evaluate(self, args, state, control, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "trady/budget" in self.latest:
            self.latest["budget_used"] = self.latest["trady/units"] / self.latest["trady/budget"]
        cells = [_cell(template, self.latest) for template in COLUMNS.values()]
        if self.rows == 0:
            header = zip(COLUMNS, cells, strict=True)
            self.training_bar.write("  ".join(f"{name:>{len(cell)}}" for name, cell in header))
        self.training_bar.write("  ".join(cells))
        self.rows += 1


def use_epoch_table(trainer: Trainer) -> None:
    """Replace the progress bar of `trainer` by an `EpochTableCallback`, if it shows one."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(EpochTableCallback())


def _cell(template: str, values: dict[str, float]) -> str:
    try:
        return template.format_map(values)
    except KeyError:
        width = len(template.format_map(_Zeros()))
        return f"{'-':>{width}}"


class _Zeros(dict):
    def __missing__(self, key):
        return 0
