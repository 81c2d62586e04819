"""The report of a run that classifies: accuracy beside its baseline, curves by epoch, what was taken for what."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data.label_counts import LabelCounts
from gptlab.evaluation.classification_scores import classification_scores
from gptlab.report.class_plots import epoch_means
from gptlab.report.facts import gather
from gptlab.run.run import Run

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]

RECIPE = """name = "cola"
start = "runs/base"
[model]
kind = "gpt"
context = 64
[data]
kind = "labels"
[objective]
kind = "classification"
[lora]
rank = 4
alpha = 16.0
targets = ["attn.c_attn", "mlp.c_fc"]
also_train = ["layer_norms"]
[training]
epochs = 10
parameters = "all"
[validation]
best_by = "matthews"
"""
TRAIN = {
    "name": "cola", "split": "train", "texts": 8551, "tokens": 95_610,
    "classes": {"unacceptable": 2528, "acceptable": 6023}, "empty": 2, "empty_at": ["line 5", "line 6"], "cut": 1,
    "duplicates": 7, "dropped_duplicates": False, "overlapping": 3, "contradicting": 4, "contradicting_at": ["line 8"],
    "bad": {"no label": 2}, "bad_at": {"no label": ["line 17", "line 90"]},
    "percentiles": [10, 18, 26, 48],
}  # fmt: skip
VALIDATION = {
    **TRAIN, "split": "validation", "texts": 1043, "tokens": 11_700,
    "classes": {"unacceptable": 322, "acceptable": 721}, "empty": 0, "empty_at": [], "cut": 0, "duplicates": 0,
    "overlapping": 0, "contradicting": 0, "contradicting_at": [], "bad": {}, "bad_at": {},
    "percentiles": [10, 18, 24, 33],
}  # fmt: skip
COUNTS = {"adapters": 589_824, "layer_norms": 38_400, "head": 1536, "trainable": 629_760, "all": 125_030_400}
ORIGIN: dict[str, Any] = {
    "command": "gptlab train cola-lora",
    "device": "CPU, Test 7",
    "parameters": 125_030_400,
    "shape": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257},
    "trainable": COUNTS,
    "labels": ["unacceptable", "acceptable"],
    "start": {"name": "runs/base", "folder": "/runs/base", "vocab_size": 50_257, "fingerprint": "71e9c54f"},
    "data": {"table": [TRAIN, VALIDATION], "tokenizer": {"vocab_size": 50_257}},
}


def scores(accuracy: float, low: float, high: float, confusion: list[list[int]]) -> dict[str, Any]:
    """As evaluation/classification_scores.py makes them; what does not follow from the confusion is made up."""
    counts = np.array(confusion)
    per_class = {
        label: {"precision": 0.638, "recall": 0.373, "f1": 0.471, "texts": int(counts[number].sum())}
        for number, label in enumerate(ORIGIN["labels"])
    }
    return {
        "loss": 0.5643, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high,
        "majority_accuracy": counts[1].sum() / counts.sum(), "matthews": 0.3345, "matthews_low": 0.274,
        "matthews_high": 0.394, "f1": 0.6496, "f1_low": 0.617, "f1_high": 0.681, "texts": int(counts.sum()),
        "per_class": per_class, "confusion": confusion,
    }  # fmt: skip


BEST = scores(0.7411, 0.7143, 0.7670, [[120, 202], [68, 653]])
EVALUATION: dict[str, Any] = {
    "context": 64,
    "labels": ORIGIN["labels"],
    "best": {"step": 402, "validation": BEST},
    "last": {"step": 670, "validation": scores(0.7335, 0.7066, 0.7593, [[131, 191], [87, 634]])},
}
STATE = {"status": "finished", "step": 670, "total_steps": 670, "best": {"step": 402}, "elapsed_seconds": 2138.0}

EPOCH_STEPS = 67


def metrics(steps: int = 670) -> list[dict[str, Any]]:
    """Ten epochs of 67 steps of 128 texts, the last of an epoch short; each validated at its end."""
    lines: list[dict[str, Any]] = [
        {
            "event": "validation",
            "step": 0,
            "loss": 1.1,
            "accuracy": 0.3087,
            "matthews": 0.0,
            "f1": 0.236,
            "tokens": 1043,
        }
    ]
    random = np.random.default_rng(0)
    texts = 0
    for step in range(1, steps + 1):
        epoch, ends = step / EPOCH_STEPS, step % EPOCH_STEPS == 0
        texts += 8551 - 66 * 128 if ends else 128
        lines.append({
            "event": "step", "step": step, "epoch": epoch, "loss": 0.63 - 0.03 * epoch + random.normal(0, 0.03),
            "accuracy": 0.68 + 0.02 * epoch + random.normal(0, 0.03), "matthews": 0.3, "f1": 0.6, "learning_rate": 1e-3,
            "gradient_norm": 1.0, "tokens": texts, "tokens_per_second": 40.0, "seconds": 3.2 * step,
            "memory_bytes": 1_890_000_000,
        })  # fmt: skip
        if ends:
            far = (epoch - 6) / 6
            lines.append({
                "event": "validation", "step": step, "loss": 0.5643 + 0.05 * far**2, "tokens": 1043,
                "accuracy": 0.7411 - 0.05 * far**2, "matthews": 0.3345 - 0.2 * far**2, "f1": 0.65 - 0.1 * far**2,
            })  # fmt: skip
    return lines


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]\\])", "", markdown.replace("\u00a0", " "))


def evaluated(best: dict[str, Any], **more: Any) -> str:
    return json.dumps({**EVALUATION, "best": {"step": 402, "validation": best, **more}})


@pytest.fixture
def classified(make_run: MakeRun) -> MakeRun:
    """classified(**files) → a finished run of CoLA by LoRA; `files` as make_run takes them."""

    def make(**changes: str | None) -> Path:
        files: dict[str, str | None] = {
            "recipe": RECIPE,
            "origin": json.dumps(ORIGIN),
            "state": json.dumps(STATE),
            "evaluation": json.dumps(EVALUATION),
            "metrics": jsonl(metrics()),
            "samples": None,
        }
        return make_run("cola", **{**files, **changes})

    return make


def test_a_classifier_is_told_beside_its_baseline(classified: MakeRun, written: Written) -> None:
    page, markdown = written(classified())
    for told in (
        "cola is a GPT of 125 million parameters (12 layers, 12 heads, width 768, a context of 64 tokens), tuned from "
        "runs/base by LoRA of rank 4, which trains 629,760 of them (0.50 %). It tells 2 classes of texts apart: "
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


def test_what_the_lab_counts_and_scores_is_what_is_told(classified: MakeRun, written: Written) -> None:
    """The keys are those of LabelCounts and classification_scores, and none of them is passed over in silence."""
    truth = np.random.default_rng(0).integers(0, 3, 500)
    logits = np.eye(3)[truth] + np.random.default_rng(1).normal(0, 0.8, (500, 3))
    labels = ["no", "maybe", "yes"]
    found = classification_scores(truth, logits, labels, majority=2)
    counts = {label: int((truth == number).sum()) for number, label in enumerate(labels)}
    table = [asdict(LabelCounts(**{**VALIDATION, "dropped_duplicates": True, "classes": counts, "duplicates": 2}))]
    table.insert(0, {**table[0], "split": "train", "classes": {"no": 1, "maybe": 2, "yes": 3}})
    page, markdown = written(
        classified(
            origin=json.dumps({**ORIGIN, "labels": labels, "data": {"table": table}}),
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


def test_its_confusion_stands_as_a_picture_and_as_a_table(classified: MakeRun, written: Written) -> None:
    folder = classified()
    page, markdown = written(folder)
    labels = [attributes.get("aria-label") or "" for _, attributes in page.tags]
    assert sum(label.startswith("Texts by their true class (down)") for label in labels) == 1
    table = plain(markdown).partition("## Classes")[2].partition("\n## ")[0]
    assert "| true \\ answer | unacceptable | acceptable |\n| --- | ---: | ---: |\n" in table
    assert "| unacceptable | 120 | 202 |\n| acceptable | 68 | 653 |\n" in table
    assert "](plots/confusion.png)" in table
    assert markdown.count("confusion.png") == 1
    drawn = (folder / "plots" / "confusion.svg").read_text(encoding="utf-8")
    for told in ("120", "202", "68", "653", "unacceptable", "answer", "true"):
        assert f">{told}<" in drawn


def test_the_test_set_has_the_last_word(classified: MakeRun, written: Written) -> None:
    """Of the best model: the set that played no part in choosing it is the one whose classes are told."""
    test = scores(0.7250, 0.6901, 0.7599, [[55, 110], [33, 322]])
    page, markdown = written(classified(evaluation=evaluated(BEST, test=test)))
    assert "on the test set, which played no part in that choice, the accuracy is 72.5 % (95 %: 69.0 to" in (
        page.text.lower()
    )
    assert "test accuracy 72.5 % majority 68.3 %; 95 %: 69.0 to 76.0" in page.text
    assert "The best model, step 402, on the test set." in page.text
    assert "| unacceptable | 55 | 110 |" in markdown
    assert "| unacceptable | 120 | 202 |" not in markdown


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (
            scores(0.6807, 0.652, 0.709, [[40, 282], [51, 670]]),
            "On the validation set it does not beat the majority baseline (always answering “acceptable”: 69.1 %).",
        ),
        (
            scores(721 / 1043, 0.663, 0.719, [[0, 322], [0, 721]]),
            "On the validation set it does not beat the majority baseline (always answering “acceptable”: 69.1 %).",
        ),
        (
            scores(0.7114, 0.684, 0.739, [[60, 262], [39, 682]]),
            "On the validation set the interval of its accuracy contains the majority baseline (always answering "
            "“acceptable”: 69.1 %): by these 1,043 texts the two cannot be told apart.",
        ),
    ],
)
def test_a_model_that_is_no_better_than_one_answer_is_said_to_be(
    classified: MakeRun, written: Written, best: dict[str, Any], sentence: str
) -> None:
    page, markdown = written(classified(evaluation=evaluated(best)))
    assert sentence in page.text
    assert f"**{sentence}**" in markdown


def test_a_model_that_is_better_is_not_warned_about(classified: MakeRun, written: Written) -> None:
    page, markdown = written(classified())
    assert "baseline" not in page.text
    assert "**" not in markdown


def test_a_run_that_is_still_going_has_its_baseline_too(classified: MakeRun, written: Written) -> None:
    """The metrics do not have it; what the sources gave does."""
    lines = metrics(140)
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


def test_curves_are_by_epoch_where_there_are_three(classified: MakeRun, written: Written) -> None:
    folder = classified()
    page, markdown = written(folder)
    drawn = {name: (folder / "plots" / f"{name}.svg").read_text(encoding="utf-8") for name in ("loss", "accuracy")}
    for svg in drawn.values():
        assert {"epoch", "training, mean of the epoch", "validation, whole", "best"} <= set(
            re.findall(">([^<>]+)<", svg)
        )
    assert ">majority<" in drawn["accuracy"]
    assert ">majority<" not in drawn["loss"]
    assert ">70 %<" in drawn["accuracy"]
    assert ">loss (nats per text)<" in drawn["loss"]
    assert "Training is the mean over an epoch's batches" in page.text
    linked = re.findall(r"\]\((.*?)\)", markdown)
    assert linked == [
        f"plots/{name}.png"
        for name in ("confusion", "loss", "accuracy", "learning_rate", "gradient_norm", "throughput")
    ]
    assert ">texts per second<" in (folder / "plots" / "throughput.svg").read_text(encoding="utf-8")


def test_curves_of_a_short_run_are_by_step(classified: MakeRun, written: Written) -> None:
    folder = classified(metrics=jsonl(metrics(134)))
    page, _ = written(folder)
    drawn = (folder / "plots" / "accuracy.svg").read_text(encoding="utf-8")
    assert ">step<" in drawn
    assert ">epoch<" not in drawn
    assert "epoch's middle" not in page.text


def test_the_mean_of_an_epoch_weighs_texts_and_stands_at_its_middle() -> None:
    """A line covers as many texts as were counted since the one before: two steps, a short last step."""
    lines = [
        {"event": "step", "step": 2, "epoch": 0.5, "loss": 4.0, "tokens": 20},
        {"event": "step", "step": 4, "epoch": 1.0, "loss": 1.0, "tokens": 30},
        {"event": "validation", "step": 4, "loss": 9.0, "tokens": 7},
        {"event": "step", "step": 5, "epoch": 1.25, "loss": 2.0, "tokens": 40},
        {"event": "step", "step": 6, "epoch": 1.5, "loss": 0.0, "tokens": 50},
    ]
    middles, means = epoch_means(lines, "loss")
    np.testing.assert_allclose(middles, [0.5, 1.25])
    np.testing.assert_allclose(means, [(20 * 4 + 10 * 1) / 30, 1.0])


def test_many_classes_with_long_names_fit(classified: MakeRun, written: Written) -> None:
    labels = [f"class number {n} with a long name $x_{n}$ \\frac" for n in range(40)]
    confusion = np.random.default_rng(0).integers(0, 3, (40, 40)) + 50 * np.eye(40, dtype=int)
    best = {
        **BEST,
        "confusion": confusion.tolist(),
        "per_class": dict.fromkeys(labels, BEST["per_class"]["acceptable"]),
    }
    row = {**TRAIN, "classes": dict.fromkeys(labels, 100)}
    origin = {**ORIGIN, "labels": labels, "data": {"table": [row, {**row, "split": "validation"}]}}
    folder = classified(origin=json.dumps(origin), evaluation=json.dumps({"best": {"step": 402, "validation": best}}))
    page, markdown = written(folder)
    assert "It tells 40 classes of texts apart." in page.text
    assert "true \\\\ answer" not in markdown, "too wide for any page"
    assert "](plots/confusion.png)" in markdown
    assert page.text.count("class number 39 with a long name $x_39$ \\frac") == 2, "its scores, its count"
    assert ">class number 39 w…<" in (folder / "plots" / "confusion.svg").read_text(encoding="utf-8")


def test_what_a_label_says_cannot_act_in_the_page(classified: MakeRun, written: Written) -> None:
    evil = "</text></svg><script>alert(1)</script> {{ 111 * 111 }} | <b> $x$"
    best = {**BEST, "per_class": {evil: BEST["per_class"]["acceptable"], "b": BEST["per_class"]["acceptable"]}}
    row = {**TRAIN, "classes": {evil: 10, "b": 2}}
    origin = {**ORIGIN, "labels": [evil, "b"], "data": {"table": [row]}}
    page, markdown = written(
        classified(origin=json.dumps(origin), evaluation=json.dumps({"best": {"step": 402, "validation": best}}))
    )
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert "12321" not in page.text + markdown
    assert not re.search(
        r"(?<!\\)<", re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown.partition("## To repeat it")[0])
    )


@pytest.mark.parametrize(("cell", "said"), [("rnn", "an RNN"), ("gru", "a GRU"), ("lstm", "an LSTM")])
def test_an_rnn_is_told_by_its_own_shape(classified: MakeRun, written: Written, cell: str, said: str) -> None:
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
    origin = {key: value for key, value in ORIGIN.items() if key not in ("start", "trainable")}
    page, markdown = written(
        classified(recipe=recipe, origin=json.dumps({**origin, "parameters": 6_300_000, "shape": shape}))
    )
    told = (
        f"cola is {said} of 6.3 million parameters (2 layers, 512 hidden units, embeddings of width 256, a context of "
        "64 tokens). It tells 2 classes"
    )
    assert told in page.text
    assert told in markdown
    assert "shape: n hidden 512" in page.text
    assert "Tuning" not in page.text


def test_a_head_alone_is_said_to_be_trained(classified: MakeRun, written: Written) -> None:
    recipe = RECIPE.replace('parameters = "all"', 'parameters = "head"').partition("[lora]")
    recipe = recipe[0] + "[training]" + recipe[2].partition("[training]")[2]
    page, _ = written(classified(recipe=recipe))
    assert "tuned from runs/base by its head alone" in page.text
    assert "method the head alone" in page.text


def test_the_teacher_is_told_with_its_share_and_hintons_factor(classified: MakeRun, written: Written) -> None:
    recipe = RECIPE.replace(
        'kind = "classification"', 'kind = "distillation"\nteacher = "runs/teacher"\nalpha = 0.8\ntemperature = 2.0'
    )
    teacher = {
        "name": "runs/teacher", "folder": "/runs/teacher", "fingerprint": "abcd1234",
        "validation": scores(0.8273, 0.804, 0.850, [[200, 122], [58, 663]]),
    }  # fmt: skip
    lines = [
        {**line, "loss": 0.5 * line["loss"], "cross_entropy": line["loss"], "distillation": 0.3} for line in metrics()
    ]
    folder = classified(recipe=recipe, origin=json.dumps({**ORIGIN, "teacher": teacher}), metrics=jsonl(lines))
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
