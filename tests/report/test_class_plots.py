"""The figures of a run that classifies: curves by epoch, and what was taken for what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptlab.report.class_plots import epoch_means

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]\\])", "", markdown.replace("\u00a0", " "))


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


def test_curves_of_a_short_run_are_by_step(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    folder = classified(metrics=jsonl(cola.metrics(134)))
    page, _ = written(folder)
    drawn = (folder / "plots" / "accuracy.svg").read_text(encoding="utf-8")
    assert ">step<" in drawn
    assert ">epoch<" not in drawn
    assert "epoch's middle" not in page.text


def test_a_sample_is_not_held_against_the_whole_sets_baseline(
    classified: MakeRun, cola: SimpleNamespace, written: Written
) -> None:
    """The majority's share of a sample is another, so the line says what it is of."""
    lines = [{**line, "event": line["event"].replace("validation", "validation_sampled")} for line in cola.metrics()]
    folder = classified(metrics=jsonl(lines))
    written(folder)
    drawn = (folder / "plots" / "accuracy.svg").read_text(encoding="utf-8")
    assert {"validation, a sample", "majority in the whole"} <= set(re.findall(">([^<>]+)<", drawn))


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


def test_many_classes_with_long_names_fit(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    labels = [f"class number {n} with a long name $x_{n}$ \\frac" for n in range(40)]
    confusion = np.random.default_rng(0).integers(0, 3, (40, 40)) + 50 * np.eye(40, dtype=int)
    best = {
        **cola.best,
        "confusion": confusion.tolist(),
        "per_class": dict.fromkeys(labels, cola.best["per_class"]["acceptable"]),
    }
    row = {**cola.train, "classes": dict.fromkeys(labels, 100)}
    origin = {**cola.origin, "labels": labels, "data": {"table": [row, {**row, "split": "validation"}]}}
    folder = classified(origin=json.dumps(origin), evaluation=json.dumps({"best": {"step": 402, "validation": best}}))
    page, markdown = written(folder)
    assert "It is to tell 40 classes of texts apart." in page.text
    assert "true \\\\ answer" not in markdown, "too wide for any page"
    assert "](plots/confusion.png)" in markdown
    assert page.text.count("class number 39 with a long name $x_39$ \\frac") == 2, "its scores, its count"
    assert ">class number 39 w…<" in (folder / "plots" / "confusion.svg").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("error")
def test_classes_are_named_in_any_script(classified: MakeRun, cola: SimpleNamespace, written: Written) -> None:
    """The page has the reader's fonts; that the PNG's has not every letter is no news for who trains."""
    labels = ["좋다", "悪い"]
    best = {**cola.best, "per_class": dict(zip(labels, cola.best["per_class"].values(), strict=True))}
    origin = {**cola.origin, "labels": labels, "data": {"table": [{**cola.train, "classes": {"좋다": 1, "悪い": 2}}]}}
    folder = classified(origin=json.dumps(origin), evaluation=json.dumps({"best": {"step": 402, "validation": best}}))
    written(folder)
    assert all(f">{label}<" in (folder / "plots" / "confusion.svg").read_text(encoding="utf-8") for label in labels)
