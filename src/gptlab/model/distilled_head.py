"""Language distillation as one fused function: the output layers of teacher and student, and the loss between them.

Both vocabularies' logits are met a chunk of positions at a time, as in head.py, so that neither model's logits of all
positions are ever held. In float32 that takes a third of the time of the naive equal, in bfloat16 a quarter (2,048
positions, widths 256, 16,000 and 50,257 tokens, an AMD EPYC). The naive equal, which the tests hold it against, for the
logits of the supervised positions:

    kl = F.kl_div((student / T).log_softmax(1), (teacher / T).log_softmax(1), reduction="sum", log_target=True)
    cross_entropy = F.cross_entropy(student, targets, reduction="sum")
    loss = alpha * T**2 * kl + (1 - alpha) * cross_entropy
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptlab.errors import ModelError
from gptlab.kernels.softmax import softmax_loss_
from gptlab.model.head import by_chunks, product_dtype, scaled_gradients, select

BLOCK_ELEMENTS = 2**19
"""Logits of each model that are compared at once: 2 MiB in float32, so that what is made of them stays in the cache."""


def summed_distillation(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    targets: Tensor,
    positions: Tensor,
    *,
    alpha: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ over the supervised positions of alpha · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − alpha) ·
    −log p(target) (Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2).

    hidden:         (rows, time, width), the student's
    weight:         (vocabulary, width), its output layer
    teacher_hidden: (rows, time, any width), teacher_weight: (vocabulary, that width); they get no gradient
    targets:        (rows, time) int64
    positions:      (n,) int64, flat indices into rows × time of the supervised positions

    Returns the loss, and without a gradient the sums of KL and of −log p(target): float32 scalars (float64 for
    float64). Under autocast the products run in its dtype; a softmax never does. A frozen head gets no gradient, and
    under no_grad none is computed. ModelError where the vocabularies are not equally large.
    """
    if len(weight) != len(teacher_weight):
        raise ModelError(
            f"the student's output layer has {len(weight):,} tokens, the teacher's {len(teacher_weight):,}: models "
            "of different vocabularies cannot be compared"
        )
    chosen, wanted = select(hidden, targets, positions)
    taught = teacher_hidden.detach().flatten(0, 1).index_select(0, positions)
    loss, kl, cross_entropy = _SummedDistillation.apply(
        chosen, weight, taught, teacher_weight.detach(), wanted, alpha, temperature, product_dtype(hidden),
        torch.is_grad_enabled(),
    )  # fmt: skip
    return loss, kl, cross_entropy


class _SummedDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        targets: Tensor,
        alpha: float,
        temperature: float,
        dtype: torch.dtype,
        train: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = (train and ctx.needs_input_grad[0], train and ctx.needs_input_grad[1])
        taught, head = teacher_hidden.to(dtype), teacher_weight.to(dtype)

        def chunk_loss(room: Tensor, part: slice) -> Tensor:
            teacher = torch.mm(taught[part], head.t(), out=room[1])
            return distil_(room[0], teacher, targets[part], alpha, temperature, gradient=any(needed))

        losses, *gradients = by_chunks(hidden, weight, dtype, *needed, chunk_loss, rooms=2)
        ctx.save_for_backward(*gradients)
        kl, cross_entropy = losses[:, 0].sum(), losses[:, 1].sum()
        loss = alpha * temperature**2 * kl + (1 - alpha) * cross_entropy
        ctx.mark_non_differentiable(kl, cross_entropy)
        return loss, kl, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, d_loss), *[None] * 7


def distil_(
    student: Tensor, teacher: Tensor, targets: Tensor, alpha: float, temperature: float, *, gradient: bool
) -> Tensor:
    """Of logits (n, vocabulary), in place: for each position KL(teacher ‖ student) at the temperature and
    −log p(target), (n, 2) in float32 (float64 for float64).

    With `gradient` the student's logits become the gradient of the loss, alpha · T · (softmax(student/T) −
    softmax(teacher/T)) + (1 − alpha) · (softmax(student) − onehot): the derivative of a softmax at T is 1/T of its own,
    which leaves T of T². The teacher's are spoilt.
    """
    size = max(1, BLOCK_ELEMENTS // student.shape[1])
    parts = (slice(start, start + size) for start in range(0, max(1, len(student)), size))
    return torch.cat([
        _distil_block(student[part], teacher[part], targets[part], alpha, temperature, gradient) for part in parts
    ])  # fmt: skip


def _distil_block(
    student: Tensor, teacher: Tensor, targets: Tensor, alpha: float, temperature: float, gradient: bool
) -> Tensor:
    exact = torch.promote_types(student.dtype, torch.float32)
    hard = student.to(exact)  # themselves where nothing has to be converted
    taught = teacher.to(exact).div_(temperature)
    soft = hard / temperature
    gap = taught - soft
    # KL = Σ p·gap + log Σ exp(soft) − log Σ exp(taught), p = softmax(taught). The kernel gives p − onehot and each log
    # less its target's logit, and those three targets' terms are together nought.
    soft_loss = softmax_loss_(soft, targets, None, gradient=gradient)
    taught_loss = softmax_loss_(taught, targets, None, gradient=True)
    kl = gap.mul_(taught).sum(dim=1) + soft_loss - taught_loss
    cross_entropy = softmax_loss_(hard, targets, None, gradient=gradient)
    if gradient:  # the onehots of soft and taught are nought together too
        hard.mul_(1 - alpha).add_(soft.sub_(taught), alpha=alpha * temperature)
        if hard.dtype != student.dtype:
            student.copy_(hard)
    return torch.stack([kl, cross_entropy], dim=1)
