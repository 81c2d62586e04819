"""The model card: its fields are YAML, its code runs, and of a run it says what the run's files say."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlab.export.export import export_model
from gptlab.model.huggingface import load_model
from gptlab.run.checkpoint import TrainingState
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

RECIPE: dict[str, Any] = {
    "name": "mine",
    "data": {
        "kind": "corpus",
        "sources": [{"hub": "Salesforce/wikitext", "column": "text"}, {"path": "a|b.txt"}],
        "validation": {"sources": [{"hub": "acme/other"}, {"hub": "Salesforce/wikitext"}]},
    },
    "samples": {"prompts": ["Once upon"], "temperature": 0.8, "top_k": 40, "max_new_tokens": 9},
    "training": {"epochs": 2.0},
}
SCORES = {"loss": 3.0, "perplexity": math.exp(3.0), "bits_per_byte": 1.1, "tokens": 1000}


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The fields and the text of a card."""
    _, fields, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(fields), text


@pytest.fixture
def run(make_model: Callable[..., Path], tokenizer: Tokenizer) -> Run:
    """A run from microsoft/DialoGPT-small, as it lies in the hub's cache; the best checkpoint is step 20."""
    origin = {
        "created": "2026-01-02T03:04:05+00:00",
        "device": "CPU, Test 7",
        "parameters": 27_000,
        "versions": {"gptlab": "0.1.0", "torch": "2.13.0"},
        "start": {"name": "acme/base", "folder": "/cache/hub/models--acme--base/snapshots/0123"},
        "data": {"table": [{"name": "a|b.txt", "split": "train", "documents": 71, "tokens": 9786}]},
    }
    run = Run.create(Path("runs/mine"), RECIPE, origin)
    model = load_model(make_model())
    for step in (20, 30):
        run.save_checkpoint(step, model, tokenizer, TrainingState(step, {}, {}, {}), keep=2, best=step == 20)
        run.log({"event": "step", "step": step, "loss": 3.0, "seconds": 60.0 * step, "tokens": 512 * step})
        run.log_samples([{"step": step, "prompt": "Once upon", "text": f" a `time` in {step}", "stopped": "length"}])
    run.write_state({"status": "finished", "step": 30, "total_steps": 30, "elapsed_seconds": 1800.0})
    run.write_evaluation({"context": 64, "best": {"step": 20, "validation": SCORES}})
    return run


def test_of_a_run_it_says_what_the_run_says(run: Run) -> None:
    fields, text = card(export_model("mine", "out").folder)
    assert fields == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gptlab", "gpt2"],
        "base_model": "acme/base",
        "datasets": ["Salesforce/wikitext", "acme/other"],
    }
    assert "license" not in fields, "that is for whoever publishes it"
    assert text.startswith("\n# out\n\nout is a GPT of 37,376 parameters (2 layers, 2 heads, width 32, a context of 64")
    assert "It was trained for 30 steps" in text
    assert "These weights are those of step 20." in text
    assert "| best, step 20 | validation | 3.0000 | 20.09 |" in text
    assert "```text\nOnce upon a `time` in 30\n```" in text
    assert "drawn with temperature 0.8, top-k 40, at most 9 tokens" in text
    assert "| a\\|b.txt | train | 71 | 9,786 |" in text
    assert "| training time | 30 min |" in text
    assert 'hub = "Salesforce/wikitext"' in text
    assert "| versions: torch | 2.13.0 |" in text
    assert "/cache/hub" not in text, "a reader's cache is elsewhere"
    assert "\n\n\n" not in text


def test_of_a_tuned_dialogue_model_it_says_how_it_was_tuned_and_judged(run: Run) -> None:
    data = {"kind": "dialogues", "learn": "answers", "pack": False, "history": 3, "sources": [{"path": "a.jsonl"}]}
    origin = json.loads((run.folder / "origin.json").read_text())
    (run.folder / "origin.json").write_text(json.dumps(origin | {"data": {"template": "hh"}}))
    run.write_recipe(RECIPE | {"start": "acme/base", "data": data, "lora": {"rank": 4, "alpha": 16.0}})
    answer = {"score": 1.5, "prompt": "What is a mill?", "answer": "A house."}
    run.log({
        "event": "reward", "step": 20, "mean": -0.75, "low": -1.0, "high": -0.5, "best": answer, "worst": answer,
        "distinct_1": 0.5, "distinct_2": 0.6, "repetition": 0.1, "answer_tokens": 9.0, "answer_tokens_median": 8,
        "ended": 0.9,
    })  # fmt: skip
    fields, text = card(export_model("mine", "out").folder)
    assert "datasets" not in fields
    assert "tuned from acme/base on dialogues by LoRA of rank 4" in text
    assert re.search(r", step 20 \| -0\.750 \|", text)
    assert "`Once upon`\n\n```text\n a `time` in 30\n```" in text
    assert "\n\n\n" not in text


def test_of_a_run_on_pairs_it_says_how_it_compares_with_its_start(run: Run) -> None:
    settings = {"kind": "dpo", "beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.0, "gamma": 0.5}
    data = {"kind": "preferences", "sources": [{"path": "a.jsonl"}]}
    run.write_recipe(RECIPE | {"start": "acme/base", "data": data, "objective": settings})
    scores = {"pairs": 40, "loss": 0.6, "accuracy": 0.7, "margin": 0.3, "longer_accuracy": 0.5}
    compared = {
        "start": "acme/base", "prompts": 40, "answer_tokens": {"before": 20.0, "after": 25.0},
        "ended": {"before": 0.9, "after": 0.8}, "kl": 0.125, "answers": [],
    }  # fmt: skip
    run.write_evaluation({"objective": "dpo", "best": {"step": 20, "validation": scores}, "against_start": compared})
    fields, text = card(export_model("mine", "out").folder)
    assert fields["pipeline_tag"] == "text-generation"
    assert "tuned from acme/base on pairs of answers" in text
    assert "\n## Against its start\n" in text
    assert "| tokens of an answer | 20.0 | 25.0 | +25 % |" in text
    assert "| β | 0.1 |" in text
    assert "`Once upon`\n\n```text\n a `time` in 30\n```" in text, "a question and its answer"
    assert "\n\n\n" not in text


def test_of_any_other_model_it_says_what_it_is(make_model: Callable[..., Path]) -> None:
    fields, text = card(export_model(make_model(template="chatml"), "out").folder)
    assert fields["tags"] == ["gptlab", "gpt2", "conversational"]
    assert not {"base_model", "datasets"} & fields.keys()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["How to use it", "How to prompt it"]
    assert "Writing stops at `<|im_end|>`" in text
    assert "```text\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n" in text
    assert "gptlab chat out\n" in text


@pytest.mark.parametrize("kind", [{}, {"template": "chatml"}, {"template": "hh"}], ids=str)
@pytest.mark.parametrize("adapted", [False, True])
def test_its_code_runs(
    make_model: Callable[..., Path], make_adapter: Callable[..., Path], kind: dict[str, Any], adapted: bool
) -> None:
    make = make_adapter if adapted else make_model
    fields, text = card(export_model(make(**kind, context=128), "out").folder)
    assert fields["library_name"] == ("peft" if adapted else "transformers")
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().strip()


def test_an_adapter_names_its_base(make_adapter: Callable[..., Path]) -> None:
    adapter = make_adapter()
    fields, text = card(export_model(adapter, "local").folder)
    assert fields["tags"] == ["gptlab", "gpt2", "lora"]
    assert "base_model" not in fields, "it is a folder here"
    assert f"to be loaded with its base, `{Path('plain').resolve()}`" in text


def test_of_a_file_for_llama_cpp(run: Run) -> None:
    fields, text = card(export_model("mine", "out", format="gguf").folder)
    assert fields["library_name"] == "gguf"
    assert 'Llama("out/model.gguf")' in text
    assert "gptlab generate" not in text


def test_a_name_on_the_hub_that_is_a_folder_here_is_no_base_model(run: Run) -> None:
    origin = json.loads((run.folder / "origin.json").read_text())
    origin["start"]["folder"] = "/home/me/acme/base"
    (run.folder / "origin.json").write_text(json.dumps(origin))
    assert "base_model" not in card(export_model("mine", "out").folder)[0]
