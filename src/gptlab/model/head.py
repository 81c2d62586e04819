"""The output layer and its loss as one fused function.

With a vocabulary of 50,257 the (rows × time × vocabulary) logits dominate a step's memory and, for small
models, its time. Here the supervised positions are selected first and the vocabulary is met a chunk of
positions at a time, softmax in float32, so that no vocabulary-sized tensor per position is ever held:

- `summed_cross_entropy`: a weighted sum whose weights are known before. The gradients are computed while the
  chunk's logits are there, so nothing is computed twice.
- `target_log_probs`: one log-probability a position, for losses whose coefficients are known only later
  (DPO). Each chunk is computed again in backward.

`summed_distillation`, of two models, stands in distilled_head.py upon `by_chunks`.

The naive equal of the first, which the tests hold it against:

    logits = F.linear(hidden.flatten(0, 1)[positions], weight)
    loss = (weights * F.cross_entropy(logits, targets.flatten()[positions], reduction="none")).sum()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptlab.kernels import buffers, fused_head
from gptlab.kernels.softmax import softmax_loss_

CHUNK_ELEMENTS = 2**25
"""Logits of a model held at once: 128 MiB in float32, 667 positions of GPT-2's vocabulary. Smaller chunks read and
write the weight's gradient more often, larger ones only cost memory."""


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, positions: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Σ weights · −log p(target) over the supervised positions, a float32 scalar (float64 for float64).

    hidden:    (rows, time, width)
    weight:    (vocabulary, width), the output layer
    targets:   (rows, time) int64
    positions: (n,) int64, flat indices into rows × time of the supervised positions
    weights:   (n,), 1 where not given

    Under autocast the products run in its dtype; the softmax never does. A frozen head gets no gradient,
    and under no_grad none is computed.
    """
    chosen, wanted = select(hidden, targets, positions)
    loss: Tensor = _SummedCrossEntropy.apply(
        chosen, weight, wanted, weights, product_dtype(hidden), torch.is_grad_enabled()
    )
    return loss


def target_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    """log p(target) of each supervised position, (n,) float32; arguments as `summed_cross_entropy` has them."""
    chosen, wanted = select(hidden, targets, positions)
    log_probs: Tensor = _TargetLogProbs.apply(chosen, weight, wanted, product_dtype(hidden))
    return log_probs


def select(hidden: Tensor, targets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (n, width) and targets (n,) of the supervised positions."""
    return hidden.flatten(0, 1).index_select(0, positions), targets.flatten().index_select(0, positions)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What a product with these hidden states is computed in: autocast's dtype, or their own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        dtype: torch.dtype,
        train: bool,
    ) -> Tensor:
        needed = (train and ctx.needs_input_grad[0], train and ctx.needs_input_grad[1])
        losses, *gradients = _losses_and_gradients(hidden, weight, targets, weights, dtype, *needed)
        ctx.save_for_backward(*gradients)
        return losses.sum() if weights is None else losses.dot(weights.to(losses))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, d_loss), None, None, None, None


def scaled_gradients(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients that forward saved, times `d_loss`: in place, since they are as large as the output layer, and
    nobody else has them."""
    return tuple(None if saved is None else saved.mul_(d_loss) for saved in ctx.saved_tensors)


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype = dtype
        return -_losses_and_gradients(hidden, weight, targets, None, dtype, False, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        _, d_hidden, d_weight = _losses_and_gradients(hidden, weight, targets, -d_log_probs, ctx.dtype, *needed)
        return d_hidden, d_weight, None, None


def _losses_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """−log p(target) of each position (n,), and the gradients of Σ weights · that, where they are needed.

    hidden (n, width), weight (vocabulary, width), targets and weights (n,); products in `dtype`.
    """
    if dtype == torch.bfloat16 and fused_head.takes(hidden, weight) and fused_head.supported():
        losses, *gradients = torch.ops.gptlab.fused_head(hidden, weight, targets, weights, need_hidden, need_weight)
        d_hidden, d_weight = (
            g if needed else None for g, needed in zip(gradients, (need_hidden, need_weight), strict=True)
        )
        return losses, None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight

    def chunk_loss(room: Tensor, part: slice) -> Tensor:
        coefficients = None if weights is None else weights[part]
        return softmax_loss_(room[0], targets[part], coefficients, gradient=need_hidden or need_weight)

    return by_chunks(hidden, weight, dtype, need_hidden, need_weight, chunk_loss)


def by_chunks(
    hidden: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    chunk_loss: Callable[[Tensor, slice], Tensor],
    *,
    rooms: int = 1,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The losses (n, …) of hidden states (n, width), and the gradients of what they are summed to, where needed.

    `chunk_loss(room, part)` gives the losses of the positions `part` from their logits, room[0], and where a gradient
    is needed leaves it in their place. `room` (rooms, positions, vocabulary) lies in one buffer in `dtype`, kept from
    call to call on a CPU; rooms beyond the first are the function's own.
    """
    hidden_cast, weight_cast = hidden.detach().to(dtype), weight.detach().to(dtype)
    size = max(1, min(len(hidden), CHUNK_ELEMENTS // len(weight)))
    memory = buffers.logits_like(hidden_cast, rooms * size, len(weight)).view(rooms, size, len(weight))
    losses = []
    d_hidden = torch.empty_like(hidden_cast) if need_hidden else None
    d_weight = _WeightGradient(weight, dtype) if need_weight else None
    for start in range(0, max(1, len(hidden)), size):  # no position at all is a chunk too: it has no losses
        part = slice(start, start + size)
        chunk = hidden_cast[part]
        room = memory[:, : len(chunk)]
        logits = torch.mm(chunk, weight_cast.t(), out=room[0])
        losses.append(chunk_loss(room, part))
        if d_hidden is not None:
            torch.mm(logits, weight_cast, out=d_hidden[part])
        if d_weight is not None:
            d_weight.add(logits, chunk)
    return (
        torch.cat(losses),
        None if d_hidden is None else d_hidden.to(hidden.dtype),
        None if d_weight is None else d_weight.total(),
    )


class _WeightGradient:
    """Σ over the chunks of d_logitsᵀ · hidden, in the weight's own dtype: bfloat16 would round the sum.

    On a CPU it is summed as (width, vocabulary) and turned round once at the end: oneDNN makes that product up to
    1.4 times as fast, and the turning costs a tenth of what is gained.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight
        self.transposed = weight.device.type == "cpu"
        shape = weight.shape[::-1] if self.transposed else weight.shape
        self.sum = buffers.empty_like(weight).view(shape).zero_()
        self.product = None if dtype == weight.dtype else weight.new_empty(shape, dtype=dtype)

    def add(self, d_logits: Tensor, hidden: Tensor) -> None:
        left, right = (hidden, d_logits) if self.transposed else (d_logits, hidden)
        if self.product is None:
            self.sum.addmm_(left.t(), right)
        else:
            self.sum += torch.mm(left.t(), right, out=self.product)

    def total(self) -> Tensor:
        return buffers.empty_like(self.weight).copy_(self.sum.t()) if self.transposed else self.sum


@torch.library.custom_op("gptlab::fused_head", mutates_args=())
def _fused_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, need_hidden: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole in one kernel: losses (n,), and d_hidden and d_weight in float32, empty where they are not needed."""
    d_hidden = hidden.new_empty(hidden.shape if need_hidden else 0, dtype=torch.float32)
    d_weight = buffers.empty_like(weight) if need_weight else weight.new_empty(0)
    losses = fused_head.cross_entropy(
        hidden, weight, targets, None if weights is None else weights.float().contiguous(),
        d_hidden=d_hidden if need_hidden else None, d_weight=d_weight if need_weight else None,
    )  # fmt: skip
    return losses, d_hidden, d_weight


@_fused_head.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, need_hidden: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    empty = hidden.new_empty
    return (
        empty(len(hidden), dtype=torch.float32),
        empty(hidden.shape if need_hidden else 0, dtype=torch.float32),
        empty(weight.shape if need_weight else 0, dtype=torch.float32),
    )
