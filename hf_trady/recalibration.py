"""Moving the statistics of batch-norms to a new domain, by forwards alone."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .fake import as_call


@torch.no_grad()
def recalibrate(model: nn.Module, norms: Sequence[_NormBase], dataloader: Iterable) -> None:
    """Replace the running statistics of `norms` by their averages over the batches of `dataloader`.

    As `torch.optim.swa_utils.update_bn` does, but in eval mode otherwise, for batches of keywords too, and a failure
    leaves the statistics as they were.

    Args:
        model: The module to call; left in eval mode.
        norms: Its batch-norms, with running statistics.
        dataloader: Yields `(inputs, labels)` or dicts of keywords.

    Raises:
        ValueError: If there is no batch.
    """
    device = next(model.parameters()).device
    before = [(norm, norm.momentum, {k: v.clone() for k, v in norm.state_dict().items()}) for norm in norms]
    model.eval()
    num_batches = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: all batches weigh the same
        for batch in dataloader:
            inputs = batch if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple | list) else batch
            args, kwargs = as_call(send_to_device(inputs, device))
            model(*args, **kwargs)
            num_batches += 1
        if num_batches == 0:
            raise ValueError("recalibrate_norms got no batch; give a dataloader of the new domain")
    except BaseException:
        for norm, _, state in before:
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum, norm.training = momentum, False
