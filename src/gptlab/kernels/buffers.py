"""Memory of a vocabulary's size, kept from step to step on a CPU.

An allocator gives back to the system what is so large as soon as it is freed, and the next step pays for new pages: at
GPT-2 small's size 300 MB of them, a seventh of the step. Here memory goes to one tensor at a time, and to the next as
soon as no tensor lies in it any more: a gradient that somebody holds stays as it is.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from gptlab.kernels.tiles import scratch

LARGE = 2**25
"""Bytes from which on glibc keeps nothing that is freed (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c)."""

MOST = 2
"""So many are kept for one weight: its gradient, and what is being added to that. More would mostly lie idle."""


class _Memory:
    """Room for one tensor of a weight's shape at a time."""

    def __init__(self, weight: Tensor) -> None:
        self.array = torch.empty_like(weight, memory_format=torch.contiguous_format).numpy()
        self.lease: weakref.ref[np.ndarray] | None = None

    def free(self) -> bool:
        return self.lease is None or self.lease() is None

    def tensor(self) -> Tensor:
        # torch holds the array that it is given for as long as a tensor lies in its memory: one of its own.
        array = self.array.view()
        self.lease = weakref.ref(array)
        return torch.from_numpy(array)


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memories = WeakTensorKeyDictionary()
        """Lists of _Memory by the weight that they are for, with which they go."""


_kept = _Kept()


def empty_like(weight: Tensor) -> Tensor:
    """Uninitialized memory of the shape of an embedding or output layer, contiguous; kept memory where it is large,
    float32 and on the CPU."""
    if _is_real(weight) and weight.dtype == torch.float32 and weight.nbytes >= LARGE:
        memories: list[_Memory] = _kept.memories.setdefault(weight, [])
        for memory in memories:
            if memory.free():
                return memory.tensor()
        if len(memories) < MOST:
            memories.append(_Memory(weight))
            return memories[-1].tensor()
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def logits_like(hidden: Tensor, positions: int, vocabulary: int) -> Tensor:
    """Uninitialized logits (positions, vocabulary) as `hidden` has them, for one call: on a CPU in the kernels' scratch
    where they are large."""
    elements = positions * vocabulary
    if not _is_real(hidden) or elements * hidden.itemsize < LARGE:
        return hidden.new_empty(positions, vocabulary)
    return scratch(elements * hidden.itemsize)[: elements * hidden.itemsize].view(hidden.dtype).view(positions, -1)


def takes(weight: Tensor) -> bool:
    """Whether the lookup in this weight is `Embedding`'s."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.requires_grad


def _is_real(tensor: Tensor) -> bool:
    """Whether it lies in this machine's memory: a traced step's tensors lie nowhere."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


class Embedding(torch.autograd.Function):
    """Rows of `weight` (vocabulary, width) by ids (…). The gradient, nearly all of it zero, lies in kept memory, and a
    row is added to it at once: of 50,257 × 128 torch's own takes 14 ms, this one 0.4."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> tuple[None, Tensor]:
        d_weight = empty_like(ctx.weight).zero_()
        ids = ctx.saved_tensors[0].flatten()
        return None, d_weight.index_add_(0, ids, d_rows.reshape(-1, d_weight.shape[1]).to(d_weight.dtype))
