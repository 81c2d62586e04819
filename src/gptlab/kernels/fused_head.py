"""The output layer and its loss in one C++ kernel, where the CPU multiplies bfloat16 itself (AVX512-BF16).

The pure-torch equal is the chunked path of model/head.py under bfloat16 autocast. That writes the logits, reads and
writes them for the softmax and reads its gradient twice; here the exponentials of at most 512 positions are written
and read once, and no pass is spent on the softmax. With 50,257 words and two cores of a Zen 5 that is 1.5 times as fast
as oneDNN's products and softmax.cpp at widths 128 and 256, and 1.3 times at 768. The scratch is vocabulary × 1 KB and
is kept between calls.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from gptlab.kernels import native, tiles
from gptlab.kernels.tiles import check, check_targets, scratch


def supported() -> bool:
    """Whether this CPU has the instructions and the kernel could be built; `reason` says why not."""
    return reason() == ""


def reason() -> str:
    """Why the kernel cannot be had here, in a few words; "" where it can."""
    return tiles.reason("fused_head")


def takes(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the kernel is for an output layer like this; to any other the pure-torch equal can be put."""
    on_cpu = hidden.device.type == weight.device.type == "cpu"
    dtypes = hidden.dtype in (torch.float32, torch.bfloat16) and weight.dtype == torch.float32
    return on_cpu and dtypes and hidden.is_contiguous() and weight.is_contiguous()


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    *,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
) -> Tensor:
    """−log p(target) of each position, (n,) float32; where buffers are given, the gradients of Σ weights · loss.

    hidden:   (n, width) float32 or bfloat16
    weight:   (vocabulary, width) float32, the output layer
    targets:  (n,) int64
    weights:  (n,) float32, 1 where None
    d_hidden: (n, width) float32, overwritten
    d_weight: (vocabulary, width) float32, overwritten

    All contiguous and on the CPU. Products take bfloat16 and sum in float32; the logits stay float32. The same inputs
    and number of threads give the same bits. A logit that is NaN or +inf makes its position's loss NaN; −inf is a
    probability of 0, and NaN for the target. Needs `supported()`. IndexError for a target outside of the vocabulary.
    """
    vocabulary, width = weight.shape
    check("hidden", hidden, (len(targets), width), torch.float32, torch.bfloat16)
    check("weight", weight, (vocabulary, width), torch.float32)
    check_targets(targets, len(targets), vocabulary)
    check("weights", weights, (len(targets),), torch.float32)
    check("d_hidden", d_hidden, (len(targets), width), torch.float32)
    check("d_weight", d_weight, (vocabulary, width), torch.float32)
    losses = targets.new_empty(len(targets), dtype=torch.float32)
    if len(targets) == 0:
        if d_weight is not None:
            d_weight.zero_()
        return losses
    kernel = _kernel()
    hidden = hidden.bfloat16()
    tensors = (hidden, weight, targets, weights, losses, d_hidden, d_weight)
    addresses = [native.pointer(tensor) for tensor in tensors]
    sizes = (len(targets), vocabulary, width, torch.get_num_threads())
    memory = scratch(kernel(*addresses, *sizes, None))
    kernel(*addresses, *sizes, native.pointer(memory))
    return losses


def scratch_bytes(positions: int, vocabulary: int, width: int, *, gradients: bool) -> int:
    """What the kernel holds, from its first call on, beside the tensors it is given."""
    given = [1] * 5 + [1 if gradients else None] * 2
    return int(_kernel()(*given, positions, vocabulary, width, torch.get_num_threads(), None))


def _kernel() -> Any:
    kernel = tiles.library("fused_head").fused_head
    kernel.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 3 + [ctypes.c_int, ctypes.c_void_p]
    kernel.restype = ctypes.c_int64
    return kernel
