"""The report of a run that has a teacher, of classes or of language."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gptlab.report.facts import gather
from gptlab.run.run import Run

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]\\])", "", markdown.replace("\u00a0", " "))


def test_the_teacher_is_told_with_its_share_and_hintons_factor(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    recipe = cola.recipe.replace(
        'kind = "classification"', 'kind = "distillation"\nteacher = "runs/teacher"\nalpha = 0.8\ntemperature = 2.0'
    )
    teacher = {
        "name": "runs/teacher", "folder": "/runs/teacher", "fingerprint": "abcd1234",
        "validation": cola.scores(0.8273, 0.804, 0.850, [[200, 122], [58, 663]]),
    }  # fmt: skip
    lines = [
        {**line, "loss": 0.5 * line["loss"], "cross_entropy": line["loss"], "distillation": 0.3}
        for line in cola.metrics()
    ]
    folder = classified(recipe=recipe, origin=json.dumps({**cola.origin, "teacher": teacher}), metrics=jsonl(lines))
    page, markdown = written(folder)
    for told in (
        "It learned from the labels and from a teacher, runs/teacher (α = 0.8, T = 2).",
        "α · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 − α) · cross-entropy",
        "the factor T² is Hinton's", "abcd1234", "82.7 % [80.4, 85.0]",
    ):  # fmt: skip
        assert told in page.text
        assert told in plain(markdown)
    rows = [line.split(" | ")[0] for line in markdown.partition("## Scores")[2].partition("\n## ")[0].splitlines()]
    assert [row for row in rows if row.startswith("| ")][2:] == [
        "| teacher", "| best, step 402", "| last, step 670",
    ]  # fmt: skip
    assert ">cross-entropy (nats per text)<" in (folder / "plots" / "loss.svg").read_text(encoding="utf-8")
    assert "plots/distillation.png" in markdown


def test_a_student_that_is_still_learning_is_compared_by_its_cross_entropy(classified: MakeRun) -> None:
    """What it descends holds the teacher's share, which another model's loss does not."""
    lines = [
        {"event": "validation", "step": step, "loss": 0.9, "cross_entropy": 0.6, "distillation": 1.2, "accuracy": 0.7,
         "matthews": 0.3, "f1": 0.6, "tokens": 1043}
        for step in (67, 134)
    ]  # fmt: skip
    facts = gather(Run.open(classified(evaluation=None, metrics=jsonl(lines))))
    assert [(row["nats"], row["loss"]) for row in facts["scores"]] == [(0.6, 0.9), (0.6, 0.9)]


def test_a_distilled_language_model_is_scored_by_its_cross_entropy(make_run: MakeRun, written: Written) -> None:
    recipe = """name = "student"
start = "gpt2"
[model]
kind = "gpt"
context = 128
keep_layers = "every-second"
[objective]
kind = "distillation"
teacher = "gpt2"
alpha = 0.5
temperature = 2.0
"""

    def scored(nats: float) -> dict[str, float]:
        return {"loss": nats - 1.5, "cross_entropy": nats, "distillation": nats - 3, "perplexity": math.exp(nats),
                "tokens": 973_000, "unigram_perplexity": 812.4}  # fmt: skip

    evaluation = {
        "context": 128, "stride": 128, "start": {"step": 0, "validation": scored(5.0)},
        "best": {"step": 20, "validation": scored(4.0)},
    }  # fmt: skip
    lines = [
        {"event": "step", "step": n, "epoch": n / 100, "loss": 2 + 1 / n, "cross_entropy": 4 + 1 / n,
         "distillation": 0.5 + 1 / n, "tokens": 100 * n, "tokens_per_second": 50.0, "seconds": 2.0 * n}
        for n in range(1, 21)
    ]  # fmt: skip
    origin = {"parameters": 82_000_000, "start": {"name": "gpt2"}, "teacher": {"name": "gpt2", "fingerprint": "71e9"}}
    folder = make_run(
        "student", recipe=recipe, evaluation=json.dumps(evaluation), origin=json.dumps(origin), metrics=jsonl(lines),
        samples=None,
    )  # fmt: skip
    page, markdown = written(folder)
    for told in (
        "It learned from the text and from a teacher, gpt2 (α = 0.5, T = 2).",
        "Its cross-entropy per token on the validation set fell from 5.000 at the start to 4.000, a perplexity of",
        "loss with the teacher's share", "2.5000", "4.0000", "54.60", "every second",
        "Nats per token are the cross-entropy with the data alone, whatever the teacher's share in the loss.",
        "the factor T² is Hinton's",
    ):  # fmt: skip
        assert told in page.text
        assert told in plain(markdown)
    assert "validation cross-entropy per token 5.000 → 4.000" in page.text
    drawn = (folder / "plots" / "loss.svg").read_text(encoding="utf-8")
    assert {">cross-entropy (nats per token)<", ">perplexity<"} <= set(re.findall(r">[^<>]+<", drawn))
    assert "![Distance to the teacher on training text, as it stands in the loss](plots/distillation.png)" in markdown
