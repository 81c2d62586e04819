"""The output layer and its loss as one fused function.

With a vocabulary of 50,257 the (rows × time × vocabulary) logits dominate a step's memory and, for small
models, its time. Here the supervised positions are selected first and the vocabulary is met a chunk of
positions at a time, softmax in float32, so that no vocabulary-sized tensor per position is ever held:

- `summed_cross_entropy`: a weighted sum whose weights are known before. The gradients are computed while the
  chunk's logits are there, so nothing is computed twice.
- `target_log_probs`: one log-probability a position, for losses whose coefficients are known only later
  (DPO). Each chunk is computed again in backward.

The naive equal of the first, which the tests hold it against:

    logits = F.linear(hidden.flatten(0, 1)[positions], weight)
    loss = (weights * F.cross_entropy(logits, targets.flatten()[positions], reduction="none")).sum()
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**25
"""Logits held at once: 128 MiB in float32, 667 positions of GPT-2's vocabulary. Smaller chunks read and write
the weight's gradient more often, larger ones only cost memory."""


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
    chosen, wanted = _select(hidden, targets, positions)
    loss: Tensor = _SummedCrossEntropy.apply(
        chosen, weight, wanted, weights, _product_dtype(hidden), torch.is_grad_enabled()
    )
    return loss


def target_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    """log p(target) of each supervised position, (n,) float32; arguments as `summed_cross_entropy` has them."""
    chosen, wanted = _select(hidden, targets, positions)
    log_probs: Tensor = _TargetLogProbs.apply(chosen, weight, wanted, _product_dtype(hidden))
    return log_probs


def _select(hidden: Tensor, targets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (n, width) and targets (n,) of the supervised positions."""
    return hidden.flatten(0, 1).index_select(0, positions), targets.flatten().index_select(0, positions)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _Chunks:
    """Softmax over the vocabulary a chunk of positions at a time, in one buffer that every chunk uses again."""

    def __init__(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.size = max(1, min(len(hidden), CHUNK_ELEMENTS // len(weight)))
        self.exact = torch.promote_types(dtype, torch.float32)
        """The dtype of the softmax: float32, or float64 where the products are."""
        self._products = hidden.new_empty((self.size, len(weight)), dtype=dtype)
        self._logits = self._products if dtype == self.exact else self._products.new_empty(
            self._products.shape, dtype=self.exact
        )  # fmt: skip

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which positions, their logits (c, vocabulary) in a buffer to overwrite, their logsumexp (c, 1))."""
        for start in range(0, len(self.hidden), self.size):
            part = slice(start, min(start + self.size, len(self.hidden)))
            count = part.stop - part.start
            logits = torch.mm(self.hidden[part], self.weight.t(), out=self._products[:count])
            if logits.dtype != self.exact:
                logits = self._logits[:count].copy_(logits)
            yield part, logits, logits.logsumexp(dim=1, keepdim=True)

    def add_gradients(self, part: slice, d_logits: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None) -> None:
        """Adds what the gradient of this chunk's logits (c, vocabulary) gives to those of hidden and weight."""
        if d_logits.dtype != self.hidden.dtype:
            d_logits = self._products[: len(d_logits)].copy_(d_logits)
        if d_hidden is not None:
            torch.mm(d_logits, self.weight, out=d_hidden[part])
        if d_weight is not None and d_weight.dtype == d_logits.dtype:
            d_weight.addmm_(d_logits.t(), self.hidden[part])
        elif d_weight is not None:  # summed over the chunks in float32, as a weight's gradient is kept
            d_weight += d_logits.t() @ self.hidden[part]


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
        chunks = _Chunks(hidden.detach(), weight.detach(), dtype)
        d_hidden = torch.empty_like(chunks.hidden) if train and ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if train and ctx.needs_input_grad[1] else None
        loss = hidden.new_zeros((), dtype=chunks.exact)
        for part, logits, log_sum in chunks:
            wanted = targets[part, None]
            cross_entropy = log_sum - logits.gather(1, wanted)
            loss += cross_entropy.sum() if weights is None else cross_entropy.squeeze(1).dot(weights[part].to(loss))
            if d_hidden is None and d_weight is None:
                continue
            d_logits = logits.sub_(log_sum).exp_()  # softmax, in place: the logits are not needed any more
            d_logits.scatter_add_(1, wanted, d_logits.new_full(wanted.shape, -1.0))
            if weights is not None:
                d_logits *= weights[part, None]
            chunks.add_gradients(part, d_logits, d_hidden, d_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.hidden_dtype = hidden.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else (d_hidden * d_loss).to(ctx.hidden_dtype),
            None if d_weight is None else d_weight.mul_(d_loss),
            None, None, None, None,
        )  # fmt: skip


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype = dtype
        chunks = _Chunks(hidden.detach(), weight.detach(), dtype)
        log_probs = hidden.new_empty(len(hidden), dtype=chunks.exact)
        for part, logits, log_sum in chunks:
            log_probs[part] = (logits.gather(1, targets[part, None]) - log_sum).squeeze(1)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        chunks = _Chunks(hidden, weight, ctx.dtype)
        d_hidden = torch.empty_like(chunks.hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part, logits, log_sum in chunks:
            # d log p(target) / d logits = onehot(target) − softmax
            d_logits = logits.sub_(log_sum).exp_().neg_()
            d_logits.scatter_add_(1, targets[part, None], d_logits.new_ones(len(d_logits), 1))
            d_logits *= d_log_probs[part, None]
            chunks.add_gradients(part, d_logits, d_hidden, d_weight)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, None, None
