"""The page about many processes, from what was measured and reckoned."""

import textwrap

from scale_case import BATCH, BUDGET, LENGTH, RANK, SIZES
from scale_formulas import (
    Method,
    ddp_memory,
    ddp_sent,
    fsdp_gathered_at_once,
    fsdp_memory,
    fsdp_sent,
    gradient_bytes,
    redraw_sent,
)


TOKENS = 2048
ELEMENT = 2  # bytes: bfloat16 weights, gradients and states
WIRE, MEMORY = 50e9, 3.35e12  # bytes a second of a device: its part of the network, its own memory
DEVICES = 8, 64, 256, 1024
NAMES = {"full": "full fine-tuning", "lora": f"LoRA, rank {RANK}", "trady": f"TraDy, {BUDGET:.1%} of the units"}


def page(results: dict) -> str:
    """The page, in Markdown."""
    intro = f"""Written by `python benchmarks/scale.py` ({results["machine"]}). First what was measured here, then
        what is reckoned for machines that were not there, by formulas (`benchmarks/scale_formulas.py`) that a test
        holds against the measurements. Activations are in none of the figures: they depend on the batch of a
        process, not on the number of processes."""
    parts = [
        "# Many processes: what is sent and what is held",
        _text(intro),
        "## Measured: two processes on one CPU",
        *_measured(results["measured"]["1"], results["measured"]["2"]),
        "## Reckoned: 8 to 1,024 GPUs, 7 to 70 billion parameters",
        *_reckoned(results["reckoned"]),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(one: dict, two: dict) -> list[str]:
    full = one["ddp"]["full"]
    setup = f"""A Llama of {full["model"]:,} parameters ({SIZES["num_hidden_layers"]} blocks), {BATCH} x {LENGTH}
        tokens a process, float32, AdamW, gloo. *Sent*: what a process hands to the collectives that carry
        gradients, in a step. *Held*: weights, gradients and optimizer states of one process. *Time* is the median of a
        step, by that of full fine-tuning in one process, on two virtual cores; of few steps, so rough. The two
        processes take a batch each."""
    rows, whole = [], two["ddp"]["full"]["given"]["allreduce_"]
    for name, label in NAMES.items():
        ddp, fsdp = two["ddp"][name], two["fsdp"][name]
        sent = ddp["given"]["allreduce_"]
        times = (case["seconds"] / full["seconds"] for case in (one["ddp"][name], ddp, fsdp))
        held = (_mib(case[name]["held"]) for case in (two["ddp"], two["fsdp"]))
        rows.append([label, _mib(sent), f"{sent / whole:.2%}", *held, *(f"{ratio:.2f}" for ratio in times)])
    columns = ["method", "sent", "of full", "held, DDP", "held, FSDP2", "time, 1", "time, 2, DDP", "time, 2, FSDP2"]
    ddp, fsdp = two["ddp"]["trady"], two["fsdp"]["trady"]
    redraw = f"""A redraw took {1e3 * ddp["redraw_seconds"]:.0f} ms under DDP and sent
        {sum(ddp["redraw_given"].values())} bytes: every process draws the same channels by itself. Under FSDP2 it
        took {1e3 * fsdp["redraw_seconds"]:.0f} ms and handed {_mib(sum(fsdp["redraw_given"].values()))} to
        collectives: what was trained goes back into the split weights, and what trains next is put together from
        them."""
    return [_text(setup), _table(columns, rows), _text(redraw)]


def _reckoned(models: dict) -> list[str]:
    setup = f"""None of this was run, but for the draw. Llamas of published shapes, {TOKENS:,} tokens a sample,
        bfloat16 weights, gradients and states. *Sent* is what leaves a GPU in a step, in rings; its time at
        {WIRE / 1e9:.0f} GB/s a GPU, without latency and not hidden behind computing. *Held* is as above; under FSDP2
        with what is whole at the same time in a backward, which was not measured: the weights that no block holds
        (with TraDy the flat Parameter among them), two blocks, and the gradients of what trains in them."""
    rows, redraws = [], []
    for model, known in models.items():
        for devices in DEVICES:
            for name, label in NAMES.items():
                method = Method(**known["methods"][name])
                ddp = ddp_sent(method, ELEMENT, devices)
                fsdp = fsdp_sent(method, ELEMENT, devices, known["root"])
                gathered = fsdp_gathered_at_once(method, ELEMENT, known["root"], known["block"])
                held = ddp_memory(method, ELEMENT), fsdp_memory(method, ELEMENT, devices) + gathered
                cells = [
                    _gb(ddp),
                    f"{ddp / WIRE:.3f} s",
                    _gb(held[0]),
                    _gb(fsdp),
                    f"{fsdp / WIRE:.3f} s",
                    _gb(held[1]),
                ]
                rows.append([model, f"{devices:,}", label, *cells])
        method = Method(**known["methods"]["trady"])
        copies, sent = 4 * gradient_bytes(method, ELEMENT) / MEMORY, redraw_sent(method, ELEMENT, DEVICES[-1])
        times = f"{1e3 * known['draw']:.0f} ms", f"{1e3 * copies:.1f} ms"
        redraws.append([model, f"{method.flat:,}", *times, "0", _gb(sent), f"{1e3 * sent / WIRE:.0f} ms"])
    columns = ["parameters", "GPUs", "method", "DDP: sent", "time", "held", "FSDP2: sent", "time", "held"]
    full = Method(**known["methods"]["full"])  # of the largest model
    shares = []
    for name in ("trady", "lora"):
        method = Method(**known["methods"][name])
        shares.append(ddp_sent(method, ELEMENT, 64) / ddp_sent(full, ELEMENT, 64))
        shares.append(fsdp_sent(method, ELEMENT, 64, known["root"]) / fsdp_sent(full, ELEMENT, 64, known["root"]))
    reading = """Of what full fine-tuning of the largest model sends, TraDy sends {:.1%} under DDP and {:.0%} under
        FSDP2, LoRA {:.1%} and {:.0%}. Under FSDP2 the weights themselves travel, twice a step, whatever trains. On
        many GPUs what is gathered outweighs what is split: there the flat Parameter, gathered whole, makes TraDy
        hold more than full fine-tuning does, and a smaller budget helps."""
    redraw = f"""A redraw: the draw itself (measured, on the CPU here), the flat Parameter written out and read in
        anew (four times its bytes, at {MEMORY / 1e12:.2f} TB/s), and under FSDP2, at {DEVICES[-1]:,} GPUs, what is
        sent for it."""
    redraw_columns = ["parameters", "flat Parameter", "draw", "copies", "DDP: sent", "FSDP2: sent", "time"]
    return [
        _text(setup),
        _table(columns, rows),
        _text(reading.format(*shares)),
        _text(redraw),
        _table(redraw_columns, redraws),
    ]


def _text(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=119, break_long_words=False, break_on_hyphens=False)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
