"""The notebooks do what they say: run in a kernel, at tiny size; the one for Colab also after its session was lost."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import get_args

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
from gptlab.studies.statistics import Verdict
from gptlab.studies.study import Study
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.recipe import load_recipe

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
COLAB, STUDY = NOTEBOOKS / "colab.ipynb", NOTEBOOKS / "study.ipynb"

TINY = """
CHANGES = [change for change in CHANGES if not change.startswith("training.minutes")]
CHANGES += ["start=start", "model.context=64", "training.max_steps=30", "checkpoints.every_steps=5"]
DATA = ["dialogues.jsonl"]
DRIVE = "drive"
"""

TINY_STUDY = """
CHANGES = ["model.n_embd=16", "model.context=32", "tokenizer.train=400", "training.max_steps=12"]
CHANGES += ["data.sources=[{ embedded = 'python-docs:train', limit_documents = 40 }]"]
CHANGES += ["data.validation={ share = 0.1 }"]
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


def with_parameters(code: str, file: Path = COLAB, id: str = "parameters") -> NotebookNode:
    """A notebook with a cell behind its parameters, in the place of a person who changes them."""
    notebook = nbformat.read(file, as_version=4)
    notebook.cells.insert(notebook.cells.index(cell(notebook, id)) + 1, new_code_cell(code))
    return notebook


def run_all(notebook: NotebookNode, folder: Path) -> None:
    """Runs all cells in `folder`, in a kernel of their own."""
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()


def said(notebook: NotebookNode, id: str) -> str:
    """What a cell shows, with single spaces: where lines break is decided by the output's width."""
    texts = [
        text for output in cell(notebook, id).outputs for text in [output.get("text"), *output.get("data", {}).values()]
    ]
    return " ".join(" ".join(filter(None, texts)).split())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a machine that has nothing but gptlab."""
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):  # no settings of a person's, and no kernel but this Python
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "content"
    folder.mkdir()
    monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("GPTLAB_KERNELS", "torch")  # none are built: a GPU has no use for them either
    return folder


@pytest.fixture
def folder(machine: Path) -> Path:
    """The folder of a machine that has a small model in the hub's format, and dialogues."""
    folder = machine
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


@pytest.mark.slow
def test_a_study_is_made_once_and_shown(machine: Path) -> None:
    notebook = with_parameters(TINY_STUDY, STUDY, "study")
    notebook.cells += [new_code_cell(cell(notebook, "run").source, id="run-again")]
    run_all(notebook, machine)
    study = Study(machine / "runs/first-study")

    assert [result.status for result in study.results.runs] == ["finished"] * 6
    assert {arm: sorted(study.results.scores(arm)) for arm in study.results.arms} == {
        "baseline": [1, 2], "no-dropout": [1, 2], "slow": [1, 2],
    }  # fmt: skip
    assert [len(result.claims) for result in study.results.runs] == [1] * 6  # the second time nothing was run
    for id in ("run", "run-again"):
        assert "first-study: perplexity, less is better; runs: 6 finished" in said(notebook, id)
    assert "<svg" in cell(notebook, "plot").outputs[0].data["image/svg+xml"]
    assert "verdict" in said(notebook, "differences")
    assert all(f"{arm}-{seed}" in said(notebook, "runs") for arm in study.results.arms for seed in (1, 2))
    assert "runs/first-study/report.html" in said(notebook, "report")
    assert study.report_files.html.is_file()


def test_the_verdicts_that_a_notebook_explains_are_those_there_are() -> None:
    explained = set(re.findall(r"`([a-z ]+)`", cell(nbformat.read(STUDY, as_version=4), "verdict").source))
    assert set(get_args(Verdict)) - {"not known"} <= explained


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_it_is_valid_and_stored_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
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
