"""The notebook for Colab does what it says: run in a kernel, at tiny size, also after its session was lost."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.recipe import load_recipe

COLAB = Path(__file__).parents[1] / "notebooks" / "colab.ipynb"

TINY = """
CHANGES = [change for change in CHANGES if not change.startswith("training.minutes")]
CHANGES += ["start=start", "model.context=64", "training.max_steps=30", "checkpoints.every_steps=5"]
DATA = ["dialogues.jsonl"]
DRIVE = "drive"
"""

LOST_WITH_THE_THIRD_CHECKPOINT = """
import os, signal

really_rename = os.rename

def rename(source, target):
    really_rename(source, target)
    if str(target) == "drive/dialogpt-medium/checkpoints/000015":
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = rename
"""


def colab() -> NotebookNode:
    return nbformat.read(COLAB, as_version=4)


def cell(notebook: NotebookNode, id: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == id)


def with_parameters(code: str) -> NotebookNode:
    """The notebook with a cell behind its parameters, in the place of a person who changes them."""
    notebook = colab()
    notebook.cells.insert(notebook.cells.index(cell(notebook, "parameters")) + 1, new_code_cell(code))
    return notebook


def run_all(notebook: NotebookNode, folder: Path) -> None:
    """Runs all cells in `folder`, in a kernel of their own."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def said(notebook: NotebookNode, id: str) -> str:
    """What a cell shows, with single spaces: where lines break is decided by the output's width."""
    texts = [
        text for output in cell(notebook, id).outputs for text in [output.get("text"), *output.get("data", {}).values()]
    ]
    return " ".join(" ".join(filter(None, texts)).split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a machine that has a small model in the hub's format, and dialogues."""
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):  # no settings of a person's, and no kernel but this Python
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "content"
    folder.mkdir()
    monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("GPTLAB_KERNELS", "torch")  # none are built: a GPU has no use for them either
    dialogues = [dialogue(number) for number in range(120)]
    (folder / "dialogues.jsonl").write_text("\n".join(dialogues))
    tokenizer = Tokenizer.train(dialogues, 400)
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, context=128, n_layer=2, n_head=2, n_embd=32))
    save_model(model, folder / "start", eos_id=tokenizer.eos_id)
    tokenizer.save(folder / "start", context=128)
    return folder


def dialogue(number: int) -> str:
    words = (f"What is {number} and one?", f"It is {number + 1}.", "And one more?", f"That is {number + 2}.")
    turns = [{"role": ("user", "assistant")[turn % 2], "content": content} for turn, content in enumerate(words)]
    return json.dumps({"messages": turns})


def test_a_lost_session_is_made_good_by_the_same_cells(folder: Path) -> None:
    lost = with_parameters(TINY + LOST_WITH_THE_THIRD_CHECKPOINT)
    with pytest.raises(DeadKernelError):
        run_all(lost, folder)
    assert "runs/dialogpt-medium begins" in said(lost, "train")
    for gone in ("runs", "cache"):
        shutil.rmtree(folder / gone)

    notebook = with_parameters(TINY)
    for id in ("train", "export"):  # and once more in the same session
        notebook.cells.append(new_code_cell(cell(notebook, id).source, id=f"{id}-again"))
    run_all(notebook, folder)
    run, mirror = Run.open(folder / "runs/dialogpt-medium"), Run.open(folder / "drive/dialogpt-medium")

    assert said(notebook, "install") == "gptlab is installed already"
    assert said(notebook, "drive") == "This is not Colab: nothing is mounted, and drive is a folder here"
    assert "runs/dialogpt-medium was gone: restored from drive" in said(notebook, "train")
    assert "runs/dialogpt-medium continues after step 15" in said(notebook, "train")
    assert "runs/dialogpt-medium is finished" in said(notebook, "train-again")
    assert (run.state["status"], run.state["step"], run.recipe["lora"]["rank"]) == ("finished", 30, 8)
    assert [start["step"] for start in run.metrics("start")] == [0, 15]
    assert (mirror.state, mirror.steps()) == (run.state, run.steps())

    (page,) = re.findall(r'srcdoc="([^"]*)"', cell(notebook, "report").outputs[0].data["text/html"])
    assert unescape(page) == run.report_files.html.read_text(encoding="utf-8")
    assert re.fullmatch(r"> Hi, how are you today\? \S.* > What did you do last weekend\? \S.*", said(notebook, "ask"))
    assert "read by transformers and PEFT: logits differ by at most" in said(notebook, "export")
    assert (folder / "drive/dialogpt-medium-exported/adapter_model.safetensors").exists()
    assert "is there already" in said(notebook, "export-again")


def test_it_is_valid_and_stored_without_outputs() -> None:
    notebook = colab()
    nbformat.validate(notebook)
    assert COLAB.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
    for code in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert (code.outputs, code.execution_count) == ([], None)
        assert code.source.startswith("# "), "the first line says what a reader needs"


def test_its_paths_are_those_of_colab() -> None:
    text = "\n".join(cell.source for cell in colab().cells)
    assert set(re.findall(r"(?<![\w:/<])/(\w+)", text)) == {"content"}
    assert "~" not in text


def test_its_parameters_make_a_recipe() -> None:
    given: dict[str, list[str]] = {}
    exec(cell(colab(), "parameters").source, given)
    recipe = load_recipe(given["RECIPE"], *given["CHANGES"], data=given["DATA"])
    assert (recipe.start, recipe.training.minutes) == ("microsoft/DialoGPT-medium", 45)
    assert recipe.lora
