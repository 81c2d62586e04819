"""Scores against closed forms, and against a plain loop of one row at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.token_file import TokenFile
from gptlab.data.token_writer import TokenFileWriter
from gptlab.data.windows import ScoredWindows
from gptlab.device import Precision
from gptlab.evaluation.scores import Scorer, text_scores, unigram_loss
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective

SHAPE = GPTShape(vocab_size=29, context=8, n_layer=2, n_head=2, n_embd=8, dropout=0.5)
IDS = np.random.default_rng(0).integers(28, size=45)


@pytest.fixture
def text(tmp_path):
    writer = TokenFileWriter(tmp_path / "text.tokens", 29, 28)
    writer.append([IDS.astype(np.uint32)])
    writer.finish({"tokenizer": "t", "vocab_size": 29, "eos_id": 28, "text_bytes": 100, "words": 20, "sources": []})
    writer.close()
    return ScoredWindows(TokenFile.open(tmp_path / "text.tokens"), SHAPE.context)


def scorer(rows):
    return Scorer(LanguageObjective(), torch.device("cpu"), Precision("float32", torch.float32, ""), rows)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 100])
def test_a_text_is_scored_as_one_token_after_the_other(text, micro_batch_size):
    torch.manual_seed(0)
    model = GPT(SHAPE).train()
    scores = scorer(micro_batch_size).text(model, text)
    assert model.training  # left as it was, and scored without dropout
    model.eval()
    ids = [28, *IDS.tolist(), 28]  # an EOS before the text, and the one that closes it
    nats = 0.0
    for start in range(0, len(ids) - 1, 8):
        window, wanted = ids[start : start + 8], ids[start + 1 : start + 9]
        logits = model.logits(model(torch.tensor([window[: len(wanted)]])))[0]
        nats += F.cross_entropy(logits, torch.tensor(wanted), reduction="sum").item()
    assert scores["tokens"] == len(IDS) + 1
    assert scores["loss"] == pytest.approx(nats / 46, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / 46), rel=1e-5)
    assert scores["perplexity_per_word"] == pytest.approx(math.exp(nats / 20), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 100, rel=1e-5)


def test_a_uniform_model_scores_its_vocabulary(text):
    model = GPT(SHAPE)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert scorer(4).text(model, text)["perplexity"] == pytest.approx(29, rel=1e-5)


def test_only_the_rows_that_are_asked_for_are_scored(text):
    model = GPT(SHAPE).eval()
    parts = [scorer(4).rows(model, text, np.array([row])) for row in range(len(text))]
    whole = scorer(4).rows(model, text)
    assert sum(part["loss"] * part["tokens"] for part in parts) == pytest.approx(whole["loss"] * whole["tokens"])


def test_unigram_is_laplace_counting():
    train, scored = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
    expected = -(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert unigram_loss(train, scored, 3) == pytest.approx(expected)


def test_a_perplexity_that_no_float_holds_is_infinite(text):
    assert text_scores(1e6, text)["perplexity_per_word"] == math.inf
