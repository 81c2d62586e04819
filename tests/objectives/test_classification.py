"""The class of a text against one text at a time, and its metrics against scikit-learn's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.batch import IGNORE, pad_rows
from gptlab.device import Precision
from gptlab.evaluation.scores import Scorer
from gptlab.model.classifier import GPTClassifier, RNNClassifier
from gptlab.model.gpt import GPTShape
from gptlab.model.rnn import RNNShape
from gptlab.objectives.base import class_metrics, means
from gptlab.objectives.classification import ClassificationObjective, ClassificationSettings
from gptlab.settings import build

LABELS = ("a", "b", "c")
CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")


def make_model(kind="gpt"):
    torch.manual_seed(0)
    if kind == "gpt":
        return GPTClassifier(GPTShape(vocab_size=29, context=16, n_layer=2, n_head=2, n_embd=8), LABELS)
    shape = RNNShape(vocab_size=29, context=16, n_layer=2, n_embd=8, n_hidden=8, cell="rnn")
    return RNNClassifier(shape, LABELS)


class Texts:
    """40 texts of 1 to 16 tokens, each of one of three classes; the second is rare."""

    context, scored = 16, 40

    def __init__(self):
        random = np.random.default_rng(0)
        self.ids = [random.integers(29, size=random.integers(1, 17)) for _ in range(40)]
        self.classes = random.choice(3, size=40, p=[0.6, 0.1, 0.3])

    def __len__(self):
        return len(self.ids)

    def batch(self, rows, epoch=0):
        targets = [[*[IGNORE] * (len(self.ids[row]) - 1), self.classes[row]] for row in rows]
        return pad_rows([(self.ids[row], target) for row, target in zip(rows, targets, strict=True)], rows)


def logits_of_each_alone(model, texts):
    with torch.no_grad():
        return torch.cat([model.classify(model(torch.tensor(ids)[None])[:, -1]) for ids in texts.ids])


@pytest.mark.parametrize("kind", ["gpt", "rnn"])
def test_sums_are_those_of_one_text_after_the_other(kind):
    model, texts = make_model(kind).eval(), Texts()
    batch = texts.batch(np.arange(40))
    sums = ClassificationObjective(3)(model, batch)
    logits, classes = logits_of_each_alone(model, texts), torch.from_numpy(texts.classes)
    predicted = logits.argmax(dim=1)
    assert batch.weight == 40
    torch.testing.assert_close(sums["loss"], F.cross_entropy(logits, classes, reduction="sum"))
    assert sums["accuracy"] == (predicted == classes).sum()
    for key, found in {"true": classes, "predicted": predicted, "hits": classes[predicted == classes]}.items():
        assert sums[key].tolist() == np.bincount(found, minlength=3).tolist()


def test_under_autocast_the_loss_is_float32():
    model, batch = make_model(), Texts().batch(np.arange(40))
    exact = ClassificationObjective(3)(model, batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ClassificationObjective(3)(model, batch)["loss"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("micro_batch_size", [1, 7, 100])
def test_a_scorer_reports_means_and_metrics_and_no_counts(micro_batch_size):
    from sklearn.metrics import f1_score, matthews_corrcoef

    model, texts = make_model(), Texts()
    scores = Scorer(ClassificationObjective(3), CPU, FLOAT32, micro_batch_size).whole(model, texts)
    logits = logits_of_each_alone(model.eval(), texts)
    predicted = logits.argmax(dim=1).numpy()
    assert scores == pytest.approx({
        "loss": F.cross_entropy(logits, torch.from_numpy(texts.classes)).item(),
        "accuracy": np.mean(predicted == texts.classes),
        "matthews": matthews_corrcoef(texts.classes, predicted),
        "f1": f1_score(texts.classes, predicted, average="macro", zero_division=0),
        "tokens": 40,
    }, rel=1e-5)  # fmt: skip


def counts(true, predicted, classes):
    """What the loop has summed, as lists."""
    hits = true[true == predicted]
    found = {"true": true, "predicted": predicted, "hits": hits}
    return {key: np.bincount(each, minlength=classes).astype(float).tolist() for key, each in found.items()}


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("texts", [1, 5, 1000])
@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_metrics_are_scikit_learns(classes, texts, right):
    from sklearn.metrics import f1_score, matthews_corrcoef

    random = np.random.default_rng(classes * texts)
    true = random.integers(classes, size=texts)
    predicted = np.where(random.random(texts) < right, true, random.integers(classes, size=texts))
    found = class_metrics(counts(true, predicted, classes))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(true, predicted), abs=1e-12)
    assert found["f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0), abs=1e-12)


@pytest.mark.parametrize(
    ("true", "predicted", "f1"),
    [([0, 0, 1], [0, 0, 0], 0.4), ([0, 0, 0], [0, 1, 1], 0.25), ([0, 0], [0, 0], 1.0), ([0, 0], [1, 1], 0.0)],
)
def test_who_says_one_class_only_or_meets_one_only_correlates_with_nothing(true, predicted, f1):
    found = class_metrics(counts(np.array(true), np.array(predicted), 3))
    assert found == {"matthews": 0.0, "f1": pytest.approx(f1)}


def test_of_two_classes_it_is_matthews_own_formula():
    tp, tn, fp, fn = 6, 3, 1, 2  # Matthews, 1975: (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN))
    sums = {"true": [tn + fp, tp + fn], "predicted": [tn + fn, tp + fp], "hits": [tn, tp]}
    expected = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert class_metrics({key: [float(x) for x in value] for key, value in sums.items()})["matthews"] == pytest.approx(
        expected
    )


def test_means_leave_counts_out():
    sums = {"loss": 8.0, "accuracy": 2.0, "hits": [1.0, 1.0]}
    assert means(ClassificationObjective(2), sums, 4.0) == {"loss": 2.0, "accuracy": 0.5}


def test_the_section_has_nothing_to_set():
    assert build(ClassificationSettings, {"kind": "classification"}, "recipe") == ClassificationSettings()
