"""Which operation of an autograd graph holds which storage."""

from collections.abc import Callable, Iterator

from torch import Tensor

from .storages import Storage


def op_of_storage(loss: Tensor, find: Callable[[Tensor], Storage | None]) -> dict[int, str]:
    """`id` of a Storage -> name of the first operation, in the order of the forward, that saved a tensor in it.

    A function written in Python is named in full (`package.module.Class`), one of torch's own by its node's name
    (`Gelu`). What activation checkpointing will recompute is not there, and so is not named; nor is anything by an
    older torch (2.9), whose nodes do not show what they saved without unpacking it.
    """
    names: dict[int, str] = {}
    for node in sorted(_nodes(loss.grad_fn), key=lambda node: node._sequence_nr()):
        for tensor in _saved_tensors(node):
            storage = find(tensor)
            if storage is not None:
                names.setdefault(id(storage), _name(node))
    return names


def _nodes(root) -> Iterator:
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _saved_tensors(node) -> Iterator[Tensor]:
    """The tensors that `node` holds for backward, without running the hooks that would unpack them."""
    names = [name for name in dir(node) if name.startswith("_raw_saved_")]
    if isinstance(getattr(type(node), "_forward_cls", None), type):
        names = ["_raw_saved_tensors"]
    for name in names:
        saved = getattr(node, name)
        for part in saved if isinstance(saved, tuple | list) else (saved,):
            # Data is what a hook packed: ours hands the tensor back, activation checkpointing a placeholder.
            if isinstance(getattr(part, "data", None), Tensor):
                yield part.data


def _name(node) -> str:
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        return f"{function.__module__}.{function.__qualname__}"
    return node.name().removesuffix("0").removesuffix("Backward")
