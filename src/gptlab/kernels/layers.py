"""The layers that training takes from the kernels, put in torch's place for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.kernels import gelu
from gptlab.kernels.linear import bfloat16_linears

TRAINING_KERNELS = {torch.float32: ("softmax", "gelu"), torch.bfloat16: ("softmax", "gelu", "fused_head", "linear")}
"""What training on a CPU uses, by the precision of its products."""

_torch_gelu = F.gelu


@contextmanager
def fast_layers() -> Iterator[None]:
    """Inside, F.linear and F.gelu are the kernels' where these can do the work, and torch's where not.

    So model/gpt.py is plain torch, and whatever else is trained gains as well. The functions are exchanged for the
    whole process; what other threads call with them gives the same.
    """
    before = F.gelu
    F.gelu = _gelu
    try:
        with bfloat16_linears():
            yield
    finally:
        F.gelu = before


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:  # F.gelu's own names
    if approximate == "tanh" and gelu.supported(input):
        return gelu.gelu(input)
    return _torch_gelu(input, approximate=approximate)
