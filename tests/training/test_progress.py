"""A run's words: what a line says of each objective; in a notebook every line, and one bar that ends at the end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from gptlab.training.progress import LineProgress, TerminalProgress

LINES = 100

RUN = f"""
import time
from gptlab.training.progress import make_progress

progress = make_progress()
with progress.busy("reading"):
    time.sleep(0.5)
for step in range(1, {LINES} + 1):
    record = {{"step": step, "loss": 1.0, "tokens_per_second": 10.0, "memory_bytes": 1e9, "seconds": step * 0.01}}
    progress.step(record, {LINES})
    time.sleep(0.01)
    progress.evaluated("validation", step, {{"loss": 1.0}})
progress.end()
"""

RECORD = {"step": 10, "loss": 0.512, "tokens_per_second": 1240.4, "memory_bytes": 1e9, "seconds": 20.0}
CLASSES = {"accuracy": 0.7414, "matthews": 0.3345, "f1": 0.6496}


def lines_of(record: dict[str, Any], scores: dict[str, float]) -> list[str]:
    """What is printed of a step and of a validation."""
    file = io.StringIO()
    progress = LineProgress(file)
    progress.step(record, 100)
    progress.evaluated("validation", 10, scores)
    return file.getvalue().splitlines()


def test_a_language_model_is_told_by_tokens() -> None:
    assert lines_of({**RECORD, "perplexity": 1.67}, {"loss": 0.5, "perplexity": 1.6487}) == [
        "step 10/100 · loss 0.512 · 1,240 tokens/s · 1.0 GB · 3 min left",
        "step 10 · validation: loss 0.5000, perplexity 1.65 per token",
    ]


def test_a_classifier_is_told_by_texts_and_accuracy() -> None:
    assert lines_of({**RECORD, **CLASSES}, {"loss": 0.5643, **CLASSES}) == [
        "step 10/100 · loss 0.512 · accuracy 74.1 % · 1,240 texts/s · 1.0 GB · 3 min left",
        "step 10 · validation: loss 0.5643, accuracy 74.1 %, Matthews 0.335, F1 0.650",
    ]


def test_a_student_is_told_by_its_cross_entropy_beside_its_loss() -> None:
    parts = {"cross_entropy": 0.7, "distillation": 0.25}
    assert lines_of({**RECORD, **parts, **CLASSES}, {"loss": 0.5, **parts, "perplexity": 2.0138}) == [
        "step 10/100 · loss 0.512 (cross-entropy 0.700) · accuracy 74.1 % · 1,240 texts/s · 1.0 GB · 3 min left",
        "step 10 · validation: loss 0.5000 (cross-entropy 0.7000), perplexity 2.01 per token",
    ]


def test_a_few_texts_a_second_keep_their_fraction() -> None:
    assert "· 1.3 texts/s ·" in lines_of({**RECORD, **CLASSES, "tokens_per_second": 1.34}, {"loss": 0.5})[0]


def test_the_bar_has_the_last_validation_of_a_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.console.width = 200
    progress.step({**RECORD, **CLASSES}, 100)
    progress.evaluated("validation", 10, {"loss": 0.5643, **CLASSES})
    progress.step({**RECORD, **CLASSES, "step": 11}, 100)
    (task,) = progress._bar.tasks
    progress.end()
    assert task.fields["words"] == ("loss 0.512 · accuracy 74.1 % · 1,240 texts/s · 1.0 GB · validation 0.564, 74.1 %")


def test_a_notebook_has_every_line_and_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = new_notebook(cells=[new_code_cell(RUN)])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    (bar,) = (output.data["text/html"] for output in outputs if output.output_type == "display_data")
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"step {step}" for step in range(1, LINES + 1)]
    assert bar.startswith(f'<progress value="{LINES}" max="{LINES}"></progress> step {LINES}/{LINES} · loss 1.000 · ')
    assert "reading" not in bar
