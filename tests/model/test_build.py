"""The `[model]` section: sizes, changed sizes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from gptlab.errors import RecipeError
from gptlab.model.build import SIZES, ModelSettings, build_model
from gptlab.settings import build


def section(**tree: Any) -> ModelSettings:
    return build(ModelSettings, tree, "recipe.toml")


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_its_shape(size: str) -> None:
    shape = section(size=size, dropout=0.2).shape(1000)
    assert {name: getattr(shape, name) for name in SIZES[size]} == SIZES[size]
    assert (shape.vocab_size, shape.dropout, shape.tie_head) == (1000, 0.2, True)


def test_numbers_beside_a_size_change_it() -> None:
    shape = section(size="gpt2", context=128, n_layer=6).shape(32_000)
    assert (shape.context, shape.n_layer, shape.n_head, shape.n_embd) == (128, 6, 12, 768)


def test_a_shape_needs_no_size() -> None:
    model = build_model(section(n_layer=1, n_head=2, n_embd=8, context=16, tie_head=False, dropout=0), 50)
    assert model.wte.weight.shape == (50, 8)
    assert model.head_weight is not model.wte.weight


def test_what_is_missing_of_a_new_shape_is_known() -> None:
    assert section(n_layer=2, n_head=4).missing() == ["n_embd", "context"]
    assert section(size="mini").missing() == section(size="auto").missing() == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"size": "mini", "n_head": 3}, r"n_embd = 128 is not divisible by n_head = 3"),
        ({"size": "gpt2-medum"}, r"size = 'gpt2-medum'.*did you mean 'gpt2-medium'"),
        ({"size": "mini", "n_heads": 3}, r"n_heads = 3: unknown key \(did you mean 'n_head'\?\)"),
        ({"size": "mini", "dropout": 1.0}, r"dropout = 1.0: input should be less than 1"),
        ({"size": "mini", "n_layer": 0}, r"n_layer = 0: input should be greater than or equal to 1"),
        ({"size": "mini", "n_layer": "2"}, r"n_layer = '2': input should be a valid integer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^recipe\.toml: .*{message}"):
        section(**tree)
