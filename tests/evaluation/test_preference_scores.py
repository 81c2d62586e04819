"""Rewards of pairs against one answer at a time, their scores against numpy, scipy and a plain loop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from gptlab.data.batch import IGNORE, Batch, ValuedRows, pad_rows
from gptlab.device import Precision
from gptlab.errors import ModelError, UserError
from gptlab.evaluation.preference_scores import answer_log_probs, pair_rewards, preference_scores
from gptlab.evaluation.reward_scores import mean_interval
from gptlab.evaluation.scores import Scorer
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.objectives.reward import RewardObjective

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
GPT_SHAPE = GPTShape(29, 16, 2, 2, 8, dropout=0.5)
RNN_SHAPE = RNNShape(29, 16, 2, 8, 8, cell="gru", dropout=0.5)
PAIRS = 23


class Pairs:
    """Prompts of 2 to 6 tokens, answers of 1 to 10; a batch has the longest pair first."""

    context, scored = 16, PAIRS

    def __init__(self, last: bool) -> None:
        self.last = last
        generator = np.random.default_rng(0)

        def some_tokens(fewest: int, most: int) -> list[int]:
            return generator.integers(29, size=generator.integers(fewest, most + 1)).tolist()

        self.pairs = [(some_tokens(2, 6), [some_tokens(1, 10), some_tokens(1, 10)]) for _ in range(PAIRS)]

    def __len__(self) -> int:
        return PAIRS

    def lengths(self) -> np.ndarray:
        return np.array([[len(answer) for answer in answers] for _, answers in self.pairs])

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        longest_first = sorted(rows, key=lambda row: -self.lengths()[row].max())
        sequences = [
            self.sequence(prompt, answer)
            for row in longest_first
            for prompt, answers in [self.pairs[row]]
            for answer in answers
        ]
        return pad_rows(sequences, longest_first, pairs=True)

    def sequence(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        ids = [*prompt, *answer]
        if self.last:
            return ids, [*[IGNORE] * (len(ids) - 1), 0]
        return ids[:-1], [*[IGNORE] * (len(prompt) - 1), *answer]


def language_models() -> list[GPT | RNN]:
    torch.manual_seed(0)
    return [GPT(GPT_SHAPE), RNN(RNN_SHAPE)]


def reward_models() -> list[GPTClassifier | RNNClassifier]:
    torch.manual_seed(0)
    return [GPTClassifier(GPT_SHAPE, REWARD), RNNClassifier(RNN_SHAPE, REWARD)]


def each(models: Sequence[nn.Module]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", models, ids=lambda model: type(model).__name__)


@pytest.fixture
def told() -> Iterator[list[tuple[int, int]]]:
    """What a reading was told of; at its end it has told of all pairs."""
    calls: list[tuple[int, int]] = []
    yield calls
    assert calls[-1] == (PAIRS, PAIRS)


@each(language_models())
@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
@torch.no_grad()
def test_log_probs_stand_in_the_order_of_the_rows_and_are_those_of_each_answer_alone(
    model: GPT | RNN, micro_batch_size: int, told: list[tuple[int, int]]
) -> None:
    rows = Pairs(last=False)
    model.train()
    found = answer_log_probs(
        model, rows, device=CPU, precision=FLOAT32, micro_batch_size=micro_batch_size,
        on_batch=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert model.training  # left as it was, and read without dropout
    assert (found.dtype, found.shape) == (np.float32, (PAIRS, 2))
    model.eval()
    for (prompt, answers), log_probs in zip(rows.pairs, found, strict=True):
        for answer, log_prob in zip(answers, log_probs, strict=True):
            every = model.logits(model(torch.tensor([[*prompt, *answer]])))[0].double().log_softmax(dim=1)
            alone = sum(every[len(prompt) - 1 + n, token].item() for n, token in enumerate(answer))
            assert log_prob == pytest.approx(alone, abs=1e-4)


@each(reward_models())
@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
@torch.no_grad()
def test_rewards_stand_in_the_order_of_the_rows_and_are_those_of_each_answer_alone(
    model: GPTClassifier | RNNClassifier, micro_batch_size: int, told: list[tuple[int, int]]
) -> None:
    rows = Pairs(last=True)
    model.train()
    found = pair_rewards(
        model, rows, device=CPU, precision=FLOAT32, micro_batch_size=micro_batch_size,
        on_batch=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert model.training
    assert (found.dtype, found.shape) == (np.float32, (PAIRS, 2))
    model.eval()
    for (prompt, answers), rewards in zip(rows.pairs, found, strict=True):
        for answer, reward in zip(answers, rewards, strict=True):
            alone = model.classify(model(torch.tensor([[*prompt, *answer]]))[:, -1])
            assert reward == pytest.approx(alone.item(), abs=1e-5)


def test_scores_of_a_reward_model_are_those_that_training_validates_by() -> None:
    model, rows = reward_models()[0], Pairs(last=True)
    rewards = pair_rewards(model, rows, device=CPU, precision=FLOAT32, micro_batch_size=4)
    validated = Scorer(RewardObjective(), CPU, FLOAT32, 5).rows(model, rows)
    agree(preference_scores(rewards, rows.lengths()), validated)


def test_scores_of_dpo_are_those_that_training_validates_by() -> None:
    """Implicit rewards are made of two readings' log-probabilities."""
    (policy, _), (_, start) = language_models(), language_models()
    rows, settings = Pairs(last=False), DPOSettings(beta=0.4)
    after, before = (
        answer_log_probs(model, rows, device=CPU, precision=FLOAT32, micro_batch_size=4) for model in (policy, start)
    )
    with_reference = ValuedRows(rows, {"reference": torch.from_numpy(before)})
    validated = Scorer(DPOObjective(settings), CPU, FLOAT32, 5).rows(policy, with_reference)
    agree(preference_scores(settings.beta * (after - before), rows.lengths()), validated)
    assert validated["kl"] == pytest.approx(float((before - after).sum() / rows.lengths().sum()), abs=1e-5)


def agree(scores: dict[str, float], validated: dict[str, float]) -> None:
    for name in ("accuracy", "margin", "chosen_reward", "rejected_reward"):
        assert scores[name] == pytest.approx(validated[name], abs=1e-5), name


def test_what_is_not_finite_is_an_error() -> None:
    reward, language = reward_models()[0], language_models()[0]
    with torch.no_grad():
        reward.score.weight.fill_(math.nan)
        language.wte.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="rewards are not finite"):
        pair_rewards(reward, Pairs(last=True), device=CPU, precision=FLOAT32, micro_batch_size=8)
    with pytest.raises(ModelError, match="log-probabilities are not finite"):
        answer_log_probs(language, Pairs(last=False), device=CPU, precision=FLOAT32, micro_batch_size=8)


@each([GPT(GPT_SHAPE), GPTClassifier(GPT_SHAPE, ("no", "yes"))])
def test_only_a_reward_model_gives_rewards(model: GPT) -> None:
    with pytest.raises(UserError, match="gives no rewards: name a reward model"):
        pair_rewards(model, Pairs(last=True), device=CPU, precision=FLOAT32, micro_batch_size=8)


def test_a_reward_model_has_no_log_probabilities() -> None:
    with pytest.raises(ModelError, match="no output layer over the vocabulary"):
        answer_log_probs(reward_models()[0], Pairs(last=False), device=CPU, precision=FLOAT32, micro_batch_size=8)


# Scores


def make(pairs: int, ties: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards that are right rather often, the last `ties` of them equal, and lengths of answers."""
    generator = np.random.default_rng(seed)
    rewards = generator.normal(size=(pairs, 2)).astype(np.float32) + np.array([0.6, 0.0], np.float32)
    rewards[pairs - ties :] = 1.0
    return rewards, generator.integers(1, 9, size=(pairs, 2))


def test_scores_are_means() -> None:
    rewards, tokens = make(300)
    scores = preference_scores(rewards, tokens)
    chosen, rejected = rewards.T
    assert scores["pairs"] == 300
    assert scores["accuracy"] == pytest.approx((chosen > rejected).mean())
    assert scores["margin"] == pytest.approx((chosen - rejected).mean())
    assert (scores["chosen_reward"], scores["rejected_reward"]) == pytest.approx((chosen.mean(), rejected.mean()))
    assert (scores["chosen_tokens"], scores["rejected_tokens"]) == pytest.approx(tuple(tokens.mean(axis=0)))
    longer = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in tokens]
    assert scores["longer_accuracy"] == pytest.approx(np.mean(longer))
    assert json.loads(json.dumps(scores)) == scores


def test_a_tie_is_half_right() -> None:
    scores = preference_scores(np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [3.0, 3.0]]), np.ones((4, 2), int))
    assert scores["accuracy"] == 0.5
    assert scores["longer_accuracy"] == 0.5


@pytest.mark.parametrize(("right", "pairs"), [(0, 9), (9, 9), (1, 1), (7, 20), (6000, 8552)])
def test_the_interval_of_the_accuracy_is_wilsons(right: int, pairs: int) -> None:
    rewards = np.zeros((pairs, 2))
    rewards[:, 1], rewards[:right, 0] = 1.0, 2.0
    scores = preference_scores(rewards, np.ones((pairs, 2), int))
    wanted = scipy.stats.binomtest(right, pairs).proportion_ci(0.95, method="wilson")
    assert (scores["accuracy_low"], scores["accuracy_high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= scores["accuracy_low"] <= scores["accuracy"] <= scores["accuracy_high"] <= 1


def test_with_ties_the_interval_of_the_accuracy_is_no_narrower_than_the_bootstraps() -> None:
    rewards, tokens = make(400, ties=100)
    scores = preference_scores(rewards, tokens)
    right = (1 + np.sign(rewards[:, 0] - rewards[:, 1])) / 2
    low, high = mean_interval(right)
    assert scores["accuracy_low"] < low < scores["accuracy"] < high < scores["accuracy_high"]
    assert scores["accuracy_high"] - scores["accuracy_low"] < 1.3 * (high - low)


def test_the_interval_of_the_margin_is_students_and_the_bootstraps() -> None:
    rewards, tokens = make(400)
    scores = preference_scores(rewards, tokens)
    margins = (rewards[:, 0] - rewards[:, 1]).astype(np.float64)
    wanted = scipy.stats.ttest_1samp(margins, 0).confidence_interval(0.95)
    assert (scores["margin_low"], scores["margin_high"]) == pytest.approx(tuple(wanted))
    assert (scores["margin_low"], scores["margin_high"]) == pytest.approx(mean_interval(margins), abs=0.01)


def test_a_model_against_itself_prefers_nothing() -> None:
    scores = preference_scores(np.zeros((50, 2), np.float32), np.ones((50, 2), int))
    assert (scores["accuracy"], scores["margin"], scores["margin_low"], scores["margin_high"]) == (0.5, 0, 0, 0)
    assert scores["calibration"] == {
        "error": 0.0,
        "bins": [{"low": 0.5, "high": 0.55, "pairs": 50, "confidence": 0.5, "accuracy": 0.5}],
    }


def test_one_pair_is_enough() -> None:
    scores = preference_scores(np.array([[2.0, 1.0]]), np.array([[3, 4]]))
    assert (scores["margin"], scores["margin_low"], scores["margin_high"]) == (1.0, 1.0, 1.0)
    assert (scores["accuracy"], scores["longer_accuracy"]) == (1.0, 0.0)
    assert scores["accuracy_low"] < 0.25


def test_the_calibration_is_that_of_a_plain_loop() -> None:
    rewards, tokens = make(500, ties=20)
    found = preference_scores(3 * rewards, tokens)["calibration"]
    bins: dict[int, list[tuple[float, float]]] = {}
    for chosen, rejected in (3 * rewards).astype(np.float64):
        higher, lower = max(chosen, rejected), min(chosen, rejected)
        confidence = math.exp(higher) / (math.exp(higher) + math.exp(lower))
        right = 0.5 if chosen == rejected else float(chosen > rejected)
        bins.setdefault(min(9, int((confidence - 0.5) / 0.05)), []).append((confidence, right))
    error = 0.0
    assert len(found["bins"]) == len(bins) == 10
    for number, each_bin in enumerate(found["bins"]):
        confidence, accuracy = np.mean(bins[number], axis=0)
        error += len(bins[number]) / 500 * abs(confidence - accuracy)
        assert each_bin == pytest.approx({
            "low": 0.5 + number / 20, "high": 0.55 + number / 20, "pairs": len(bins[number]),
            "confidence": confidence, "accuracy": accuracy,
        })  # fmt: skip
        assert each_bin["low"] <= each_bin["confidence"] <= each_bin["high"]
    assert found["error"] == pytest.approx(error)


def test_rewards_that_say_how_often_they_are_right_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    margins = generator.normal(scale=2, size=20_000)
    preferred = generator.random(20_000) < 1 / (1 + np.exp(-margins))
    rewards = np.zeros((20_000, 2))
    rewards[:, 0] = np.where(preferred, margins, -margins)
    tokens = np.ones((20_000, 2), int)
    assert preference_scores(rewards, tokens)["calibration"]["error"] < 0.015
    assert preference_scores(5 * rewards, tokens)["calibration"]["error"] > 0.1


def test_margins_of_hundreds_are_all_but_certain() -> None:
    rewards = np.array([[900.0, -900.0], [-900.0, 900.0], [900.0, 0.0], [40.0, 0.0]], np.float32)
    found = preference_scores(rewards, np.ones((4, 2), int))
    assert found["accuracy"] == 0.75
    assert found["calibration"] == {
        "error": pytest.approx(0.25),
        "bins": [{"low": pytest.approx(0.95), "high": 1.0, "pairs": 4, "confidence": 1.0, "accuracy": 0.75}],
    }


@pytest.mark.parametrize(
    ("rewards", "tokens"), [((0, 2), (0, 2)), ((3, 2), (2, 2)), ((3,), (3,)), ((3, 1), (3, 1)), ((3, 3), (3, 3))]
)
def test_what_does_not_fit_together_is_said(rewards: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="wanted two of each pair"):
        preference_scores(np.zeros(rewards), np.ones(tokens, int))
