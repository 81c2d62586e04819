"""A run that tunes a model: whatever it may start from, what it keeps of it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.errors import CheckpointError, ModelError, RecipeError, RunError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, save_model
from gptlab.model.lora import LoraSettings, add_lora, lora_settings, merge_lora, trainable_counts
from gptlab.run.open import load_weights, open_model
from gptlab.run.run import Run
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.assemble import train_recipe
from gptlab.training.recipe import Recipe

QUESTIONS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and one?"},
            {"role": "assistant", "content": f"It is {n + 1}."},
        ]
    }
    for n in range(60)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with dialogues and a small model in Hugging Face's format."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    Path("chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in QUESTIONS))
    tokenizer = Tokenizer.train((json.dumps(row) for row in QUESTIONS), 300)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(tokenizer.vocab_size, 64, 2, 2, 16)), Path("small"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("small"))
    return tmp_path


def recipe(start: str = "small", **changes: Any) -> Recipe:
    tree = {
        "name": "tuned", "start": start,
        "data": {
            "kind": "dialogues", "sources": [{"path": "chats.jsonl"}], "validation": {"share": 0.2},
            **changes.pop("data", {}),
        },
        "optimizer": {"learning_rate": 1e-2},
        "training": {"max_steps": 4, "batch_size": 8, "precision": "float32", **changes.pop("training", {})},
        "samples": {"prompts": ["What is 3 and one?"], "max_new_tokens": 4},
        **changes,
    }  # fmt: skip
    return build(Recipe, tree, "test")


LORA = {"lora": {"rank": 2, "alpha": 4, "also_train": ["layer_norms"]}}


def same(a: GPT, b: GPT) -> None:
    for (name, wanted), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=name)


def test_a_tuned_run_begins_with_the_starts_weights_and_says_what_they_are_worth(folder: Path) -> None:
    run = train_recipe(recipe())
    before, after = run.evaluation["start"]["validation"]["loss"], run.evaluation["best"]["validation"]["loss"]
    assert run.metrics("validation")[0]["step"] == 0
    assert after < before
    opened = open_model(run.folder)
    assert opened.template is not None
    assert opened.template.name == "eos"
    assert opened.tokenizer is not None
    assert run.origin["start"]["name"] == "small"
    assert run.recipe["model"]["context"] == 64


def test_a_finished_recipe_trains_again_to_the_same(folder: Path) -> None:
    """recipe.toml has every field, also those of a model that its start decides."""
    run = train_recipe(recipe())
    from gptlab.training.recipe import load_recipe

    again = train_recipe(load_recipe(run.folder / "recipe.toml", name="again"))
    same(load_model(run.checkpoint("last")), load_model(again.checkpoint("last")))


def test_an_adapter_alone_is_saved_and_opened_merged(folder: Path) -> None:
    run = train_recipe(recipe(**LORA))
    checkpoint = run.checkpoint("last")
    assert not (checkpoint / "model.safetensors").exists()
    kept = (run.base_folder / "model.safetensors").stat()
    assert kept.st_ino == Path("small/model.safetensors").stat().st_ino, "the start's own file, under a second name"
    adapted = load_weights(checkpoint, merged=False)
    settings = lora_settings(adapted)
    assert settings is not None
    assert (settings.rank, settings.also_train) == (2, ("layer_norms",))
    merge_lora(adapted)
    same(adapted, open_model(run.folder).model.train())


def test_added_tokens_get_rows_at_the_mean_that_are_trained_and_saved(folder: Path) -> None:
    run = train_recipe(recipe(**LORA, data={"template": "chatml"}))
    base = load_model(run.base_folder)
    small = load_model(Path("small"))
    assert base.shape.vocab_size == small.shape.vocab_size + 2
    mean = small.wte.weight.double().mean(dim=0).float()
    torch.testing.assert_close(base.wte.weight[-1], mean)
    tuned = open_model(run.folder)
    assert tuned.tokenizer is not None
    assert tuned.tokenizer.special_tokens["<|im_end|>"] == base.shape.vocab_size - 1
    torch.testing.assert_close(tuned.model.wte.weight[:-2], base.wte.weight[:-2], rtol=0, atol=0)
    assert not torch.equal(tuned.model.wte.weight[-1], base.wte.weight[-1])


@pytest.mark.parametrize("changes", [{}, LORA, LORA | {"data": {"template": "chatml"}}], ids=["full", "lora", "tokens"])
def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Path, changes: dict[str, Any]) -> None:
    dropout = {"model": {"dropout": 0.2}}
    whole = train_recipe(recipe(name="whole", **dropout, **changes, training={"max_steps": 6}))
    train_recipe(recipe(**dropout, **changes, training={"max_steps": 6}), runs=Path("runs"))
    # As after a kill: the last checkpoint is gone, and the run says that it is running.
    run = Run.open(Path("runs/tuned"))
    steps = run.steps()
    shutil.rmtree(run.folder / "checkpoints" / f"{steps[-1]:06d}")
    run.write_state({**run.state, "status": "running"})
    again = train_recipe(recipe(**dropout, **changes, training={"max_steps": 6}))
    assert again.steps()[-1] == 6
    same(load_weights(whole.checkpoint("last")), load_weights(again.checkpoint("last")))
    optimizers = [(r.checkpoint("last") / "optimizer.safetensors").read_bytes() for r in (whole, again)]
    assert optimizers[0] == optimizers[1]


def test_a_run_goes_on_without_its_start(folder: Path) -> None:
    for name, changes in (("full", {}), ("adapted", LORA)):
        train_recipe(recipe(name=name, **changes))
    shutil.rmtree("small")
    assert train_recipe(recipe(name="full", training={"max_steps": 6})).steps()[-1] == 6
    assert train_recipe(recipe(name="adapted", **LORA, training={"max_steps": 6})).steps()[-1] == 6
    with pytest.raises(ModelError, match="small"):
        train_recipe(recipe(name="new"))


@pytest.mark.parametrize("before", [LORA, {}], ids=["adapted", "full"])
def test_an_adapter_outlives_the_checkpoint_that_it_began_with(folder: Path, before: dict[str, Any]) -> None:
    """The trap: a run that goes on removes its older checkpoints, and takes the optimizer out of its best."""
    first = train_recipe(recipe(name="first", **before))
    second = train_recipe(recipe(str(first.folder), name="second", **LORA))
    weights = load_weights(second.checkpoint("last"))
    train_recipe(recipe(name="first", **before, training={"max_steps": 12}, checkpoints={"keep": 1, "every_steps": 1}))
    assert not (first.folder / "checkpoints" / "000004" / "optimizer.safetensors").exists()
    same(weights, load_weights(second.checkpoint("last")))
    assert train_recipe(recipe(str(first.folder), name="second", **LORA, training={"max_steps": 5})).steps()[-1] == 5


def test_a_run_goes_on_with_its_starts_template(folder: Path) -> None:
    first = train_recipe(recipe(name="first", **LORA, data={"template": "hh"}))
    second = train_recipe(recipe(str(first.folder), name="second", **LORA))
    assert second.origin["data"]["template"] == "hh"
    assert train_recipe(recipe(str(first.folder), name="second", **LORA, training={"max_steps": 5})).steps()[-1] == 5


def test_a_template_of_ones_own_stays_with_the_run(folder: Path) -> None:
    from gptlab.text.templates import SOURCES

    mine = Path("mine.jinja")
    mine.write_text("{# mine #}" + SOURCES["hh"])
    own = {"data": {"template": str(mine)}}
    train_recipe(recipe(**own))
    mine.unlink()
    assert train_recipe(recipe(**own, training={"max_steps": 5})).steps()[-1] == 5


def test_added_tokens_are_learned_where_the_table_was_longer_than_the_tokenizer(folder: Path) -> None:
    """nanoGPT's 50,304 rows over 50,257 tokens, say: rows that nobody has trained are new ones too."""
    padded = GPT(GPTShape(320, 64, 2, 2, 16))
    tokenizer = Tokenizer.read(Path("small"))
    save_model(padded, Path("small"), eos_id=tokenizer.eos_id)
    run = train_recipe(recipe(**LORA, data={"template": "chatml"}))
    base = load_model(run.base_folder)
    first = tokenizer.vocab_size
    mean = padded.wte.weight[:first].double().mean(dim=0).float()
    torch.testing.assert_close(base.wte.weight[first:], mean.expand(320 - first, -1))
    tuned = open_model(run.folder).model
    assert not torch.equal(tuned.wte.weight[first + 1], base.wte.weight[first + 1])
    assert torch.equal(tuned.wte.weight[:first], base.wte.weight[:first])


def test_an_adapter_keeps_the_context_that_it_was_trained_with(folder: Path) -> None:
    trained = {"lora": {"rank": 2, "also_train": ["wpe"]}, "model": {"context": 32}}
    run = train_recipe(recipe(**trained))
    assert open_model(run.folder).model.shape.context == 32


def test_a_base_with_other_weights_is_refused(folder: Path) -> None:
    run = train_recipe(recipe(**LORA))
    save_model(GPT(load_model(Path("small")).shape), run.base_folder)
    with pytest.raises(CheckpointError, match="trained on other weights"):
        open_model(run.folder)


def test_an_adapted_run_moves_as_a_whole(folder: Path) -> None:
    run = train_recipe(recipe(**LORA, data={"template": "chatml"}))
    before = open_model(run.folder).model
    shutil.move("runs", "moved")
    same(before, open_model(Path("moved/tuned")).model)


def test_a_base_that_changed_is_refused_when_the_run_goes_on(folder: Path) -> None:
    run = train_recipe(recipe(**LORA))
    save_model(GPT(load_model(Path("small")).shape), run.base_folder)
    with pytest.raises(CheckpointError, match="trained on other weights"):
        train_recipe(recipe(**LORA, training={"max_steps": 6}))


def test_a_lost_adapted_run_comes_back_from_its_mirror(folder: Path) -> None:
    Path("drive").mkdir()
    mirrored = LORA | {"checkpoints": {"mirror": "drive"}, "data": {"template": "chatml"}}
    run = train_recipe(recipe(**mirrored))
    weights = load_weights(run.checkpoint("last"))
    shutil.rmtree("runs")
    again = train_recipe(recipe(**mirrored, training={"max_steps": 5}))
    assert again.steps()[-1] == 5
    assert (again.base_folder / "model.safetensors").is_file()
    same(weights, load_weights(again.checkpoint(4)))


def test_a_start_that_is_adapted_is_merged_first(folder: Path) -> None:
    first = train_recipe(recipe(**LORA))
    second = train_recipe(recipe(str(first.folder), name="second", **LORA))
    merged = load_weights(first.checkpoint("best"))
    same(merged, load_model(second.base_folder))


def test_the_context_is_shortened_and_never_lengthened(folder: Path) -> None:
    run = train_recipe(recipe(model={"context": 32}))
    model = open_model(run.folder).model
    assert model.shape.context == 32
    assert model.wpe.weight.shape == (32, 16)
    with pytest.raises(RecipeError, match="small has 64; it can only be shortened"):
        train_recipe(recipe(name="longer", model={"context": 128}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"n_layer": 3}}, "model.n_layer: start has a shape"),
        ({"start": None, "model": {"size": "mini"}}, "tokenizer: is missing"),
        ({"start": None, "tokenizer": {"from": "gpt2"}}, "missing; give them"),
        ({"start": None, "model": {"size": "mini"}, "tokenizer": {"from": "gpt2"}, **LORA}, "lora: tunes a model"),
        ({"validation": {"best_by": "reward"}}, "wants samples.reward"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(**{"start": "small", **changes})


def test_a_start_without_a_tokenizer_wants_one_and_another_takes_none(folder: Path) -> None:
    tokenizer = Path("small").rename("with")
    shutil.copytree(tokenizer, "small", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(RecipeError, match="has no tokenizer beside it"):
        train_recipe(recipe())
    assert train_recipe(recipe(tokenizer={"from": "with"})).state["status"] == "finished"
    with pytest.raises(RecipeError, match="can be read with no other"):
        train_recipe(recipe("with", name="other", tokenizer={"from": "with"}))


def test_a_run_is_not_continued_from_another_start(folder: Path) -> None:
    train_recipe(recipe())
    shutil.copytree("small", "other")
    with pytest.raises(RunError, match="start: 'small' there, 'other' now"):
        train_recipe(recipe("other"))


def test_the_counts_of_a_published_adapter_come_out() -> None:
    """gpt2 and gpt2-medium with rank 4 on all four linear layers, LayerNorms trained beside."""
    for layers, heads, width, adapters, norms in ((12, 12, 768, 589_824, 38_400), (24, 16, 1024, 1_572_864, 100_352)):
        with torch.device("meta"):
            model = GPT(GPTShape(50_257, 1024, layers, heads, width))
            add_lora(model, LoraSettings(rank=4, also_train=("layer_norms",)))
        counts = trainable_counts(model)
        assert (counts["adapters"], counts["layer_norms"]) == (adapters, norms)
