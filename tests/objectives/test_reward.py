"""The reward model's loss against one answer at a time and against Bradley and Terry's formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlab.data.batch import IGNORE, pad_rows
from gptlab.device import Precision
from gptlab.evaluation.scores import Scorer
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier
from gptlab.model.gpt import GPTShape
from gptlab.model.rnn import RNNShape
from gptlab.objectives.reward import RewardObjective, RewardSettings, batch_rewards
from gptlab.settings import build

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
PAIRS = 12


def make_model(kind="gpt"):
    torch.manual_seed(0)
    if kind == "gpt":
        model = GPTClassifier(GPTShape(vocab_size=29, context=16, n_layer=2, n_head=2, n_embd=8), REWARD)
    else:
        shape = RNNShape(vocab_size=29, context=16, n_layer=2, n_embd=8, n_hidden=8, cell="rnn")
        model = RNNClassifier(shape, REWARD)
    with torch.no_grad():
        model.score.weight.mul_(20)  # rewards far from each other
    return model.double()


class Pairs:
    """Pairs of sequences of 1 to 16 tokens, with a mark at the last of each."""

    context, scored = 16, PAIRS

    def __init__(self):
        random = np.random.default_rng(0)
        self.ids = [[random.integers(29, size=random.integers(1, 17)) for _ in range(2)] for _ in range(PAIRS)]

    def __len__(self):
        return PAIRS

    def batch(self, rows, epoch=0):
        sequences = [(ids, [*[IGNORE] * (len(ids) - 1), 0]) for row in rows for ids in self.ids[row]]
        return pad_rows(sequences, rows, pairs=True)


def rewards_of_each_alone(model, pairs):
    """(pairs, 2)."""
    rewards = [[model.classify(model(torch.tensor(ids)[None])[:, -1])[0, 0] for ids in pair] for pair in pairs.ids]
    return torch.stack([torch.stack(each) for each in rewards])


@pytest.mark.parametrize("kind", ["gpt", "rnn"])
def test_sums_and_gradients_are_those_of_one_answer_after_the_other(kind):
    model, pairs = make_model(kind), Pairs()
    batch = pairs.batch(np.arange(PAIRS))
    found = RewardObjective()(model, batch)
    rewards = rewards_of_each_alone(model, pairs)
    chosen, rejected = rewards.unbind(dim=1)
    preferred = chosen.exp() / (chosen.exp() + rejected.exp())  # Bradley and Terry
    expected = {
        "loss": -preferred.log().sum(),
        "accuracy": (preferred > 0.5).double().sum(),
        "margin": (chosen - rejected).sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
    }
    assert batch.weight == PAIRS
    torch.testing.assert_close(batch_rewards(model, batch), rewards)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    parameters = [*model.parameters()]
    for ours, theirs in zip(
        *(torch.autograd.grad(sums["loss"], parameters) for sums in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


class Table(nn.Module):
    """A reward model whose rewards are its parameters: sequence n, its own number, has the n-th."""

    def __init__(self, rewards):
        super().__init__()
        self.rewards = nn.Parameter(torch.tensor(rewards))

    def forward(self, tokens):
        return F.one_hot(tokens, len(self.rewards)).to(self.rewards.dtype)

    def classify(self, hidden):
        return hidden @ self.rewards[:, None]


def of_table(rewards):
    model = Table(rewards)
    batch = pad_rows([([n], [0]) for n in range(len(rewards))], range(len(rewards) // 2), pairs=True)
    return model, RewardObjective()(model, batch)


def test_the_gradient_is_the_probability_of_the_other_answer():
    rewards = [1.0, -0.5, 2.0, 2.5, 0.3, 0.3]
    model, sums = of_table(rewards)
    sums["loss"].backward()
    chosen, rejected = np.array(rewards).reshape(-1, 2).T
    wrong = 1 / (1 + np.exp(chosen - rejected))
    np.testing.assert_allclose(model.rewards.grad, np.stack([-wrong, wrong], axis=1).flatten(), rtol=1e-6)


def test_a_tie_is_half_right():
    _, sums = of_table([1.0, 0.0, 2.0, 2.0, 0.0, 1.0, 3.0, 3.0])
    assert sums["accuracy"] == 2.0
    _, sums = of_table([0.0, 0.0])
    assert (sums["accuracy"], sums["margin"]) == (0.5, 0.0)
    assert sums["loss"].item() == pytest.approx(math.log(2))


def test_rewards_of_hundreds_overflow_nothing():
    model, sums = of_table([500.0, -500.0, -500.0, 500.0])
    sums["loss"].backward()
    assert sums["loss"] == 1000.0
    assert model.rewards.grad.tolist() == [0.0, 0.0, -1.0, 1.0]


def test_under_autocast_the_loss_is_float32():
    model, batch = make_model().float(), Pairs().batch(np.arange(PAIRS))
    exact = RewardObjective()(model, batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = RewardObjective()(model, batch)["loss"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
def test_a_scorer_reports_means_over_pairs(micro_batch_size):
    model, pairs = make_model(), Pairs()
    scores = Scorer(RewardObjective(), CPU, FLOAT32, micro_batch_size).whole(model, pairs)
    chosen, rejected = rewards_of_each_alone(model, pairs).detach().numpy().T
    assert scores == pytest.approx({
        "loss": np.mean(np.log1p(np.exp(rejected - chosen))),
        "accuracy": np.mean(chosen > rejected),
        "margin": np.mean(chosen - rejected),
        "chosen_reward": np.mean(chosen),
        "rejected_reward": np.mean(rejected),
        "tokens": PAIRS,
    })  # fmt: skip


def test_the_section_has_nothing_to_set():
    assert build(RewardSettings, {"kind": "reward"}, "recipe") == RewardSettings()
