"""Recipes: what ships builds, what is changed takes the place of what there was, what is written reads back."""

import pickle

import pytest

from gptlab.catalog import shipped
from gptlab.cli import spread
from gptlab.errors import RecipeError
from gptlab.settings import build, plain, to_toml
from gptlab.training.recipe import Recipe, load_recipe

VARIANTS = """
[model]
size = "mini"
[tokenizer]
from = "gpt2"
[data]
sources = [{ embedded = "python-docs" }]
[data.validation]
sources = [{ path = "held-out.txt" }]
[training]
epochs = 2
[variants.wide]
model.n_embd = 256
"training.max_steps" = 7
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(VARIANTS)
    return path


@pytest.mark.parametrize("name", shipped("recipe"))
def test_every_recipe_that_ships_builds_and_opens_with_what_it_is_and_its_command(name):
    assert load_recipe(name).name == name
    head = shipped("recipe")[name].read_text().splitlines()[:4]
    assert all(line.startswith("#") for line in head[:3])
    assert any("gptlab " in line for line in head)


def test_a_variant_names_the_run_and_its_length_takes_the_place_of_the_other(recipe):
    wide = load_recipe(recipe, variant="wide")
    assert wide.name == "small-wide"
    assert wide.model.numbers()["n_embd"] == 256
    assert (wide.training.max_steps, wide.training.epochs) == (7, None)


def test_changes_come_after_the_variant(recipe):
    changed = load_recipe(recipe, "training.minutes=0.5", "model.n_embd=64", variant="wide", name="mine")
    assert changed.name == "mine"
    assert changed.model.numbers()["n_embd"] == 64
    assert (changed.training.minutes, changed.training.max_steps) == (0.5, None)


def test_a_tokenizer_to_train_takes_the_place_of_one_to_read(recipe):
    assert load_recipe(recipe, "tokenizer.train=500").tokenizer.from_ is None
    assert load_recipe("quickstart", "tokenizer.from=gpt2").tokenizer.train is None


def test_data_from_the_command_line_replaces_the_sources_and_their_validation(recipe):
    mine = load_recipe(recipe, data=["a.txt", "b/*.txt"])
    assert [source.path for source in mine.data.sources] == ["a.txt", "b/*.txt"]
    assert mine.data.validation.sources is None
    assert mine.data.validation.share == 0.05


def test_two_lengths_at_once_are_refused(recipe):
    wanted = "exactly one of epochs, max_steps, tokens, minutes; found epochs and max_steps"
    with pytest.raises(RecipeError, match=wanted):
        load_recipe(recipe, "training.max_steps=3", "training.epochs=1")


def test_a_recipe_written_out_reads_back_equal(recipe, tmp_path):
    import tomllib

    for each in (load_recipe(recipe), load_recipe("quickstart"), load_recipe("mini-gpt")):
        assert build(Recipe, tomllib.loads(to_toml(plain(each))), "again") == each


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("r --data a b c", "r --data a --data b --data c"),
        ("r --data a b training.minutes=5 --name n", "r --data a --data b training.minutes=5 --name n"),
        ("r --name n x=1", "r --name n x=1"),
        ("--data a --data b c", "--data a --data b --data c"),
    ],
)
def test_data_takes_every_word_up_to_the_next_option_or_change(typed, meant):
    assert spread(typed.split()) == meant.split()


@pytest.mark.parametrize("name", shipped("recipe"))
def test_a_recipe_goes_from_process_to_process(name: str) -> None:
    recipe = load_recipe(name)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
