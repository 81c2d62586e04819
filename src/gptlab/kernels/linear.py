"""The linear layers of training in bfloat16, in C++, where the CPU multiplies bfloat16 itself (AVX512-BF16).

The pure-torch equal is F.linear under autocast. That writes a copy of each weight in bfloat16 and keeps it for
backward, and makes the weights' gradients in bfloat16 before it writes them as float32; here a weight is rounded on its
way into the core's cache, and its gradient is summed and written in float32.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptlab.kernels import native, tiles
from gptlab.kernels.tiles import check, scratch

FEWEST_ROWS, FEWEST_PRODUCTS = 256, 2**27
"""Rows (n) and n · in · out from which a layer is the kernel's: below, its calls and the weights' packing make it up to
a quarter slower than torch. Above, forward and backward together take 2 to 20 % less time on a core of a Zen 5."""


def supported() -> bool:
    """Whether this CPU has the instructions and the kernel could be built; `reason` says why not."""
    return reason() == ""


def reason() -> str:
    """Why the kernel cannot be had here, in a few words; "" where it can."""
    return tiles.reason("linear")


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether F.linear of these is the kernel's: on the CPU under autocast to bfloat16, x (…, in), weight (out, in) and
    bias (out,) float32 and contiguous, and large enough to gain from it (FEWEST_ROWS, FEWEST_PRODUCTS)."""
    kept = (weight,) if bias is None else (weight, bias)
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and all(tensor.device.type == "cpu" and tensor.layout == torch.strided for tensor in (x, *kept))
        and all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in kept)
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dim() == 2
        and x.shape[-1:] == weight.shape[1:]
        and x.numel() >= FEWEST_ROWS * weight.shape[1]
        and x.numel() * len(weight) >= FEWEST_PRODUCTS
        and (bias is None or bias.shape == weight.shape[:1])
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of what the kernel `takes`, (…, out) bfloat16, with the first derivative.

    The products are rounded as torch's are; the gradients of weight and bias stay as they were summed, in float32, and
    so does the input's where the input is float32. The same inputs give the same bits with any number of threads.
    RuntimeError where it is not `supported`.
    """
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rounded = x.bfloat16()
        ctx.save_for_backward(rounded if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.dtype = x.dtype
        y: Tensor = torch.ops.gptlab.linear(rounded, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = d_weight = d_bias = None
        if need_x:
            dx = torch.ops.gptlab.linear_input_gradient(dy, weight, ctx.dtype)
        if need_weight:
            d_weight, d_bias = torch.ops.gptlab.linear_weight_gradient(dy, x)
        elif need_bias:
            d_bias = dy.flatten(0, -2).sum(dim=0, dtype=torch.float32)
        return dx, d_weight, d_bias if need_bias else None


@torch.library.custom_op("gptlab::linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, in) bfloat16, weight (out, in), bias (out,) or None → (…, out) bfloat16."""
    check("weight", weight, (len(weight), x.shape[-1]), torch.float32)
    check("bias", bias, (len(weight),), torch.float32)
    y = x.new_empty(*x.shape[:-1], len(weight))
    _call("linear_forward", y.numel() // len(weight), weight, _rows(x), weight, bias, y)
    return y


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("gptlab::linear_input_gradient", mutates_args=())
def _input_gradient(dy: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """dy (…, out) bfloat16, weight (out, in) → dx (…, in) in `dtype`, float32 or bfloat16."""
    check("weight", weight, (dy.shape[-1], weight.shape[1]), torch.float32)
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1], dtype=dtype)
    outputs = (dx, None) if dtype == torch.float32 else (None, dx)
    _call("linear_input_gradient", dy.numel() // len(weight), weight, _rows(dy), weight, *outputs)
    return dx


@_input_gradient.register_fake
def _(dy: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], weight.shape[1], dtype=dtype)


@torch.library.custom_op("gptlab::linear_weight_gradient", mutates_args=())
def _weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """dy (…, out), x (…, in), both bfloat16 → d_weight (out, in), d_bias (out,), both float32."""
    x = x.contiguous()
    check("input", x, (*dy.shape[:-1], x.shape[-1]), torch.bfloat16)
    d_weight = x.new_empty(dy.shape[-1], x.shape[-1], dtype=torch.float32)
    d_bias = x.new_empty(dy.shape[-1], dtype=torch.float32)
    _call("linear_weight_gradient", x.numel() // x.shape[-1], d_weight, _rows(dy), _rows(x), d_weight, d_bias)
    return d_weight, d_bias


@_weight_gradient.register_fake
def _(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    d_weight = x.new_empty(dy.shape[-1], x.shape[-1], dtype=torch.float32)
    return d_weight, x.new_empty(dy.shape[-1], dtype=torch.float32)


def _rows(x: Tensor) -> Tensor:
    """x in memory as the kernel reads it: the terms of a sum in pairs, the last with 0 where they are odd."""
    rows = (F.pad(x, (0, 1)) if x.shape[-1] % 2 else x).contiguous()
    check("input", rows, rows.shape, torch.bfloat16)
    return rows


def _call(name: str, n: int, weight: Tensor, *tensors: Tensor | None) -> None:
    library = tiles.library("linear")
    sizes = [*map(ctypes.c_int64, (n, weight.shape[1], weight.shape[0])), torch.get_num_threads()]
    size = library.linear_scratch_bytes
    size.restype = ctypes.c_int64
    memory = scratch(size(*sizes))
    library[name](*sizes, *map(native.pointer, (memory, *tensors)))
