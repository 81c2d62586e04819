"""Distillation against float64, closed forms and limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlab.data.batch import IGNORE, ValuedRows, pad_rows
from gptlab.device import Precision
from gptlab.errors import ModelError, RecipeError
from gptlab.evaluation.scores import Scorer
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.objectives.classification import ClassificationObjective
from gptlab.objectives.distillation import ClassDistillation, DistillationSettings, LanguageDistillation
from gptlab.objectives.language import LanguageObjective
from gptlab.settings import build
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.memory import FullRows, LiveStorages, predict_peak_bytes
from gptlab.training.optimizer import Optimizer, OptimizerSettings

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
STUDENT = GPTShape(vocab_size=31, context=12, n_layer=1, n_head=2, n_embd=8)
TEACHER = GPTShape(vocab_size=31, context=16, n_layer=2, n_head=2, n_embd=12, dropout=0.5)
RECURRENT = RNNShape(vocab_size=31, context=12, n_layer=1, n_embd=6, n_hidden=10, tie_head=False)


class Table(nn.Module):
    """A classifier whose logits are its parameters: text n has row n of them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, tokens):
        return F.one_hot(tokens, len(self.logits)).to(self.logits.dtype)

    def classify(self, hidden):
        return hidden @ self.logits


TEXTS, CLASSES = 6, 4


class Texts:
    """Six texts of one token, their own number, after padding of no meaning; text n is of class n mod 4."""

    context, scored = 1, TEXTS

    def __len__(self):
        return TEXTS

    def batch(self, rows, epoch=0):
        return pad_rows([([row], [row % CLASSES]) for row in rows], rows)


def example(seed=0):
    """The student's logits in a model, the teacher's, and all texts in another order."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, TEXTS, CLASSES, generator=generator, dtype=torch.float64)
    batch = ValuedRows(Texts(), {"teacher": teacher}).batch(np.array([4, 2, 0, 5, 1, 3]))
    return Table(student), teacher, batch


@pytest.mark.parametrize(("alpha", "temperature"), [(0.8, 2.0), (0.3, 0.5), (1.0, 1.0), (0.0, 3.0)])
def test_sums_and_gradient_are_hintons(alpha, temperature):
    model, teacher, batch = example()
    sums = ClassDistillation(CLASSES, alpha, temperature)(model, batch)
    sums["loss"].backward()
    student, classes = model.logits.detach(), torch.arange(TEXTS) % CLASSES
    soft, taught = ((logits / temperature).softmax(dim=1) for logits in (student, teacher))
    kl = (taught * (taught / soft).log()).sum()
    cross_entropy = -student.log_softmax(dim=1)[torch.arange(TEXTS), classes].sum()
    torch.testing.assert_close(sums["distillation"], temperature**2 * kl)
    torch.testing.assert_close(sums["cross_entropy"], cross_entropy)
    torch.testing.assert_close(sums["loss"], alpha * temperature**2 * kl + (1 - alpha) * cross_entropy)
    hard = student.softmax(dim=1) - F.one_hot(classes, CLASSES)
    torch.testing.assert_close(model.logits.grad, alpha * temperature * (soft - taught) + (1 - alpha) * hard)


def test_at_high_temperature_logits_are_matched():
    """Hinton et al., 2015, equation 4: the gradient tends to (z − v)/N of logits whose mean is nought, T² included."""
    model, teacher, batch = example()
    ClassDistillation(CLASSES, 1.0, 1e4)(model, batch)["loss"].backward()
    z, v = (logits - logits.mean(dim=1, keepdim=True) for logits in (model.logits.detach(), teacher))
    torch.testing.assert_close(model.logits.grad, (z - v) / CLASSES, rtol=1e-3, atol=1e-4)


def test_without_alpha_it_is_classification():
    model, _, batch = example()
    found, expected = (objective(model, batch) for objective in
                       (ClassDistillation(CLASSES, 0.0, 2.0), ClassificationObjective(CLASSES)))  # fmt: skip
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_from_its_own_logits_a_student_has_nothing_to_learn():
    model, _, batch = example()
    own = ValuedRows(Texts(), {"teacher": model.logits.detach()}).batch(batch.rows.numpy())
    loss = ClassDistillation(CLASSES, 1.0, 2.0)(model, own)["loss"]
    loss.backward()
    assert abs(loss) < 1e-14
    assert model.logits.grad.abs().max() < 1e-14


def test_logits_of_other_classes_are_an_error():
    model, teacher, batch = example()
    batch = ValuedRows(Texts(), {"teacher": teacher[:, :-1]}).batch(batch.rows.numpy())
    with pytest.raises(ValueError, match=r"teacher's logits are \(6, 3\), the student's \(6, 4\)"):
        ClassDistillation(CLASSES, 0.5, 2.0)(model, batch)


class Lines:
    """Ten texts of 3 to 12 tokens, each learned from its third token on."""

    context = 12
    words, text_bytes = 30, 150

    def __init__(self):
        random = np.random.default_rng(0)
        self.ids = [random.integers(31, size=random.integers(4, 14)) for _ in range(10)]
        self.scored = sum(len(ids) - 3 for ids in self.ids)

    def __len__(self):
        return len(self.ids)

    def batch(self, rows, epoch=0):
        return pad_rows([(self.ids[r][:-1], [IGNORE, IGNORE, *self.ids[r][3:]]) for r in rows], rows)


def make(shape, seed=0):
    torch.manual_seed(seed)
    return (GPT(shape) if isinstance(shape, GPTShape) else RNN(shape)).double()


def naive(student, teacher, batch, alpha, temperature):
    """From all logits of both."""
    teacher = teacher.eval()
    soft, taught = (model.logits(model(batch.tokens)).flatten(0, 1)[batch.positions] for model in (student, teacher))
    targets = batch.targets.flatten()[batch.positions]
    log_soft, log_taught = ((logits / temperature).log_softmax(dim=1) for logits in (soft, taught.detach()))
    distillation = temperature**2 * F.kl_div(log_soft, log_taught, reduction="sum", log_target=True)
    cross_entropy = F.cross_entropy(soft, targets, reduction="sum")
    loss = alpha * distillation + (1 - alpha) * cross_entropy
    return {"loss": loss, "distillation": distillation, "cross_entropy": cross_entropy}


@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (RECURRENT, TEACHER), (STUDENT, RECURRENT)])
def test_language_is_learned_as_from_all_logits(student, teacher):
    model, batch = make(student), Lines().batch(np.arange(10))
    expected = naive(model, make(teacher, 1), batch, 0.6, 2.0)
    found = LanguageDistillation(make(teacher, 1), 0.6, 2.0)(model, batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad(sums["loss"], parameters) for sums in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_teacher_is_asked_in_eval_mode_and_is_no_part_of_the_student():
    model, teacher, batch = make(STUDENT), make(TEACHER, 1).train(), Lines().batch(np.arange(10))
    named, weights = set(model.state_dict()), [p.clone() for p in teacher.parameters()]
    objective = LanguageDistillation(teacher, 0.5, 2.0)
    first, second = (objective(model, batch) for _ in range(2))
    assert first["loss"] == second["loss"]  # its dropout is 0.5
    first["loss"].backward()
    assert all(
        p.grad is None and torch.equal(p, before) for p, before in zip(teacher.parameters(), weights, strict=True)
    )
    assert set(model.state_dict()) == named


def test_vocabularies_of_different_size_are_an_error():
    teacher = make(GPTShape(**{**TEACHER.__dict__, "vocab_size": 32}))
    with pytest.raises(ModelError, match="student's output layer has 31 tokens, the teacher's 32"):
        LanguageDistillation(teacher, 0.5, 2.0)(make(STUDENT), Lines().batch(np.arange(10)))


def test_a_text_is_scored_by_its_cross_entropy():
    model, lines = make(STUDENT), Lines()
    plain = Scorer(LanguageObjective(), CPU, FLOAT32, 3).whole(model, lines)
    found = Scorer(LanguageDistillation(make(TEACHER, 1), 0.5, 2.0), CPU, FLOAT32, 4).whole(model, lines)
    assert found["cross_entropy"] == pytest.approx(plain["loss"])
    for key in ("perplexity", "perplexity_per_word", "bits_per_byte", "tokens"):
        assert found[key] == pytest.approx(plain[key])
    assert found["perplexity"] == pytest.approx(math.exp(found["cross_entropy"]))
    assert found["loss"] == pytest.approx((found["distillation"] + found["cross_entropy"]) / 2)


def test_the_memory_of_a_step_can_be_predicted():
    student, teacher = (GPTShape(vocab_size=1003, context=32, n_layer=n, n_head=4, n_embd=32 * n) for n in (1, 2))

    def make_objective():
        return LanguageDistillation(GPT(teacher), 0.5, 2.0)

    with LiveStorages() as storages:
        model = GPT(student)
        optimizer = Optimizer(model, OptimizerSettings(kind="adamw"))
        engine = Engine(model, make_objective(), optimizer, CPU, FLOAT32, 4, 1.0)
        for _ in range(2):
            gradients(engine, FullRows(32).batch(8))
            descend(engine)
    predicted = predict_peak_bytes(
        lambda: GPT(student), make_objective, OptimizerSettings(kind="adamw"), precision=FLOAT32, micro_batch_size=4,
        batch_size=8, rows=FullRows(32),
    )  # fmt: skip
    assert predicted == pytest.approx(storages.peak, rel=0.01)


def test_the_section():
    found = build(DistillationSettings, {"kind": "distillation", "teacher": "cola"}, "recipe")
    assert (found.teacher, found.alpha, found.temperature) == ("cola", 0.5, 2.0)
    for bad, message in {
        ("alpha", 1.2): "alpha = 1.2: input should be less than or equal to 1",
        ("alpha", -0.1): "alpha = -0.1: input should be greater than or equal to 0",
        ("temperature", 0.0): "temperature = 0.0: input should be greater than 0",
        ("teacher", ""): "teacher = '': wanted some text",
    }.items():
        with pytest.raises(RecipeError, match=f"recipe: {message}"):
            build(DistillationSettings, {"kind": "distillation", "teacher": "cola", bad[0]: bad[1]}, "recipe")
    with pytest.raises(RecipeError, match="teacher: is missing"):
        build(DistillationSettings, {"kind": "distillation"}, "recipe")
