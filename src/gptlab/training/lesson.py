"""What a run learns: its objective, the rows with what that looks up, and its teacher where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptlab.data.batch import ValuedRows
from gptlab.data.splitting import Split
from gptlab.device import Precision
from gptlab.errors import RunError
from gptlab.evaluation.classification_scores import classification_scores
from gptlab.model.classifier import new_model
from gptlab.model.folder import read_labels
from gptlab.objectives.base import Objective
from gptlab.objectives.classification import ClassificationObjective
from gptlab.objectives.distillation import ClassDistillation, DistillationSettings, LanguageDistillation
from gptlab.objectives.language import LanguageObjective
from gptlab.run.base import weights_fingerprint
from gptlab.run.open import OpenModel, find_model, open_model, require_task
from gptlab.run.run import Run
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
    held_bytes: of a teacher that is on the device already
    """

    objective: Objective
    outline: Callable[[], Objective]
    data: Prepared
    teacher: Tree | None = None
    held_bytes: int = 0


def find_teacher(recipe: Recipe, existing: Run | None, runs: Path) -> Tree | None:
    """What origin.json says of the recipe's teacher: its name, folder and the fingerprint of its weights; None where it
    has none. A run that continues has the one that it began with, wherever that is found.

    Errors as `find_model`; UserError where it is a model of another kind than is wanted, RunError where a run that
    continues began with other weights.
    """
    if not isinstance(recipe.objective, DistillationSettings):
        return None
    name, begun = recipe.objective.teacher, (existing.origin.get("teacher") if existing else None) or {}
    folder, fingerprint = Path(begun.get("folder", "")), ""
    if begun:  # also where the teacher has been trained on, and its best is another now
        fingerprint = weights_fingerprint(folder)
    if not begun or fingerprint != begun["fingerprint"]:
        folder = find_model(name, runs=runs)
        fingerprint = weights_fingerprint(folder)
    require_task("classification" if recipe.data.kind == "labels" else "language", name, read_labels(folder))
    found = {"name": name, "folder": str(folder.absolute()), "fingerprint": fingerprint}
    if begun and fingerprint != begun["fingerprint"]:
        raise RunError(
            f"{existing.folder if existing else name}: its teacher {name} is no longer the one that it began with (the "
            f"weights are not those that {begun['folder']} had), and it cannot go on with another. --fresh starts "
            "over, --name NAME names another run"
        )
    return found


def make_lesson(
    recipe: Recipe, data: Prepared, teacher: Tree | None, *, vocab_size: int, device: torch.device,
    precision: Precision, runs: Path, progress: Progress,
) -> Lesson:  # fmt: skip
    """What the recipe learns from its prepared data, and from its `teacher` (`find_teacher`). `vocab_size`: of its
    model's output layer.

    A teacher of classes says once what it thinks of every text, and leaves; one of language stays on the device. Errors
    as `open_model`, and UserError where teacher and student do not agree on what is compared.
    """
    labels = data.vocabulary.labels
    if teacher is not None:
        assert isinstance(recipe.objective, DistillationSettings)
        with progress.busy(f"opening the teacher {teacher['name']}"):
            opened = replace(open_model(teacher["folder"], device=device, runs=runs), name=teacher["name"])
        if labels:
            with progress.busy("asking the teacher") as tell:
                rows = taught_rows(
                    opened, data.labelled(), separator=data.separator, precision=precision, runs=runs, tell=tell
                )
            return _taught_classes(recipe.objective, data, rows, teacher | {"validation": _scores(data, rows)})
        check_language_teacher(opened, data.tokenizer, context=data.rows.context, vocab_size=vocab_size)
        return _taught_language(recipe.objective, data, opened, teacher)
    objective: Objective = ClassificationObjective(len(labels)) if labels else LanguageObjective()
    return Lesson(objective, lambda: objective, data)


def _scores(data: Prepared, rows: Mapping[Split, ValuedRows]) -> Tree:
    """What the teacher scores on validation."""
    labelled = data.labelled()
    return classification_scores(
        labelled["validation"].classes, rows["validation"].values["teacher"].numpy(), labelled["validation"].labels,
        majority=labelled["train"].majority,
    )  # fmt: skip


def _taught_classes(
    settings: DistillationSettings, data: Prepared, rows: Mapping[Split, ValuedRows], said: Tree
) -> Lesson:
    assert data.vocabulary.labels
    objective = ClassDistillation(len(data.vocabulary.labels), settings.alpha, settings.temperature)
    taught = replace(data, rows=rows["train"], validation=rows["validation"], test=rows.get("test"))
    return Lesson(objective, lambda: objective, taught, said)


def _taught_language(settings: DistillationSettings, data: Prepared, teacher: OpenModel, said: Tree) -> Lesson:
    alpha, temperature, shape = settings.alpha, settings.temperature, teacher.model.shape
    return Lesson(
        LanguageDistillation(teacher.model, alpha, temperature),
        lambda: LanguageDistillation(new_model(shape), alpha, temperature), data, said,
        sum(weight.nbytes for weight in teacher.model.parameters()),
    )  # fmt: skip
