"""`gptlab evaluate` as a function: on the run's own data, a recipe's, a file's; and the judge that follows a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.errors import RecipeError, RunError, UserError
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import HuggingFaceReward
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.open import open_model
from gptlab.settings import build
from gptlab.text.dialogue import Message
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.assemble import train_recipe
from gptlab.training.evaluate import evaluate_model
from gptlab.training.recipe import Recipe

TURNS = [[f"Is {n} even?", "Yes." if n % 2 == 0 else f"No, {n} is odd."] for n in range(80)]
TEXT = " ".join(turn for turns in TURNS for turn in turns)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    Path("chats.jsonl").write_text("".join(f"{json.dumps({'turns': turns})}\n" for turns in TURNS))
    Path("book.txt").write_text(TEXT)
    tokenizer = Tokenizer.train([TEXT], 300)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(tokenizer.vocab_size, 64, 2, 2, 16)), Path("small"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("small"))
    return tmp_path


def recipe(**changes: Any) -> Recipe:
    tree = {
        "name": "tuned", "start": "small",
        "data": {
            "kind": "dialogues", "sources": [{"path": "chats.jsonl", "format": "turns"}], "validation": {"share": 0.2},
        },
        "training": {"max_steps": 3, "batch_size": 8, "precision": "float32"},
        **changes,
    }  # fmt: skip
    return build(Recipe, tree, "test")


def test_a_text_is_scored_token_by_token_as_written_out(folder: Path) -> None:
    found = evaluate_model("small", on="corpus:book.txt", precision="float32")
    opened = open_model("small")
    tokenizer = opened.require_tokenizer()
    ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            window = torch.tensor([tokenizer.eos_id, *ids])[start : start + 65]
            logits = opened.model.logits(opened.model(window[None, :-1]))[0]
            nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    assert found.metrics["tokens"] == len(ids)
    assert found.metrics["loss"] == pytest.approx(nats / len(ids), abs=1e-5)
    assert found.metrics["perplexity_per_word"] == pytest.approx(math.exp(nats / len(TEXT.split())), rel=1e-4)


def test_a_run_is_scored_on_its_own_held_out_dialogues(folder: Path) -> None:
    run = train_recipe(recipe())
    found = evaluate_model(str(run.folder), precision="float32", answers=5)
    own = run.evaluation["best"]["validation"]
    assert found.metrics["loss"] == pytest.approx(own["loss"], abs=1e-6)
    assert len(found.answers) == 5
    assert {"distinct_1", "repetition", "answer_tokens", "ended"} <= found.metrics.keys()
    assert evaluate_model(str(run.folder), precision="float32", answers=5).answers == found.answers
    test = evaluate_model(str(run.folder), on=str(run.folder / "recipe.toml"), split="train", answers=0)
    assert test.metrics["tokens"] > found.metrics["tokens"]


def test_a_file_of_dialogues_is_scored_whole(folder: Path) -> None:
    found = evaluate_model("small", on="dialogues:chats.jsonl", answers=0)
    tokenizer = open_model("small").require_tokenizer()
    assert found.metrics["tokens"] == sum(len(tokenizer.encode(answer)) + 1 for _, answer in TURNS)


@pytest.mark.parametrize(
    ("on", "split", "error", "words"),
    [
        (None, "validation", RunError, "is no run, so it has no held-out data"),
        ("corpse:book.txt", "validation", UserError, "there is no kind 'corpse' \\(did you mean 'corpus'"),
        ("no-such-recipe", "validation", UserError, "no recipe 'no-such-recipe'"),
        ("corpus:nothing.txt", "validation", UserError, "no such file"),
    ],
)
def test_what_cannot_be_scored_is_said(
    folder: Path, on: str | None, split: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate_model("small", on=on, split=split)


def test_a_recipe_without_a_test_set_has_none(folder: Path) -> None:
    run = train_recipe(recipe())
    with pytest.raises(UserError, match="has no test set"):
        evaluate_model(str(run.folder), split="test")


@pytest.fixture
def reward(folder: Path) -> Path:
    """A small reward model with random weights, in Hugging Face's format."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    engine = Engine(models.WordPiece(unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    engine.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=200, special_tokens=names))
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=engine, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained("judge")
    fast.save_pretrained("judge")
    return Path("judge")


def test_answers_are_judged_at_every_evaluation_and_the_best_followed(reward: Path) -> None:
    run = train_recipe(
        recipe(
            samples={"reward": "judge", "max_new_tokens": 4, "prompts": []},
            validation={"every_steps": 1, "best_by": "reward"},
        )
    )
    lines = run.metrics("reward")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["low"] <= line["mean"] <= line["high"] for line in lines)
    best = max(lines[1:], key=lambda line: line["mean"])
    assert run.state["best"] == {"step": best["step"], "reward": best["mean"]}
    assert run.checkpoint("best").name == f"{best['step']:06d}"


def test_a_models_reward_is_the_mean_over_the_forty_questions(reward: Path) -> None:
    run = train_recipe(recipe())
    found = evaluate_model(str(run.folder), reward="judge")
    assert [each.prompt for each in found.answers] == [prompt.text for prompt in topic_prompts()]
    pairs = [[Message("user", each.prompt), each.message] for each in found.answers]
    assert found.metrics["reward"] == pytest.approx(float(np.mean(HuggingFaceReward("judge").score(pairs))))
    assert found.metrics["reward_low"] <= found.metrics["reward"] <= found.metrics["reward_high"]


def test_plain_text_has_no_answers_to_be_judged(reward: Path) -> None:
    text = {"kind": "corpus", "sources": [{"path": "book.txt"}], "validation": {"share": 0.1}}
    with pytest.raises(RecipeError, match="it wants dialogues"):
        train_recipe(recipe(data=text, samples={"reward": "judge"}))
