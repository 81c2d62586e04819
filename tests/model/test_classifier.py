"""Classifiers: the body is the model's own, the head is new, and padding reaches no answer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gptlab.errors import ModelError
from gptlab.model.build import SIZES
from gptlab.model.classifier import (
    REWARD,
    Classifier,
    GPTClassifier,
    RNNClassifier,
    as_classifier,
    is_classifier,
    labels_of,
    new_model,
    task_of,
)
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora, freeze_body, trainable_counts
from gptlab.model.rnn import RNN, RNNShape

LABELS = ("no", "yes", "perhaps")
GPT_SHAPE = GPTShape(vocab_size=61, context=16, n_layer=2, n_head=2, n_embd=16)
RNN_SHAPE = RNNShape(vocab_size=61, context=16, n_layer=2, n_embd=16, n_hidden=24, tie_head=False)
each_kind = pytest.mark.parametrize("shape", [GPT_SHAPE, RNN_SHAPE], ids=["gpt", "rnn"])


def make_model(shape: GPTShape | RNNShape, labels: tuple[str, ...] | None = None) -> Any:
    torch.manual_seed(0)
    return new_model(shape, labels)


def some_tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(61, (3, 16))


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@each_kind
def test_the_body_is_shared_and_the_model_is_left_as_it_was(shape: GPTShape | RNNShape) -> None:
    model = make_model(shape).eval()
    model.activation_checkpointing = True
    before = model.logits(model(some_tokens()))
    classifier = as_classifier(model, list(LABELS))
    assert isinstance(classifier, GPTClassifier if isinstance(model, GPT) else RNNClassifier)
    assert classifier.shape == shape
    assert classifier.labels == labels_of(classifier) == LABELS
    assert not classifier.training
    assert classifier.activation_checkpointing
    own = dict(model.named_parameters())
    body = {name: parameter for name, parameter in classifier.named_parameters() if not name.startswith("score.")}
    assert all(parameter is own[name] for name, parameter in body.items())
    assert own.keys() - body.keys() <= {"lm_head.weight"}
    assert torch.equal(classifier(some_tokens()), model(some_tokens()))
    assert not is_classifier(model)
    assert labels_of(model) is None
    assert torch.equal(model.logits(model(some_tokens())), before)
    assert names(classifier) == names(make_model(shape, LABELS))


@each_kind
def test_a_head_for_just_these_labels_is_kept(shape: GPTShape | RNNShape) -> None:
    classifier = as_classifier(make_model(shape), LABELS)
    assert as_classifier(classifier, LABELS) is classifier
    other = as_classifier(classifier, LABELS[::-1])
    assert other.labels == LABELS[::-1]
    assert other.wte is classifier.wte
    assert not torch.equal(other.score.weight, classifier.score.weight)
    assert classifier.labels == LABELS


@each_kind
def test_a_head_for_these_labels_in_another_order_is_put_in_order(shape: GPTShape | RNNShape) -> None:
    model = make_model(shape, LABELS)
    turned = as_classifier(model, ("perhaps", "no", "yes"))
    hidden = model(some_tokens())
    torch.testing.assert_close(turned.classify(hidden), model.classify(hidden)[..., [2, 0, 1]], rtol=0, atol=0)
    assert labels_of(turned) == ("perhaps", "no", "yes")
    assert labels_of(model) == LABELS


@each_kind
def test_the_global_generator_decides_the_head(shape: GPTShape | RNNShape) -> None:
    heads = []
    for seed in (5, 5, 6):
        model = make_model(shape)
        torch.manual_seed(seed)
        heads.append(as_classifier(model, LABELS).score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_heads_begin_as_transformers_and_torch_begin_them() -> None:
    torch.manual_seed(0)
    wide = GPTClassifier(GPTShape(vocab_size=9, context=4, n_layer=1, n_head=1, n_embd=2048), LABELS)
    assert wide.score.bias is None
    assert float(wide.score.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    model = make_model(RNN_SHAPE)
    torch.manual_seed(3)
    classifier = as_classifier(model, LABELS)
    torch.manual_seed(3)
    linear = nn.Linear(24, 3)
    assert torch.equal(classifier.score.weight, linear.weight)
    assert torch.equal(classifier.score.bias, linear.bias)
    assert linear.weight.abs().max() <= 1 / math.sqrt(24)


@torch.no_grad()
def test_an_answer_is_the_formula() -> None:
    torch.manual_seed(2)
    gpt, hidden = make_model(GPT_SHAPE, LABELS).double(), torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(gpt.classify(hidden), hidden @ gpt.score.weight.T)
    rnn, hidden = make_model(RNN_SHAPE, LABELS).double(), torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(rnn.classify(hidden), hidden.clamp(min=0) @ rnn.score.weight.T + rnn.score.bias)


@each_kind
@torch.no_grad()
def test_alone_and_beside_longer_texts_the_answer_is_the_same(shape: GPTShape | RNNShape) -> None:
    model: Classifier = make_model(shape, LABELS).double().eval()
    texts = [text[:length] for text, length in zip(some_tokens(), (16, 5, 1), strict=True)]
    rows = torch.full((3, 16), 60)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    last = torch.tensor([len(text) - 1 for text in texts])
    together = model.classify(model(rows)[torch.arange(3), last])
    alone = torch.cat([model.classify(model(text[None])[:, -1]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@each_kind
def test_a_step_reaches_body_and_head(shape: GPTShape | RNNShape) -> None:
    model: Classifier = as_classifier(make_model(shape), LABELS)
    logits = model.classify(model(some_tokens())[:, -1])
    assert logits.shape == (3, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@each_kind
def test_the_vocabulary_is_out_of_reach(shape: GPTShape | RNNShape) -> None:
    model: Classifier = make_model(shape, LABELS)
    with pytest.raises(ModelError, match=r"can neither write text nor score it: it answers by classify\(hidden\)"):
        model.logits(model(some_tokens()))
    with pytest.raises(ModelError, match="no output layer over the vocabulary"):
        _ = model.head_weight


@each_kind
@pytest.mark.parametrize("labels", [(), ("a", "a"), ("a", "b", "a")])
def test_there_are_labels_and_they_are_distinct(shape: GPTShape | RNNShape, labels: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"labels = \[.*\]: a classifier has two or more, each once, a reward model one"
    ):
        make_model(shape, labels)
    with pytest.raises(ValueError, match="two or more"):
        as_classifier(make_model(shape), labels)


@pytest.mark.parametrize(
    ("labels", "task"),
    [(None, "language"), (LABELS, "classification"), (REWARD, "reward"), (["LABEL_0"], "reward")],
)
def test_labels_say_what_a_model_is_for(labels: tuple[str, ...] | None, task: str) -> None:
    assert task_of(labels) == task


@each_kind
@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_reward_model_is_the_same_body_with_a_new_head_of_one_row(
    shape: GPTShape | RNNShape, labels: tuple[str, ...] | None
) -> None:
    model = make_model(shape, labels)
    rewarding = as_classifier(model, REWARD)
    assert (labels_of(rewarding), labels_of(model)) == (REWARD, labels)
    assert rewarding.wte is model.wte
    hidden = rewarding(some_tokens())
    assert torch.equal(hidden, model(some_tokens()))
    assert rewarding.classify(hidden[:, -1]).shape == (3, 1)
    assert trainable_counts(rewarding)["head"] == (25 if isinstance(model, RNN) else 16)
    assert names(rewarding) == names(make_model(shape, REWARD))
    torch.manual_seed(3)
    again = as_classifier(model, REWARD)
    torch.manual_seed(3)
    assert torch.equal(again.score.weight, as_classifier(model, REWARD).score.weight)
    assert not torch.equal(again.score.weight, rewarding.score.weight)


@each_kind
def test_a_reward_model_by_another_name_keeps_its_head(shape: GPTShape | RNNShape) -> None:
    model = make_model(shape, ("LABEL_0",))
    renamed = as_classifier(model, REWARD)
    assert (labels_of(renamed), labels_of(model)) == (REWARD, ("LABEL_0",))
    assert renamed.wte is model.wte
    hidden = model(some_tokens())
    assert torch.equal(renamed.classify(hidden), model.classify(hidden))
    assert renamed.score.weight is not model.score.weight
    assert as_classifier(model, ("LABEL_0", "LABEL_1")).score.weight.shape[0] == 2


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("kind", [GPTShape, RNNShape])
def test_an_output_layer_over_the_vocabulary_is_neither_kept_nor_counted(kind: type, tie_head: bool) -> None:
    numbers = {"n_head": 2} if kind is GPTShape else {"n_hidden": 16}
    shape = kind(vocab_size=61, context=16, n_layer=1, n_embd=16, tie_head=tie_head, **numbers)
    language = trainable_counts(make_model(shape))["all"]
    for model in (make_model(shape, LABELS), as_classifier(make_model(shape), LABELS)):
        head = 3 * 16 + (3 if isinstance(model, RNN) else 0)
        assert trainable_counts(model)["all"] == language - (0 if tie_head else 61 * 16) + head
        assert trainable_counts(model)["head"] == head
        assert not hasattr(model, "lm_head")
        assert sum(p.numel() for p in model.parameters()) == trainable_counts(model)["all"]


@each_kind
def test_the_head_follows_the_body(shape: GPTShape | RNNShape) -> None:
    double = as_classifier(make_model(shape).double(), LABELS)
    assert double.score.weight.dtype == torch.float64
    with torch.device("meta"):
        outline = make_model(shape)
    assert as_classifier(outline, LABELS).score.weight.device.type == "meta"
    with FakeTensorMode():
        traced = as_classifier(make_model(shape), LABELS)
        traced.classify(traced(torch.zeros(2, 4, dtype=torch.int64))[:, -1]).sum().backward()
        assert traced.wte.weight.grad.shape == traced.wte.weight.shape


@each_kind
def test_under_autocast_the_head_is_a_linear_layer_like_the_others(shape: GPTShape | RNNShape) -> None:
    model: Classifier = make_model(shape, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.classify(model(some_tokens())[:, -1])
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model.classify(model(some_tokens())[:, -1]), atol=0.02, rtol=0)


@each_kind
def test_a_copy_is_a_whole_one(shape: GPTShape | RNNShape) -> None:
    model: Classifier = as_classifier(make_model(shape), LABELS)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.wte.weight.add_(1)
        twin.score.weight.add_(1)
    assert torch.equal(model.wte.weight, make_model(shape).wte.weight)
    assert twin.labels == LABELS


@pytest.mark.parametrize(
    ("size", "adapters", "layer_norms", "head", "everything"),
    [
        ("gpt2", 589_824, 38_400, 1_536, 125_031_168),
        ("gpt2-medium", 1_572_864, 100_352, 2_048, 356_398_080),
    ],
)
@pytest.mark.parametrize("tie_head", [True, False])
def test_the_published_counts_come_out(
    size: str, adapters: int, layer_norms: int, head: int, everything: int, tie_head: bool
) -> None:
    """CoLA by LoRA of rank 4 on all four linear layers, LayerNorms learned too, a head of two classes without bias:
    125.03 and 356.40 million parameters, of which 0.63 and 1.68 million are trained."""
    with torch.device("meta"):
        model = GPT(GPTShape(vocab_size=50_257, tie_head=tie_head, **SIZES[size]))
        classifier = as_classifier(model, ["unacceptable", "acceptable"])
        add_lora(classifier, LoraSettings(rank=4, also_train=("layer_norms",)))
    assert trainable_counts(classifier) == {
        "adapters": adapters, "layer_norms": layer_norms, "biases": 0, "embeddings": 0, "head": head, "other": 0,
        "trainable": adapters + layer_norms + head, "all": everything,
    }  # fmt: skip


@each_kind
def test_the_head_alone_is_learned(shape: GPTShape | RNNShape) -> None:
    model = as_classifier(make_model(shape), LABELS)
    freeze_body(model)
    model.classify(model(some_tokens())[:, -1]).sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name in names(model) if name.startswith("score.")}
    counts = trainable_counts(model)
    assert counts["trainable"] == counts["head"] == sum(p.numel() for p in model.score.parameters())


def test_a_language_model_has_no_head_to_learn_alone() -> None:
    model = make_model(GPT_SHAPE)
    with pytest.raises(ValueError, match="a language model has no head of its own"):
        freeze_body(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_parts_of_an_rnn_are_counted() -> None:
    counts = trainable_counts(make_model(RNN_SHAPE, LABELS))
    layers = 4 * 24 * (16 + 24) + 4 * 24 * (24 + 24)
    assert {name: counts[name] for name in ("embeddings", "other", "biases", "head")} == {
        "embeddings": 61 * 16, "other": layers, "biases": 2 * 2 * 4 * 24, "head": 3 * 24 + 3,
    }  # fmt: skip
    assert counts["trainable"] == counts["all"]
