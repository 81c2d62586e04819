"""What a precision makes of a model, in torch alone: its products by rounded weights, and the model that they are.

`dequantised(model, precision) -> GPT` is a float32 copy with exactly the weights that `precision` reads, which is what
the C++ step computes: score it to know what the precision costs. `with_rounded_products` is what computes in its place
where there is no compiler, and rounds activations to bfloat16 as well. benchmarks/generation.py scores both: of models
of width 128 to 256 the perplexity in int8 changed by −0.03 to +0.03 % in C++, and in torch by 0.002 to 0.02 % more.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.kernels.decode import Precision, rounded
from gptlab.model.gpt import GPT


def dequantised(model: GPT, precision: Precision) -> GPT:
    """A float32 copy of the model whose products have exactly the weights that `precision` reads.

    For scoring what a precision costs: the embeddings, which are no product, keep theirs, so a tied head is untied. Its
    activations are float32, as the C++ step's are.
    """
    twin = copy.deepcopy(model)
    if model.shape.tie_head:
        twin.shape = dataclasses.replace(model.shape, tie_head=False)
        twin.lm_head.weight = nn.Parameter(twin.wte.weight.detach().clone())
    with torch.no_grad():
        for module in _products(twin):
            module.weight.copy_(rounded(module.weight, precision).restored())
    return twin


def with_rounded_products(model: GPT, precision: Precision) -> GPT:
    """A GPT, in eval mode, whose Linear modules are `_RoundedLinear`; all other tensors, and the hooks, are the model's
    own. Its last layer is called (`lm_head(…)`): `head_weight` is not rounded. Bfloat16 and int8 alone."""
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    twin = copy.deepcopy(model, {id(own): own for own in (*model.parameters(), *hooks)}).eval()
    for module in _products(twin):
        module.__class__ = _RoundedLinear  # in its place, so that its hooks stay
        cast("_RoundedLinear", module).round_weight(precision)
    return twin


def _products(model: GPT) -> list[nn.Linear]:
    """The modules whose weights a precision rounds; a Linear of a class of its own computes something else."""
    return [module for module in model.modules() if type(module) is nn.Linear]


class _RoundedLinear(nn.Linear):
    """A Linear that multiplies by its weight in bfloat16 or int8. Where torch has a fast product for it (bfloat16; int8
    on a CPU, of bfloat16 inputs alone) its input and its sums are rounded to bfloat16."""

    def round_weight(self, precision: Precision) -> None:
        self.values, self.scale = rounded(self.weight, precision)
        # Of scales torch's operation knows only bfloat16 ones, so it is given ones, and the real ones come after it.
        self.ones = None if self.scale is None else torch.ones_like(self.scale, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            product = F.linear(x.bfloat16(), self.values).to(x.dtype)
        elif x.device.type == "cpu":
            product = torch.ops.aten._weight_int8pack_mm(x.bfloat16().flatten(0, -2), self.values, self.ones)
            product = product.view(*x.shape[:-1], -1).to(x.dtype) * self.scale.to(x.dtype)
        else:
            product = F.linear(x, self.values.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias
