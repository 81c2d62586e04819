"""The layers that training takes from the kernels, put in torch's place for as long as it lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.kernels import buffers, gelu, linear

TRAINING_KERNELS = {torch.float32: ("softmax", "gelu"), torch.bfloat16: ("softmax", "gelu", "fused_head", "linear")}
"""What training on a CPU uses, by the precision of its products."""

_SUPPORTED = {"gelu": gelu.supported, "linear": linear.supported}


def training_kernels(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """What training and scoring use on this device, with products in `dtype`: none but on a CPU."""
    return TRAINING_KERNELS.get(dtype, ()) if device.type == "cpu" else ()


@contextmanager
def fast_layers(names: Sequence[str] = tuple(_SUPPORTED)) -> Iterator[None]:
    """Inside, F.linear, F.gelu and F.embedding are the kernels' where these can do the work, and torch's where not.

    So model/gpt.py is plain torch, and whatever else is trained gains as well. Of `names`, the run's kernels, "linear"
    and "gelu" are layers; where one of them can be had on this machine, embeddings are exchanged too
    (buffers.Embedding). Which can be had is decided once, on entering; `native.torch_only` around it means none.

    The functions are exchanged for the whole process, and do what their caller entered with: a thread that has not
    entered gets torch's, and so does torch.compile, which can fuse those. What computes a forward again in backward
    (torch.utils.checkpoint) must find the same as the first time, or it raises CheckpointError: call backward inside
    too. There is a first derivative, by backward() or torch.autograd.grad; for a second one, for torch.func and for
    forward-mode gradients stay outside.
    """
    taken = frozenset(name for name in names if name in _SUPPORTED and _SUPPORTED[name]())
    token = _taken.set(taken)
    _exchange(bool(taken))
    try:
        yield
    finally:
        _exchange(-bool(taken))
        _taken.reset(token)


_taken: ContextVar[frozenset[str]] = ContextVar("taken", default=frozenset())
"""The layers that whoever is running has from the kernels."""

_torch_linear, _torch_gelu, _torch_embedding = F.linear, F.gelu, F.embedding
_lock = threading.Lock()
_inside = 0


def _exchange(entered: int) -> None:
    """Counts who is inside: the first exchanges the functions, and the last puts torch's back."""
    global _inside
    with _lock:
        _inside += entered
        ours, torchs = (_linear, _gelu, _embedding), (_torch_linear, _torch_gelu, _torch_embedding)
        F.linear, F.gelu, F.embedding = ours if _inside else torchs


# torch.compiler.is_compiling() comes first below: what is behind it is not traced, and could not be.


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # F.linear's own names
    if not torch.compiler.is_compiling() and "linear" in _taken.get() and linear.takes(input, weight, bias):
        return linear.linear(input, weight, bias)
    return _torch_linear(input, weight, bias)


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:  # F.gelu's own names
    if not torch.compiler.is_compiling() and approximate == "tanh" and "gelu" in _taken.get() and gelu.takes(input):
        return gelu.gelu(input)
    return _torch_gelu(input, approximate=approximate)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:  # F.embedding's own names
    plain = padding_idx is None and max_norm is None and not scale_grad_by_freq and not sparse
    if not torch.compiler.is_compiling() and plain and _taken.get() and buffers.takes(weight):
        rows: Tensor = buffers.Embedding.apply(input, weight)
        return rows
    return _torch_embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
