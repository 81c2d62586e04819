"""Texts' classes: alone as among others, cut where they are too long, read as in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptlab.errors import DataError, UserError
from gptlab.evaluation.classify import classify, separator_of
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNNShape
from gptlab.run.open import OpenModel
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

LABELS = ("good", "bad", "neither")
CONTEXT = 16
TEXTS = ["A good film.", "bad", "What a long and very bad film it was, all in all, and I left.", "!", "e"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["A good film, a bad film, and a very long one."] * 3, 290)


@pytest.fixture(scope="module", params=["gpt", "rnn"])
def opened(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> OpenModel:
    """A random classifier with matrices so large that texts differ in their class."""
    torch.manual_seed(0)
    if request.param == "gpt":
        model = GPTClassifier(GPTShape(tokenizer.vocab_size, CONTEXT, 1, 2, 16), LABELS)
    else:
        model = RNNClassifier(RNNShape(tokenizer.vocab_size, CONTEXT, 1, 16, 16, cell="lstm"), LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    return OpenModel(model.eval(), tokenizer, None, Path("somewhere"), "a classifier")


def alone(opened: OpenModel, text: str) -> list[float]:
    """The probabilities as they are written out."""
    ids = opened.require_tokenizer().encode(text)[:CONTEXT]
    with torch.no_grad():
        hidden = opened.model(torch.tensor([ids]))
    return opened.model.classify(hidden[:, -1])[0].softmax(dim=0).tolist()


def test_a_text_is_classified_as_it_is_alone(opened: OpenModel) -> None:
    found = classify(opened, TEXTS)
    assert [each.text for each in found] == TEXTS
    for each in found:
        assert list(each.probabilities) == list(LABELS)
        assert list(each.probabilities.values()) == pytest.approx(alone(opened, str(each.text)), abs=1e-6)
        assert each.label == max(each.probabilities, key=each.probabilities.__getitem__)
    assert len({each.label for each in found}) > 1
    assert [each.cut for each in found] == [False, False, True, False, False]


def test_a_text_that_just_fits_is_not_cut(opened: OpenModel) -> None:
    ids = opened.require_tokenizer().encode(TEXTS[2])
    fitting, longer = (opened.require_tokenizer().decode(ids[:n]) for n in (CONTEXT, CONTEXT + 1))
    just, cut = classify(opened, [fitting, longer])
    assert (just.cut, cut.cut) == (False, True)
    assert just.probabilities == pytest.approx(cut.probabilities, abs=1e-6)


def test_a_pair_is_read_with_its_separator(opened: OpenModel) -> None:
    pair = ("A good film.", "bad")
    (by_default,) = classify(opened, [pair])
    assert by_default.text == pair
    assert list(by_default.probabilities.values()) == pytest.approx(alone(opened, "A good film.\nbad"), abs=1e-6)
    (other,) = classify(opened, [pair], separator=" or ")
    assert list(other.probabilities.values()) == pytest.approx(alone(opened, "A good film. or bad"), abs=1e-6)


def test_a_runs_own_separator_counts(opened: OpenModel, tmp_path: Path) -> None:
    assert separator_of(opened) == "\n"
    run = Run.create(tmp_path / "run", {"data": {"kind": "labels", "separator": " | "}}, {})
    of_a_run = replace(opened, folder=run.folder / "checkpoints" / "000001")
    assert separator_of(of_a_run) == " | "
    (found,) = classify(of_a_run, [("bad", "film")])
    assert list(found.probabilities.values()) == pytest.approx(alone(opened, "bad | film"), abs=1e-6)


def test_progress_counts_texts(opened: OpenModel) -> None:
    told: list[tuple[int, int]] = []
    classify(opened, TEXTS, on_batch=lambda done, total: told.append((done, total)))
    assert told[-1] == (5, 5)


def test_bfloat16_is_near(opened: OpenModel) -> None:
    for rough, exact in zip(classify(opened, TEXTS, precision="bfloat16"), classify(opened, TEXTS), strict=True):
        assert rough.probabilities == pytest.approx(exact.probabilities, abs=0.05)


@pytest.mark.parametrize(
    ("texts", "words"),
    [(["fine", " \n"], "text 2 is empty"), ([("", " ")], "text 1 is empty"), ([], "there is no text")],
)
def test_nothing_has_no_class(opened: OpenModel, texts: list[str | tuple[str, str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        classify(opened, texts)


def test_other_models_have_no_classes(tokenizer: Tokenizer) -> None:
    shape = GPTShape(tokenizer.vocab_size, CONTEXT, 1, 1, 4)
    model = OpenModel(GPT(shape), tokenizer, None, Path("here"), "gpt2")
    with pytest.raises(UserError, match="gpt2: is a language model and has no classes"):
        classify(model, TEXTS)
    model = OpenModel(GPTClassifier(shape, REWARD), tokenizer, None, Path("here"), "judge")
    with pytest.raises(UserError, match="judge: is a reward model and has no classes; gptlab evaluate judge --on pref"):
        classify(model, TEXTS)
