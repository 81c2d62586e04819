"""Scores of classes against scikit-learn's, intervals against scipy's, tests against their formulas."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F

from gptlab.data.label_rows import LabelRows
from gptlab.device import Precision
from gptlab.errors import ModelError, UserError
from gptlab.evaluation.classification_scores import (
    class_logits,
    classification_scores,
    paired_difference,
    seeds_difference,
)
from gptlab.evaluation.scores import Scorer
from gptlab.model.classifier import Classifier, GPTClassifier, RNNClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNNShape
from gptlab.objectives.classification import ClassificationObjective

LABELS = ("no", "yes", "perhaps", "never seen")
CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """What the libraries warn of would stand among a command's words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes (n,), unevenly frequent, and logits (n, classes) that know something of them."""
    generator = np.random.default_rng(seed)
    truth = np.minimum(generator.geometric(0.5, n) - 1, classes - 1)
    return truth, generator.normal(size=(n, classes)).astype(np.float32) + np.eye(classes, dtype=np.float32)[truth]


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_scikit_learns(classes: int) -> None:
    truth, logits = make(300, classes)
    labels = LABELS[:classes]
    scores = classification_scores(truth, logits, labels, majority=0)
    predicted = logits.argmax(1)
    assert scores["texts"] == 300
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(truth, predicted))
    assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    assert scores["loss"] == pytest.approx(F.cross_entropy(torch.tensor(logits), torch.tensor(truth)).item(), abs=1e-6)
    assert (scores["majority"], scores["majority_accuracy"]) == ("no", (truth == 0).mean())
    report = sklearn.metrics.classification_report(truth, predicted, target_names=labels, output_dict=True)
    for label in labels:
        wanted = {"f1" if name == "f1-score" else name: value for name, value in report[label].items()}
        wanted["texts"] = wanted.pop("support")
        assert scores["per_class"][label] == pytest.approx(wanted)
    assert scores["confusion"] == sklearn.metrics.confusion_matrix(truth, predicted).tolist()
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([0, 0, 0], [0, 0, 0]),  # one class, always right: scikit-learn's correlation is 0
        ([0, 0, 0], [0, 1, 0]),
        ([0, 1, 0], [1, 1, 1]),
        ([0, 1, 2], [0, 1, 1]),  # a class that is never predicted
        ([0, 1, 0, 1], [2, 1, 0, 1]),  # and one that is never true
        ([3], [3]),
    ],
)
def test_classes_that_are_not_there_are_as_scikit_learn_has_them(truth: list[int], predicted: list[int]) -> None:
    logits = 9 * np.eye(4, dtype=np.float32)[predicted]
    scores = classification_scores(np.array(truth), logits, LABELS, majority=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(truth, predicted))
        assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    if 3 not in truth:
        assert scores["per_class"]["never seen"] == {"precision": 0, "recall": 0, "f1": 0, "texts": 0}
    assert np.array(scores["confusion"]).shape == (4, 4)
    for name in ("accuracy", "matthews", "f1"):
        assert scores[f"{name}_low"] <= scores[f"{name}_high"]


def test_a_large_logit_does_not_overflow() -> None:
    logits = np.array([[1e30, 0], [1e4, 0]], np.float32)
    scores = classification_scores(np.array([0, 1]), logits, LABELS[:2], majority=0)
    assert scores["loss"] == pytest.approx(5e3)


@pytest.mark.parametrize("name", ["accuracy", "matthews", "f1"])
def test_intervals_are_those_of_resampled_texts(name: str) -> None:
    """scipy draws texts, here cells of the confusion matrix are drawn: the same distribution, two random draws of it.
    The ends of an interval of 400 resamples vary by some 0.004 here."""
    truth, logits = make(300, 3)
    scores = classification_scores(truth, logits, LABELS[:3], majority=0)
    score = {
        "accuracy": sklearn.metrics.accuracy_score,
        "matthews": sklearn.metrics.matthews_corrcoef,
        "f1": lambda truth, predicted: sklearn.metrics.f1_score(truth, predicted, average="macro"),
    }[name]
    wanted = scipy.stats.bootstrap(
        (truth, logits.argmax(1)), score, paired=True, vectorized=False, method="percentile", n_resamples=400, rng=1
    ).confidence_interval
    assert (scores[f"{name}_low"], scores[f"{name}_high"]) == pytest.approx(tuple(wanted), abs=0.012)
    assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def test_the_same_seed_gives_the_same_interval() -> None:
    truth, logits = make(300, 2)
    first, second, other = (classification_scores(truth, logits, LABELS[:2], majority=0, seed=s) for s in (0, 0, 1))
    assert first == second
    assert first["accuracy"] == other["accuracy"]
    assert first["accuracy_low"] != other["accuracy_low"] or first["accuracy_high"] != other["accuracy_high"]


def test_a_hundred_thousand_texts_take_no_longer_than_a_few() -> None:
    truth, logits = make(100_000, 4)
    classification_scores(truth[:10], logits[:10], LABELS, majority=0)  # the libraries are loaded
    started = time.perf_counter()
    scores = classification_scores(truth, logits, LABELS, majority=0)
    assert time.perf_counter() - started < 10
    margin = 1.96 * math.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) / 100_000)  # the normal approximation
    assert scores["accuracy_high"] - scores["accuracy_low"] == pytest.approx(2 * margin, rel=0.1)


@pytest.mark.parametrize(("texts", "classes"), [(0, 2), (3, 3), (4, 2)])
def test_what_does_not_fit_together_is_said(texts: int, classes: int) -> None:
    with pytest.raises(UserError, match=f"of {texts} texts and 2 labels"):
        classification_scores(np.zeros(texts, int), np.zeros((3, classes)), LABELS[:2], majority=0)


# Two models


def test_paired_difference_is_mcnemars_test() -> None:
    truth, logits = make(200, 2)
    a, b = logits.argmax(1), make(200, 2, seed=1)[1].argmax(1)
    found = paired_difference(truth, a, b)
    right_a, right_b = a == truth, b == truth
    only_a, only_b = int(sum(right_a & ~right_b)), int(sum(right_b & ~right_a))
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["difference"] == pytest.approx(right_a.mean() - right_b.mean())
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert found["p"] == pytest.approx(min(1, 2 * tail))
    wanted = scipy.stats.bootstrap(
        (right_a.astype(float) - right_b,), np.mean, method="percentile", n_resamples=2000, rng=1
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(tuple(wanted), abs=0.02)
    turned = paired_difference(truth, b, a)
    assert (turned["difference"], turned["p"]) == pytest.approx((-found["difference"], found["p"]))


def test_a_model_does_not_differ_from_itself() -> None:
    truth, logits = make(50, 2)
    found = paired_difference(truth, logits.argmax(1), logits.argmax(1))
    assert found == {"difference": 0, "low": 0, "high": 0, "p": 1, "only_a": 0, "only_b": 0}


def test_seeds_difference_is_the_paired_t_test() -> None:
    a, b = [0.71, 0.70, 0.73, 0.69, 0.72], [0.68, 0.69, 0.68, 0.68, 0.67]
    found, wanted = seeds_difference(a, b), scipy.stats.ttest_rel(a, b)
    assert found["p"] == pytest.approx(wanted.pvalue)
    assert found["difference"] == pytest.approx(0.03)
    assert (found["low"], found["high"]) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found["seeds"] == 5
    margin = 2.776445 * np.std(np.subtract(a, b), ddof=1) / math.sqrt(5)  # t of 4 degrees of freedom, from a table
    assert found["high"] == pytest.approx(0.03 + margin, rel=1e-6)


def test_seeds_that_never_differ() -> None:
    assert seeds_difference([0.5, 0.25], [0.5, 0.25]) == {"difference": 0, "low": 0, "high": 0, "p": 1, "seeds": 2}
    assert seeds_difference([0.75, 0.5], [0.5, 0.25])["p"] == 0


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_too_few_pairs_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(UserError, match="at least two"):
        seeds_difference(a, b)
    if len(a) != 1:
        with pytest.raises(UserError, match="wanted one of each"):
            paired_difference(np.zeros(len(a)), np.array(a), np.array(b))


# Logits


def make_rows() -> LabelRows:
    """Texts of different lengths, of which a batch has the longest first."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(29, size=length) for length in generator.integers(1, 13, size=23)]
    return LabelRows([("a text",)] * 23, ids, generator.integers(4, size=23), LABELS)


def classifiers() -> list[Classifier]:
    torch.manual_seed(0)
    return [
        GPTClassifier(GPTShape(29, 12, 2, 2, 8, dropout=0.5), LABELS),
        RNNClassifier(RNNShape(29, 12, 2, 8, 8, cell="gru", dropout=0.5), LABELS),
    ]


@pytest.mark.parametrize("model", classifiers(), ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
def test_logits_stand_in_the_order_of_the_rows_and_are_those_of_each_text_alone(
    model: Classifier, micro_batch_size: int
) -> None:
    rows, told = make_rows(), []
    model.train()
    logits = class_logits(
        model, rows, device=CPU, precision=FLOAT32, micro_batch_size=micro_batch_size,
        on_batch=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert model.training  # left as it was, and read without dropout
    assert told[-1] == (23, 23)
    assert (logits.dtype, logits.shape) == (np.float32, (23, 4))
    model.eval()
    with torch.no_grad():
        texts = [rows.ids[start:end].tolist() for start, end in pairwise(rows.starts)]
        alone = [model.classify(model(torch.tensor([text]))[:, -1])[0].numpy() for text in texts]
    np.testing.assert_allclose(logits, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("model", classifiers(), ids=lambda model: type(model).__name__)
def test_scores_are_those_that_training_validates_by(model: Classifier) -> None:
    rows = make_rows()
    logits = class_logits(model, rows, device=CPU, precision=FLOAT32, micro_batch_size=8)
    scores = classification_scores(rows.classes, logits, LABELS, majority=0)
    validated = Scorer(ClassificationObjective(4), CPU, FLOAT32, 5).rows(model, rows)
    for name in ("loss", "accuracy", "matthews", "f1"):
        assert scores[name] == pytest.approx(validated[name], abs=1e-6)


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = classifiers()[0]
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        class_logits(model, make_rows(), device=CPU, precision=FLOAT32, micro_batch_size=8)


def test_a_language_model_has_no_classes() -> None:
    model = GPT(GPTShape(29, 12, 1, 1, 4))
    with pytest.raises(UserError, match="has no classes"):
        class_logits(model, make_rows(), device=CPU, precision=FLOAT32, micro_batch_size=8)
