"""Gradients of a vocabulary's size, whose memory is kept from step to step on a CPU.

An allocator gives back to the system what is so large as soon as it is freed, and the next step pays for new pages: at
GPT-2 small's size 300 MB of them, a seventh of the step.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

LARGE = 2**25
"""Bytes from which on glibc keeps nothing that is freed (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c)."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.heads = WeakTensorKeyDictionary()
        """By an output layer's weight: memory for its gradient, or None where it is in use. Gone with the weight."""
        self.zeros = WeakTensorKeyDictionary()
        """By an embedding that is also an output layer: zeros, and the rows of them that are not zero any more."""


_kept = _Kept()


def gradient_of_head(weight: Tensor) -> Tensor:
    """Uninitialized memory for the gradient of an output layer (vocabulary, width), float32 on the CPU."""
    spare: Tensor | None = None
    if _is_large(weight):
        spare = _kept.heads.get(weight)
        _kept.heads[weight] = None
    return torch.empty(weight.shape) if spare is None else spare


def give_back(parameter: Tensor) -> None:
    """The parameter's gradient is not needed any more: if it is an output layer's, the next has its memory."""
    gradient = parameter.grad
    if gradient is not None and gradient.is_contiguous() and _is_head(parameter):
        _kept.heads[parameter] = gradient


def _is_large(weight: Tensor) -> bool:
    real = type(weight) in (Tensor, torch.nn.Parameter)  # a traced step's tensors have no memory
    return real and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.nbytes >= LARGE


def _is_head(weight: Tensor) -> bool:
    return _is_large(weight) and weight in _kept.heads


class Embedding(torch.autograd.Function):
    """Rows of `weight` (vocabulary, width) by ids (…). Where the weight is an output layer too, autograd adds this
    gradient, nearly all of it zero, to the head's: it lies in memory of which only the rows of the step before have
    to be cleared."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> tuple[None, Tensor]:
        ids = ctx.saved_tensors[0].flatten()
        tied = _is_head(ctx.weight)
        if tied and ctx.weight in _kept.zeros:
            d_weight, written = _kept.zeros[ctx.weight]
            d_weight.index_fill_(0, written, 0.0)
        else:
            d_weight = torch.zeros_like(ctx.weight)
        d_weight.index_add_(0, ids, d_rows.flatten(0, -2).to(d_weight.dtype))
        if tied:
            _kept.zeros[ctx.weight] = d_weight, ids
        return None, d_weight
