"""The `[model]` section: sizes, changed sizes, other kinds, what it refuses; and what a model costs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from gptlab.errors import RecipeError
from gptlab.model.build import SIZES, ModelSettings, build_model, flops_per_token, parameter_count
from gptlab.model.classifier import as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.model.rnn import RNN, Cell, RNNShape
from gptlab.settings import build, plain


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
    assert section(kind="lstm", n_layer=2).missing() == ["n_embd", "context", "n_hidden"]
    assert section(kind="lstm", n_layer=2, n_embd=8, context=16).missing() == []


@pytest.mark.parametrize("kind", get_args(Cell))
def test_an_rnn_is_as_wide_as_its_embedding_unless_it_says(kind: Cell) -> None:
    given = section(kind=kind, n_layer=2, n_embd=8, context=16, dropout=0.2)
    assert given.numbers() == {"n_layer": 2, "n_embd": 8, "context": 16, "n_hidden": 8}
    assert given.shape(50) == RNNShape(50, 16, n_layer=2, n_embd=8, n_hidden=8, cell=kind, dropout=0.2, tie_head=True)
    model = build_model(section(kind=kind, n_layer=1, n_embd=8, n_hidden=12, context=16), 50)
    assert isinstance(model, RNN)
    assert not model.shape.tie_head  # which two widths cannot have
    assert (model.wte.weight.shape, model.head_weight.shape) == ((50, 8), (50, 12))


@pytest.mark.parametrize("layers", [[0], [0, 2, 5], "every-second", None])
def test_layers_that_are_kept_of_a_start(layers: Any) -> None:
    """Only their form is known here; a recipe with a start says whether there are such layers."""
    given = section(context=128, keep_layers=layers)
    assert given.keep_layers == (tuple(layers) if isinstance(layers, list) else layers)
    assert build(ModelSettings, plain(given), "a run's recipe") == given


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"size": "mini", "n_head": 3}, r"n_embd = 128 is not divisible by n_head = 3"),
        ({"size": "gpt2-medum"}, r"size = 'gpt2-medum'.*did you mean 'gpt2-medium'"),
        ({"size": "mini", "n_heads": 3}, r"n_heads = 3: unknown key \(did you mean 'n_head'\?\)"),
        ({"size": "mini", "dropout": 1.0}, r"dropout = 1.0: input should be less than 1"),
        ({"size": "mini", "n_layer": 0}, r"n_layer = 0: input should be greater than or equal to 1"),
        ({"size": "mini", "n_layer": "2"}, r"n_layer = '2': input should be a valid integer"),
        ({"size": "mini", "n_hidden": 64}, r"n_hidden: is the width of an RNN \(kind = rnn, gru or lstm\); a GPT's is"),
        ({"kind": "gru", "size": "mini"}, r"size = mini: is a GPT's; for kind = gru give n_layer, n_embd, context"),
        ({"kind": "lstm", "n_head": 2}, r"n_head: kind = lstm has no attention, so no heads; leave it out"),
        (
            {"kind": "rnn", "n_layer": 1, "n_embd": 8, "n_hidden": 9, "context": 16, "tie_head": True},
            r"n_hidden = 9 is not n_embd = 8: .* or take tie_head = false",
        ),
        ({"kind": "ltsm"}, r"kind = 'ltsm'.*did you mean 'lstm'"),
        *(
            ({"keep_layers": layers}, r'keep_layers: .*: wanted "every-second", or layers in ascending order')
            for layers in ("all", [], [2, 1], [1, 1], [-1, 0], [0.5], [True], 3)
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^recipe\.toml: .*{message}"):
        section(**tree)


def test_operations_of_a_gpt_are_palms() -> None:
    """6 a weight that is multiplied with, and 12 · layers · width · context for attention."""
    model = GPT(GPTShape(1000, context=32, n_layer=2, n_head=4, n_embd=64))
    weights = parameter_count(model) - 32 * 64
    assert flops_per_token(model) == 6 * weights + 12 * 2 * 64 * 32
    untied = GPT(GPTShape(1000, context=32, n_layer=2, n_head=4, n_embd=64, tie_head=False))
    assert flops_per_token(untied) == flops_per_token(model)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("tie_head", [True, False])
def test_operations_of_an_rnn(cell: Cell, gates: int, tie_head: bool) -> None:
    model = RNN(RNNShape(1000, 32, n_layer=2, n_embd=64, n_hidden=64, cell=cell, tie_head=tie_head))
    layers = 2 * gates * (2 * 64 * 64 + 2 * 64)
    assert parameter_count(model) == layers + 1000 * 64 * (1 if tie_head else 2)
    assert flops_per_token(model) == 6 * (layers + 1000 * 64)


@pytest.mark.parametrize("tie_head", [True, False])
def test_a_classifier_multiplies_with_no_vocabulary(tie_head: bool) -> None:
    gpt = GPT(GPTShape(1000, context=32, n_layer=2, n_head=4, n_embd=64, tie_head=tie_head))
    rnn = RNN(RNNShape(1000, 32, n_layer=2, n_embd=64, n_hidden=64, cell="gru", tie_head=tie_head))
    for model, head in ((gpt, 64 * 3), (rnn, 64 * 3 + 3)):
        classifier = as_classifier(model, ["a", "b", "c"])
        assert flops_per_token(model) - flops_per_token(classifier) == 6 * (1000 * 64 - head)
        assert parameter_count(model) - parameter_count(classifier) == 1000 * 64 * (not tie_head) - head


def test_a_frozen_weight_has_no_gradient_of_its_own() -> None:
    with torch.device("meta"):
        model = GPT(GPTShape(1000, context=32, n_layer=2, n_head=4, n_embd=64, tie_head=False))
        whole, frozen = flops_per_token(model), 2 * 12 * 64 * 64 + 1000 * 64
        add_lora(model, LoraSettings(rank=4))
    adapters = 2 * 4 * ((64 + 192) + (64 + 64) + (64 + 256) + (256 + 64))
    assert flops_per_token(model) == whole + 6 * adapters - 2 * frozen
