"""Measures the steps of every method on a small Llama, in this process and those it was launched with.

Usage: accelerate launch ... scale_case.py RESULT.json [STEPS]
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest

import torch
import torch.distributed as dist
from accelerate import PartialState
from collectives import CollectiveBytes
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hf_trady import TraDyConfig, TraDyModel


SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "vocab_size": 1024}
BATCH, LENGTH, BUDGET, RANK = 4, 64, 0.025, 8


def llama() -> LlamaForCausalLM:
    """The network; it has the shape of a Llama of 7 billion parameters, 16 times narrower."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def full() -> nn.Module:
    return llama()


def lora() -> nn.Module:
    return get_peft_model(llama(), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def trady() -> nn.Module:
    config = TraDyConfig(memory_budget=BUDGET, strategy="dynamic_full_random")
    return TraDyModel(llama(), config, example_inputs={"input_ids": torch.zeros(1, LENGTH, dtype=torch.int64)})


METHODS = {"full": full, "lora": lora, "trady": trady}


def sizes(model: nn.Module) -> dict[str, int]:
    """Elements as the formulas want them: of the model, added, trained, and of the flat Parameter."""
    everything = sum(p.numel() for p in model.parameters())
    plain = sum(p.numel() for p in llama().parameters())
    flat = sum(p.numel() for p in model.active.flat) if isinstance(model, TraDyModel) else 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"model": plain, "added": everything - plain, "trained": trained, "flat": flat}


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients and optimizer states of this process; scalars left out."""
    tensors = list(model.parameters()) + [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def measure(result: dict, name: str, sharded: bool, steps: int) -> Iterator[None]:
    """Put the figures of one method into `result`; goes on by a step each time that it is asked."""
    model = METHODS[name]().train()
    result |= sizes(model)
    called = model
    if sharded:
        for module in model.modules():
            if isinstance(module, LlamaDecoderLayer):
                fully_shard(module)
        called = fully_shard(model)
    elif dist.is_initialized():
        called = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(SIZES["vocab_size"], (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    seconds, given = [], {}
    for step in range(steps + 3):
        counter = CollectiveBytes()
        start = time.perf_counter()
        with counter if step == 2 else torch.enable_grad():  # counting takes time, and the first steps are others
            called(input_ids=ids, labels=ids).loss.backward()
        if step == 2:
            given = dict(counter.given)
            result["held"] = held(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if step > 2:
            seconds.append(time.perf_counter() - start)
        yield
    result |= {"given": given, "seconds": statistics.median(seconds)}
    if isinstance(model, TraDyModel):
        start, counter = time.perf_counter(), CollectiveBytes()
        with counter:
            model.resample(1, optimizer)
        result |= {"redraw_given": dict(counter.given), "redraw_seconds": time.perf_counter() - start}


def main() -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    steps = int(sys.argv[2]) if sys.argv[2:] else 10
    network = {"sizes": SIZES, "length": LENGTH, "budget": BUDGET, "rank": RANK}
    results = {"processes": state.num_processes, "network": network, "ddp": {}, "fsdp": {}}
    running = []
    for kind in ("ddp", "fsdp") if state.num_processes > 1 else ("ddp",):
        for name in METHODS:
            results[kind][name] = {}
            running.append(measure(results[kind][name], name, kind == "fsdp", steps))
    for _ in zip_longest(*running):  # step by step in turns, so that what else the machine does meets all of them
        pass
    if state.is_main_process:
        with open(sys.argv[1], "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
