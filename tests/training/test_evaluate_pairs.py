"""`gptlab evaluate` on pairs of answers, as a function: against probabilities and rewards of one sequence at a time."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.errors import UserError
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.run.open import open_model
from gptlab.settings import build
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.assemble import train_recipe
from gptlab.training.evaluate import evaluate_model
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe

PAIRS = [
    {
        "prompt": f"Is {n} even?",
        "chosen": "Yes, it is." if n % 2 == 0 else f"No, {n} is odd.",
        "rejected": "Odd" + "!" * (n % 7) + " I do not know" * (n % 2),
    }
    for n in range(60)
]
TEXT = " ".join(text for pair in PAIRS for text in pair.values())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two language models, a reward model and a classifier of one tokenizer, and pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in PAIRS))
    Path("book.txt").write_text(TEXT)
    tokenizer = Tokenizer.train([TEXT], 300)
    torch.manual_seed(0)
    shape = GPTShape(tokenizer.vocab_size, context=48, n_layer=2, n_head=2, n_embd=16)
    models = {"small": GPT(shape), "other": GPT(shape), "judge": GPTClassifier(shape, REWARD)}
    for name, model in {**models, "classes": GPTClassifier(shape, ("good", "bad"))}.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        save_model(model, Path(name), eos_id=tokenizer.eos_id)
        tokenizer.save(Path(name))
    return tmp_path


def recipe(name: str = "aligned", **changes: Any) -> Recipe:
    tree = {
        "name": name, "start": "small",
        "data": {
            "kind": "preferences", "sources": [{"path": "pairs.jsonl"}], "validation": {"share": 0.3},
            "test": {"share": 0.2},
        },
        "objective": {"kind": "dpo", "beta": 0.5},
        "optimizer": {"learning_rate": 1e-3}, "schedule": {"warmup_steps": 0},
        "training": {"max_steps": 6, "batch_size": 8, "precision": "float32"},
        **changes,
    }  # fmt: skip
    return build(Recipe, tree, "test")


def sides(name: str) -> list[list[tuple[list[int], list[bool]]]]:
    """Ids of both sides of each pair, and which are the answer's, by the template of closing turns with EOS."""
    tokenizer = open_model(name).require_tokenizer()
    template = Template.named("eos", tokenizer.eos)
    return [
        [
            template.encode([Message("user", pair["prompt"]), Message("assistant", pair[side])], tokenizer)
            for side in ("chosen", "rejected")
        ]
        for pair in PAIRS
    ]


def plain_log_probs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """log p of each side's answer, and its tokens, (pairs, 2), one sequence after the other, in float64."""
    model = copy.deepcopy(open_model(name).model).double()

    def log_prob(ids: list[int], in_answer: list[bool]) -> float:
        with torch.no_grad():
            log_probs = model.logits(model(torch.tensor([ids[:-1]])))[0].log_softmax(dim=1)
        return sum(float(log_probs[at - 1, ids[at]]) for at in range(1, len(ids)) if in_answer[at])

    both = sides(name)
    found = np.array([[log_prob(*side) for side in pair] for pair in both])
    return found, np.array([[sum(in_answer) for _, in_answer in pair] for pair in both])


def test_the_likelier_answer_is_found(folder: Path) -> None:
    found = evaluate_model("small", on="preferences:pairs.jsonl", precision="float32")
    log_probs, lengths = plain_log_probs("small")
    assert found.metrics["pairs"] == len(PAIRS)
    assert found.metrics["likelier"] == np.mean(log_probs[:, 0] > log_probs[:, 1])
    per_token = log_probs / lengths
    assert found.metrics["likelier_per_token"] == np.mean(per_token[:, 0] > per_token[:, 1])
    assert found.metrics["likelier_low"] < found.metrics["likelier"] < found.metrics["likelier_high"]
    for column, side in enumerate(("chosen", "rejected")):
        assert found.metrics[f"{side}_tokens"] == lengths[:, column].mean()
        mean = log_probs[:, column].sum() / lengths[:, column].sum()
        assert found.metrics[f"{side}_log_prob"] == pytest.approx(mean, rel=1e-5)
    assert not {"accuracy", "reference", "against", "ended"} & found.metrics.keys()
    assert not found.answers


def test_another_model_is_the_reference_of_implied_rewards(folder: Path) -> None:
    found = evaluate_model("small", on="preferences:pairs.jsonl", against="other", answers=0, precision="float32")
    rewards = 0.1 * (plain_log_probs("small")[0] - plain_log_probs("other")[0])
    margins = rewards[:, 0] - rewards[:, 1]
    assert (found.metrics["reference"], found.metrics["beta"]) == ("other", 0.1)
    assert found.metrics["accuracy"] == np.mean(margins > 0)
    assert found.metrics["margin"] == pytest.approx(margins.mean(), abs=1e-5)
    assert found.metrics["chosen_reward"] == pytest.approx(rewards[:, 0].mean(), abs=1e-5)
    assert "against" not in found.metrics


def test_a_reward_models_rewards_are_those_of_the_last_token(folder: Path) -> None:
    found = evaluate_model("judge", on="preferences:pairs.jsonl", precision="float32")
    model = open_model("judge").model
    assert isinstance(model, GPTClassifier)
    with torch.no_grad():
        rewards = np.array([
            [float(model.classify(model(torch.tensor([ids]))[:, -1])) for ids, _ in pair] for pair in sides("judge")
        ])  # fmt: skip
    assert found.metrics["accuracy"] == np.mean(rewards[:, 0] > rewards[:, 1])
    assert found.metrics["margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean(), abs=1e-5)
    assert found.metrics["longer_accuracy"] < 1
    assert found.metrics["calibration"]["bins"]


def test_a_run_of_dpo_is_scored_on_its_own_pairs_by_its_own_reference(folder: Path) -> None:
    run = train_recipe(recipe())
    found = evaluate_model(run.folder, precision="float32", answers=0).metrics
    own = run.evaluation["best"]["validation"]
    assert (found["reference"], found["beta"]) == ("small", 0.5)
    assert found["margin"] == pytest.approx(own["margin"], abs=1e-5)
    assert found["accuracy"] == own["accuracy"]
    named = evaluate_model(run.folder, precision="float32", answers=0, against="small").metrics
    assert named == found
    test = evaluate_model(run.folder, precision="float32", split="test").metrics
    assert test["margin"] == pytest.approx(run.evaluation["best"]["test"]["margin"], abs=1e-5)


def test_a_reference_that_is_gone_is_said_and_left_out(folder: Path) -> None:
    said: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    run = train_recipe(recipe())
    shutil.rmtree("small")
    found = evaluate_model(run.folder, precision="float32", progress=Said())
    assert "likelier" in found.metrics
    assert "accuracy" not in found.metrics
    assert any("small, from which" in text and "--against MODEL" in text for text in said)


def test_a_reference_has_the_tokens_that_its_run_added(folder: Path) -> None:
    """They begin at the mean of the others; so the start, which lacks them, is read as the run read it."""
    data = {**recipe().model_dump(exclude_none=True)["data"], "template": "chatml"}
    run = train_recipe(recipe(data=data))
    assert evaluate_model(run.folder, precision="float32").metrics["margin"] == pytest.approx(
        run.evaluation["best"]["validation"]["margin"], abs=1e-5
    )
    with pytest.raises(UserError, match=r"small lacks tokens that .* was given: <\|im_start\|>"):
        evaluate_model(run.folder, against="small")


def test_a_run_of_simpo_needs_no_reference(folder: Path) -> None:
    run = train_recipe(recipe(objective={"kind": "dpo", "loss": "simpo", "beta": 2.0}))
    found = evaluate_model(run.folder, precision="float32").metrics
    assert "reference" not in found
    assert found["margin"] == pytest.approx(run.evaluation["best"]["validation"]["margin"], abs=1e-5)


def test_each_kind_of_model_reads_the_others_pairs(folder: Path) -> None:
    aligned = train_recipe(recipe())
    judge = train_recipe(recipe("rewarded", objective={"kind": "reward"}))
    own = evaluate_model(judge.folder, precision="float32").metrics
    assert own["accuracy"] == judge.evaluation["best"]["validation"]["accuracy"]
    assert own["margin"] == pytest.approx(judge.evaluation["best"]["validation"]["margin"], abs=1e-5)
    files = {run.name: str(run.folder / "recipe.toml") for run in (aligned, judge)}
    crossed = evaluate_model(judge.folder, on=files["aligned"], precision="float32").metrics
    assert crossed["margin"] == pytest.approx(own["margin"], abs=1e-5)
    likely = evaluate_model(aligned.folder, on=files["rewarded"], precision="float32").metrics
    assert likely["margin"] == pytest.approx(aligned.evaluation["best"]["validation"]["margin"], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("judge", {"on": "corpus:book.txt"}, "for a language model, and judge is a reward model.*preferences:FILE"),
        ("judge", {"on": "preferences:pairs.jsonl", "against": "small"}, "--against small: .* judge is a reward model"),
        ("judge", {"on": "preferences:pairs.jsonl", "reward": "judge"}, "--reward judge: .* judge is a reward model"),
        ("judge", {"on": "blimp"}, "judge is a reward model"),
        ("classes", {"on": "preferences:pairs.jsonl"}, "or a reward model, and classes is a classifier.*labels:FILE"),
        ("small", {"on": "preferences:pairs.jsonl", "against": "judge"}, "judge: is a reward model"),
        ("small", {"on": "preferences:pairs.jsonl", "reward": "judge", "answers": 0}, "there are none"),
        ("small", {"on": "corpus:book.txt", "against": "other"}, "--against other: .* there are none"),
        ("small", {"on": "blimp:nowhere", "against": "other"}, "--against other: .* there are none"),
        ("small", {"on": "preference:pairs.jsonl"}, "did you mean 'preferences'"),
    ],
)
def test_what_does_not_go_together_is_said(folder: Path, model: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate_model(model, **changes)


def test_a_recipe_for_another_kind_of_model_is_refused_before_its_data_are_read(folder: Path) -> None:
    source = 'data = {kind = "preferences", sources = [{path = "nowhere.jsonl"}]}'
    Path("planned.toml").write_text(f'start = "small"\ntraining.max_steps = 1\nobjective.kind = "dpo"\n{source}\n')
    with pytest.raises(UserError, match=r"planned, validation: data of kind preferences are for .* classes is"):
        evaluate_model("classes", on="planned.toml")
