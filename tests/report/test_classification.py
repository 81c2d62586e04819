"""The report of a run that classifies: accuracy beside its baseline, each class, which model it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptlab.data.label_counts import LabelCounts
from gptlab.evaluation.classification_scores import classification_scores

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]\\])", "", markdown.replace("\u00a0", " "))


def evaluated(best: dict[str, Any], **more: Any) -> str:
    """evaluation.json with the best model's scores."""
    return json.dumps({"best": {"step": 402, "validation": best, **more}})


def test_a_classifier_is_told_beside_its_baseline(classified: MakeRun, written: Written) -> None:
    page, markdown = written(classified())
    for told in (
        "cola is a GPT of 125 million parameters (12 layers, 12 heads, width 768, a context of 64 tokens), tuned from "
        "runs/base by LoRA of rank 4, which trains 629,760 of them (0.50 %). It is to tell 2 classes of texts apart: "
        "“unacceptable”, “acceptable”.",
        "It was trained for 670 steps, in which it learned from 85,510 texts (10.00 epochs), in 35 min 38 s on CPU",
        "At its best, step 402, its accuracy on the validation set is 74.1 % (95 %: 71.4 to 76.7), where always "
        "answering “acceptable” gives 69.1 %; Matthews' correlation is 0.335 (95 %: 0.274 to 0.394).",
        "nats per text", "accuracy [95 %]", "74.1 % [71.4, 76.7]", "0.335 [0.274, 0.394]", "0.650 [0.617, 0.681]",
        "best, step 402", "last, step 670", "1,043", "0.5643",
        "Best is the checkpoint with the highest Matthews' correlation on the validation set.",
        "The best model, step 402, on the validation set.", "0.638", "0.373", "0.471",
        "629,760 of 125,030,400 (0.50 %): adapters 589,824, layer norms 38,400, head 1,536",
        "2,528 (29.6 %)", "6,023 (70.4 %)", "721 (69.1 %)",
        "10 / 18 / 26 / 48",
        "1 cut; 2 empty (line 5, line 6); 3 also in validation or test; 4 with two labels (line 8, …); 7 duplicates, "
        "kept; 2 bad: no label (line 17, line 90)",
        "texts per second", "texts learned from",
    ):  # fmt: skip
        assert told in page.text.replace("\u00a0", " ")
        assert told in plain(markdown)
    assert "validation accuracy 74.1 % majority 69.1 %; 95 %: 71.4 to 76.7" in page.text
    assert "validation Matthews' correlation 0.335 95 %: 0.274 to 0.394" in page.text
    assert "parameters 125 million 629,760 of them trained (0.50 %)" in page.text
    assert "texts learned from 85,510 10.00 epochs, 40 a second" in page.text
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|perplexity|unigram|Samples|tokens seen", page.text + markdown)
    assert page.text.count("Reward") == 0


def test_what_the_lab_counts_and_scores_is_what_is_told(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    """The keys are those of LabelCounts and classification_scores, and none of them is passed over in silence."""
    truth = np.random.default_rng(0).integers(0, 3, 500)
    logits = np.eye(3)[truth] + np.random.default_rng(1).normal(0, 0.8, (500, 3))
    labels = ["no", "maybe", "yes"]
    found = classification_scores(truth, logits, labels, majority=2)
    counts = {label: int((truth == number).sum()) for number, label in enumerate(labels)}
    table = [asdict(LabelCounts(**{**cola.validation, "dropped_duplicates": True, "classes": counts, "duplicates": 2}))]
    table.insert(0, {**table[0], "split": "train", "classes": {"no": 1, "maybe": 2, "yes": 3}})
    page, markdown = written(
        classified(
            origin=json.dumps({**cola.origin, "labels": labels, "data": {"table": table}}),
            evaluation=json.dumps({"context": 64, "labels": labels, "best": {"step": 402, "validation": found}}),
        )
    )
    for told in (
        f"{100 * found['accuracy']:.1f} % [{100 * found['accuracy_low']:.1f}, {100 * found['accuracy_high']:.1f}]",
        f"{found['matthews']:.3f} [{found['matthews_low']:.3f}, {found['matthews_high']:.3f}]",
        f"where always answering “yes” gives {100 * found['majority_accuracy']:.1f} %",
        *(f"{scores['recall']:.3f}" for scores in found["per_class"].values()),
        f"{counts['no']} ({100 * counts['no'] / 500:.1f} %)", "2 duplicates, left out", "3 (50.0 %)",
    ):  # fmt: skip
        assert told in page.text
        assert told in plain(markdown)
    for label, row in zip(labels, found["confusion"], strict=True):
        assert f"| {label} | {' | '.join(map(str, row))} |" in markdown


def test_the_test_set_has_the_last_word(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    """Of the best model: the set that played no part in choosing it is the one whose classes are told."""
    test = cola.scores(0.7250, 0.6901, 0.7599, [[55, 110], [33, 322]])
    page, markdown = written(classified(evaluation=evaluated(cola.best, test=test)))
    assert "on the test set, which played no part in that choice, the accuracy is 72.5 % (95 %: 69.0 to" in (
        page.text.lower()
    )
    assert "test accuracy 72.5 % majority 68.3 %; 95 %: 69.0 to 76.0" in page.text
    assert "The best model, step 402, on the test set." in page.text
    assert "| unacceptable | 55 | 110 |" in markdown
    assert "| unacceptable | 120 | 202 |" not in markdown


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            (0.6807, 0.652, 0.709, [[40, 282], [51, 670]]),
            "On the validation set it does not beat the majority baseline (always answering “acceptable”: 69.1 %).",
        ),
        (
            (721 / 1043, 0.663, 0.719, [[0, 322], [0, 721]]),
            "On the validation set it does not beat the majority baseline (always answering “acceptable”: 69.1 %), for "
            "it answers so itself.",
        ),
        (
            (0.7028, 0.675, 0.730, [[60, 262], [48, 673]]),
            "On the validation set it cannot be told apart from the majority baseline (always answering “acceptable”: "
            "69.1 %): of 1,043 texts it alone has 60 right and the baseline alone 48, and chance divides so many at "
            "least so unevenly with a probability of 0.29 (McNemar's test).",
        ),
    ],
)
def test_a_model_that_is_no_better_than_one_answer_is_said_to_be(
    classified: MakeRun, cola: SimpleNamespace, written: Written, found: tuple[Any, ...], sentence: str
) -> None:
    page, markdown = written(classified(evaluation=evaluated(cola.scores(*found))))
    assert sentence in page.text
    assert f"**{sentence}**" in markdown


def test_a_model_that_is_better_is_not_warned_about(classified: MakeRun, written: Written) -> None:
    page, markdown = written(classified())
    assert "baseline" not in page.text
    assert "one point" not in page.text
    assert "**" not in markdown


def test_a_model_is_held_against_the_majority_text_by_text(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    """The baseline, 69.1 %, lies in the accuracy's interval, and yet 60 against 39 texts are more than chance."""
    page, _ = written(classified(evaluation=evaluated(cola.scores(0.7114, 0.684, 0.739, [[60, 262], [39, 682]]))))
    assert "baseline" not in page.text


def test_a_note_says_what_an_interval_of_one_point_is(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    """Of a model without a mistake every resample is without one; 100 % to 100 % would claim too much."""
    page, _ = written(classified(evaluation=evaluated(cola.scores(1.0, 1.0, 1.0, [[322, 0], [0, 721]]))))
    assert "its interval is one point" in page.text


def test_a_run_that_is_still_going_has_its_baseline_too(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    """The metrics do not have it; what the sources gave does."""
    lines = cola.metrics(140)
    state = json.dumps({"status": "running", "step": 140, "total_steps": 670, "best": {"step": 67}})
    page, markdown = written(classified(evaluation=None, state=state, metrics=jsonl(lines)))
    assert re.search(
        r"At its best, step 67, its accuracy on the validation set was 70\.\d %, where always answering “acceptable” "
        r"gives 69\.1 %; Matthews' correlation was 0\.\d+\.",
        page.text,
    )
    assert "brackets" not in page.text
    assert "Classes" not in page.text, "what was taken for what is known at the end alone"
    assert "confusion" not in markdown
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|perplexity|unigram", page.text + markdown)


def test_a_classifier_before_its_first_step_has_a_report(classified: MakeRun, written: Written) -> None:
    nothing = dict.fromkeys(("origin", "state", "evaluation", "metrics"))
    page, _ = written(classified(**nothing))
    assert "cola is a GPT (a context of 64 tokens), tuned from runs/base by LoRA of rank 4." in page.text
    assert not re.search(r"\bNone\b|Undefined|Scores|Classes|Curves|Data\b", page.text)


def test_what_a_label_says_cannot_act_in_the_page(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    evil = "</text></svg><script>alert(1)</script> {{ 111 * 111 }} | <b> $x$"
    best = {
        **cola.best,
        "per_class": {evil: cola.best["per_class"]["acceptable"], "b": cola.best["per_class"]["acceptable"]},
    }
    row = {**cola.train, "classes": {evil: 10, "b": 2}}
    origin = {**cola.origin, "labels": [evil, "b"], "data": {"table": [row]}}
    page, markdown = written(
        classified(origin=json.dumps(origin), evaluation=json.dumps({"best": {"step": 402, "validation": best}}))
    )
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert "12321" not in page.text + markdown
    assert not re.search(
        r"(?<!\\)<", re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown.partition("## To repeat it")[0])
    )


@pytest.mark.parametrize(("cell", "said"), [("rnn", "an RNN"), ("gru", "a GRU"), ("lstm", "an LSTM")])
def test_an_rnn_is_told_by_its_own_shape(
    classified: MakeRun, cola: SimpleNamespace, written: Written, cell: str, said: str
) -> None:
    recipe = f"""name = "cola"
[model]
kind = "{cell}"
n_layer = 2
n_embd = 256
context = 64
[data]
kind = "labels"
"""
    shape = {"cell": cell, "n_layer": 2, "n_embd": 256, "n_hidden": 512, "vocab_size": 8192}
    origin = {key: value for key, value in cola.origin.items() if key not in ("start", "trainable")}
    page, markdown = written(
        classified(recipe=recipe, origin=json.dumps({**origin, "parameters": 6_300_000, "shape": shape}))
    )
    told = (
        f"cola is {said} of 6.3 million parameters (2 layers, 512 hidden units, embeddings of width 256, a context of "
        "64 tokens). It is to tell 2 classes"
    )
    assert told in page.text
    assert told in markdown
    assert "shape: n hidden 512" in page.text
    assert "Tuning" not in page.text


def test_a_head_alone_is_said_to_be_trained(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    recipe = cola.recipe.replace('parameters = "all"', 'parameters = "head"').partition("[lora]")
    recipe = recipe[0] + "[training]" + recipe[2].partition("[training]")[2]
    page, _ = written(classified(recipe=recipe))
    assert "tuned from runs/base by its head alone" in page.text
    assert "method the head alone" in page.text
