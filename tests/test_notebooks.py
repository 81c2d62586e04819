"""The notebook for Colab does what it says: run in a kernel, at tiny size, also after its session was lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

DIALOGUES = [
    [
        {"role": "user", "content": f"What is {number} and one?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
        {"role": "user", "content": f"And {number} and two?"},
        {"role": "assistant", "content": f"That is {number + 2}."},
    ]
    for number in range(120)
]

TINY = """
# The notebook's own changes, all but the length
CHANGES = [change for change in CHANGES if not change.startswith("training.minutes")]
CHANGES += ["start=start", "model.context=64", "training.max_steps=30", "checkpoints.every_steps=5"]
DATA = ["dialogues.jsonl"]
DRIVE = "drive"
"""

LOST_SESSION = """
# The machine is gone as soon as the third checkpoint has arrived on the drive
import os, signal
from pathlib import Path

real = os.rename

def rename(source, target):
    real(source, target)
    if Path(target) == Path("drive/dialogpt-medium/checkpoints/000015"):
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = rename
"""


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def with_parameters(notebook: NotebookNode, code: str) -> NotebookNode:
    """With a cell behind the parameters, where a person would have changed them."""
    (place,) = (number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(code))
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Runs all cells in a new kernel, in `folder`."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def said(notebook: NotebookNode, id: str) -> str:
    """What a cell shows, with single spaces: the width of the output decides where its lines break."""
    (cell,) = (cell for cell in notebook.cells if cell.id == id)
    texts = [output.get("text") or "".join(output.get("data", {}).values()) for output in cell.outputs]
    return " ".join(" ".join(texts).split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's folder, with a model in the hub's format and dialogues."""
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):  # no settings, no kernels but this Python's own
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    folder = tmp_path / "content"
    folder.mkdir()
    lines = [json.dumps({"messages": messages}) for messages in DIALOGUES]
    (folder / "dialogues.jsonl").write_text("\n".join(lines))
    tokenizer = Tokenizer.train(lines, 400)
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, context=128, n_layer=2, n_head=2, n_embd=32))
    save_model(model, folder / "start", eos_id=tokenizer.eos_id)
    tokenizer.save(folder / "start", context=128)
    return folder


def test_the_notebook_survives_a_lost_session_and_does_all_it_says(folder: Path) -> None:
    notebook = with_parameters(read(NOTEBOOKS[0]), LOST_SESSION + TINY)
    with pytest.raises(DeadKernelError):
        execute(notebook, folder)
    assert "runs/dialogpt-medium begins" in said(notebook, "train")
    shutil.rmtree(folder / "runs")

    notebook = with_parameters(read(NOTEBOOKS[0]), TINY)
    execute(notebook, folder)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            print("#####", cell.id, json.dumps(cell.outputs, indent=1)[:6000])
