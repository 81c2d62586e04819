"""`gptlab export`: a folder, what was checked, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlab.cli import main
from gptlab.model.gpt import GPT, GPTShape
from gptlab.run.checkpoint import TrainingState
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/mine with checkpoints 1 (the best) and 2, in the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train(["Once upon a time there was a lab, and in the lab there was a model."] * 3, 300)
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16))
    run = Run.create(Path("runs/mine"), {"name": "mine"}, {})
    for step in (1, 2):
        run.save_checkpoint(step, model, tokenizer, TrainingState(step, {}, {}, {}), keep=2, best=step == 1)
        with torch.no_grad():
            model.wpe.weight.neg_()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls `gptlab export …`: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["export", *arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_it_says_what_was_checked_and_where_it_is(call: Call) -> None:
    code, out, _ = call("mine", "--to", "out")
    assert code == 0
    checks, (place,) = out.splitlines()[:2], out.splitlines()[2:]
    assert [line.partition(":")[0] for line in checks] == ["checked   read by gptlab", "checked   read by transformers"]
    assert place == f"exported  {Path('out').absolute()}"


def test_json_is_one_object(call: Call) -> None:
    code, out, _ = call("mine", "--to", "out", "--json", "--checkpoint", "last")
    exported = json.loads(out)["exported"]
    assert code == 0
    assert Path(exported["folder"]) == Path("out").absolute()
    assert sorted(exported["files"]) == sorted(path.name for path in Path("out").iterdir())
    assert len(exported["checks"]) == 2
    assert exported["address"] is None
    last, copy = (open_model(folder, device="cpu").model for folder in ("runs/mine/checkpoints/000002", "out"))
    assert torch.equal(last.wpe.weight, copy.wpe.weight)


def test_options_reach_the_function(call: Call) -> None:
    Path("runs").rename("elsewhere")
    code, out, _ = call("mine", "--to", "out", "--format", "gguf", "--runs", "elsewhere", "--checkpoint", "1")
    assert code == 0
    assert "checked   read by gguf: " in out
    assert {path.name for path in Path("out").iterdir()} == {"model.gguf", "README.md"}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["mine"], "--to"),
        (["mine", "--to", "runs"], "is there already"),
        (["mine", "--to", "out", "--merge"], "nothing to merge"),
        (["mine", "--to", "out", "--format", "onnx"], "format 'onnx'"),
        (["mine", "--to", "out", "--checkpoint", "first"], "wanted best, last or the number of a step"),
        (["mine", "--to", "out", "--checkpoint", "7"], "there is 1, 2"),
        (["mine", "--to", "out", "--push", "a/b/c"], "OWNER/NAME"),
        (["nine", "--to", "out"], "did you mean 'mine'?"),
    ],
)
def test_bad_input_is_named(call: Call, arguments: list[str], wanted: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert wanted in err
    assert not Path("out").exists()
