"""A classifier gives the same logits and gradients as transformers' GPT2ForSequenceClassification: of texts alone and
of uneven ones in a batch, in both directions of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from gptlab.model.classifier import GPTClassifier
from gptlab.model.folder import load_model, read_labels, save_model
from gptlab.model.gpt import GPTShape
from gptlab.model.huggingface import CONV1D

EOS = 100
LENGTHS = (33, 7, 20, 1)
SHAPES = [
    GPTShape(vocab_size=101, context=33, n_layer=2, n_head=4, n_embd=32),
    GPTShape(vocab_size=101, context=33, n_layer=3, n_head=2, n_embd=16, tie_head=False, layer_norm_epsilon=1e-4),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["tied", "untied"])


def randomize(model: torch.nn.Module) -> None:
    """Weights far from the start, biases and layer norms too, so that nothing is zero or one by chance."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def texts() -> list[Tensor]:
    """Of uneven lengths; none ends in the token by which transformers pads."""
    torch.manual_seed(1)
    return [torch.randint(EOS, (length,)) for length in LENGTHS]


def padded(rows: list[Tensor], padding: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def answers(model: GPTClassifier, rows: list[Tensor]) -> Tensor:
    """Ours to rows in one batch; what stands behind a row's end is another token than transformers'."""
    last = torch.tensor([len(row) - 1 for row in rows])
    return model.classify(model(padded(rows, 3))[torch.arange(len(rows)), last])


def their_answers(model: Any, rows: list[Tensor], **given: Tensor) -> Tensor:
    return model(padded(rows, EOS), **given).logits


def assert_equal(ours: GPTClassifier, theirs: GPT2ForSequenceClassification) -> None:
    """Logits of texts alone and together, with and without an attention mask, and the gradients of every parameter, to
    1e-5."""
    ours.eval()
    theirs.eval()
    rows = texts()
    mask = padded([torch.ones(length, dtype=torch.int64) for length in LENGTHS], 0)
    logits = answers(ours, rows)
    assert logits.std() > 0.05
    their_logits = their_answers(theirs, rows, attention_mask=mask)
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, their_answers(theirs, rows), atol=1e-5, rtol=0)
    for row, together in zip(rows, logits, strict=True):
        torch.testing.assert_close(answers(ours, [row])[0], together, atol=1e-5, rtol=0)
        torch.testing.assert_close(their_answers(theirs, [row])[0], together, atol=1e-5, rtol=0)

    classes = torch.tensor([1, 0, 2, 1])
    F.cross_entropy(logits, classes).backward()
    theirs(padded(rows, EOS), attention_mask=mask, labels=classes).loss.backward()
    gradients = {
        name.removeprefix("transformer."): parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@each_shape
def test_transformers_reads_ours(tmp_path: Path, shape: GPTShape) -> None:
    model = GPTClassifier(shape, ("against", "for", "neither"))
    randomize(model)
    save_model(model, tmp_path, eos_id=EOS)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, GPT2ForSequenceClassification)
    assert not any(report.values()), report
    assert theirs.config.id2label == {0: "against", 1: "for", 2: "neither"}
    assert theirs.config.label2id == {"against": 0, "for": 1, "neither": 2}
    assert theirs.config.problem_type == "single_label_classification"
    assert_equal(model, theirs)


@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
def test_we_read_transformers(tmp_path: Path, named: bool) -> None:
    names = {0: "against", 1: "for", 2: "neither"} if named else {number: f"LABEL_{number}" for number in range(3)}
    config = GPT2Config(
        vocab_size=101, n_positions=33, n_embd=32, n_layer=2, n_head=4, n_inner=128, pad_token_id=EOS, bos_token_id=EOS,
        eos_token_id=EOS, **({"id2label": names} if named else {"num_labels": 3}),
    )  # fmt: skip
    theirs = GPT2ForSequenceClassification(config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    assert read_labels(tmp_path) == tuple(names.values())
    model = load_model(tmp_path, dropout=0.0)
    assert isinstance(model, GPTClassifier)
    assert model.labels == tuple(names.values())
    assert_equal(model, theirs)


def test_two_classes_without_names_are_read(tmp_path: Path) -> None:
    """transformers leaves them out of its config.json."""
    config = GPT2Config(vocab_size=101, n_positions=33, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert read_labels(tmp_path) == ("LABEL_0", "LABEL_1")
    assert load_model(tmp_path).score.weight.shape == (2, 32)
