"""Holds a lean module against autograd on its plain twin."""

import copy

import torch
import torch.nn.functional as F

from hf_trady.lean import make_lean

from ..layers.against_autograd import random_like, recorded_saves


def lean_copy(module, mode="compressed"):
    """A lean copy of `module`, in training mode, with everything but its bias frozen."""
    lean = copy.deepcopy(module)
    for part in lean.modules():
        make_lean(part, mode)
    for name, parameter in lean.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return lean.train()


def saved_bytes(saved, module, *others):
    """Bytes of the tensors in `saved`, each memory once, without those of the module and `others`."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), *others)}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(nbytes for pointer, nbytes in storages.items() if pointer not in known)


def run(module, x, cotangent_seed=5):
    """Output, gradient of x, gradients of the parameters, and the tensors saved."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with recorded_saves() as saved:
        output = module(x * 1.0)  # a module may work in place, which autograd forbids on a leaf
    output.backward(random_like(output, cotangent_seed))
    return output.detach(), x.grad, [p.grad for p in module.parameters() if p.grad is not None], saved


def check_exact(module, x, tolerance=1e-9, mode="exact"):
    """Output and gradients equal those of the plain module. Returns the bytes that were saved."""
    plain = copy.deepcopy(module)
    lean = lean_copy(module, mode)
    assert type(lean) is not type(plain)
    for plain_parameter, parameter in zip(plain.parameters(), lean.parameters(), strict=True):
        plain_parameter.requires_grad_(parameter.requires_grad)
    expected, actual = run(plain, x), run(lean, x)
    for one, other in zip(expected[:2], actual[:2], strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)
    for one, other in zip(expected[2], actual[2], strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)
    return saved_bytes(actual[3], lean)


def check_compressed(module, x, cosine=0.999):
    """Outputs equal and gradients point where those of the plain module do. Returns the bytes that were saved."""
    plain = copy.deepcopy(module)
    lean = lean_copy(module)
    assert type(lean) is not type(plain)
    expected, actual = run(plain, x), run(lean, x)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert F.cosine_similarity(actual[1].flatten(), expected[1].flatten(), 0) > cosine
    return saved_bytes(actual[3], lean)
