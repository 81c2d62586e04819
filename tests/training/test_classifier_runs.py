"""Runs that classify and runs that are taught: from what they may begin, how they go on, what they are refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlab
from gptlab.errors import ModelError, RecipeError, RunError, UserError
from gptlab.model.classifier import GPTClassifier, RNNClassifier
from gptlab.model.folder import load_model, save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import trainable_counts
from gptlab.model.rnn import RNN
from gptlab.run.open import load_weights, open_model
from gptlab.run.run import Run
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer
from gptlab.training import assemble, fit
from gptlab.training.assemble import train_recipe
from gptlab.training.evaluate import evaluate_model
from gptlab.training.recipe import Recipe

ADJECTIVES = {"good": "fine", "lovely": "fine", "nice": "fine", "bad": "poor", "awful": "poor"}
TEXTS = [
    (f"The {noun} was {adjective} on day {day}.", label)
    for day in range(12)
    for noun in ("soup", "walk")
    for adjective, label in ADJECTIVES.items()
]  # 72 fine and 48 poor


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with labelled texts, a plain text of the same words, and a small language model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    with Path("texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *TEXTS])
    Path("plain.txt").write_text("\n".join(text for text, _ in TEXTS * 3))
    tokenizer = Tokenizer.train((text for text, _ in TEXTS), 300)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(tokenizer.vocab_size, 64, 4, 2, 32)), Path("small"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("small"))
    return tmp_path


def recipe(name: str = "classifier", *, start: str | None = "small", model: Any = None, **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": name,
        "data": {"kind": "labels", "sources": [{"path": "texts.csv"}], "validation": {"share": 0.3}},
        "optimizer": {"kind": "adamw", "learning_rate": 3e-3},
        "schedule": {"kind": "constant", "warmup_steps": 0},
        "training": {"epochs": 8, "batch_size": 16, "precision": "float32", **changes.pop("training", {})},
        **changes,
    }
    if start is None:
        return build(Recipe, {**tree, "model": model, "tokenizer": {"from": "small"}}, "test")
    return build(Recipe, {**tree, "start": start, **({"model": model} if model else {})}, "test")


LSTM = {"kind": "lstm", "n_layer": 1, "n_embd": 32, "n_hidden": 48, "context": 64, "tie_head": False, "dropout": 0.0}
NEW_GPT = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 64}
LORA = {"rank": 2, "alpha": 4, "also_train": ["layer_norms"]}


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, wanted), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("start", "model", "kind"),
    [("small", None, GPTClassifier), (None, NEW_GPT, GPTClassifier), (None, LSTM, RNNClassifier)],
)
def test_a_run_learns_its_classes(folder: Path, start: str | None, model: Any, kind: type) -> None:
    run = train_recipe(recipe(start=start, model=model))
    scores = run.evaluation["best"]["validation"]
    assert scores["accuracy"] == 1
    assert scores["accuracy"] > scores["majority_accuracy"]
    assert scores["matthews"] == 1
    assert run.origin["labels"] == ["fine", "poor"]
    opened = open_model(run.folder)
    assert isinstance(opened.model, kind)
    assert opened.labels == ("fine", "poor")
    found = gptlab.classify(run.folder, ["The soup was awful on day 3.", "The walk was nice on day 30."])
    assert [each.label for each in found] == ["poor", "fine"]
    steps = run.metrics("step")
    assert {"loss", "accuracy", "matthews", "f1"} <= steps[0].keys()
    assert not {"true", "predicted", "hits", "perplexity"} & steps[0].keys()


def test_the_head_alone_leaves_the_body_as_it_was(folder: Path) -> None:
    run = train_recipe(recipe(training={"parameters": "head"}))
    after = load_model(run.checkpoint("last"))
    assert isinstance(after, GPTClassifier)
    before = load_model(Path("small"))
    for name, weight in before.h.state_dict().items():
        torch.testing.assert_close(after.h.state_dict()[name], weight, rtol=0, atol=0)
    assert run.origin["trainable"]["trainable"] == 2 * 32 == run.origin["trainable"]["head"]


def test_an_adapter_is_kept_with_its_head_and_opens_merged(folder: Path) -> None:
    run = train_recipe(recipe(lora=LORA, training={"epochs": 20}))
    counts = trainable_counts(load_weights(run.checkpoint("last"), merged=False))
    assert counts["trainable"] == counts["adapters"] + counts["layer_norms"] + counts["head"]
    assert counts["head"] == 2 * 32
    assert run.origin["trainable"] == counts
    assert run.evaluation["best"]["validation"]["accuracy"] > run.evaluation["best"]["validation"]["majority_accuracy"]
    found = evaluate_model(run.folder)
    assert found.metrics["accuracy"] == run.evaluation["best"]["validation"]["accuracy"]


@pytest.mark.parametrize(
    "changes", [{}, {"lora": LORA}, {"training": {"parameters": "head"}}, {"start": None, "model": LSTM}],
    ids=["all", "lora", "head", "lstm"],
)  # fmt: skip
def test_a_run_that_goes_on_ends_as_one_that_was_never_cut(folder: Path, changes: dict[str, Any]) -> None:
    def of(name: str, steps: int) -> Recipe:
        length = {**changes.get("training", {}), "max_steps": steps, "epochs": None}
        return recipe(name, **{**changes, "training": length})

    train_recipe(of("cut", 3))
    cut, whole = train_recipe(of("cut", 7)), train_recipe(of("whole", 7))
    same(load_weights(cut.checkpoint("last")), load_weights(whole.checkpoint("last")))


def test_a_classifier_may_be_a_start_with_its_head_or_with_a_new_one(folder: Path) -> None:
    first = train_recipe(recipe("first"))
    again = train_recipe(recipe("again", start="first", training={"epochs": None, "max_steps": 1}))
    assert again.metrics("validation")[0]["accuracy"] == first.evaluation["best"]["validation"]["accuracy"]
    renamed = Path("texts.csv").read_text().replace("fine", "well").replace("poor", "ill")
    Path("texts.csv").write_text(renamed)
    other = train_recipe(recipe("other", start="first"))
    assert other.origin["labels"] == ["ill", "well"]
    assert not [line for line in other.metrics("validation") if line["step"] == 0]


def test_a_starts_head_is_kept_where_its_labels_come_in_another_order(folder: Path) -> None:
    data = {"kind": "labels", "sources": [{"path": "texts.csv"}], "validation": {"share": 0.3}}
    first = train_recipe(recipe("first", data={**data, "labels": ["poor", "fine"]}))
    again = train_recipe(recipe("again", start="first", training={"epochs": None, "max_steps": 1}))
    assert again.origin["labels"] == ["fine", "poor"]
    assert again.metrics("validation")[0]["accuracy"] == first.evaluation["best"]["validation"]["accuracy"] == 1


@pytest.mark.parametrize("by", ["accuracy", "matthews", "f1"])
def test_best_follows_the_metric_that_is_named(folder: Path, by: str) -> None:
    run = train_recipe(recipe(validation={"best_by": by, "every_steps": 2, "sampled_rows": 4}))
    lines = [line for line in run.metrics("validation") if line["step"]]
    assert not run.metrics("validation_sampled")
    highest = max(lines, key=lambda line: (line[by], -line["step"]))
    assert run.state["best"] == {"step": highest["step"], by: highest[by]}
    assert run.checkpoint("best").name == f"{highest['step']:06}"


def distilled(name: str, teacher: str, **changes: Any) -> Recipe:
    alpha = changes.pop("alpha", 0.8)
    objective = {"kind": "distillation", "teacher": teacher, "alpha": alpha, "temperature": 2.0}
    return recipe(name, start=None, model=changes.pop("model", LSTM), objective=objective, **changes)


def test_a_student_is_taught_by_logits_that_are_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_recipe(recipe("teacher"))
    run = train_recipe(distilled("student", "teacher"))
    scores = run.evaluation["best"]["validation"]
    assert scores["accuracy"] > scores["majority_accuracy"]
    assert run.origin["teacher"]["name"] == "teacher"
    line = run.metrics("step")[0]
    assert line["loss"] == pytest.approx(0.8 * line["distillation"] + 0.2 * line["cross_entropy"])
    kept = sorted((folder / "cache" / "teachers").glob("*/logits.npy"))
    assert len(kept) == 2  # training and validation
    times = [file.stat().st_mtime_ns for file in kept]
    train_recipe(distilled("second", "teacher", seed=1337, optimizer={"kind": "adamw", "learning_rate": 1e-3}))
    assert [file.stat().st_mtime_ns for file in sorted((folder / "cache" / "teachers").glob("*/logits.npy"))] == times


def test_with_alpha_0_the_teacher_changes_nothing(folder: Path) -> None:
    train_recipe(recipe("teacher", training={"epochs": 1}))
    taught = train_recipe(distilled("taught", "teacher", alpha=0.0))
    alone = train_recipe(recipe("alone", start=None, model=LSTM))
    for (name, wanted), found in zip(
        load_model(alone.checkpoint("last")).state_dict().items(),
        load_model(taught.checkpoint("last")).state_dict().values(), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_a_teacher_that_does_not_agree_is_refused_before_anything_is_made(folder: Path) -> None:
    with pytest.raises(UserError, match="classif"):
        train_recipe(distilled("student", "small"))
    train_recipe(recipe("teacher", training={"epochs": 1}))
    Path("texts.csv").write_text(Path("texts.csv").read_text().replace("poor", "ill"))
    with pytest.raises(UserError, match="poor"):
        train_recipe(distilled("student", "teacher"))
    with pytest.raises(ModelError, match="nobody"):
        train_recipe(distilled("student", "nobody"))
    assert not Path("runs/student").exists()


def language(name: str, **changes: Any) -> Recipe:
    tree = {
        "name": name, "start": "small",
        "data": {"sources": [{"path": "plain.txt", "document": "line"}], "validation": {"share": 0.2}},
        "optimizer": {"kind": "adamw", "learning_rate": 3e-3}, "schedule": {"kind": "constant", "warmup_steps": 0},
        "training": {"max_steps": 30, "batch_size": 8, "precision": "float32"}, **changes,
    }  # fmt: skip
    return build(Recipe, tree, "test")


def test_a_language_model_teaches_one_of_every_second_layer(folder: Path) -> None:
    train_recipe(language("teacher"))
    teaching = {"kind": "distillation", "teacher": "teacher", "alpha": 0.7, "temperature": 2.0}
    student = language("student", start="teacher", model={"keep_layers": "every-second"}, objective=teaching)
    run = train_recipe(student)
    model = load_model(run.checkpoint("last"))
    assert isinstance(model, GPT)
    assert model.shape.n_layer == 2
    line = run.metrics("step")[-1]
    assert line["loss"] == pytest.approx(0.7 * line["distillation"] + 0.3 * line["cross_entropy"])
    first, last = (run.metrics("validation")[place] for place in (0, -1))
    assert last["perplexity"] < first["perplexity"]
    assert last["perplexity"] == pytest.approx(torch.tensor(last["cross_entropy"]).exp().item(), rel=1e-4)
    begun = load_weights(Path("runs/teacher") / "checkpoints" / "000030")
    assert isinstance(begun, GPT)
    with pytest.raises(RecipeError, match="has 4"):
        train_recipe(language("deeper", model={"keep_layers": [0, 7]}))


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("layers", [[1, 3], "every-second"], ids=["list", "every-second"])
def test_a_student_of_fewer_layers_goes_on(folder: Path, layers: Any, lora: Any) -> None:
    """Its checkpoint, or its base, has no other layers any more."""

    def of(name: str, steps: int) -> Recipe:
        training = {"max_steps": steps, "batch_size": 8, "precision": "float32"}
        return language(name, model={"keep_layers": layers}, training=training, **({"lora": lora} if lora else {}))

    train_recipe(of("cut", 2))
    cut, whole = train_recipe(of("cut", 4)), train_recipe(of("whole", 4))
    same(load_weights(cut.checkpoint("last")), load_weights(whole.checkpoint("last")))
    assert load_weights(cut.checkpoint("last")).shape.n_layer == 2


def test_a_run_that_goes_on_has_the_teacher_that_it_began_with(folder: Path) -> None:
    def of(steps: int) -> Recipe:
        return distilled("student", "teacher", training={"epochs": None, "max_steps": steps})

    def taught_by(epochs: int, seed: int = 1337) -> Run:
        return train_recipe(recipe("teacher", training={"epochs": epochs}, checkpoints={"keep": 100}, seed=seed))

    taught_by(1)
    begun = train_recipe(of(2)).origin["teacher"]
    taught_by(2)
    assert open_model("teacher").folder != Path(begun["folder"])
    assert train_recipe(of(4)).state["step"] == 4
    shutil.rmtree("runs/teacher")
    with pytest.raises(ModelError, match="there is no folder teacher"):
        train_recipe(of(6))
    taught_by(1, seed=7)
    with pytest.raises(RunError, match="no longer the one"):
        train_recipe(of(6))
    assert Run.open(Path("runs/student")).state["step"] == 4


def test_memory_for_a_teacher_that_is_there_already_is_not_counted_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def decide(*parts: Any, held_bytes: int, **more: Any) -> fit.Fit:
        asked.append(held_bytes)
        return fit.decide_micro_batch(*parts, held_bytes=held_bytes, **more)

    monkeypatch.setattr(assemble, "decide_micro_batch", decide)
    train_recipe(language("alone", training={"max_steps": 1, "batch_size": 8}))
    train_recipe(language(
        "taught", objective={"kind": "distillation", "teacher": "small"}, training={"max_steps": 1, "batch_size": 8}
    ))  # fmt: skip
    assert asked == [0, sum(weight.nbytes for weight in load_model(Path("small")).parameters())]


def test_a_language_teacher_reads_the_same_tokens(folder: Path) -> None:
    train_recipe(language("teacher"))
    other = Tokenizer.train(["quite other words are here, and more of them"], 280)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(other.vocab_size, 64, 1, 2, 16)), Path("other"), eos_id=other.eos_id)
    other.save(Path("other"))
    teaching = {"kind": "distillation", "teacher": "teacher"}
    with pytest.raises(UserError, match="tokenizer"):
        train_recipe(language("student", start="other", objective=teaching))


def test_an_rnn_writes_and_goes_on_as_a_language_model(folder: Path) -> None:
    tree = {
        "name": "recurrent", "model": {**LSTM, "kind": "gru"}, "tokenizer": {"from": "small"},
        "data": {"sources": [{"path": "plain.txt", "document": "line"}], "validation": {"share": 0.2}},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-2}, "schedule": {"kind": "constant", "warmup_steps": 0},
        "training": {"max_steps": 40, "batch_size": 8, "precision": "float32"},
        "samples": {"prompts": ["The soup was"], "max_new_tokens": 5},
    }  # fmt: skip
    run = train_recipe(build(Recipe, tree, "test"))
    assert isinstance(load_model(run.checkpoint("best")), RNN)
    best = run.evaluation["best"]["validation"]
    assert best["perplexity"] < best["unigram_perplexity"]
    assert run.samples()[-1]["text"]
    assert evaluate_model(run.folder, precision="float32").metrics["perplexity"] == pytest.approx(best["perplexity"])
    longer = {**tree, "training": {**tree["training"], "max_steps": 44}}  # type: ignore[dict-item]
    assert train_recipe(build(Recipe, longer, "test")).state["step"] == 44


def test_evaluate_scores_files_and_writes_predictions(folder: Path) -> None:
    run = train_recipe(recipe())
    found = evaluate_model(run.folder, on="labels:texts.csv", predictions=Path("said.csv"))
    assert found.metrics["texts"] == len(TEXTS)
    with Path("said.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in rows] == TEXTS
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert found.metrics["accuracy"] == right / len(TEXTS)
    for on, words in {"corpus:plain.txt": "labels", "blimp:x": "classifier", "lables:texts.csv": "labels"}.items():
        with pytest.raises(UserError, match=words):
            evaluate_model(run.folder, on=on)
    with pytest.raises(UserError, match="language model"):
        evaluate_model("small", on="labels:texts.csv")


def test_a_classifiers_run_has_no_use_for_some_settings(folder: Path) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "samples": {"samples": {"prompts": ["a"]}},
        "tokens": {"training": {"epochs": None, "tokens": 100}},
        "language": {"objective": {"kind": "language"}},
        "start": {"start": None, "model": NEW_GPT, "training": {"parameters": "head"}},
        "size": {"start": None, "model": {"size": "auto"}, "training": {"epochs": None, "minutes": 1}},
    }
    for words, changes in wrong.items():
        with pytest.raises(RecipeError, match=words):
            recipe(**changes)
    with pytest.raises(RecipeError, match="labels"):
        language("x", validation={"best_by": "accuracy"})
    with pytest.raises(RecipeError, match="labels"):
        language("x", objective={"kind": "classification"})
    with pytest.raises(RecipeError, match="keep_layers"):
        build(Recipe, json.loads(recipe(start=None, model=NEW_GPT).model_dump_json(exclude_none=True, by_alias=True))
              | {"model": {**NEW_GPT, "keep_layers": [0]}}, "test")  # fmt: skip


def test_a_finished_recipe_of_every_kind_trains_again(folder: Path) -> None:
    """recipe.toml has every field."""
    run = train_recipe(recipe("first", start=None, model=LSTM))
    again = train_recipe(gptlab.load_recipe(Run.open(run.folder).folder / "recipe.toml", name="again"))
    same(load_model(run.checkpoint("last")), load_model(again.checkpoint("last")))
