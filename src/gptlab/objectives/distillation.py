"""Distillation: a student learns what a teacher would say, of classes or of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gptlab.data.batch import Batch
from gptlab.model.classifier import Classifier
from gptlab.model.distilled_head import summed_distillation
from gptlab.model.gpt import GPT
from gptlab.model.rnn import RNN
from gptlab.objectives.base import class_counts, class_metrics, classified, exp
from gptlab.settings import Section


class DistillationSettings(Section):
    """`[objective]` of kind distillation: the `teacher` is a model that exists, a classifier where the data are texts
    with labels.

    The loss of an item is alpha · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − alpha) · cross-entropy, T
    being the `temperature` (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2).
    The first part's gradients shrink as 1/T², and T² makes up for it, so that alpha weighs the same at any temperature.
    Where a published loss divides by T² instead, its alpha of 0.8 at T = 2 weighs the two parts as 0.2 does here.
    """

    kind: Literal["distillation"] = "distillation"
    teacher: str = Field(min_length=1)
    alpha: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(2.0, gt=0)


class ClassDistillation:
    """The class of each text, learned from its label and from a teacher's logits, `batch.values["teacher"]` (rows,
    classes). Sums, over texts, in nats: "loss", and its parts "distillation" (T² · KL) and "cross_entropy"; and
    `class_counts`. ValueError where the teacher has more or fewer classes."""

    weights: Mapping[str, str] = {}

    def __init__(self, classes: int, alpha: float, temperature: float) -> None:
        self.classes, self.alpha, self.temperature = classes, alpha, temperature

    def __call__(self, model: Classifier, batch: Batch) -> dict[str, Tensor]:
        logits, classes = classified(model, batch)
        teacher = batch.values["teacher"].to(logits.dtype)
        if teacher.shape != logits.shape:
            raise ValueError(f"the teacher's logits are {tuple(teacher.shape)}, the student's {tuple(logits.shape)}")
        soft, taught = ((each / self.temperature).log_softmax(dim=1) for each in (logits, teacher))
        distillation = self.temperature**2 * F.kl_div(soft, taught, reduction="sum", log_target=True)
        cross_entropy = F.cross_entropy(logits, classes, reduction="sum")
        return {
            "loss": self.alpha * distillation + (1 - self.alpha) * cross_entropy,
            "distillation": distillation,
            "cross_entropy": cross_entropy,
            **class_counts(logits, classes, self.classes),
        }

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """matthews: Matthews' correlation. f1: the mean over the classes."""
        return class_metrics(sums)


class LanguageDistillation:
    """The next token, learned from the text and from a teacher of the same vocabulary, of whatever kind and width.
    Sums, over supervised tokens, in nats: "loss", and its parts "distillation" (T² · KL) and "cross_entropy".

    The teacher is on the student's device and is no part of it: it is neither trained nor saved. It is put in eval mode
    and frozen here. ModelError where the vocabularies are not equally large.
    """

    weights: Mapping[str, str] = {}

    def __init__(self, teacher: nn.Module, alpha: float, temperature: float) -> None:
        self.teacher: Any = teacher.eval().requires_grad_(False)
        self.alpha, self.temperature = alpha, temperature

    def __call__(self, model: GPT | RNN, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_hidden = self.teacher(batch.tokens)
        loss, kl, cross_entropy = summed_distillation(
            model(batch.tokens), model.head_weight, teacher_hidden, self.teacher.head_weight, batch.targets,
            batch.positions, alpha=self.alpha, temperature=self.temperature,
        )  # fmt: skip
        return {"loss": loss, "distillation": self.temperature**2 * kl, "cross_entropy": cross_entropy}

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """perplexity = exp(mean cross-entropy), that of a language model; infinite where that overflows a float."""
        return {"perplexity": exp(sums["cross_entropy"] / weight)}
