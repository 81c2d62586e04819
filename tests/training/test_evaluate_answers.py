"""`gptlab evaluate --against`, as a function: two models on held-out prompts, judged and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.windows import ScoredWindows
from gptlab.device import pick_precision
from gptlab.evaluation.answers import answer
from gptlab.evaluation.comparison import compare_models
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import open_reward
from gptlab.evaluation.samples import SampleSettings
from gptlab.generation.sampling import Sampling
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.run.open import open_model
from gptlab.settings import to_toml
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.evaluate import evaluate_model

CPU = torch.device("cpu")
TURNS = [[f"Is {n} even?", "Yes." if n % 2 == 0 else f"No, {n} is odd."] for n in range(30)]
TEXT = " ".join(turn for turns in TURNS for turn in turns)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models of dialogues, a model of half their context, and a reward model; dialogues, and pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gptlab.evaluation.other_text.OTHER_BYTES", 2**12)  # the first document is enough
    Path("chats.jsonl").write_text("".join(f"{json.dumps({'turns': turns})}\n" for turns in TURNS))
    pairs = [{"prompt": question, "chosen": answer, "rejected": "Who knows?"} for question, answer in TURNS]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    tokenizer = Tokenizer.train([TEXT], 300)
    template = Template.named("eos", tokenizer.eos)
    torch.manual_seed(0)
    shape, short = (GPTShape(tokenizer.vocab_size, context, n_layer=1, n_head=2, n_embd=16) for context in (48, 24))
    models = {"tuned": GPT(shape), "start": GPT(shape), "short": GPT(short), "judge": GPTClassifier(shape, REWARD)}
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        save_model(model, Path(name), eos_id=tokenizer.eos_id)
        tokenizer.save(Path(name))
        template.save(Path(name))
    return tmp_path


def test_two_models_are_compared_on_held_out_prompts(folder: Path) -> None:
    found = evaluate_model(
        "tuned", on="dialogues:chats.jsonl", against="start", reward="judge", answers=5, precision="float32", seed=3
    )
    assert found.metrics["tokens"] > 0
    assert not found.answers
    tuned, start = open_model("tuned"), open_model("start")
    tokens = read_text_tokens(SourceSettings(embedded="python-docs", limit_bytes=2**12), tuned.require_tokenizer())
    samples = SampleSettings()
    chosen = [int(n) for n in torch.linspace(0, len(TURNS) - 1, 5)]
    assert found.metrics["against"] == compare_models(
        tuned, start, [[Message("user", TURNS[n][0])] for n in chosen], sampling=samples.sampling,
        max_new_tokens=samples.max_new_tokens, seed=3, reward=open_reward("judge", CPU), reward_name="judge",
        other=ScoredWindows(tokens, 48), other_name="python-docs", device=CPU,
        precision=pick_precision("float32", CPU),
    )  # fmt: skip


def test_pairs_are_compared_by_likelihood_and_by_answers(folder: Path) -> None:
    found = evaluate_model("tuned", on="preferences:pairs.jsonl", against="start", answers=3, precision="float32")
    assert found.metrics["reference"] == "start"
    assert found.metrics["against"]["prompts"] == 3
    assert "win_rate" not in found.metrics["against"]


def test_both_read_within_the_shorter_context(folder: Path) -> None:
    for on in ("dialogues:chats.jsonl", "preferences:pairs.jsonl"):
        metrics = evaluate_model("tuned", on=on, against="short", answers=3, precision="float32").metrics
        assert metrics["against"]["kl"] > 0
    alone = evaluate_model("tuned", on="dialogues:chats.jsonl", answers=0).metrics
    assert alone["context"] == 48


def test_answers_are_drawn_as_the_recipe_says(folder: Path) -> None:
    tree = {
        "name": "chats", "start": "tuned", "training": {"max_steps": 1},
        "data": {"kind": "dialogues", "sources": [{"path": "chats.jsonl"}], "validation": {"share": 0.3}},
        "samples": {"max_new_tokens": 3, "temperature": 0.5, "top_k": 5},
    }  # fmt: skip
    Path("chats.toml").write_text(to_toml(tree))
    found = evaluate_model("tuned", on="chats.toml", answers=2, precision="float32")
    opened = open_model("tuned")
    asked = [[Message("user", each.prompt)] for each in found.answers]
    assert found.answers == answer(
        opened.model, opened.require_tokenizer(), opened.template, asked, Sampling(temperature=0.5, top_k=5),
        max_new_tokens=3,
    )  # fmt: skip
    compared = evaluate_model("tuned", on="chats.toml", against="start", answers=2, precision="float32")
    assert compared.metrics["against"]["answer_tokens"]["after"] <= 3


def test_a_reward_model_of_the_labs_judges_answers_to_the_forty_questions(folder: Path) -> None:
    for on in ("dialogues:chats.jsonl", "preferences:pairs.jsonl"):
        found = evaluate_model("tuned", on=on, reward="judge", precision="float32")
        pairs = [[Message("user", each.prompt), each.message] for each in found.answers]
        assert [each.prompt for each in found.answers] == [prompt.text for prompt in topic_prompts()]
        mean = open_reward("judge", CPU).score(pairs).mean()
        assert found.metrics["reward"] == pytest.approx(mean, abs=1e-6)
