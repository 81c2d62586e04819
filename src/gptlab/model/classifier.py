"""Classifiers: a GPT or an RNN whose last layer meets the classes instead of the vocabulary.

A text is known by the hidden state of its last token, which `score` turns into a logit for each class. Made of a GPT it
is transformers' GPT2ForSequenceClassification (modeling_gpt2.py; tests/parity/test_classifier.py).

    model = as_classifier(GPT(shape), ["negative", "positive"])     # the same body, a new head
    hidden = model(tokens)                                          # (rows, time) → (rows, time, n_embd)
    logits = model.classify(hidden[rows, last])                     # (rows, n_embd) → (rows, classes)

With one label it is a reward model, as transformers and TRL have it (num_labels = 1): the logit is the reward of the
answer that ends with that token (Ouyang et al., "Training language models to follow instructions with human feedback",
2022, section 3.5; tests/parity/test_reward_model.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypeGuard, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import ModelError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape

HEADS = ("lm_head.", "score.")
"""How the names of the weights begin that are no body's: a language model's and a classifier's."""

Task = Literal["language", "classification", "reward"]
"""What a model is for."""

KINDS: dict[Task, str] = {
    "language": "a language model", "classification": "a classifier", "reward": "a reward model"
}  # fmt: skip
"""What such a model is called."""

REWARD = ("reward",)
"""The label of a reward model. Those that others trained may call it otherwise (transformers: LABEL_0)."""

NO_VOCABULARY = (
    "a classifier or a reward model has no output layer over the vocabulary, so it can neither write text nor score "
    "it: it answers by classify(hidden); to write, open a language model"
)


class _OverClasses(nn.Module):
    """What a classifier has in place of an output layer over the vocabulary: `score`, with a row for each label.

    labels: in the order of the logits; one alone: the logit is a reward
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

    With one label it is a reward model. `shape.tie_head` says nothing here. ValueError where there is no label, or they
    are not distinct.
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

    With one label it is a reward model. `shape.tie_head` says nothing here. ValueError where there is no label, or they
    are not distinct.
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
    the same labels in another order its rows in this one, of a reward model that becomes one by another name its own,
    else a new one, which torch's global generator of the CPU decides. ValueError where there is no label, or they are
    not distinct.
    """
    if is_classifier(model) and model.labels == tuple(labels):
        return model
    # Only the outermost module is a new one. Making it by its class would make a second body first.
    classifier = copy.copy(model)
    classifier.__class__ = GPTClassifier if isinstance(model, GPT) else RNNClassifier
    classifier._modules = {name: child for name, child in model.named_children() if name not in ("lm_head", "score")}
    assert is_classifier(classifier)
    classifier.new_head(labels)
    if is_classifier(model) and (order := _known_rows(model.labels, labels)) is not None:
        with torch.no_grad():
            for new, known in zip(classifier.score.parameters(), model.score.parameters(), strict=True):
                new.copy_(known[order])
    return classifier


def _known_rows(known: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """The rows of a head for the `known` labels that are one for those `wanted`; None where it says something else."""
    if task_of(known) == task_of(wanted) == "reward":  # whatever it is called
        return [0]
    return [known.index(label) for label in wanted] if set(known) == set(wanted) else None


def is_classifier(model: nn.Module) -> TypeGuard[Classifier]:
    """Whether the model answers with classes."""
    return isinstance(model, GPTClassifier | RNNClassifier)


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels; ValueError where there is none, or they are not distinct."""
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels = {list(labels)}: a classifier has two or more, each once, a reward model one")
    return tuple(labels)


def task_of(labels: Sequence[str] | None) -> Task:
    """What a model with these labels is for; a language model has none (None)."""
    if labels is None:
        return "language"
    return "reward" if len(labels) == 1 else "classification"


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """A classifier's labels, in the order of its logits, a reward model's one; None for a language model."""
    return model.labels if is_classifier(model) else None


@overload
def new_model(shape: GPTShape, labels: Sequence[str] | None = None) -> GPT: ...
@overload
def new_model(shape: RNNShape, labels: Sequence[str] | None = None) -> RNN: ...
def new_model(shape: GPTShape | RNNShape, labels: Sequence[str] | None = None) -> GPT | RNN:
    """A model of this shape with random weights; a classifier where there are labels, with one a reward model."""
    if isinstance(shape, GPTShape):
        return GPT(shape) if labels is None else GPTClassifier(shape, labels)
    return RNN(shape) if labels is None else RNNClassifier(shape, labels)
