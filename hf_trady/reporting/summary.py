"""A run in a few numbers."""

import math
from typing import Any

from safetensors import SafetensorError, safe_open

from ..history import DrawHistory
from ..memory import MIB, verdict
from .record import RunRecord, is_evaluated


def summarize(run: RunRecord) -> dict[str, Any]:
    """The summary of `run`, JSON-serializable; None stands for what is not known.

    Bytes are those of the process above what the model itself takes, as everywhere; units are elements of weight
    gradient and saved activation of one sample. Sparsity is that of the last draw.
    """
    config, state = run.config, run.state
    draws = run.draw_logs()
    last = next((values for values in reversed(draws.values()) if "trady/units" in values), {})
    return {
        "run": run.path.resolve().name,
        **_base(run),
        "strategy": config.strategy if config else None,
        "seed": config.seed if config else None,
        "memory_budget": config.memory_budget if config else None,
        **_bought(run, last),
        "steps": state.get("global_step"),
        "max_steps": state.get("max_steps"),
        "epochs": state.get("epoch"),
        "draws": len(run.history.draws) if run.history else len(draws) or None,
        "metrics": _metrics(run),
        "train_loss": _finite(run.results.get("train_loss")),
        "train_seconds": _finite(run.results.get("train_runtime")),
        **_memory(run, draws),
        "activation_sparsity": last.get("trady/activation_sparsity"),
        "weight_sparsity": last.get("trady/weight_sparsity"),
        "flops_saved": last.get("trady/flops_saved"),
        **_parameters(run),
        **_info(run.history),
    }


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What of `summary` is known, as a reader would write it: what it is, and how much."""
    known = {
        "model": summary["model"],
        "strategy": summary["strategy"],
        "seed": summary["seed"],
        "memory budget": summary["memory_budget"],
        "what it bought": _bought_text(summary),
        "trained for": _length_text(summary),
        **{name.replace("_", " "): _metric_text(name, value) for name, value in summary["metrics"].items()},
        "memory": summary["verdict"] or _peak_text(summary["peak_bytes"]),
        "activation sparsity": _percent(summary["activation_sparsity"]),
        "weight-gradient sparsity": _percent(summary["weight_sparsity"]),
        "weight-gradient FLOPs saved": _percent(summary["flops_saved"]),
        "trained parameters": _parameters_text(summary),
        "changed by training": _saved_text(summary),
        "channels touched": _touched_text(summary),
        "date": _date_text(summary),
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    return [(name, str(value)) for name, value in known.items() if value not in (None, "")]


def _base(run: RunRecord) -> dict[str, Any]:
    name = run.config.base_model_name_or_path if run.config else None
    return {"model": name or (run.history.info.get("model") if run.history else None)}


def _bought(run: RunRecord, last: dict[str, float]) -> dict[str, Any]:
    """What the budget is in units, and the layers that it is spent on."""
    history, fitted = run.history, run.fitted
    units = history.units if history else fitted.units if fitted else last.get("trady/budget")
    return {
        "budget_bytes": run.byte_budget,
        "budget_units": units,
        "total_units": history.costs.total_units if history else None,
        "pool_layers": len(history.pool) if history else None,
        "layers": len(history.costs) if history else None,
        "left_out_layers": len(fitted.left_out) if fitted else None,
    }


def _metrics(run: RunRecord) -> dict[str, float]:
    """The last known value of each metric and loss of the evaluation."""
    values = {name: points[-1][1] for name, points in (run.metrics() | run.losses()).items()}
    values |= {name: value for name, value in run.results.items() if _finite(value) is not None}
    return {name.removeprefix("eval_"): value for name, value in values.items() if is_evaluated(name)}


def _memory(run: RunRecord, draws: dict[int, dict[str, float]]) -> dict[str, Any]:
    peaks, budget = run.peaks(), run.byte_budget
    predicted = max((values.get("trady/predicted_peak_bytes", 0) for values in draws.values()), default=0)
    predicted = predicted or (run.fitted.predicted_peak if run.fitted else 0)
    return {
        "peak_bytes": max(peaks.values(), default=None),
        "predicted_peak_bytes": int(predicted) or None,
        "draws_over_budget": sum(peak > budget for peak in peaks.values()) if peaks and budget else None,
        "verdict": verdict(peaks, int(predicted), budget) if peaks and budget and predicted else None,
    }


def _parameters(run: RunRecord) -> dict[str, Any]:
    history = run.history
    last = history.draws[max(history.draws)] if history and history.draws else None
    pool = history.costs.subset(history.pool) if history else ()
    return {
        "trained_parameters": last.trained_parameters if last else None,
        "total_parameters": history.total_parameters if history else None,
        "touched_channels": sum(last.touched.get(row.name, 0) for row in pool) if last else None,
        "pool_channels": sum(row.channels for row in pool) if history else None,
        **_saved(run),
    }


def _saved(run: RunRecord) -> dict[str, int | None]:
    """Elements that the file of what training has changed holds, by its header alone, and its size."""
    if run.weights is None:
        return {"changed_elements": None, "saved_bytes": None}
    try:
        with safe_open(run.weights, framework="np") as file:
            names = [name for name in file.keys() if not name.startswith("channels.index.")]  # noqa: SIM118 (no dict)
            elements = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError):
        elements = None
    return {"changed_elements": elements, "saved_bytes": run.weights.stat().st_size}


def _info(history: DrawHistory | None) -> dict[str, Any]:
    info = history.info if history else {}
    return {"started": info.get("started"), "updated": info.get("updated"), "versions": dict(info.get("versions", {}))}


def _finite(value) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


# ---- As text --------------------------------------------------------------------------------------------------------


def _bought_text(summary: dict[str, Any]) -> str | None:
    units, total = summary["budget_units"], summary["total_units"]
    if units is None:
        return None
    if total is None:
        return f"{units:,} units"
    text = f"{units:,} of {total:,} units ({units / total:.2%}), drawn from {summary['pool_layers']} of "
    text += f"{summary['layers']} layers"
    out_of_reach = summary["left_out_layers"]
    return f"{text}; {out_of_reach} more are out of its reach" if out_of_reach else text


def _length_text(summary: dict[str, Any]) -> str | None:
    steps, planned = summary["steps"], summary["max_steps"]
    if steps is None:
        return None
    text = f"{steps:,} of {planned:,} steps" if planned and planned > steps else f"{steps:,} steps"
    text += f", {summary['epochs']:.4g} epochs" if summary["epochs"] else ""
    text += f", {summary['draws']:,} draws" if summary["draws"] else ""
    return text + (f", {summary['train_seconds']:,.0f} s" if summary["train_seconds"] else "")


def _metric_text(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"


def _peak_text(peak: int | None) -> str | None:
    return None if peak is None else f"peak {peak / MIB:,.0f} MiB measured; the budget is not in bytes"


def _parameters_text(summary: dict[str, Any]) -> str | None:
    trained, total = summary["trained_parameters"], summary["total_parameters"]
    return None if trained is None else f"{trained:,} of {total:,} ({trained / total:.2%}) in the last draw"


def _saved_text(summary: dict[str, Any]) -> str | None:
    elements, size = summary["changed_elements"], summary["saved_bytes"]
    return None if elements is None else f"{elements:,} elements in all draws, saved in {size / MIB:,.2f} MiB"


def _touched_text(summary: dict[str, Any]) -> str | None:
    touched, channels = summary["touched_channels"], summary["pool_channels"]
    return None if touched is None else f"{touched:,} of the pool's {channels:,} ({touched / channels:.1%})"


def _date_text(summary: dict[str, Any]) -> str | None:
    started, updated = ((summary[name] or "")[:16].replace("T", " ") for name in ("started", "updated"))
    return f"{started} to {updated} UTC" if started and updated else None


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"
