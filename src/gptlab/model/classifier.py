"""Classifiers: a GPT or an RNN whose last layer meets the classes instead of the vocabulary.

A text is known by the hidden state of its last token, which `score` turns into a logit for each class. Made of a GPT it
is transformers' GPT2ForSequenceClassification (modeling_gpt2.py; tests/parity/test_classifier.py).

    model = as_classifier(GPT(shape), ["negative", "positive"])     # the same body, a new head
    hidden = model(tokens)                                          # (rows, time) → (rows, time, n_embd)
    logits = model.classify(hidden[rows, last])                     # (rows, n_embd) → (rows, classes)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeGuard, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import ModelError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape

HEADS = ("lm_head.", "score.")
"""How the names of the weights begin that are no body's: a language model's and a classifier's."""

NO_VOCABULARY = (
    "a classifier has no output layer over the vocabulary, so it can neither write text nor score it: it answers by "
    "classify(hidden); to write, open a language model"
)


class _OverClasses(nn.Module):
    """What a classifier has in place of an output layer over the vocabulary: `score`, with a row for each label.

    labels: in the order of the logits
    """

    labels: tuple[str, ...]
    score: nn.Linear
    wte: nn.Embedding

    def new_head(self, labels: Sequence[str]) -> None:
        """A new `score` for these labels, beside the embedding; torch's global generator of the CPU decides it. Errors
        as `checked_labels`."""
        self.labels = checked_labels(labels)
        score, weight = self._random_head(len(self.labels)), self.wte.weight
        as_it_is = (score.weight.device, score.weight.dtype) == (weight.device, weight.dtype)
        self.score = score if as_it_is else score.to(weight.device, weight.dtype)  # a traced layer cannot be moved

    def _random_head(self, classes: int) -> nn.Linear:
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """There is none: ModelError."""
        raise ModelError(NO_VOCABULARY)

    def logits(self, hidden: Tensor) -> Tensor:
        """There are none over the vocabulary: ModelError."""
        raise ModelError(NO_VOCABULARY)


class GPTClassifier(_OverClasses, GPT):
    """A GPT with `score` (classes, n_embd), without bias, in place of `lm_head`; it begins as N(0, 0.02).

    `shape.tie_head` says nothing here. ValueError for labels that are fewer than two or not distinct.
    """

    def __init__(self, shape: GPTShape, labels: Sequence[str]) -> None:
        super().__init__(shape)
        del self.lm_head
        self.new_head(labels)

    def _random_head(self, classes: int) -> nn.Linear:
        score = nn.Linear(self.shape.n_embd, classes, bias=False)
        nn.init.normal_(score.weight, std=0.02)
        return score

    def classify(self, hidden: Tensor) -> Tensor:
        """Hidden states of last tokens (n, n_embd) → logits (n, classes)."""
        return self.score(hidden)


class RNNClassifier(_OverClasses, RNN):
    """An RNN with a ReLU and `score` (classes, n_hidden), with bias, in place of `lm_head`; it begins as torch's linear
    layers do.

    `shape.tie_head` says nothing here. ValueError for labels that are fewer than two or not distinct.
    """

    def __init__(self, shape: RNNShape, labels: Sequence[str]) -> None:
        super().__init__(shape)
        del self.lm_head
        self.new_head(labels)

    def _random_head(self, classes: int) -> nn.Linear:
        return nn.Linear(self.shape.n_hidden, classes)

    def classify(self, hidden: Tensor) -> Tensor:
        """Hidden states of last tokens (n, n_hidden) → logits (n, classes)."""
        return self.score(F.relu(hidden))


Classifier = GPTClassifier | RNNClassifier


def as_classifier(model: GPT | RNN, labels: Sequence[str]) -> Classifier:
    """The model with a head for these labels: itself where it has one for just these, in this order.

    Else its body, which is shared and not copied (an adapter stays on it), with a head of its own: where the model has
    the same labels in another order its rows in this one, else a new one, which torch's global generator of the CPU
    decides. ValueError for labels that are fewer than two or not distinct.
    """
    if is_classifier(model) and model.labels == tuple(labels):
        return model
    # Only the outermost module is a new one. Making it by its class would make a second body first.
    classifier = copy.copy(model)
    classifier.__class__ = GPTClassifier if isinstance(model, GPT) else RNNClassifier
    classifier._modules = {name: child for name, child in model.named_children() if name not in ("lm_head", "score")}
    assert is_classifier(classifier)
    classifier.new_head(labels)
    if is_classifier(model) and set(model.labels) == set(labels):
        order = [model.labels.index(label) for label in labels]
        with torch.no_grad():
            for new, known in zip(classifier.score.parameters(), model.score.parameters(), strict=True):
                new.copy_(known[order])
    return classifier


def is_classifier(model: nn.Module) -> TypeGuard[Classifier]:
    """Whether the model answers with classes."""
    return isinstance(model, GPTClassifier | RNNClassifier)


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels; ValueError where they are fewer than two or not distinct."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels = {list(labels)}: a classifier has two or more, each once (one is a regression's)")
    return tuple(labels)


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """A classifier's labels, in the order of its logits; None for a language model."""
    return model.labels if is_classifier(model) else None


@overload
def new_model(shape: GPTShape, labels: Sequence[str] | None = None) -> GPT: ...
@overload
def new_model(shape: RNNShape, labels: Sequence[str] | None = None) -> RNN: ...
def new_model(shape: GPTShape | RNNShape, labels: Sequence[str] | None = None) -> GPT | RNN:
    """A model of this shape with random weights; a classifier where there are labels."""
    if isinstance(shape, GPTShape):
        return GPT(shape) if labels is None else GPTClassifier(shape, labels)
    return RNN(shape) if labels is None else RNNClassifier(shape, labels)
