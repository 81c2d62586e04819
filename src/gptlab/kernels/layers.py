"""The layers that training takes from the kernels, put in torch's place for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.kernels import buffers, gelu
from gptlab.kernels.linear import bfloat16_linears

TRAINING_KERNELS = {torch.float32: ("softmax", "gelu"), torch.bfloat16: ("softmax", "gelu", "fused_head", "linear")}
"""What training on a CPU uses, by the precision of its products."""

_torch_gelu, _torch_embedding = F.gelu, F.embedding


@contextmanager
def fast_layers() -> Iterator[None]:
    """Inside, F.linear, F.gelu and F.embedding are the kernels' where these can do the work, and torch's where not.

    So model/gpt.py is plain torch, and whatever else is trained gains as well. The functions are exchanged for the
    whole process; what other threads call with them gives the same.
    """
    before = F.gelu, F.embedding
    F.gelu, F.embedding = _gelu, _embedding
    try:
        with bfloat16_linears():
            yield
    finally:
        F.gelu, F.embedding = before


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:  # F.gelu's own names
    if approximate == "tanh" and gelu.supported(input):
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
    if plain and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.requires_grad:
        rows: Tensor = buffers.Embedding.apply(input, weight)
        return rows
    return _torch_embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
