"""The compilation that a Trainer is asked for (`torch_compile=True`), of the base model alone."""

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from transformers import TrainingArguments


def take_compilation(accelerator: Accelerator, args: TrainingArguments) -> dict | None:
    """The arguments for `TraDyModel.compile`; None where nothing is to be compiled, or block by block.

    From then on accelerate compiles nothing: it would do so to the whole TraDyModel, and what that does before each
    forward is other code for every draw.
    """
    asked = TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if asked.backend == DynamoBackend.NO or asked.use_regional_compilation:
        return None
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
    return asked.to_kwargs()
