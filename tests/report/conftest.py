"""Run directories written by hand, as docs/formats.md describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptlab.report.report import write_report
from gptlab.run.run import Run

RECIPE = """name = "books"
seed = 1
[model]
kind = "gpt"
n_layer = 2
n_head = 4
n_embd = 128
context = 128
[samples]
prompts = ["Once upon"]
temperature = 0.8
top_k = 40
top_p = 1.0
max_new_tokens = 40
"""

ORIGIN: dict[str, Any] = {
    "command": "gptlab train mini-gpt --data 'my books/*.txt'",
    "created": "2025-03-01T10:00:00+00:00",
    "device": "CPU, Test 7, 2 cores",
    "parameters": 13_311_360,
    "versions": {"gptlab": "0.1.0", "torch": "2.13.0"},
    "commit": "3f1c9e2",
    "data": {
        "fingerprints": {"train": "100:abc"},
        "table": [
            {"name": "books", "split": "train", "documents": 71, "bytes": 41_200_000, "tokens": 9_786_000},
            {"name": "books", "split": "validation", "documents": 8, "bytes": 999, "tokens": 250},
        ],
        "tokenizer": {"vocab_size": 50_257, "bytes_per_token": 4.21},
    },
}  # fmt: skip


def scores(loss: float, unigram_loss: float = 6.7) -> dict[str, float]:
    return {
        "loss": loss, "perplexity": math.exp(loss), "perplexity_per_word": math.exp(1.3 * loss),
        "bits_per_byte": loss / math.log(2) / 4.21, "tokens": 973_000, "unigram_perplexity": math.exp(unigram_loss),
    }  # fmt: skip


EVALUATION: dict[str, Any] = {
    "context": 128,
    "stride": 64,
    "best": {"step": 30, "validation": scores(3.9), "test": scores(4.0, 6.8)},
    "last": {"step": 40, "validation": scores(3.95)},
}


def metrics(steps: int) -> list[dict[str, Any]]:
    """Two sessions of 20 steps, evaluated after every 10; the best sampled validation is step 30."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        if step % 20 == 1:
            lines.append({"event": "start", "step": step - 1, "precision": "float32", "micro_batch_size": 32})
        lines.append({
            "event": "step", "step": step, "epoch": step / 100, "loss": 4 + 6 / step, "learning_rate": 1e-3,
            "gradient_norm": 1.0, "tokens": 4096 * step, "tokens_per_second": 8192.0, "seconds": step / 2,
            "memory_bytes": 890_000_000 + step, "peak_share": 0.5,
        })  # fmt: skip
        if step % 10 == 0:
            loss = 4 + abs(step - 30) / 10
            lines.append({"event": "validation_sampled", "step": step, "loss": loss, "perplexity": math.exp(loss)})
    return lines


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name="books", **files) → a finished run's folder; `files` replaces contents by stem, None leaves
    the file out."""

    def make(name: str = "books", **changes: str | None) -> Path:
        state = {"status": "finished", "step": 40, "total_steps": 40, "elapsed_seconds": 250.0}
        samples = [
            {"step": step, "prompt": "Once upon", "text": f" a time in step {step}", "stopped": "length"}
            for step in range(10, 41, 10)
        ]
        files: dict[str, str | None] = {
            "recipe.toml": RECIPE,
            "origin.json": json.dumps(ORIGIN),
            "state.json": json.dumps(state),
            "evaluation.json": json.dumps(EVALUATION),
            "metrics.jsonl": jsonl([*metrics(40), {"event": "note", "step": 21, "text": "continued at step 20"}]),
            "samples.jsonl": jsonl(samples),
        }
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            content = changes.get(file.partition(".")[0], content)
            if content is not None:
                (folder / file).write_text(content, encoding="utf-8")
        return folder

    return make


COLA_RECIPE = """name = "cola"
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
COLA_TRAIN = {
    "name": "cola", "split": "train", "texts": 8551, "tokens": 95_610,
    "classes": {"unacceptable": 2528, "acceptable": 6023}, "empty": 2, "empty_at": ["line 5", "line 6"], "cut": 1,
    "duplicates": 7, "dropped_duplicates": False, "overlapping": 3, "contradicting": 4, "contradicting_at": ["line 8"],
    "bad": {"no label": 2}, "bad_at": {"no label": ["line 17", "line 90"]},
    "percentiles": [10, 18, 26, 48],
}  # fmt: skip
COLA_VALIDATION = {
    **COLA_TRAIN, "split": "validation", "texts": 1043, "tokens": 11_700,
    "classes": {"unacceptable": 322, "acceptable": 721}, "empty": 0, "empty_at": [], "cut": 0, "duplicates": 0,
    "overlapping": 0, "contradicting": 0, "contradicting_at": [], "bad": {}, "bad_at": {},
    "percentiles": [10, 18, 24, 33],
}  # fmt: skip
COLA_COUNTS = {"adapters": 589_824, "layer_norms": 38_400, "head": 1536, "trainable": 629_760, "all": 125_030_400}
COLA_ORIGIN: dict[str, Any] = {
    "command": "gptlab train cola-lora",
    "device": "CPU, Test 7",
    "parameters": 125_030_400,
    "shape": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257},
    "trainable": COLA_COUNTS,
    "labels": ["unacceptable", "acceptable"],
    "start": {"name": "runs/base", "folder": "/runs/base", "vocab_size": 50_257, "fingerprint": "71e9c54f"},
    "data": {"table": [COLA_TRAIN, COLA_VALIDATION], "tokenizer": {"vocab_size": 50_257}},
}


def class_scores(accuracy: float, low: float, high: float, confusion: list[list[int]]) -> dict[str, Any]:
    """As evaluation/classification_scores.py makes them; what does not follow from the confusion is made up."""
    counts = np.array(confusion)
    per_class = {
        label: {"precision": 0.638, "recall": 0.373, "f1": 0.471, "texts": int(counts[number].sum())}
        for number, label in enumerate(COLA_ORIGIN["labels"])
    }
    return {
        "loss": 0.5643, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high,
        "majority_accuracy": counts[1].sum() / counts.sum(), "matthews": 0.3345, "matthews_low": 0.274,
        "matthews_high": 0.394, "f1": 0.6496, "f1_low": 0.617, "f1_high": 0.681, "texts": int(counts.sum()),
        "per_class": per_class, "confusion": confusion,
    }  # fmt: skip


COLA_BEST = class_scores(0.7411, 0.7143, 0.7670, [[120, 202], [68, 653]])
COLA_EVALUATION: dict[str, Any] = {
    "context": 64,
    "labels": COLA_ORIGIN["labels"],
    "best": {"step": 402, "validation": COLA_BEST},
    "last": {"step": 670, "validation": class_scores(0.7335, 0.7066, 0.7593, [[131, 191], [87, 634]])},
}
COLA_STATE = {"status": "finished", "step": 670, "total_steps": 670, "best": {"step": 402}, "elapsed_seconds": 2138.0}

EPOCH_STEPS = 67


def class_metrics(steps: int = 670) -> list[dict[str, Any]]:
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


@pytest.fixture
def cola() -> SimpleNamespace:
    """What a run on CoLA by LoRA leaves in its files, to be changed: `recipe` as text, `origin`, `train` and
    `validation` (what its source gave), `evaluation`, `scores(accuracy, low, high, confusion)`, `metrics(steps)`."""
    return SimpleNamespace(
        recipe=COLA_RECIPE, origin=COLA_ORIGIN, train=COLA_TRAIN, validation=COLA_VALIDATION, best=COLA_BEST,
        evaluation=COLA_EVALUATION, scores=class_scores, metrics=class_metrics,
    )  # fmt: skip


@pytest.fixture
def classified(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """classified(**files) → a finished run of CoLA by LoRA; `files` as make_run takes them."""

    def make(**changes: str | None) -> Path:
        files: dict[str, str | None] = {
            "recipe": COLA_RECIPE,
            "origin": json.dumps(COLA_ORIGIN),
            "state": json.dumps(COLA_STATE),
            "evaluation": json.dumps(COLA_EVALUATION),
            "metrics": jsonl(class_metrics()),
            "samples": None,
        }
        return make_run("cola", **{**files, **changes})

    return make


class Page(HTMLParser):
    """What a browser would read: tags with their attributes, and the text between them. Tags must close."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def written() -> Callable[[Path], tuple[Page, str]]:
    """written(folder) → the page and the Markdown of the run in `folder`."""

    def write(folder: Path) -> tuple[Page, str]:
        path = write_report(Run.open(folder))
        assert path == folder / "report.html"
        page = Page(path.read_text(encoding="utf-8"))
        assert not page.open
        return page, (folder / "report.md").read_text(encoding="utf-8")

    return write
