"""size = "auto": what it chooses, what it leaves to the recipe, and that a run keeps what was chosen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gptlab.errors import RecipeError
from gptlab.settings import plain
from gptlab.training.auto import CHOSEN, DEPTHS, as_chosen, choose_size, predicted_loss
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
"""


def recipe(folder: Path, minutes: float = 10.0, model: str = "", more: str = ""):
    path = folder / "auto.toml"
    path.write_text(RECIPE.format(minutes=minutes, model=model, more=more))
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


def test_rates_are_chosen_for_muon_alone(tmp_path):
    shallow, deep = (
        chosen(tmp_path, minutes=minutes, more='[optimizer]\nkind = "muon"').optimizer for minutes in (1, 10_000)
    )
    assert shallow.learning_rate > deep.learning_rate
    assert shallow.matrix_learning_rate == deep.matrix_learning_rate
    other = '[optimizer]\nkind = "adamw"'
    assert chosen(tmp_path, more=other).optimizer == recipe(tmp_path, more=other).optimizer


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
    path.write_text(RECIPE.format(minutes=1, model="", more="").replace("minutes = 1", "epochs = 1"))
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
