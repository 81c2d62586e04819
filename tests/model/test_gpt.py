"""GPT-2's sizes, its start, and that no position sees what it must not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from gptlab.model.build import SIZES
from gptlab.model.gpt import GPT, MLP, GPTShape, causal_attention

SHAPE = GPTShape(vocab_size=97, context=24, n_layer=3, n_head=4, n_embd=32)


def count(**changes: object) -> int:
    with torch.device("meta"):
        model = GPT(GPTShape(**{"vocab_size": 50_257, **changes}))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2", 124_439_808),  # the published weights' counts, the tied head once
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_sizes_have_gpt2s_parameters(size: str, parameters: int) -> None:
    assert count(**SIZES[size]) == parameters


@pytest.mark.parametrize(("n_embd", "n_layer", "millions"), [(128, 2, 13.3), (256, 2, 27.3), (128, 1, 13.1)])
def test_untied_mini_sizes(n_embd: int, n_layer: int, millions: float) -> None:
    parameters = count(**{**SIZES["mini"], "n_embd": n_embd, "n_layer": n_layer}, tie_head=False)
    assert round(parameters / 1e6, 1) == millions


def test_a_tied_head_is_the_embedding_itself() -> None:
    model = GPT(SHAPE)
    assert model.head_weight is model.wte.weight
    untied = GPT(GPTShape(97, 24, 3, 4, 32, tie_head=False))
    assert untied.head_weight is not untied.wte.weight


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize(("vocab_size", "n_embd"), [(50_257, 128), (1_000, 256)])
def test_the_first_loss_is_that_of_random_logits(vocab_size: int, n_embd: int, tie_head: bool) -> None:
    """After ln_f a hidden state has squared length n_embd, so logits are N(0, n_embd · 0.02²), and the mean of
    log-sum-exp over V of them is ln V + variance / 2."""
    torch.manual_seed(1)
    model = GPT(GPTShape(vocab_size, 64, 2, 4, n_embd, tie_head=tie_head))
    tokens, targets = torch.randint(vocab_size, (2, 4, 64))
    with torch.no_grad():
        loss = F.cross_entropy(model.logits(model(tokens)).flatten(0, 1), targets.flatten())
    assert abs(loss.item() - (math.log(vocab_size) + n_embd * 0.02**2 / 2)) < 0.05


def test_the_start_is_gpt2s() -> None:
    torch.manual_seed(1)
    model = GPT(GPTShape(vocab_size=2_000, context=128, n_layer=8, n_head=4, n_embd=128))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)  # √(2 · 8 layers) = 4
    assert model.h[3].attn.c_attn.bias.abs().max() == 0
    assert (model.h[3].ln_1.weight == 1).all()


@torch.no_grad()
def test_no_position_sees_a_later_one() -> None:
    torch.manual_seed(2)
    model = GPT(SHAPE).eval()
    tokens = torch.randint(97, (2, 24))
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 97
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] != after[:, 10:]).any(dim=-1).all()


@torch.no_grad()
def test_padding_on_the_right_reaches_no_real_position() -> None:
    torch.manual_seed(3)
    model = GPT(SHAPE).eval()
    tokens = torch.randint(97, (2, 24))
    padded = torch.cat([tokens[:, :13], torch.zeros(2, 11, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(padded)[:, :13], model(tokens[:, :13]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model(padded)[:, :13], model(tokens)[:, :13], atol=0, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    torch.manual_seed(4)
    model = GPT(GPTShape(97, 24, 3, 4, 32, dropout=dropout))
    tokens, targets = torch.randint(97, (2, 3, 24))
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        F.cross_entropy(model.logits(model(tokens)).flatten(0, 1), targets.flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@torch.no_grad()
def test_dropout_is_for_training_alone() -> None:
    model = GPT(GPTShape(97, 24, 2, 4, 32, dropout=0.5))
    tokens = torch.randint(97, (1, 24))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def attention(
    attend: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], gradient: torch.Tensor
) -> list[torch.Tensor]:
    """What queries, keys and values give, and the gradient of each, under bfloat16's autocast unless float64."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=inputs[0].dtype != torch.float64):
        mixed = attend(*leaves)
    return [mixed.detach(), *torch.autograd.grad(mixed, leaves, gradient.to(mixed.dtype))]


def sdpa(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


@pytest.mark.parametrize("time", [128, 512])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_plain_attention_in_bfloat16_is_as_exact_as_torchs(time: int, scale: int) -> None:
    """The relative error against float64, of the output and of each gradient; scores of up to 5, 20 and 80."""
    torch.manual_seed(time + scale)
    queries, keys, values, gradient = (torch.randn(2, 2, time, 64).bfloat16() for _ in range(4))
    inputs = [scale * queries, scale * keys, values]
    exact = attention(sdpa, [x.double() for x in inputs], gradient.double())
    ours, torchs = attention(causal_attention, inputs, gradient), attention(sdpa, inputs, gradient)
    for own, other, wanted in zip(ours, torchs, exact, strict=True):
        assert own.dtype == torch.bfloat16
        assert (own - wanted).norm() < 1.5 * (other - wanted).norm()


def test_plain_attention_in_float64_is_torchs() -> None:
    torch.manual_seed(6)
    *inputs, gradient = (torch.randn(2, 3, 17, 8, dtype=torch.float64) for _ in range(4))
    ours, torchs = attention(causal_attention, inputs, gradient), attention(sdpa, inputs, gradient)
    for own, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-12)


def test_attentions_dropout_is_on_its_probabilities() -> None:
    """With unit vectors as values the probabilities come out: each is gone or, for that, as much larger."""
    torch.manual_seed(7)
    queries, keys = torch.randn(2, 1, 2, 32, 32)
    values = torch.eye(32).expand(1, 2, 32, 32)
    plain, dropped = (causal_attention(queries, keys, values, dropout) for dropout in (0.0, 0.25))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)
    assert 0.65 < kept.sum() / (plain != 0).sum() < 0.85


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit into a context of 24"):
        GPT(SHAPE)(torch.zeros(1, 25, dtype=torch.int64))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_the_activation_is_what_its_name_says(activation: str) -> None:
    """In float64 against the two formulas; they differ by up to 5e-4."""
    mlp = MLP(GPTShape(97, 24, 1, 4, 32, activation=activation)).double()
    x = 3 * torch.randn(50, 32, dtype=torch.float64)
    inner = mlp.c_fc(x)
    tanh = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    exact = inner / 2 * (1 + torch.erf(inner / math.sqrt(2)))
    assert (tanh - exact).abs().max() > 1e-4
    expected = mlp.c_proj(tanh if activation == "gelu_new" else exact)
    torch.testing.assert_close(mlp(x), expected, atol=1e-12, rtol=0)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_embd = 30 is not divisible by n_head = 4"):
        GPTShape(97, 24, 3, 4, 30)
    with pytest.raises(ValueError, match="n_layer = 0: must be at least 1"):
        GPTShape(97, 24, 0, 4, 32)
    with pytest.raises(ValueError, match="activation = 'relu': wanted 'gelu_new' or 'gelu'"):
        GPTShape(97, 24, 3, 4, 32, activation="relu")  # type: ignore[arg-type]
