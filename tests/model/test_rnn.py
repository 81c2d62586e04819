"""RNNs against their equations in float64, their start, their count, and that no position sees what it must not."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.batch import make_batch
from gptlab.device import Precision
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, Cell, RecurrentState, RNNShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

CELLS = get_args(Cell)
LENGTHS = [3, 11, 1, 7]


def make(cell: Cell = "lstm", **changes: Any) -> RNN:
    """A small RNN away from its start, where everything is nearly zero."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "context": 16, "n_layer": 2, "n_embd": 12, "n_hidden": 12, "tie_head": False}
    model = RNN(RNNShape(**{**shape, **changes}, cell=cell))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


def rows(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(61, (length,), generator=generator) for length in lengths]


def by_the_equations(model: RNN, tokens: Tensor) -> Tensor:
    """The hidden states (time, n_hidden) of one row, in float64 and one step after the other.

    Elman: h' = tanh(W x + b + U h + c). GRU, with torch's reset behind the product: z, r = σ(…),
    n = tanh(W x + b + r (U h + c)), h' = (1 − z) n + z h. LSTM: i, f, o = σ(…), g = tanh(…), m' = f m + i g,
    h' = o tanh(m').
    """
    steps = model.wte.weight[tokens]
    for layer in range(model.shape.n_layer):
        w, u, b, c = (getattr(model.rnn, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = m = torch.zeros(model.shape.n_hidden, dtype=torch.float64)
        outputs = []
        for x in steps:
            given, kept = w @ x + b, u @ h + c
            if model.shape.cell == "rnn":
                h = torch.tanh(given + kept)
            elif model.shape.cell == "gru":
                (r, z, n), (r_kept, z_kept, n_kept) = given.chunk(3), kept.chunk(3)
                z = torch.sigmoid(z + z_kept)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + r_kept) * n_kept) + z * h
            else:
                i, f, g, o = (given + kept).chunk(4)
                m = torch.sigmoid(f) * m + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(m)
            outputs.append(h)
        steps = torch.stack(outputs)
    return steps


@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients_are_those_of_the_equations(cell: Cell) -> None:
    model = make(cell, n_layer=3, n_hidden=20).double()
    tokens, direction = rows([9])[0], torch.randn(9, 20, dtype=torch.float64)
    found, expected = model(tokens[None])[0], by_the_equations(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    learned = [model.wte.weight, *model.rnn.parameters()]
    for own, wanted in zip(
        torch.autograd.grad(found, learned, direction), torch.autograd.grad(expected, learned, direction), strict=True
    ):
        torch.testing.assert_close(own, wanted, atol=1e-11, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_is_float64_to_rounding(cell: Cell) -> None:
    """torch has layers of its own for it (oneDNN's for the LSTM)."""
    model, tokens = make(cell), rows([16])[0]
    found = model(tokens[None])[0]
    torch.testing.assert_close(found.double(), by_the_equations(model.double(), tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_no_position_sees_a_later_one(cell: Cell) -> None:
    model, tokens = make(cell), torch.stack(rows([16, 16]))
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 61
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] != after[:, 10:]).any(dim=-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_reaches_neither_a_rows_last_state_nor_a_gradient(cell: Cell, dtype: torch.dtype) -> None:
    """Rows padded on the right, learned from at their last token: batched is alone, whatever the padding is."""
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    model = make(cell).to(dtype)
    alone = [model(row[None])[0, -1] for row in rows(LENGTHS)]
    wanted = torch.autograd.grad(sum(state.square().sum() for state in alone), model.rnn.parameters())
    for padding in (0, 60):
        padded = torch.nn.utils.rnn.pad_sequence(rows(LENGTHS), batch_first=True, padding_value=padding)
        last = model(padded)[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1]
        torch.testing.assert_close(last, torch.stack(alone), atol=tolerance, rtol=0)
        found = torch.autograd.grad(last.square().sum(), [*model.rnn.parameters(), model.wte.weight])
        for own, expected in zip(found[:-1], wanted, strict=True):
            torch.testing.assert_close(own, expected, atol=20 * tolerance, rtol=20 * tolerance)
        if padding not in torch.cat(rows(LENGTHS)):
            assert not found[-1][padding].any()


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_token_by_token_equals_all_at_once(cell: Cell) -> None:
    model, tokens = make(cell).eval(), torch.stack(rows([16] * 3))
    state = RecurrentState()
    parts = [model(tokens[:, :7], state)] + [model(tokens[:, t : t + 1], state) for t in range(7, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_rows_of_different_length_are_each_as_if_alone(cell: Cell) -> None:
    """The trap: without its length a row's state would be the one after its padding."""
    model, following = make(cell).eval(), torch.stack(rows([5] * 4))
    state = RecurrentState(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(rows(LENGTHS), batch_first=True)
    read = model(padded, state)
    written = model(following, state)
    state.keep([3, 1])
    last = model(following[[3, 1]], state)
    for n, (row, length) in enumerate(zip(rows(LENGTHS), LENGTHS, strict=True)):
        whole = model(torch.cat([row, following[n], following[n]])[None])[0]
        torch.testing.assert_close(read[n, :length], whole[:length], atol=1e-6, rtol=0)
        assert not read[n, length:].any()
        torch.testing.assert_close(written[n], whole[length : length + 5], atol=1e-6, rtol=0)
        if n in (3, 1):
            torch.testing.assert_close(last[[3, 1].index(n)], whole[length + 5 :], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_the_first_loss_is_that_of_random_logits(cell: Cell, tie_head: bool) -> None:
    """Logits are N(0, h²) for the mean square h² of the hidden state; log-sum-exp adds half of the variance to ln V."""
    torch.manual_seed(1)
    model = RNN(RNNShape(10_000, 64, n_layer=2, n_embd=256, n_hidden=256, cell=cell, tie_head=tie_head))
    tokens, targets = torch.randint(10_000, (2, 16, 64))
    hidden = model(tokens)
    loss = F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())
    half_the_variance = hidden.square().mean().item() / 2
    assert loss.item() == pytest.approx(math.log(10_000) + half_the_variance, abs=0.06)
    assert half_the_variance < {"rnn": 0.25, "gru": 0.1, "lstm": 0.03}[cell]


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_the_start_is_the_one_that_is_described(cell: Cell) -> None:
    """What a layer makes of its input has a variance of 1 where the input has, and of an embedding too."""
    torch.manual_seed(1)
    model = RNN(RNNShape(2_000, 64, n_layer=2, n_embd=100, n_hidden=400, cell=cell, tie_head=False))
    given = model.wte.weight @ model.rnn.weight_ih_l0.t()
    assert given.std().item() == pytest.approx(1, rel=0.05)
    assert model.rnn.weight_ih_l1.std().item() == pytest.approx(1 / 20, rel=0.01)  # 1 / √400
    for table in (model.wte.weight, model.head_weight):
        assert table.std().item() == pytest.approx(1 / 20, rel=0.01)
    assert 0.0499 < model.rnn.weight_hh_l1.abs().max() <= 0.05
    for layer in range(2):
        bias = getattr(model.rnn, f"bias_ih_l{layer}") + getattr(model.rnn, f"bias_hh_l{layer}")
        if cell == "lstm":
            assert (bias[400:800] == 1).all()
            bias = torch.cat([bias[:400], bias[800:]])
        assert 0 < bias.abs().max() <= 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_torchs_global_generator_decides_the_start(cell: Cell) -> None:
    shape = dataclasses.replace(make(cell).shape)
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(RNN(shape).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not any(torch.equal(models[0][name], models[2][name]) for name in models[0] if "weight" in name)


def test_a_tied_head_is_the_embedding_itself() -> None:
    tied = make(tie_head=True)
    assert tied.head_weight is tied.wte.weight
    assert make(tie_head=False).head_weight is not make(tie_head=False).wte.weight


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("cell", "gates", "layers"), [("rnn", 1, 12), ("gru", 3, 4), ("lstm", 4, 3)])
def test_parameters_are_counted_as_is_said(cell: Cell, gates: int, layers: int) -> None:
    """Beside two blocks of a GPT of the same width: as many, but for vectors."""
    with torch.device("meta"):
        model = RNN(RNNShape(500, 32, n_layer=layers, n_embd=256, n_hidden=256, cell=cell))
        blocks = GPT(GPTShape(500, 32, n_layer=2, n_head=4, n_embd=256)).h
        uneven = RNN(RNNShape(500, 32, n_layer=2, n_embd=30, n_hidden=70, cell=cell, tie_head=False))
    assert count(model) == 500 * 256 + layers * gates * (2 * 256**2 + 2 * 256)
    assert count(model.rnn) == pytest.approx(count(blocks), rel=0.01)
    first, second = (gates * (70 * (n_in + 70) + 2 * 70) for n_in in (30, 70))
    assert count(uneven) == first + second + 500 * (30 + 70)


def test_report_ds_student_is_one_of_them() -> None:
    """Embedding of 768, two layers of tanh with 768 hidden units (REPORTS D); the classifier adds its head."""
    with torch.device("meta"):
        model = RNN(RNNShape(50_257, 128, n_layer=2, n_embd=768, n_hidden=768, cell="rnn", tie_head=False))
    assert type(model.rnn) is torch.nn.RNN
    assert model.rnn.nonlinearity == "tanh"
    assert model.rnn.batch_first
    assert count(model.wte) + count(model.rnn) == 50_257 * 768 + 2 * (2 * 768**2 + 2 * 768)


@torch.no_grad()
def test_dropout_is_for_training_alone_and_between_layers() -> None:
    """With the output layer's dropout seen from outside: each is gone or, for that, as much larger."""
    model, tokens = make(dropout=0.5), torch.stack(rows([16] * 8))
    assert (model.rnn.dropout, model.shape.dropout) == (0.5, 0.5)
    dropped = model(tokens)
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert not torch.equal(dropped, model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    assert (model(tokens) != 0).all()


def test_one_layer_with_dropout_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(n_layer=1, dropout=0.5).rnn.dropout == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_hidden": 30, "tie_head": True}, "n_hidden = 30 is not n_embd = 12: .* or take tie_head = false"),
        ({"n_layer": 0}, "n_layer = 0: must be at least 1"),
        ({"cell": "elman"}, "cell = 'elman': wanted 'rnn' or 'gru' or 'lstm'"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make().shape, **changes)


FLOAT32 = Precision("float32", torch.float32, "")
BFLOAT16 = Precision("bfloat16", torch.bfloat16, "")


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_learns_as_float32_does(cell: Cell) -> None:
    """Every gradient within 1 %. The trap: a recurrent weight's is a sum over the steps, and summed in bfloat16 that of
    256 steps is off by 2 %."""
    found = {}
    for precision in (FLOAT32, BFLOAT16):
        torch.manual_seed(2)
        model = RNN(RNNShape(300, 256, n_layer=2, n_embd=64, n_hidden=64, cell=cell))
        tokens = torch.randint(300, (4, 256))
        batch = make_batch(tokens, tokens.roll(-1, 1), torch.arange(4))
        optimizer = Optimizer(model, OptimizerSettings(kind="adamw"))
        sums = gradients(Engine(model, LanguageObjective(), optimizer, torch.device("cpu"), precision, 4, 1.0), batch)
        found[precision.name] = (sums["loss"].item(), {name: p.grad for name, p in model.named_parameters()})
    (exact, wanted), (loss, own) = found["float32"], found["bfloat16"]
    assert loss == pytest.approx(exact, rel=1e-3)
    for name, gradient in own.items():
        assert (gradient - wanted[name]).norm() < 0.01 * wanted[name].norm(), name
