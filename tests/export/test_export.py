"""What is exported is, for transformers and for PEFT, the model it came from; what fails leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.errors import CheckpointError, GptlabError, ModelError, TokenizerError, UserError
from gptlab.export.export import export_model
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.huggingface import load_model, save_model
from gptlab.run.checkpoint import TrainingState
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

FILES = ("README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
PROMPT = "Once upon a time there was a town"


def ours(model: Path) -> tuple[Tensor, list[int]]:
    """Logits over the prompt, and what is written after it greedily, with the token that ends it."""
    opened = open_model(model, device="cpu")
    ids = opened.require_tokenizer().encode(PROMPT)
    end = opened.template.end_id(opened.require_tokenizer()) if opened.template else opened.require_tokenizer().eos_id
    with torch.no_grad():
        logits = opened.model.logits(opened.model(torch.tensor([ids])))[0]
    (text,) = generate(opened.model, [ids], Sampling(greedy=True), max_new_tokens=30, eos_id=end)
    return logits, [*ids, *text.ids, *([end] if text.stopped == "eos" else [])]


def theirs(folder: Path, model: Any = None) -> tuple[Tensor, list[int]]:
    """The same by transformers, with the model it reads from the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model or AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    row = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    with torch.no_grad():
        logits = model(**row).logits[0]
        text = model.generate(**row, do_sample=False, max_new_tokens=30, pad_token_id=0)
    return logits, text[0].tolist()


def assert_equal(found: tuple[Tensor, list[int]], wanted: tuple[Tensor, list[int]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-4)
    assert found[1] == wanted[1]


@pytest.mark.parametrize(
    "kind",
    [
        {"tie_head": True},
        {"tie_head": False},
        {"activation": "gelu"},
        {"template": "chatml"},
        {"template": "eos", "tie_head": False, "padding": 7},
    ],
    ids=str,
)
def test_transformers_reads_the_model(make_model: Callable[..., Path], kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    done = export_model(model, "out/mine")
    assert_equal(theirs(done.folder), ours(model))
    extra = {"chat_template.jinja"} if "template" in kind else set()
    assert set(done.files) == {*FILES, "tokenizer_config.json", *extra}
    assert [check.partition(":")[0] for check in done.checks] == ["read by gptlab", "read by transformers"]
    assert all("greedy text is equal" in check for check in done.checks)
    assert os.listdir("out") == ["mine"]


def test_a_runs_best_checkpoint_without_what_only_the_lab_needs(
    make_model: Callable[..., Path], tokenizer: Tokenizer
) -> None:
    model = load_model(make_model())
    run = Run.create(Path("runs/mine"), {"name": "mine"}, {})
    for step in (1, 2):
        state = TrainingState(step, {}, {"h": torch.ones(1)}, {"cpu": torch.get_rng_state()})
        run.save_checkpoint(step, model, tokenizer, state, keep=2, best=step == 1)
        with torch.no_grad():
            model.wte.weight.neg_()
    best, last = export_model("mine", "best"), export_model("mine", "last", checkpoint="last")
    assert set(best.files) == {*FILES, "tokenizer_config.json"}
    assert_equal(ours(best.folder), ours(Path("plain")))
    assert_equal(ours(last.folder), ours(Path("runs/mine/checkpoints/000002")))
    assert not torch.equal(ours(best.folder)[0], ours(last.folder)[0])


@pytest.mark.parametrize("kind", [{}, {"tie_head": False}, {"template": "chatml", "new_rows": 2}], ids=str)
def test_peft_reads_the_adapter(make_adapter: Callable[..., Path], kind: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(**kind)
    done = export_model(adapter, "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < set(done.files)
    assert "model.safetensors" not in done.files
    assert json.loads((done.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        Path("plain").resolve()
    )
    base = AutoModelForCausalLM.from_pretrained("plain")
    assert_equal(theirs(done.folder, PeftModel.from_pretrained(base, done.folder)), ours(adapter))
    assert done.checks[1].startswith("read by transformers and PEFT: ")
    assert not torch.allclose(ours(adapter)[0], ours(Path("plain"))[0], atol=0.1), "it has learned something"


def test_an_adapter_is_merged(make_adapter: Callable[..., Path]) -> None:
    adapter = make_adapter(tie_head=False)
    done = export_model(adapter, "out", merge=True)
    assert set(done.files) == {*FILES, "tokenizer_config.json"}
    assert done.checks[0].startswith("merged into its base: logits differ by at most ")
    assert_equal(theirs(done.folder), ours(adapter))


def test_a_merge_that_rounding_spoils_is_refused(make_adapter: Callable[..., Path]) -> None:
    """W + s·B·A with terms of 1e5 has lost the digits that the softmax of attention then asks for."""
    adapter = make_adapter(scale=300.0)
    with pytest.raises(GptlabError, match=r"merged into its base: .*export the adapter as it is, without merging"):
        export_model(adapter, "out", merge=True)
    assert not {"out", ".out.writing"} & {path.name for path in Path().iterdir()}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"format": "ggfu"}, r"format 'ggfu': wanted huggingface or gguf \(did you mean 'gguf'\?\)"),
        ({"merge": True}, "plain is a whole model, no adapter: there is nothing to merge"),
        ({"checkpoint": "best"}, "plain: is no run here"),
        ({"push": "mine"}, "'mine' is no name for a model on the hub; it is to be OWNER/NAME"),
    ],
)
def test_what_cannot_be_is_refused(make_model: Callable[..., Path], options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        export_model(make_model(), "out", **options)
    assert os.listdir() == ["plain"]


def test_only_a_new_or_an_empty_folder_is_taken(make_model: Callable[..., Path]) -> None:
    model = make_model()
    Path("full").mkdir()
    Path("full/notes").write_text("mine")
    Path("file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UserError, match=f"{name}: is there already; export to a new folder"):
            export_model(model, name)
    assert Path("full/notes").read_text() == Path("file").read_text() == "mine"
    Path("empty").mkdir()
    Path(".empty.writing").mkdir()  # a kill has left it
    Path(".empty.writing/half").write_text("x")
    assert set(export_model(model, "empty").files) == {*FILES, "tokenizer_config.json"}
    assert not Path(".empty.writing").exists()


def test_what_is_damaged_is_not_exported(make_model: Callable[..., Path], tokenizer: Tokenizer) -> None:
    model = load_model(make_model())
    run = Run.create(Path("runs/mine"), {"name": "mine"}, {})
    folder = run.save_checkpoint(1, model, tokenizer, TrainingState(1, {}, {}, {}), keep=1, best=True)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has 5,000 bytes"):
        export_model("mine", "out")
    with torch.no_grad():
        model.h[0].attn.c_attn.weight[0, 0] = float("nan")
    save_model(model, Path("plain"))
    with pytest.raises(ModelError, match="not finite"):
        export_model("plain", "out")
    Path("plain/tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="plain: has no tokenizer"):
        export_model("plain", "out")
    assert sorted(os.listdir()) == ["plain", "runs"]
