"""Runs on pairs: reward models and DPO, from what they may begin, how they go on, what they are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptlab
from gptlab.data.batch import ValuedRows
from gptlab.device import Precision
from gptlab.errors import ModelError, RecipeError, RunError, TrainingStopped, UserError
from gptlab.evaluation.preference_scores import answer_log_probs
from gptlab.evaluation.reward_scores import open_reward
from gptlab.model.classifier import REWARD, is_classifier
from gptlab.model.folder import load_model, save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import trainable_counts
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.open import load_weights, open_model
from gptlab.run.run import Run
from gptlab.settings import build
from gptlab.text.dialogue import Message
from gptlab.text.tokenizer import Tokenizer
from gptlab.training import assemble
from gptlab.training.assemble import train_recipe
from gptlab.training.fit import decide_micro_batch
from gptlab.training.prepare import prepare
from gptlab.training.progress import LineProgress, Progress
from gptlab.training.recipe import Recipe
from gptlab.training.start import find_start

ANIMALS = ("cat", "dog", "owl", "fox", "hen", "cow", "bee", "ant", "eel", "elk")
PAIRS = [
    {
        "prompt": f"What does the {animal} number {n} do?",
        "chosen": f"The {animal} sleeps, thank you.",
        "rejected": f"Go away, no {animal} here at all.",
    }
    for n in range(12)
    for animal in ANIMALS
]
FLOAT32 = Precision("float32", torch.float32, "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with pairs and a small language model that knows their words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in PAIRS))
    tokenizer = Tokenizer.train((word for pair in PAIRS for word in pair.values()), 300)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(tokenizer.vocab_size, 64, 2, 2, 32)), Path("small"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("small"))
    return tmp_path


def recipe(name: str, objective: Any = None, **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": name,
        "start": "small",
        "data": {"kind": "preferences", "sources": [{"path": "pairs.jsonl"}], "validation": {"share": 0.3}},
        "objective": objective or {"kind": "dpo"},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
        "schedule": {"kind": "constant", "warmup_steps": 0},
        "training": {"max_steps": 12, "batch_size": 8, "precision": "float32", **changes.pop("training", {})},
        "samples": {"max_new_tokens": 5, **changes.pop("samples", {})},
        **changes,
    }
    return build(Recipe, {key: value for key, value in tree.items() if value is not None}, "test")


REWARD_OBJECTIVE = {"kind": "reward"}
LORA = {"rank": 2, "alpha": 4}
LSTM = {"kind": "lstm", "n_layer": 1, "n_embd": 32, "context": 64, "dropout": 0.0}


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, wanted), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "changes", [{}, {"lora": LORA}, {"training": {"parameters": "head"}}], ids=["all", "lora", "head"]
)
def test_a_reward_model_learns_what_is_preferred(folder: Path, changes: dict[str, Any]) -> None:
    rate = {"optimizer": {"kind": "adamw", "learning_rate": 1e-2}}
    run = train_recipe(recipe("reward", REWARD_OBJECTIVE, **rate, **changes))
    scores = run.evaluation["best"]["validation"]
    assert scores["accuracy"] > (0.7 if "training" in changes else 0.9)
    assert scores["accuracy_low"] > 0.5
    assert scores["margin"] == pytest.approx(scores["chosen_reward"] - scores["rejected_reward"], abs=1e-5)
    assert run.evaluation["objective"] == "reward"
    assert "labels" not in run.origin
    opened = open_model(run.folder)
    assert opened.task == "reward"
    assert opened.labels == REWARD
    assert ("trainable" in run.origin) == bool(changes)
    asked = Message("user", "What does the cat number 99 do?")
    judge = open_reward("reward", "cpu", Path("runs"))
    polite, rude = judge.score(
        [[asked, Message("assistant", text)] for text in ("The cat sleeps, thank you.", "Go away, no cat here at all.")]
    )
    assert polite > rude
    first = run.metrics("step")[0]
    assert {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"} <= first.keys()
    assert not {"matthews", "perplexity", "chosen_tokens"} & first.keys()
    with pytest.raises(RecipeError, match="reward model and cannot write"):
        train_recipe(recipe("again", start="reward"))


def test_a_reward_model_may_be_a_start_and_is_scored_before(folder: Path) -> None:
    first = train_recipe(recipe("first", REWARD_OBJECTIVE))
    again = train_recipe(recipe("again", REWARD_OBJECTIVE, start="first", training={"max_steps": 1}))
    before = again.metrics("validation")[0]
    assert before["step"] == 0
    assert before["margin"] == pytest.approx(first.evaluation["best"]["validation"]["margin"])
    assert again.evaluation["start"]["validation"]["loss"] == before["loss"]


def test_a_new_recurrent_reward_model(folder: Path) -> None:
    run = train_recipe(recipe(
        "recurrent", REWARD_OBJECTIVE, start=None, model=LSTM, tokenizer={"from": "small"},
        optimizer={"kind": "adamw", "learning_rate": 1e-2}, training={"max_steps": 20},
    ))  # fmt: skip
    assert run.evaluation["best"]["validation"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    "changes", [{}, {"lora": LORA}, {"objective": {"kind": "dpo", "loss": "ipo"}}], ids=["all", "lora", "ipo"]
)
def test_dpo_begins_as_its_reference_and_then_prefers(folder: Path, changes: dict[str, Any]) -> None:
    run = train_recipe(recipe("dpo", **changes))
    start, best = run.evaluation["start"]["validation"], run.evaluation["best"]["validation"]
    wanted = 25 if "objective" in changes else math.log(2)  # IPO: 1 / (4 · 0.1²)
    assert start["loss"] == pytest.approx(wanted, rel=1e-5)
    assert start["margin"] == pytest.approx(0, abs=1e-5)
    assert start["kl"] == pytest.approx(0, abs=1e-6)
    assert best["loss"] < start["loss"]
    assert best["accuracy"] > 0.9
    assert best["margin"] > 0
    compared = run.evaluation["against_start"]
    assert compared["start"] == "small"
    assert compared["kl"] > 0
    assert "win_rate" not in compared
    assert run.recipe["model"]["dropout"] == 0
    assert run.origin["reference"]["name"] == "small"


def test_the_margins_are_those_of_the_log_probabilities_of_both_models(folder: Path) -> None:
    run = train_recipe(recipe("dpo"))
    start, tuned = find_start(recipe("dpo"), None, Path("runs"))
    pairs = prepare(tuned, Progress(), start).pairs()["validation"]
    how: Any = {"device": torch.device("cpu"), "precision": FLOAT32, "micro_batch_size": 5}
    after, before = (answer_log_probs(load_model(of), pairs, **how) for of in (run.checkpoint("best"), Path("small")))
    rewards = 0.1 * (after - before)
    best = run.evaluation["best"]["validation"]
    assert best["margin"] == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), rel=1e-3)
    assert best["chosen_reward"] == pytest.approx(float(rewards[:, 0].mean()), rel=1e-3)
    assert best["accuracy"] == np.mean(rewards[:, 0] > rewards[:, 1])
    tokens = pairs.lengths().sum(axis=0)
    assert best["chosen_log_prob"] == pytest.approx(after[:, 0].sum() / tokens[0], rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"lora": LORA}, {"objective": REWARD_OBJECTIVE}, {"objective": REWARD_OBJECTIVE, "lora": LORA}],
    ids=["dpo", "dpo lora", "reward", "reward lora"],
)  # fmt: skip
def test_a_run_that_goes_on_ends_as_one_that_was_never_cut(folder: Path, changes: dict[str, Any]) -> None:
    def of(name: str, steps: int) -> Recipe:
        return recipe(name, training={"max_steps": steps}, **changes)

    train_recipe(of("cut", 3))
    cut, whole = train_recipe(of("cut", 7)), train_recipe(of("whole", 7))
    same(load_weights(cut.checkpoint("last")), load_weights(whole.checkpoint("last")))


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "references").glob("*/log_probs.npy"))


def test_the_reference_is_asked_once(folder: Path) -> None:
    train_recipe(recipe("first"))
    times = [file.stat().st_mtime_ns for file in kept(folder)]
    assert len(times) == 2  # training and validation
    train_recipe(recipe("second", {"kind": "dpo", "beta": 0.3}))
    assert [file.stat().st_mtime_ns for file in kept(folder)] == times


def test_what_was_kept_of_the_reference_is_enough_to_go_on_and_else_its_weights_are(folder: Path) -> None:
    train_recipe(recipe("dpo", training={"max_steps": 3}))
    whole = train_recipe(recipe("whole", training={"max_steps": 8}))
    Path("small").rename("elsewhere")
    lines: list[str] = []

    class Heard(LineProgress):
        def say(self, text: str) -> None:
            lines.append(text)

    cut = train_recipe(recipe("dpo", training={"max_steps": 6}), progress=Heard())
    assert any("not compared with its start" in line for line in lines)
    assert "against_start" not in cut.evaluation
    for file in kept(folder):
        shutil.rmtree(file.parent)
    with pytest.raises(RunError, match="reference small is not there"):
        train_recipe(recipe("dpo", training={"max_steps": 8}))
    assert Run.open(Path("runs/dpo")).state["step"] == 6
    Path("elsewhere").rename("small")
    again = train_recipe(recipe("dpo", training={"max_steps": 8}))
    assert "against_start" in again.evaluation
    same(load_model(again.checkpoint("last")), load_model(whole.checkpoint("last")))


def test_a_reference_that_is_another_model_is_found_out_before_the_first_step(folder: Path) -> None:
    train_recipe(recipe("first"))
    for file in kept(folder):  # as long as before, checksums mended, and yet of other weights
        values = np.load(file)
        np.save(file, values + np.linspace(-40, 40, values.size, dtype=np.float32).reshape(values.shape))
        manifest = file.parent / "manifest.json"
        tree = json.loads(manifest.read_text())
        import hashlib

        tree["files"][file.name] = {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        manifest.write_text(json.dumps(tree))
    with pytest.raises(TrainingStopped, match="before the first step the policy is not the reference"):
        train_recipe(recipe("second"))
    stopped = Run.open(Path("runs/second"))
    assert stopped.state["status"] == "stopped"
    assert "the policy is not the reference" in stopped.metrics("note")[0]["text"]


def test_simpo_needs_no_reference(folder: Path) -> None:
    run = train_recipe(recipe("simpo", {"kind": "dpo", "loss": "simpo", "beta": 2.0}))
    assert "reference" not in run.origin
    assert not kept(folder)
    assert run.evaluation["best"]["validation"]["accuracy"] > 0.9
    assert "kl" not in run.evaluation["best"]["validation"]


def test_a_template_with_tokens_of_its_own_extends_policy_and_reference_alike(folder: Path) -> None:
    data = {
        "kind": "preferences", "sources": [{"path": "pairs.jsonl"}], "validation": {"share": 0.3}, "template": "chatml",
    }  # fmt: skip
    for name, changes in {
        "all": {},
        "adapter": {"lora": LORA},
        "reward": {"objective": REWARD_OBJECTIVE, "lora": LORA},
    }.items():
        run = train_recipe(recipe(name, data=data, **changes))
        assert run.origin["start"]["first_added"] == open_model("small").model.shape.vocab_size
        if name != "reward":
            assert run.evaluation["start"]["validation"]["loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_an_adapted_start_is_the_reference_with_its_adapter_merged(folder: Path) -> None:
    first = train_recipe(recipe("first", lora=LORA))
    assert first.origin["trainable"] == trainable_counts(load_weights(first.checkpoint("last"), merged=False))
    run = train_recipe(recipe("second", start="first"))
    assert run.evaluation["start"]["validation"]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert "+" in run.origin["reference"]["fingerprint"]


def test_answers_are_judged_while_dpo_learns_and_after_it(folder: Path) -> None:
    train_recipe(recipe("judge", REWARD_OBJECTIVE, optimizer={"kind": "adamw", "learning_rate": 1e-2}))
    run = train_recipe(recipe("dpo", samples={"reward": "judge"}, validation={"best_by": "reward", "every_steps": 6}))
    means = {line["step"]: line["mean"] for line in run.metrics("reward")}
    assert sorted(means) == [0, 6, 12]
    assert run.state["best"]["reward"] == max(mean for step, mean in means.items() if step)
    compared = run.evaluation["against_start"]
    assert compared["win_rate_low"] <= compared["win_rate"] <= compared["win_rate_high"]
    assert compared["reward"]["model"] == "judge"
    assert run.report_files.html.parent == run.folder
    assert 0 < len(compared["answers"]) <= 8


def test_evaluate_scores_a_run_as_it_was_scored(folder: Path) -> None:
    for name, objective in (("reward", REWARD_OBJECTIVE), ("dpo", None)):
        run = train_recipe(recipe(name, objective))
        found = gptlab.evaluate(name, precision="float32", answers=0).metrics
        best = run.evaluation["best"]["validation"]
        assert found["accuracy"] == best["accuracy"]
        assert found["margin"] == pytest.approx(best["margin"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": None, "model": {"size": "mini"}, "tokenizer": {"from": "small"}}, "it wants a start"),
        ({"objective": {"kind": "language"}}, "objective.kind = language: wants data.kind = corpus or dialogues"),
        ({"objective": {"kind": "classification"}}, "preferences are learned by kind = dpo or reward"),
        ({"training": {"tokens": 100, "max_steps": None}}, "pairs are counted in epochs"),
        ({"objective": {"kind": "reward"}, "samples": {"prompts": ["x"]}}, "a reward model writes nothing"),
        ({"validation": {"best_by": "matthews"}}, "wants data.kind = labels"),
        ({"training": {"parameters": "head"}}, "is for a classifier"),
        ({"objective": {"kind": "dpo", "beta": 0}}, "beta"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe("bad", **changes)


def test_an_rnn_answers_too(folder: Path) -> None:
    tokenizer = Tokenizer.read(Path("small"))
    torch.manual_seed(0)
    save_model(RNN(RNNShape(tokenizer.vocab_size, 64, 1, 32, 32, "gru")), Path("gru"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("gru"))
    run = train_recipe(recipe("dpo", start="gru"))
    assert run.evaluation["best"]["validation"]["accuracy"] > 0.9


def test_a_comparison_that_fails_costs_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*models: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("no room for two")

    monkeypatch.setattr("gptlab.training.pair_ending.compare_models", full)
    run = train_recipe(recipe("dpo", training={"max_steps": 2}))
    assert run.state["status"] == "finished"
    assert run.evaluation["best"]["validation"]["pairs"] > 0
    assert "against_start" not in run.evaluation
    (note,) = run.metrics("note")
    assert "not compared with its start: the memory is not enough" in note["text"]
    assert "gptlab evaluate dpo --against small" in note["text"]


def test_a_judge_that_is_not_there_is_missed_before_the_reference_is_asked(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"samples\.reward\) is not there"):
        train_recipe(recipe("dpo", samples={"reward": "judge"}))
    assert not kept(folder)
    assert not Path("runs/dpo").exists()


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_the_cut_into_micro_batches_changes_nothing(folder: Path, kind: str) -> None:
    """Gradients are compared in tests/invariants/test_pairs.py; here the whole run is."""
    whole, cut = (
        train_recipe(recipe(
            f"cut-{size}", {"kind": kind}, model={"dropout": 0.0}, training={"micro_batch_size": size, "max_steps": 6}
        ))
        for size in (8, 3)
    )  # fmt: skip
    for wanted, found in zip(whole.metrics("step"), cut.metrics("step"), strict=True):
        for key in ("loss", "margin", "gradient_norm"):
            assert found[key] == pytest.approx(wanted[key], rel=1e-3, abs=1e-5)


def test_what_a_step_of_pairs_takes_is_predicted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences a pair, and the reference's two numbers; nothing of a second model."""
    asked: list[Any] = []

    def decide(recipe: Recipe, make_model: Any, make_objective: Any, n_rows: int, rows: Any, **more: Any) -> Any:
        asked.append(rows)
        return decide_micro_batch(recipe, make_model, make_objective, n_rows, rows, **more)

    monkeypatch.setattr(assemble, "decide_micro_batch", decide)
    for kind in ({"kind": "dpo"}, REWARD_OBJECTIVE):
        train_recipe(recipe(kind["kind"], kind, training={"max_steps": 1}))
    dpo, reward = (rows.batch(3) for rows in asked)
    assert dpo.tokens.shape[0] == reward.tokens.shape[0] == 6
    assert len(dpo) == dpo.weight == 3
    assert dpo.values["reference"].shape == (3, 2)
    assert len(reward.positions) == 6
    assert isinstance(dpo, type(reward))
    assert not isinstance(asked[0], ValuedRows)


def test_a_reward_model_neither_writes_nor_classifies(folder: Path) -> None:
    run = train_recipe(recipe("reward", REWARD_OBJECTIVE, training={"max_steps": 1}))
    assert is_classifier(load_model(run.checkpoint("last")))
    for task in ("language", "classification"):
        with pytest.raises(UserError, match="reward model"):
            open_model("reward", task=task)
