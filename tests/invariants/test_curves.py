"""No path that is fast gives accuracy away: 200 steps at a mild rate, each path's losses beside float32's in torch.

bfloat16 rounds, so its curve is another one; it stays as near as torch's own autocast does.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from gptlab.data.batch import make_batch
from gptlab.device import Precision, float32_products
from gptlab.kernels import native
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


def curve(dtype: torch.dtype, *, kernels: bool, products: str | None = "default") -> np.ndarray:
    """The mean loss of each step."""
    tokens = text(np.random.default_rng(0), STEPS * ROWS * (TIME + 1)).reshape(STEPS, ROWS, TIME + 1)
    torch.manual_seed(0)
    model = GPT(GPTShape(VOCABULARY, TIME, n_layer=2, n_head=2, n_embd=64))
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


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return curve(torch.float32, kernels=False)


def test_the_reference_learns(reference):
    assert reference[0] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert reference[-20:].mean() < 0.85 * reference[0]


def test_float32_with_kernels(reference):
    np.testing.assert_allclose(curve(torch.float32, kernels=True), reference, rtol=2e-4)


def test_float32_by_onednn_where_the_probe_takes_it(reference):
    np.testing.assert_allclose(curve(torch.float32, kernels=True, products=None), reference, rtol=2e-4)


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "C++"])
def test_bfloat16(reference, kernels):
    ours = curve(torch.bfloat16, kernels=kernels)
    assert np.abs(ours - reference).max() < 0.02
    assert np.abs(ours[-50:] - reference[-50:]).mean() < 4e-3
