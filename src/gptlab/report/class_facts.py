"""What the files of a run that classifies, or that has a teacher, say beyond those of any other (facts.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptlab.evaluation.classification_scores import LEVEL, paired_difference

MANY_EPOCHS = 3
"""A run of so many epochs is drawn epoch by epoch, a shorter one step by step."""

Facts = dict[str, Any]
Record = dict[str, Any]


def classes(recipe: Mapping[str, Any], origin: Mapping[str, Any], epochs: float | None) -> Facts | None:
    """The classes of a run's texts; None for a run that learns language.

    labels:   their names, in the order of their numbers
    counts:   {split: {label: texts}}
    majority: the most frequent one of the training texts; None where they are not known yet
    by_epoch: whether the run has done enough `epochs` to be drawn by them
    shown:    the scores whose classes are told one by one; `add_baseline` finds them
    """
    if recipe.get("data", {}).get("kind") != "labels":
        return None
    counts: dict[str, dict[str, int]] = {}
    for row in origin.get("data", {}).get("table", ()):
        of_split = counts.setdefault(row["split"], {})
        for label, n in row.get("classes", {}).items():
            of_split[label] = of_split.get(label, 0) + n
    train = counts.get("train", {})
    labels = [str(label) for label in origin.get("labels", train)]
    counts = {split: {label: found.get(label, 0) for label in labels} for split, found in counts.items()}
    return {
        "labels": labels,
        "counts": counts,
        "majority": max(labels, key=counts["train"].__getitem__) if train else None,  # of equals the first
        "by_epoch": (epochs or 0) >= MANY_EPOCHS,
        "shown": None,
    }


def add_baseline(classes: Facts, scores: Sequence[Record]) -> list[Record]:
    """The scores, each with its `majority_accuracy` (validation lines of a run that is still going have none), with
    the `paired` difference from the majority's answers where what was taken for what is known, and with what it is
    `against_majority`: "below", "unsure" (by McNemar's test chance would do it too), or "above". `classes` gets what is
    shown: the best model's on the test set, else on the validation set."""
    found = [
        {**row, "majority_accuracy": _majority(classes, row), "paired": _paired(classes["majority"], row)}
        for row in scores
    ]
    scores = [{**row, "against_majority": _compare(row)} for row in found]
    best = [row for row in scores if row["model"] == "best" and "confusion" in row]
    classes["shown"] = best[-1] if best else None
    return scores


def distillation(recipe: Mapping[str, Any], origin: Mapping[str, Any]) -> Facts | None:
    """The teacher and how much it counts; None without one."""
    objective = recipe.get("objective", {})
    if objective.get("kind") != "distillation":
        return None
    teacher = origin.get("teacher", {})
    return {
        "teacher": teacher.get("name") or objective.get("teacher"),
        "fingerprint": teacher.get("fingerprint"),
        "alpha": objective.get("alpha"),
        "temperature": objective.get("temperature"),
    }


def teacher_scores(origin: Mapping[str, Any]) -> list[Record]:
    """What the teacher itself scores on the validation set, where that is known."""
    scores = origin.get("teacher", {}).get("validation")
    return [{**scores, "model": "teacher", "on": "validation"}] if scores else []


def _majority(classes: Facts, row: Record) -> float | None:
    """The share of the training texts' majority in what was scored; a sample is taken for the set that it is of."""
    counts = classes["counts"].get(row["on"].partition(",")[0], {})
    if "majority_accuracy" in row or classes["majority"] is None or not sum(counts.values()):
        return row.get("majority_accuracy")
    return counts[classes["majority"]] / sum(counts.values())


def _paired(majority: str | None, row: Record) -> Facts | None:
    """`paired_difference` of the model's answers from always answering `majority`, text by text. An interval of the
    accuracy alone cannot compare the two, for both are right on many of the same texts."""
    labels = list(row.get("per_class", ()))
    if majority not in labels or "confusion" not in row:
        return None
    confusion = np.array(row["confusion"])
    true, answers = (np.repeat(of, confusion.ravel()) for of in np.indices(confusion.shape).reshape(2, -1))
    return paired_difference(true, answers, np.full_like(true, labels.index(majority))) if len(true) else None


def _compare(row: Record) -> str | None:
    accuracy, majority, paired = row.get("accuracy"), row["majority_accuracy"], row["paired"]
    if accuracy is None or majority is None:
        return None
    return "below" if accuracy <= majority else "unsure" if paired and paired["p"] > 1 - LEVEL else "above"
