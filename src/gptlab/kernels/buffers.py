"""Gradients of a vocabulary's size, whose memory is kept from step to step on a CPU.

An allocator gives back to the system what is so large as soon as it is freed, and the next step pays for new pages: at
GPT-2 small's size 300 MB of them, a seventh of the step.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 2**25
"""Bytes from which on glibc keeps nothing that is freed (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c)."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.spare: dict[torch.Size, Tensor] = {}
        self.zeros: dict[torch.Size, tuple[Tensor, Tensor]] = {}


_kept = _Kept()


def give(tensor: Tensor | None) -> None:
    """A float32 gradient that nobody needs any more: the next `take` of its shape has its memory."""
    if tensor is not None and _is_large(tensor) and tensor.is_contiguous():
        _kept.spare[tensor.shape] = tensor


def take(shape: torch.Size) -> Tensor:
    """An uninitialized float32 tensor on the CPU."""
    spare = _kept.spare.pop(shape, None)
    return torch.empty(shape) if spare is None else spare


def _is_large(tensor: Tensor) -> bool:
    real = type(tensor) is Tensor  # a traced step's tensors have no memory to give
    return real and tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.nbytes >= LARGE


class Embedding(torch.autograd.Function):
    """Rows of `weight` (vocabulary, width) by ids (…), whose gradient, nearly all of it zero, is written into memory of
    which only the rows of the step before have to be cleared."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape  # type: ignore[attr-defined]
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, d_rows: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors  # type: ignore[attr-defined]
        shape = ctx.shape  # type: ignore[attr-defined]
        ids = ids.flatten()
        if shape in _kept.zeros:
            d_weight, written = _kept.zeros.pop(shape)
            d_weight.index_fill_(0, written, 0.0)
        else:
            d_weight = torch.zeros(shape)
        d_weight.index_add_(0, ids, d_rows.flatten(0, -2).float())
        if _is_large(d_weight):
            # Autograd adds what it is given to the head's gradient where they share a weight; where not, it copies
            # what somebody else still holds.
            _kept.zeros[shape] = d_weight, ids
        return None, d_weight
