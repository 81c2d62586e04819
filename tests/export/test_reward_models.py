"""An exported reward model gives transformers and PEFT the rewards that it gives the lab; its card's code runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptlab.errors import ModelError
from gptlab.evaluation.own_reward import LabReward
from gptlab.evaluation.reward_scores import open_reward
from gptlab.export.card import DIALOGUE
from gptlab.export.export import export_model
from gptlab.model.classifier import REWARD, as_classifier
from gptlab.model.huggingface import load_model
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.run.checkpoint import save_parts
from gptlab.run.open import open_model
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

Make = Callable[..., Path]


@pytest.fixture
def make_reward(make_model: Make) -> Make:
    """make_reward(template, adapted) → the folder of a reward model; of an adapter that has learned something, its base
    in "plain"."""

    def make(template: str | None = "chatml", *, adapted: bool = False, labels: tuple[str, ...] = REWARD) -> Path:
        base = make_model(template=template, context=128)
        model: Any = as_classifier(load_model(base), labels)
        own, folder = Tokenizer.read(base), Path("judge")
        with torch.no_grad():
            model.score.weight.normal_(0, 0.5)
            if adapted:
                add_lora(model, LoraSettings(rank=2, also_train=("layer_norms",)))
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        save_parts(
            folder, model, own, Template.read(base, own.eos), base_name=str(base.absolute()) if adapted else None
        )
        return folder

    return make


def reward_of(folder: Path) -> float:
    """What the lab gives the dialogue of the card."""
    return LabReward(open_model(folder, device="cpu", task="reward")).score([DIALOGUE])[0]


@pytest.mark.parametrize("template", ["chatml", "hh", "eos", None])
@pytest.mark.parametrize(("adapted", "merge"), [(False, False), (True, False), (True, True)])
def test_its_card_says_what_it_is_and_its_code_gives_the_same_reward(
    make_reward: Make, template: str | None, adapted: bool, merge: bool
) -> None:
    judge = make_reward(template, adapted=adapted)
    done = export_model(judge, "out", merge=merge)
    assert reward_of(done.folder) == pytest.approx(reward_of(judge), abs=1e-4)
    _, fields, text = (done.folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(fields)["pipeline_tag"] == "text-classification"
    assert "reward-model" in yaml.safe_load(fields)["tags"]
    assert "conversational" not in yaml.safe_load(fields)["tags"]
    assert "How good it finds an answer, as one number" in text
    assert "gptlab evaluate out --on preferences:pairs.jsonl\ngptlab evaluate MODEL --reward out\n" in text
    assert "\n\n\n" not in re.sub("```.*?```", "code", text, flags=re.DOTALL)
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert float(printed.getvalue()) == pytest.approx(reward_of(judge), abs=1e-4)


def test_its_folder_is_transformers_own(make_reward: Make) -> None:
    """The pipeline gives the reward itself, not a probability made of it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    judge = make_reward()
    done = export_model(judge, "out")
    assert set(done.files) == {
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert [check.partition(":")[0] for check in done.checks] == ["read by gptlab", "read by transformers"]
    model, report = AutoModelForSequenceClassification.from_pretrained(done.folder, output_loading_info=True)
    assert not any(report.values()), report
    assert (model.config.num_labels, model.config.id2label) == (1, {0: "reward"})
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    assert model.config.pad_token_id == tokenizer.eos_token_id, "who pads, pads by the end of text; im_end stays"
    turns = [{"role": turn.role, "content": turn.content} for turn in DIALOGUE]
    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
    (found,) = pipeline("text-classification", model, tokenizer=tokenizer)(text)
    assert found == {"label": "reward", "score": pytest.approx(reward_of(judge), abs=1e-4)}
    assert isinstance(open_reward(done.folder, "cpu"), LabReward)


def test_an_adapter_keeps_its_label(make_reward: Make) -> None:
    done = export_model(make_reward(adapted=True), "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "labels.json"} < set(done.files)
    assert json.loads((done.folder / "labels.json").read_text()) == {"labels": ["reward"]}
    assert json.loads((done.folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert done.checks[1].startswith("read by transformers and PEFT: ")
    assert open_model(done.folder, device="cpu").labels == REWARD


def test_another_name_of_its_output_is_kept(make_reward: Make) -> None:
    done = export_model(make_reward(labels=("LABEL_0",)), "out")
    assert open_model(done.folder, device="cpu", task="reward").labels == ("LABEL_0",)


@pytest.mark.parametrize("adapted", [False, True])
def test_llama_cpp_has_no_reward_models(make_reward: Make, adapted: bool) -> None:
    with pytest.raises(
        ModelError, match=r"judge: is a reward model, and llama\.cpp's GPT-2 can only write; export it as"
    ):
        export_model(make_reward(adapted=adapted), "out", format="gguf")
    assert not Path("out").exists()
