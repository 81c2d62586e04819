"""What a run learns: its objective, the rows with what that looks up, and its teacher where it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptlab.data.batch import Rows
from gptlab.data.splitting import Split
from gptlab.device import Precision
from gptlab.model.classifier import new_model
from gptlab.model.folder import Model, Shape
from gptlab.objectives.base import Objective
from gptlab.objectives.classification import ClassificationObjective
from gptlab.objectives.distillation import ClassDistillation, DistillationSettings, LanguageDistillation
from gptlab.objectives.language import LanguageObjective
from gptlab.run.base import weights_fingerprint
from gptlab.run.open import OpenModel, open_model
from gptlab.settings import Tree
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.training.teaching import check_language_teacher, taught_rows


@dataclass(frozen=True)
class Lesson:
    """What is learned from the data.

    objective: as it is trained and validated
    outline:   makes it without weights of its own, to be traced
    data:      the data, their rows with what a teacher said of them
    teacher:   what origin.json says of it; None where there is none
    """

    objective: Objective
    outline: Callable[[], Objective]
    data: Prepared
    teacher: Tree | None = None


def make_lesson(
    recipe: Recipe, data: Prepared, *, vocab_size: int, device: torch.device, precision: Precision, runs: Path,
    progress: Progress,
) -> Lesson:  # fmt: skip
    """What the recipe learns from its prepared data. `vocab_size`: of its model's output layer.

    A teacher of classes says once what it thinks of every text, and leaves; one of language stays on the device. Errors
    as `open_model`, and UserError where teacher and student do not agree on what is compared.
    """
    labels = data.vocabulary.labels
    if isinstance(recipe.objective, DistillationSettings):
        with progress.busy(f"opening the teacher {recipe.objective.teacher}"):
            teacher = open_model(
                recipe.objective.teacher, device=device, runs=runs, task="classification" if labels else "language"
            )
        said = {
            "name": recipe.objective.teacher, "folder": str(teacher.folder.absolute()),
            "fingerprint": weights_fingerprint(teacher.folder),
        }  # fmt: skip
        if labels:
            with progress.busy("asking the teacher") as tell:
                rows = taught_rows(
                    teacher, data.labelled(), separator=data.separator, precision=precision, runs=runs, tell=tell
                )
            return _taught_classes(recipe.objective, data, rows, said)
        check_language_teacher(teacher, data.tokenizer, context=data.rows.context, vocab_size=vocab_size)
        return _taught_language(recipe.objective, data, teacher, said)
    objective: Objective = ClassificationObjective(len(labels)) if labels else LanguageObjective()
    return Lesson(objective, lambda: objective, data)


def _taught_classes(settings: DistillationSettings, data: Prepared, rows: dict[Split, Rows], said: Tree) -> Lesson:
    assert data.vocabulary.labels
    objective = ClassDistillation(len(data.vocabulary.labels), settings.alpha, settings.temperature)
    taught = replace(data, rows=rows["train"], validation=rows["validation"], test=rows.get("test"))
    return Lesson(objective, lambda: objective, taught, said)


def _taught_language(settings: DistillationSettings, data: Prepared, teacher: OpenModel, said: Tree) -> Lesson:
    alpha, temperature, shape = settings.alpha, settings.temperature, teacher.model.shape
    return Lesson(
        LanguageDistillation(teacher.model, alpha, temperature),
        lambda: LanguageDistillation(_untrained(shape), alpha, temperature), data, said,
    )  # fmt: skip


def _untrained(shape: Shape) -> Model:
    return new_model(shape).eval().requires_grad_(False)
