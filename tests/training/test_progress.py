"""A run's words in a notebook: every line is there, and one bar that ends at the last step."""

from __future__ import annotations

from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

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
