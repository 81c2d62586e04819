"""Softmax cross-entropy and its gradient over a chunk of logits, in place: C++ on a CPU, else torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from gptlab.kernels import native
from gptlab.kernels.native import pointer
from gptlab.kernels.tiles import check, check_targets

BLOCK_ELEMENTS = 2**22
"""Logits that the torch path converts at once on a CPU: 16 MiB, so that its temporaries stay in the cache."""


def softmax_loss_(logits: Tensor, targets: Tensor, weights: Tensor | None, *, gradient: bool) -> Tensor:
    """−log p(target) of each row, (rows,) float32 (float64 for float64).

    With `gradient` the logits (rows, vocabulary) become weights · (softmax − onehot), the gradient of
    Σ weights · loss; else they are left as they are or spoilt. targets (rows,) int64, weights (rows,) or None for 1.
    On a CPU the logits are contiguous; ValueError for what is not as said here, IndexError for a target outside of the
    vocabulary.
    """
    losses: Tensor = torch.ops.gptlab.softmax_loss_(logits, targets, weights, gradient)
    return losses


@torch.library.custom_op(
    "gptlab::softmax_loss_",
    mutates_args={"logits"},
    schema="(Tensor(a!) logits, Tensor targets, Tensor? weights, bool gradient) -> Tensor",
)
def _softmax_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, gradient: bool) -> Tensor:
    rows, vocabulary = logits.shape
    on_cpu = logits.device.type == "cpu"
    if on_cpu:
        targets = targets.contiguous()
        weights = None if weights is None else weights.to(_exact(logits)).contiguous()
        check("logits", logits, (rows, vocabulary), logits.dtype)
        check("weights", weights, (rows,), _exact(logits))
        check_targets(targets, rows, vocabulary)
    losses = logits.new_empty(rows, dtype=_exact(logits))
    if rows == 0:
        return losses
    library = native.library("softmax") if on_cpu and logits.dtype in _NATIVE else None
    if library is None:
        return torch_softmax_loss_(logits, targets, weights, gradient=gradient)
    threads = torch.get_num_threads()
    scratch = logits.new_empty(threads, vocabulary, dtype=torch.float32)
    getattr(library, _NATIVE[logits.dtype])(
        pointer(logits), ctypes.c_int64(rows), ctypes.c_int64(vocabulary), pointer(targets), pointer(weights),
        pointer(losses), int(gradient), pointer(scratch), threads,
    )  # fmt: skip
    return losses


@_softmax_loss.register_fake
def _(logits: Tensor, targets: Tensor, weights: Tensor | None, gradient: bool) -> Tensor:
    return logits.new_empty(len(logits), dtype=_exact(logits))


def _exact(logits: Tensor) -> torch.dtype:
    """What the softmax is computed in: float32 at least."""
    return torch.promote_types(logits.dtype, torch.float32)


_NATIVE = {torch.float32: "softmax_loss_float32", torch.bfloat16: "softmax_loss_bfloat16"}


def torch_softmax_loss_(logits: Tensor, targets: Tensor, weights: Tensor | None, *, gradient: bool) -> Tensor:
    """The same in torch, on any device and in any dtype; at least one row."""
    size = max(1, BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = (slice(start, start + size) for start in range(0, len(logits), size))
    return torch.cat([
        _block_loss(logits[part], targets[part, None], None if weights is None else weights[part, None], gradient)
        for part in parts
    ])  # fmt: skip


def _block_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, gradient: bool) -> Tensor:
    exact = logits.to(_exact(logits))
    log_sum = exact.logsumexp(dim=1, keepdim=True)
    losses = (log_sum - exact.gather(1, targets)).squeeze(1)
    if gradient:
        exact = exact.sub_(log_sum).exp_()  # where nothing was converted, in place
        exact.scatter_add_(1, targets, exact.new_full(targets.shape, -1.0))
        if weights is not None:
            exact *= weights
        if exact.dtype != logits.dtype:
            logits.copy_(exact)
    return losses
