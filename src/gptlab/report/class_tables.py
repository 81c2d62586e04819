"""The tables of a run that classifies, and of what a teacher adds to any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptlab import words
from gptlab.report.intervals import interval, joined, percent, score, with_interval
from gptlab.report.table import Pairs, Table, left_out, make_table, put, step_name

REMARKS = {
    "cut": "cut",
    "empty": "empty",
    "overlapping": "also in validation or test",
    "contradicting": "with two labels",
}
"""What texts are besides whole (data/label_counts.py), in the order of the words below the table."""

SHOWN_CONTRADICTIONS = 2
"""Each is a text with the places of both its labels."""

SETS = {
    "validation": "the validation set",
    "validation, a sample": "a sample of the validation set",
    "test": "the test set",
}

MANY_CLASSES = 20
"""Of more classes than these no table says which was taken for which: it would be wider than any page."""


def key_figures(facts: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """(what, figure, remark): accuracy beside its baseline, Matthews' correlation, macro F1 of the best model."""
    found = []
    for split, row in (("validation", facts["best"]), ("test", facts["test"])):
        if row is None:
            continue
        baseline = put(lambda share: f"majority {percent(share)}", row["majority_accuracy"])
        found += [
            (f"{split} accuracy", put(percent, row.get("accuracy")), joined(baseline, interval(row, "accuracy"))),
            (f"{split} Matthews' correlation", put(score, row.get("matthews")), joined(interval(row, "matthews"))),
            (f"{split} macro F1", put(score, row.get("f1")), joined(interval(row, "f1"))),
        ]
    return found


def verdicts(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each set on which the best model is no better than always giving one answer, or may not be."""
    rows = [row for row in (facts["best"], facts["test"]) if facts["classes"] and row]
    return [sentence for row in rows if (sentence := _verdict(row, facts["classes"]["majority"]))]


def scores(facts: Mapping[str, Any]) -> Table:
    """One row for each model and set of texts scored; no accuracy without its baseline."""
    return make_table(facts["scores"], [
        ("model", step_name),
        ("on", lambda row: row["on"]),
        ("texts", lambda row: put(words.number, row.get("texts", row.get("tokens")))),
        ("nats per text", lambda row: put("{:.4f}".format, row.get("nats"))),
        ("loss with the teacher's share", mixed_loss),
        ("accuracy [95\u00a0%]", lambda row: with_interval(row, "accuracy")),
        ("majority", lambda row: put(percent, row["majority_accuracy"])),
        ("Matthews [95\u00a0%]", lambda row: with_interval(row, "matthews")),
        ("macro F1 [95\u00a0%]", lambda row: with_interval(row, "f1")),
    ])  # fmt: skip


def per_class(facts: Mapping[str, Any]) -> Table:
    """How well each class is found, of the scores that are shown."""
    shown = (facts["classes"] or {}).get("shown") or {}
    rows = [{"class": label, **row} for label, row in shown.get("per_class", {}).items()]
    return make_table(rows, [
        ("class", lambda row: row["class"]),
        ("texts", lambda row: words.number(row["texts"])),
        ("precision", lambda row: score(row["precision"])),
        ("recall", lambda row: score(row["recall"])),
        ("F1", lambda row: score(row["f1"])),
    ])  # fmt: skip


def confusion(facts: Mapping[str, Any]) -> Table:
    """What was taken for what, of the scores that are shown: true classes down, answers across."""
    classes = facts["classes"] or {}
    labels, shown = classes.get("labels", []), classes.get("shown")
    rows = zip(labels, shown["confusion"], strict=True) if shown and len(labels) <= MANY_CLASSES else ()
    heads = ["true \\ answer", *labels]
    return Table(heads, [[label, *map(words.number, row)] for label, row in rows], [False, *(True for _ in labels)])


def sources(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each source of texts with labels gave."""
    return make_table(rows, [
        ("source", lambda row: row.get("name")),
        ("split", lambda row: row.get("split")),
        ("texts", lambda row: put(words.number, row.get("texts"))),
        ("tokens", lambda row: put(words.number, row.get("tokens"))),
        (
            "tokens a text: median, 90 %, 99 %, longest",
            lambda row: put(lambda lengths: " / ".join(map(words.number, lengths)), row.get("percentiles")),
        ),
        ("cut, left out", _remarks),
    ])  # fmt: skip


def class_counts(facts: Mapping[str, Any]) -> Table:
    """How many texts of each split have which class, with their share."""
    classes = facts["classes"] or {"labels": [], "counts": {}}
    counts = classes["counts"]
    rows = [{"class": label, **{split: found[label] for split, found in counts.items()}} for label in classes["labels"]]
    texts = {split: sum(found.values()) or 1 for split, found in counts.items()}

    def count(row: Mapping[str, Any], split: str) -> str:
        return f"{words.number(row[split])} ({percent(row[split] / texts[split])})"

    splits = ((split, lambda row, split=split: count(row, split)) for split in counts)
    return make_table(rows, [("class", lambda row: row["class"]), *splits])


def distillation(facts: Mapping[str, Any]) -> Pairs:
    """The teacher, and what is descended."""
    if not (found := facts["distillation"]):
        return []
    pairs = [
        ("teacher", found["teacher"]),
        ("its weights", found["fingerprint"]),
        ("α, the teacher's share", put("{:g}".format, found["alpha"])),
        ("T, the temperature", put("{:g}".format, found["temperature"])),
        ("loss", "α · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 − α) · cross-entropy"),
    ]
    return [(what, value) for what, value in pairs if value]


def mixed_loss(row: Mapping[str, Any]) -> str | None:
    """What was descended where a teacher is part of it; what it is compared by is the cross-entropy alone."""
    return put("{:.4f}".format, row.get("loss")) if "cross_entropy" in row else None


def _verdict(row: Mapping[str, Any], majority: str) -> str | None:
    if row["against_majority"] not in ("below", "unsure"):
        return None
    on, always = SETS[row["on"]], f"always answering “{majority}”: {percent(row['majority_accuracy'])}"
    if row["against_majority"] == "below":
        same = ", for it answers so itself" if _answers(row) == [majority] else ""
        return f"On {on} it does not beat the majority baseline ({always}){same}."
    paired = row["paired"]
    return (
        f"On {on} it cannot be told apart from the majority baseline ({always}): of {words.number(row['texts'])} texts "
        f"it alone has {words.number(paired['only_a'])} right and the baseline alone {words.number(paired['only_b'])}, "
        f"and chance divides so many at least so unevenly with a probability of {paired['p']:.2f} (McNemar's test)."
    )


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The classes that it answers at all, where that is known."""
    counts = zip(row["per_class"], zip(*row["confusion"], strict=True), strict=True) if "confusion" in row else ()
    return [label for label, texts in counts if any(texts)]


def _remarks(row: Mapping[str, Any]) -> str:
    duplicates = "duplicates, " + ("left out" if row.get("dropped_duplicates") else "kept")
    shown = {**row, "contradicting_at": row.get("contradicting_at", [])[:SHOWN_CONTRADICTIONS]}
    return left_out(shown, {**REMARKS, "duplicates": duplicates})
