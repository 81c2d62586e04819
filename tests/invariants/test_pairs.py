"""What must change nothing where pairs are learned: the cut into micro-batches, padding, the order of the pairs.

The traps: a pair whose sides a micro-batch parts; a reference's number that stays behind when its pair moves; a sum
over an answer that reaches into the padding or into its neighbour; and a policy that differs from its own reference.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gptlab.data.batch import IGNORE, ValuedRows, make_batch, pad_rows
from gptlab.device import Precision
from gptlab.evaluation.preference_scores import answer_log_probs
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.objectives.reward import RewardObjective
from gptlab.training.loop import Engine, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

SHAPE = GPTShape(vocab_size=37, context=24, n_layer=2, n_head=2, n_embd=16)
CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
PAIRS = 16

OBJECTIVES = {
    "sigmoid": DPOObjective(DPOSettings(beta=0.5)),
    "smoothed": DPOObjective(DPOSettings(beta=0.5, label_smoothing=0.1)),
    "ipo": DPOObjective(DPOSettings(beta=0.5, loss="ipo")),
    "simpo": DPOObjective(DPOSettings(beta=2.0, loss="simpo")),
    "reward": RewardObjective(),
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)
with_reference = pytest.mark.parametrize("name", ["sigmoid", "smoothed", "ipo"])


class Pairs:
    """A prompt of 1 to 8 tokens and two answers of 1 to 16 each, of which all tokens or the last has a target."""

    context, scored = 24, PAIRS

    def __init__(self, last=False):
        random = np.random.default_rng(0)

        def some_tokens(most):
            return random.integers(37, size=random.integers(1, most + 1)).tolist()

        self.pairs = [(some_tokens(8), [some_tokens(16), some_tokens(16)]) for _ in range(PAIRS)]
        self.last = last

    def __len__(self):
        return PAIRS

    def batch(self, rows, epoch=0):
        pairs = [self.pairs[row] for row in rows]
        sequences = [self.sequence(prompt, answer) for prompt, answers in pairs for answer in answers]
        return pad_rows(sequences, rows, pairs=True)

    def sequence(self, prompt, answer):
        ids = [*prompt, *answer]
        if self.last:
            return ids, [IGNORE] * (len(ids) - 1) + [0]
        return ids[:-1], [IGNORE] * (len(prompt) - 1) + answer


def lesson(name):
    """Model, objective and rows, in float64."""
    torch.manual_seed(1)
    if name == "reward":
        return GPTClassifier(SHAPE, REWARD).double(), OBJECTIVES[name], Pairs(last=True)
    reference = -20 + torch.randn(PAIRS, 2, dtype=torch.float64)
    return GPT(SHAPE).double(), OBJECTIVES[name], ValuedRows(Pairs(), {"reference": reference})


def step(model, objective, batch, micro_batch_size=PAIRS):
    """The sums of a step and its gradients by name."""
    optimizer = Optimizer(model, OptimizerSettings(kind="adamw"))
    engine = Engine(model, objective, optimizer, CPU, FLOAT32, micro_batch_size, 1.0)
    sums = gradients(engine, batch)
    return sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-10, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


@each_objective
@pytest.mark.parametrize("micro_batch_size", [8, 5, 1])
def test_the_cut_into_micro_batches_changes_nothing(name, micro_batch_size):
    model, objective, rows = lesson(name)
    batch = rows.batch(np.arange(PAIRS))
    assert batch.weight == PAIRS
    assert_same(step(model, objective, batch, micro_batch_size), step(model, objective, batch))


@each_objective
def test_the_order_of_the_pairs_changes_nothing(name):
    model, objective, rows = lesson(name)
    expected = step(model, objective, rows.batch(np.arange(PAIRS)))
    shuffled = np.random.default_rng(1).permutation(PAIRS)
    longest_first = sorted(range(PAIRS), key=lambda row: -rows.batch(np.array([row])).positions[-1].item())
    for order in (shuffled, np.array(longest_first)):
        for micro_batch_size in (PAIRS, 6):
            assert_same(step(model, objective, rows.batch(order), micro_batch_size), expected)


@each_objective
def test_padding_changes_nothing(name):
    """More of it, and other tokens than 0."""
    model, objective, rows = lesson(name)
    batch = rows.batch(np.arange(PAIRS))
    sequences, time = batch.tokens.shape
    wider = torch.randint(37, (sequences, SHAPE.context))
    targets = torch.full((sequences, SHAPE.context), IGNORE)
    targets[:, :time] = batch.targets
    for row, learned in enumerate(batch.targets != IGNORE):
        end = int(learned.nonzero()[-1]) + 1
        wider[row, :end] = batch.tokens[row, :end]
    positions = (targets.flatten() != IGNORE).nonzero()[:, 0]
    padded = replace(batch, tokens=wider, targets=targets, positions=positions)
    assert not torch.equal(padded.positions, batch.positions)
    assert_same(step(model, objective, padded), step(model, objective, batch))


@each_objective
def test_sides_that_are_exchanged_turn_the_margins_round(name):
    model, objective, rows = lesson(name)
    batch = rows.batch(np.arange(PAIRS))
    turned = torch.arange(2 * PAIRS).view(PAIRS, 2).flip(1).flatten()
    values = {key: value.flip(1) for key, value in batch.values.items()}
    exchanged = make_batch(batch.tokens[turned], batch.targets[turned], batch.rows, values, pairs=True)
    (found, _), (expected, _) = (step(model, objective, each) for each in (exchanged, batch))
    torch.testing.assert_close(found["margin"], -expected["margin"])
    torch.testing.assert_close(found["accuracy"], PAIRS - expected["accuracy"])
    for key in ("reward", "log_prob", "tokens"):
        if f"chosen_{key}" in expected:
            torch.testing.assert_close(found[f"chosen_{key}"], expected[f"rejected_{key}"])


@with_reference
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_a_policy_that_has_learned_nothing_equals_its_reference(name, adapted):
    """The loss is known beforehand, margins and drift are nought, and yet there is something to learn."""
    torch.manual_seed(1)
    model, objective = GPT(SHAPE), OBJECTIVES[name]
    reference = torch.from_numpy(
        answer_log_probs(model, Pairs(), device=CPU, precision=FLOAT32, micro_batch_size=PAIRS)
    )
    if adapted:
        add_lora(model, LoraSettings())  # its B is zero
    batch = ValuedRows(Pairs(), {"reference": reference}).batch(np.arange(PAIRS))
    sums, found = step(model, objective, batch)
    assert sums["loss"].item() / PAIRS == pytest.approx(objective.loss_at_reference, rel=1e-6)
    assert (sums["margin"], sums["kl"], sums["accuracy"] / PAIRS) == (0, 0, 0.5)
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-4
    if adapted:
        assert all((gradient.abs().max() == 0) == key.endswith("lora_A") for key, gradient in found.items())

    cut, _ = step(model, objective, batch, micro_batch_size=3)  # other batches than the reference's, other roundings
    assert cut["loss"].item() / PAIRS == pytest.approx(objective.loss_at_reference, rel=1e-5)
    assert abs(cut["margin"].item() / PAIRS) < 1e-5
    assert abs(cut["kl"].item() / PAIRS) < 1e-4


@pytest.mark.parametrize("name", ["sigmoid", "smoothed"])
def test_the_first_loss_is_the_logarithm_of_two(name):
    assert OBJECTIVES[name].loss_at_reference == math.log(2)
