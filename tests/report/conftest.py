"""Run directories written by hand, as docs/formats.md describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
