"""DPO, IPO and SimPO against closed forms in float64, limits and the directions of their gradients."""

import math

import numpy as np
import pytest
import torch

from gptlab.data.batch import IGNORE, ValuedRows, pad_rows
from gptlab.device import Precision
from gptlab.errors import RecipeError
from gptlab.evaluation.scores import Scorer
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.objectives.base import means
from gptlab.objectives.dpo import DPOObjective, DPOSettings, batch_log_probs
from gptlab.objectives.language import LanguageObjective
from gptlab.settings import build, plain
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.memory import FullRows, LiveStorages, predict_peak_bytes
from gptlab.training.optimizer import Optimizer, OptimizerSettings

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
SHAPES = [
    GPTShape(vocab_size=31, context=14, n_layer=2, n_head=2, n_embd=8),
    RNNShape(vocab_size=31, context=14, n_layer=1, n_embd=6, n_hidden=10, tie_head=False),
]
PAIRS = 12

LOSSES = {
    "sigmoid": DPOSettings(beta=0.3),
    "smoothed": DPOSettings(beta=0.3, label_smoothing=0.2),
    "ipo": DPOSettings(beta=0.3, loss="ipo"),
    "simpo": DPOSettings(beta=2.0, loss="simpo", gamma=0.8),
}
each_loss = pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
each_with_reference = pytest.mark.parametrize("settings", [*LOSSES.values()][:3], ids=[*LOSSES][:3])


class Pairs:
    """A prompt of 1 to 5 tokens and two answers of 1 to 9 each."""

    context, scored = 14, PAIRS

    def __init__(self):
        random = np.random.default_rng(0)

        def some_tokens(most):
            return random.integers(31, size=random.integers(1, most + 1)).tolist()

        self.pairs = [(some_tokens(5), [some_tokens(9), some_tokens(9)]) for _ in range(PAIRS)]

    def __len__(self):
        return PAIRS

    def lengths(self):
        return torch.tensor([[len(answer) for answer in answers] for _, answers in self.pairs])

    def batch(self, rows, epoch=0):
        pairs = [self.pairs[row] for row in rows]
        return pad_rows([learned(prompt, answer) for prompt, answers in pairs for answer in answers], rows, pairs=True)


def learned(prompt, answer):
    """A sequence whose answer is learned."""
    ids = [*prompt, *answer]
    return ids[:-1], [IGNORE] * (len(prompt) - 1) + answer


def make(shape=SHAPES[0], seed=0):
    torch.manual_seed(seed)
    model = GPT(shape) if isinstance(shape, GPTShape) else RNN(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def with_reference(reference):
    return ValuedRows(Pairs(), {"reference": reference})


def log_probs_one_by_one(model):
    """log p of every answer, each read alone, (pairs, 2)."""

    def of_answer(prompt, answer):
        ids = torch.tensor([*prompt, *answer])
        log_probs = model.logits(model(ids[None, :-1]))[0].log_softmax(dim=1)
        return log_probs[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].sum()

    return torch.stack(
        [torch.stack([of_answer(prompt, answer) for answer in answers]) for prompt, answers in Pairs().pairs]
    )


def closed_form(log_probs, reference, settings):
    """The sums as the papers have them, with exponentials and logarithms written out."""
    tokens, beta, smoothing = Pairs().lengths().double(), settings.beta, settings.label_smoothing

    def wrong(x):
        return (1 + (-x).exp()).log()

    rewards = beta / tokens * log_probs if settings.loss == "simpo" else beta * (log_probs - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    if settings.loss == "simpo":
        losses = wrong(margin - settings.gamma)
    elif settings.loss == "ipo":
        chosen, rejected = ((log_probs - reference) / tokens).unbind(dim=1)
        losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    else:
        losses = (1 - smoothing) * wrong(margin) + smoothing * wrong(-margin)
    sums = {
        "loss": losses.sum(),
        "accuracy": (margin > 0).double().sum(),
        "margin": margin.sum(),
        "chosen_reward": rewards[:, 0].sum(),
        "rejected_reward": rewards[:, 1].sum(),
        "chosen_log_prob": log_probs[:, 0].sum(),
        "rejected_log_prob": log_probs[:, 1].sum(),
        "chosen_tokens": tokens[:, 0].sum(),
        "rejected_tokens": tokens[:, 1].sum(),
    }
    if settings.loss == "simpo":
        return sums
    return sums | {"kl": (reference - log_probs).sum(), "answer_tokens": tokens.sum()}


@each_loss
@pytest.mark.parametrize("shape", SHAPES, ids=["gpt", "rnn"])
def test_sums_and_gradients_are_the_closed_form_of_one_answer_after_the_other(shape, settings):
    model = make(shape)
    reference = log_probs_one_by_one(make(shape, seed=1)).detach()
    found = DPOObjective(settings)(model, with_reference(reference).batch(np.arange(PAIRS)))
    expected = closed_form(log_probs_one_by_one(model), reference, settings)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value.double(), msg=lambda m, key=key: f"{key}: {m}")
    for key in ("loss", "margin"):
        ours, theirs = (torch.autograd.grad(sums[key], [*model.parameters()], retain_graph=True) for sums in
                        (found, expected))  # fmt: skip
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@each_loss
def test_a_scorer_divides_each_sum_by_what_it_is_over(settings):
    model, reference = make(), torch.full((PAIRS, 2), -20.0)
    rows = with_reference(reference)
    log_probs = log_probs_one_by_one(model).detach()
    sums = {key: value.item() for key, value in closed_form(log_probs, reference, settings).items()}
    expected = {key: value / PAIRS for key, value in sums.items() if "tokens" not in key and "log_prob" not in key}
    expected |= {f"{side}_log_prob": sums[f"{side}_log_prob"] / sums[f"{side}_tokens"] for side in
                 ("chosen", "rejected")}  # fmt: skip
    if "kl" in sums:
        expected["kl"] = sums["kl"] / sums["answer_tokens"]
    assert means(DPOObjective(settings), sums, PAIRS) == pytest.approx(expected)
    for micro_batch_size in (1, 5, 100):
        scores = Scorer(DPOObjective(settings), CPU, FLOAT32, micro_batch_size).whole(model, rows)
        assert scores == pytest.approx({**expected, "tokens": PAIRS}, rel=1e-9)


def one_pair(row, log_ratios=(0.0, 0.0)):
    """A model and a pair, of whose answers it differs from the reference by these log-ratios."""
    model = make()
    log_ratios = torch.tensor(log_ratios, dtype=torch.float64)
    return model, with_reference(log_probs_one_by_one(model).detach() - log_ratios).batch(np.array([row]))


@pytest.mark.parametrize("row", [0, 3])
def test_the_gradient_is_the_margins_weighted_by_how_wrong_the_rewards_are(row):
    """Rafailov et al., section 4: ∇L = −β · σ(−margin) · (∇ log π(chosen) − ∇ log π(rejected))."""
    model, batch = one_pair(row, (-1.0, 2.0))
    sums = DPOObjective(DPOSettings(beta=0.3))(model, batch)
    log_probs, _ = batch_log_probs(model, batch)
    parameters = [*model.parameters()]
    of_chosen, of_rejected = (torch.autograd.grad(log_prob, parameters, retain_graph=True) for log_prob in log_probs[0])
    weight = 0.3 * torch.sigmoid(-sums["margin"].detach())
    for got, chosen, rejected in zip(
        torch.autograd.grad(sums["loss"], parameters), of_chosen, of_rejected, strict=True
    ):
        torch.testing.assert_close(got, -weight * (chosen - rejected), rtol=0, atol=1e-12)


@each_loss
def test_a_step_down_the_loss_raises_the_chosen_answer_against_the_rejected_one(settings):
    model, batch = one_pair(2)
    objective = DPOObjective(settings)
    before = objective(model, batch)
    before["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-5 * parameter.grad
        after = objective(model, batch)
    assert after["loss"] < before["loss"]
    assert after["margin"] > before["margin"]


def test_label_smoothing_is_at_rest_where_the_margin_says_how_often_labels_are_right():
    margin = math.log(0.8 / 0.2)  # σ(margin) = 1 − ε
    model, batch = one_pair(4, (margin / 0.3, 0.0))
    assert gradient_at(model, batch, LOSSES["smoothed"]) < 1e-12
    assert gradient_at(model, batch, LOSSES["sigmoid"]) > 1e-3


def test_ipo_is_at_rest_where_the_log_ratios_differ_by_what_it_wants():
    chosen_tokens, rejected_tokens = Pairs().lengths()[4].tolist()
    model, batch = one_pair(4, (2.5 * chosen_tokens, (2.5 - 1 / 0.6) * rejected_tokens))
    assert gradient_at(model, batch, LOSSES["ipo"]) < 1e-12
    assert DPOObjective(LOSSES["ipo"])(model, batch)["loss"] < 1e-24


def gradient_at(model, batch, settings):
    """Its largest number."""
    gradients = torch.autograd.grad(DPOObjective(settings)(model, batch)["loss"], [*model.parameters()])
    return max(gradient.abs().max().item() for gradient in gradients)


@pytest.mark.parametrize("right", [True, False])
@each_with_reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_log_ratios_of_hundreds_overflow_nothing(settings, right, dtype):
    model = make().float()
    rows = Pairs()
    log_probs, tokens = (each.detach() for each in batch_log_probs(model, rows.batch(np.arange(PAIRS))))
    drift = torch.tensor([800.0, -800.0]) * (1 if right else -1)
    batch = with_reference(log_probs - drift).batch(np.arange(PAIRS))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        sums = DPOObjective(settings)(model, batch)
    sums["loss"].backward()
    assert sums["loss"].dtype == torch.float32
    assert sums["accuracy"] == (PAIRS if right else 0)
    assert all(torch.isfinite(value) for value in sums.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    margin = 0.3 * 1600
    if settings.loss == "ipo":
        h = (drift / tokens) @ torch.tensor([1.0, -1.0])
        expected = ((h - 1 / 0.6) ** 2).sum().item()
    else:
        expected = PAIRS * margin * (settings.label_smoothing if right else 1 - settings.label_smoothing)
    assert sums["loss"].item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_under_autocast_rewards_and_log_probabilities_are_float32():
    model = make().float()
    reference = log_probs_one_by_one(make(seed=1).float()).detach()
    batch = with_reference(reference).batch(np.arange(PAIRS))
    exact = DPOObjective(DPOSettings())(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = DPOObjective(DPOSettings())(model, batch)
    for key in ("loss", "margin", "chosen_reward", "chosen_log_prob", "kl"):
        assert rounded[key].dtype == torch.float32, key
        torch.testing.assert_close(rounded[key], exact[key], rtol=0.02, atol=0.1)


@each_with_reference
def test_the_loss_at_the_reference_is_known(settings):
    model, objective = make(), DPOObjective(settings)
    batch = with_reference(log_probs_one_by_one(model).detach()).batch(np.arange(PAIRS))
    assert objective(model, batch)["loss"].item() / PAIRS == pytest.approx(objective.loss_at_reference, rel=1e-12)
    expected = 1 / (4 * 0.3**2) if settings.loss == "ipo" else math.log(2)
    assert objective.loss_at_reference == pytest.approx(expected, rel=1e-15)
    assert DPOObjective(LOSSES["simpo"]).loss_at_reference is None


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_pairs_without_a_reference_are_an_error(loss):
    with pytest.raises(ValueError, match=r'the pairs have no values\["reference"\]'):
        DPOObjective(DPOSettings(loss=loss))(make(), Pairs().batch(np.arange(PAIRS)))


def test_simpo_needs_no_reference():
    settings, model = DPOSettings(loss="simpo", beta=2.0), make()
    assert not settings.needs_reference
    assert DPOSettings().needs_reference
    sums = DPOObjective(settings)(model, Pairs().batch(np.arange(PAIRS)))
    assert "kl" not in sums
    torch.testing.assert_close(
        sums["loss"], closed_form(log_probs_one_by_one(model), None, settings)["loss"], rtol=1e-12, atol=0
    )


def test_the_memory_of_a_step_can_be_predicted_and_is_that_of_fine_tuning():
    shape = GPTShape(vocab_size=1003, context=32, n_layer=2, n_head=4, n_embd=64)
    adamw, pairs = OptimizerSettings(kind="adamw"), FullRows(32, pairs=True, values={"reference": 2})

    def predicted(make_objective, micro_batch_size, rows):
        return predict_peak_bytes(
            lambda: GPT(shape), make_objective, adamw, precision=FLOAT32, micro_batch_size=micro_batch_size,
            batch_size=2 * micro_batch_size, rows=rows,
        )  # fmt: skip

    with LiveStorages() as storages:
        model = GPT(shape)
        engine = Engine(model, DPOObjective(DPOSettings()), Optimizer(model, adamw), CPU, FLOAT32, 4, 1.0)
        for _ in range(2):
            gradients(engine, pairs.batch(8))
            descend(engine)
    peak = predicted(lambda: DPOObjective(DPOSettings()), 4, pairs)
    assert peak == pytest.approx(storages.peak, rel=0.01)
    assert peak == pytest.approx(predicted(LanguageObjective, 8, FullRows(32)), rel=0.02)


def test_the_section():
    found = build(DPOSettings, {"kind": "dpo"}, "recipe")
    assert (found.beta, found.loss, found.label_smoothing, found.gamma) == (0.1, "sigmoid", 0.0, 0.5)
    for settings in (found, *LOSSES.values()):  # what a run writes down it reads again
        assert build(DPOSettings, plain(settings), "recipe") == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0: input should be greater than 0"),
        ({"beta": -0.1}, "beta = -0.1: input should be greater than 0"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1: input should be greater than or equal to 0"),
        ({"label_smoothing": 0.5}, "label_smoothing = 0.5: input should be less than 0.5"),
        ({"gamma": -1.0, "loss": "simpo"}, "gamma = -1.0: input should be greater than or equal to 0"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing = 0.1: is for loss = sigmoid, not for ipo"),
        ({"label_smoothing": 0.1, "loss": "simpo"}, "label_smoothing = 0.1: is for loss = sigmoid, not for simpo"),
        ({"gamma": 1.0}, "gamma = 1.0: is for loss = simpo, not for sigmoid"),
        ({"gamma": 1.0, "loss": "ipo"}, "gamma = 1.0: is for loss = simpo, not for ipo"),
        ({"loss": "hinge"}, "loss = 'hinge': input should be 'sigmoid', 'ipo' or 'simpo'"),
    ],
)
def test_settings_that_mean_nothing_are_named(given, message):
    with pytest.raises(RecipeError) as raised:
        build(DPOSettings, {"kind": "dpo", **given}, "recipe")
    assert message in str(raised.value)
