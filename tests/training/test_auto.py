"""size = "auto": what it chooses, what it leaves to the recipe, and that a run keeps what was chosen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gptlab.errors import RecipeError
from gptlab.settings import plain
from gptlab.training.auto import CHOSEN, DEPTHS, _rows, as_chosen, choose_size, predicted_loss
from gptlab.training.recipe import load_recipe

RECIPE = """
[model]
size = "auto"
{model}
[tokenizer]
train = 4096
[data]
sources = [{{ embedded = "python-docs" }}]
{more}
[training]
minutes = {minutes}
{training}
"""


def recipe(folder: Path, minutes: float = 10.0, model: str = "", more: str = "", training: str = ""):
    path = folder / "auto.toml"
    path.write_text(RECIPE.format(minutes=minutes, model=model, more=more, training=training))
    return load_recipe(path)


def chosen(folder: Path, minutes: float = 10.0, tokens: int = 10**9, vocab_size: int = 4096, **parts: str):
    return choose_size(recipe(folder, minutes, **parts), tokens=tokens, vocab_size=vocab_size, peak_flops=4e11)


def depth(folder: Path, **arguments) -> int:
    return chosen(folder, **arguments).model.numbers()["n_layer"]


def test_everything_is_resolved(tmp_path):
    result = chosen(tmp_path)
    numbers = result.model.numbers()
    assert result.model.size is None
    assert numbers["n_layer"] in DEPTHS
    assert numbers["n_embd"] == 64 * numbers["n_layer"]
    assert numbers["n_head"] == numbers["n_layer"]
    assert numbers["context"] == 128
    assert choose_size(result, tokens=1, vocab_size=1, peak_flops=1.0) is result


def test_more_time_means_a_deeper_model_and_never_a_shallower_one(tmp_path):
    depths = [depth(tmp_path, minutes=minutes) for minutes in (1, 3, 10, 30, 120, 600, 10_000)]
    assert depths == sorted(depths)
    assert depths[0] < depths[3] < depths[-1]


def test_a_slower_machine_is_less_time(tmp_path):
    fast = choose_size(recipe(tmp_path, 10), tokens=10**9, vocab_size=4096, peak_flops=4e11)
    slow = choose_size(recipe(tmp_path, 100), tokens=10**9, vocab_size=4096, peak_flops=4e10)
    assert fast.model == slow.model


def test_text_seen_often_gets_dropout_and_text_seen_once_none(tmp_path):
    assert chosen(tmp_path, tokens=10**9).model.dropout == 0
    assert chosen(tmp_path, minutes=600, tokens=10**6).model.dropout > 0


def test_what_the_recipe_says_itself_stays(tmp_path):
    more = "[optimizer]\nlearning_rate = 0.007"
    result = chosen(tmp_path, model="dropout = 0.35\ncontext = 256", more=more)
    assert result.model.dropout == 0.35
    assert result.model.numbers()["context"] == 256
    assert result.optimizer.learning_rate == 0.007


def optimizer(folder: Path, minutes: float, kind: str = ""):
    """Width and optimizer of what is chosen."""
    result = chosen(folder, minutes, more=f'[optimizer]\nkind = "{kind}"' if kind else "")
    return result.model.n_embd, result.optimizer


@pytest.mark.parametrize("kind", ["", "muon"])
@pytest.mark.parametrize("minutes", [1, 10_000])
def test_beside_muons_constant_rate_adams_falls_with_the_widths_root(tmp_path, minutes, kind):
    width, found = optimizer(tmp_path, minutes, kind)
    assert found.kind == "muon"  # a new model's, where the recipe names none
    assert found.matrix_learning_rate == 0.01
    assert found.learning_rate == pytest.approx(0.003 * math.sqrt(256 / width), rel=0.05)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_the_rate_of_adam_alone_falls_with_the_width(tmp_path, kind):
    (narrow, shallow), (wide, deep) = (optimizer(tmp_path, minutes, kind) for minutes in (1, 10_000))
    assert narrow < wide
    for width, found in ((narrow, shallow), (wide, deep)):
        assert found.learning_rate == pytest.approx(0.5 / width, rel=0.05)
        assert found.matrix_learning_rate is None


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adafactor"])
def test_of_other_optimizers_no_rate_is_known(tmp_path, kind):
    more = f'[optimizer]\nkind = "{kind}"'
    assert chosen(tmp_path, more=more).optimizer == recipe(tmp_path, more=more).optimizer


# The measured points: tokens in all → those a step (training/auto.py).
@pytest.mark.parametrize(("seen", "best"), [(1.05e6, 2048), (2e6, 4096), (4.2e6, 4096)])
@pytest.mark.parametrize("context", [64, 128, 256, 2048])
def test_a_steps_tokens_grow_with_the_tokens_seen_whatever_the_context(seen, best, context):
    assert _rows(seen, context) * context == best
    assert _rows(seen * 2 ** (1 / 0.571), context) * context == 2 * best
    assert _rows(1.0, context) == 1


def test_rows_a_step_are_chosen_for_the_time_there_is(tmp_path):
    batches = [chosen(tmp_path, minutes=minutes).training.batch_size for minutes in (0.5, 3, 30, 10_000)]
    assert batches == sorted(batches)
    assert batches[0] < batches[-1]
    given = chosen(tmp_path, minutes=10_000, training="batch_size = 24")
    assert given.training.batch_size == 24


def test_a_run_that_goes_on_keeps_its_choice(tmp_path):
    first = chosen(tmp_path, minutes=3)
    longer = recipe(tmp_path, minutes=600)
    again = as_chosen(longer, plain(first))
    for key in CHOSEN:
        section, name = key.split(".")
        assert getattr(getattr(again, section), name) == getattr(getattr(first, section), name)
    assert again.training.minutes == 600


@pytest.mark.parametrize("model", ["n_embd = 128", "n_layer = 2"])
def test_a_shape_beside_auto_is_refused(tmp_path, model):
    with pytest.raises(RecipeError, match="is chosen by size = auto"):
        recipe(tmp_path, model=model)


def test_auto_without_minutes_is_refused(tmp_path):
    path = tmp_path / "auto.toml"
    path.write_text(RECIPE.format(minutes=1, model="", more="", training="").replace("minutes = 1", "epochs = 1"))
    with pytest.raises(RecipeError, match=r"wants training\.minutes"):
        load_recipe(path)


def test_predicted_loss_is_that_of_its_sources():
    # Hoffmann et al. (2022): Chinchilla, 70B parameters and 1.4T tokens, is 0.083 + 0.163 above 1.69.
    assert predicted_loss(70e9, 1.4e12, 1.4e12) == pytest.approx(0.0834 + 0.1633, abs=2e-3)
    # Muennighoff et al. (2023): four epochs are nearly as good as four times the text, endless ones are not.
    once, four, fresh = (predicted_loss(1e9, seen, unique) for seen, unique in ((1e8, 1e8), (4e8, 1e8), (4e8, 4e8)))
    assert fresh < four < once
    assert four - fresh < 0.1 * (once - fresh)
    assert predicted_loss(1e9, 1e14, 1e8) == pytest.approx(predicted_loss(1e9, 1e8 * 16.4, 1e8 * 16.4), rel=1e-6)
    assert math.isfinite(predicted_loss(1e6, 1.0, 1e8))
