"""What a run learns: its objective, the rows with what that looks up, and the other model that it asks, if any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptlab.data.batch import ValuedRows
from gptlab.data.splitting import Split
from gptlab.device import Precision
from gptlab.evaluation.classification_scores import classification_scores
from gptlab.model.classifier import new_model
from gptlab.model.folder import Model
from gptlab.objectives.base import Objective
from gptlab.objectives.classification import ClassificationObjective
from gptlab.objectives.distillation import ClassDistillation, DistillationSettings, LanguageDistillation
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.objectives.language import LanguageObjective
from gptlab.objectives.reward import RewardObjective
from gptlab.run.open import OpenModel, open_model
from gptlab.settings import Tree
from gptlab.training.memory import FullRows
from gptlab.training.other_model import OtherModel
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.training.reference import load_reference, reference_rows, reference_words
from gptlab.training.start import Vocabulary
from gptlab.training.teaching import check_language_teacher, taught_rows


@dataclass(frozen=True)
class Lesson:
    """What is learned from the data.

    objective: as it is trained and validated
    outline:   makes it without weights of its own, to be traced
    data:      the data, their rows with what another model said of them
    rows:      what the worst of the training rows are like
    asked:     what origin.json says of the other model: {"teacher": …}, {"reference": …}, or nothing
    held_bytes: of a teacher that is on the device already
    reference: makes DPO's reference, where there is one
    """

    objective: Objective
    outline: Callable[[], Objective]
    data: Prepared
    rows: FullRows
    asked: Tree
    held_bytes: int = 0
    reference: Callable[[], Model] | None = None


def make_lesson(
    recipe: Recipe, data: Prepared, other: OtherModel | None, *, vocabulary: Vocabulary, vocab_size: int,
    device: torch.device, precision: Precision, runs: Path, progress: Progress,
) -> Lesson:  # fmt: skip
    """What the recipe learns from its prepared data, and from the `other` model (`find_other_model`). `vocab_size`: of
    its model's output layer.

    A teacher of classes and a reference say once what they think of every row, and leave; a teacher of language stays
    on the device. Errors as `open_model` and `load_reference`, and UserError where teacher and student do not agree on
    what is compared.
    """
    match recipe.objective:
        case DPOSettings() as settings:
            return _preferred(settings, recipe, data, other, vocabulary, device, precision, runs, progress)
        case DistillationSettings() as settings:
            assert other
            with progress.busy(f"opening the teacher {other.name}"):
                teacher = replace(open_model(other.folder, device=device, runs=runs), name=other.name)
            if vocabulary.labels:
                return _taught_classes(settings, data, other, teacher, precision, runs, progress)
            check_language_teacher(teacher, data.tokenizer, context=data.rows.context, vocab_size=vocab_size)
            return _taught_language(settings, data, other, teacher)
    if recipe.objective.kind == "reward":
        rewards = RewardObjective()
        return Lesson(rewards, RewardObjective, data, FullRows(data.longest, last=True, pairs=True), {})
    if vocabulary.labels:
        classes = ClassificationObjective(len(vocabulary.labels))
        return Lesson(classes, lambda: classes, data, FullRows(data.longest, last=True), {})
    return Lesson(LanguageObjective(), LanguageObjective, data, FullRows(data.longest), {})


def _preferred(
    settings: DPOSettings, recipe: Recipe, data: Prepared, reference: OtherModel | None, vocabulary: Vocabulary,
    device: torch.device, precision: Precision, runs: Path, progress: Progress,
) -> Lesson:  # fmt: skip
    objective, rows = DPOObjective(settings), FullRows(data.longest, pairs=True)
    if reference is None:
        return Lesson(objective, lambda: objective, data, rows, {})

    def load() -> Model:
        return load_reference(recipe, reference, vocabulary, runs)

    with progress.busy(f"asking the reference {reference.name}") as tell:
        known_as = reference_words(reference, recipe, vocabulary)
        valued = reference_rows(load, known_as, data.pairs(), device=device, precision=precision, tell=tell)
    return Lesson(
        objective, lambda: objective, data.with_rows(valued), replace(rows, values={"reference": 2}),
        {"reference": reference.said}, reference=load,
    )  # fmt: skip


def _taught_classes(
    settings: DistillationSettings, data: Prepared, other: OtherModel, teacher: OpenModel, precision: Precision,
    runs: Path, progress: Progress,
) -> Lesson:  # fmt: skip
    labelled = data.labelled()
    with progress.busy("asking the teacher") as tell:
        rows = taught_rows(teacher, labelled, separator=data.separator, precision=precision, runs=runs, tell=tell)
    classes = len(labelled["train"].labels)
    objective = ClassDistillation(classes, settings.alpha, settings.temperature)
    return Lesson(
        objective, lambda: objective, data.with_rows(rows),
        FullRows(data.longest, last=True, values={"teacher": classes}),
        {"teacher": other.said | {"validation": _scores(data, rows)}},
    )  # fmt: skip


def _scores(data: Prepared, rows: Mapping[Split, ValuedRows]) -> Tree:
    """What the teacher scores on validation."""
    labelled = data.labelled()
    return classification_scores(
        labelled["validation"].classes, rows["validation"].values["teacher"].numpy(), labelled["validation"].labels,
        majority=labelled["train"].majority,
    )  # fmt: skip


def _taught_language(settings: DistillationSettings, data: Prepared, other: OtherModel, teacher: OpenModel) -> Lesson:
    alpha, temperature, shape = settings.alpha, settings.temperature, teacher.model.shape
    return Lesson(
        LanguageDistillation(teacher.model, alpha, temperature),
        lambda: LanguageDistillation(new_model(shape), alpha, temperature), data, FullRows(data.longest),
        {"teacher": other.said}, held_bytes=sum(weight.nbytes for weight in teacher.model.parameters()),
    )  # fmt: skip
