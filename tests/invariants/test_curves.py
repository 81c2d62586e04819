"""No path that is fast gives accuracy away: 200 steps at a mild rate, each path's losses beside float32's in torch.

bfloat16 rounds, so its curve is another one; it stays as near as torch's own autocast does. The model is small, so what
is meant for large ones (linear layers, kept memory) is told to take small ones too; a few steps at a length where
attention is torch's make the rest.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batch import make_batch
from gptlab.device import Precision, float32_products
from gptlab.kernels import buffers, fused_head, gelu, linear, native
from gptlab.model import gpt
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

STEPS, ROWS, TIME, VOCABULARY = 200, 8, 32, 256
CPU = torch.device("cpu")


def text(generator: np.random.Generator, length: int) -> np.ndarray:
    """Tokens of a random Markov chain with four followers a token: something to learn, down to ln 4."""
    followers = generator.integers(VOCABULARY, size=(VOCABULARY, 4))
    tokens = np.zeros(length, dtype=np.int64)
    for t, choice in enumerate(generator.integers(4, size=length - 1)):
        tokens[t + 1] = followers[tokens[t], choice]
    return tokens


def curve(
    dtype: torch.dtype, *, kernels: bool, products: str | None = "default", steps: int = STEPS, time: int = TIME
) -> np.ndarray:
    """The mean loss of each step."""
    tokens = text(np.random.default_rng(0), steps * ROWS * (time + 1)).reshape(steps, ROWS, time + 1)
    torch.manual_seed(0)
    model = GPT(GPTShape(VOCABULARY, time, n_layer=2, n_head=2, n_embd=64))
    optimizer = Optimizer(model, OptimizerSettings(kind="adamw", learning_rate=1e-3))
    engine = Engine(model, LanguageObjective(), optimizer, CPU, Precision("", dtype, ""), ROWS, 1.0)
    losses = []
    with float32_products(CPU, products), nullcontext() if kernels else native.torch_only("the test's reference"):
        for step in tokens:
            rows = torch.from_numpy(step)
            batch = make_batch(rows[:, :-1], rows[:, 1:], torch.arange(ROWS))
            losses.append(gradients(engine, batch)["loss"].item() / batch.weight)
            descend(engine)
    return np.array(losses)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FEWEST_ROWS", 1)
    monkeypatch.setattr(linear, "FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(buffers, "LARGE", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each path was taken."""
    counts: dict[str, int] = {}

    def count(owner: Any, name: str, path: str) -> None:
        counts[path], real = 0, getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[path] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(linear, "_call", "linear")
    count(gelu, "_elementwise", "gelu")
    count(fused_head, "cross_entropy", "head")
    count(buffers._Memory, "tensor", "kept memory")
    count(gpt.F, "scaled_dot_product_attention", "attention")
    return counts


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return curve(torch.float32, kernels=False)


def test_the_reference_learns(reference):
    assert reference[0] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert reference[-20:].mean() < 0.85 * reference[0]


def test_float32_with_kernels(reference, calls):
    np.testing.assert_allclose(curve(torch.float32, kernels=True), reference, rtol=2e-4)
    assert bool(calls["gelu"]) == gelu.supported()
    assert calls["kept memory"]


def test_float32_by_onednn_where_the_probe_takes_it(reference):
    np.testing.assert_allclose(curve(torch.float32, kernels=True, products=None), reference, rtol=2e-4)


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "C++"])
def test_bfloat16(reference, calls, kernels):
    ours = curve(torch.bfloat16, kernels=kernels)
    assert np.abs(ours - reference).max() < 0.02
    assert np.abs(ours[-50:] - reference[-50:]).mean() < 4e-3
    expected = {"linear": linear.supported(), "gelu": gelu.supported(), "head": fused_head.supported()}
    assert {path: bool(calls[path]) for path in expected} == {path: kernels and expected[path] for path in expected}
    assert calls["kept memory"]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-4), (torch.bfloat16, 0.02)])
def test_long_rows(monkeypatch, calls, dtype, bound):
    """Beyond PLAIN_ATTENTION_TIME attention is torch's own; its reference is the plain products."""
    time, steps = gpt.PLAIN_ATTENTION_TIME + 8, 6
    with monkeypatch.context() as plain:
        plain.setattr(gpt, "PLAIN_ATTENTION_TIME", time)
        wanted = curve(torch.float32, kernels=False, steps=steps, time=time)
    assert not calls["attention"]
    ours = curve(dtype, kernels=True, steps=steps, time=time)
    assert calls["attention"]
    assert np.abs(ours - wanted).max() < bound
    assert wanted[-1] < wanted[0]
