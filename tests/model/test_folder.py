"""A model's folder is read by what its config.json says it is: every kind comes back as it went in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.errors import ModelError
from gptlab.model.adapter import save_adapter
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier, as_classifier, labels_of, new_model
from gptlab.model.folder import Model, load_model, read_labels, read_shape, save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.model.rnn import RNN, RNNShape

GPT_SHAPE = GPTShape(vocab_size=61, context=16, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
RNN_SHAPE = RNNShape(
    vocab_size=61, context=16, n_layer=2, n_embd=16, n_hidden=24, cell="gru", dropout=0.1, tie_head=False
)
KINDS = {
    "gpt": (GPT_SHAPE, None, GPT),
    "rnn": (RNN_SHAPE, None, RNN),
    "gpt classifier": (GPT_SHAPE, ("no", "ýes"), GPTClassifier),
    "rnn classifier": (RNN_SHAPE, ("no", "ýes", "perhaps"), RNNClassifier),
    "gpt reward model": (GPT_SHAPE, REWARD, GPTClassifier),
    "rnn reward model": (RNN_SHAPE, REWARD, RNNClassifier),
}
each_kind = pytest.mark.parametrize(("shape", "labels", "kind"), KINDS.values(), ids=KINDS.keys())


def make_model(shape: GPTShape | RNNShape, labels: tuple[str, ...] | None) -> Any:
    torch.manual_seed(0)
    return new_model(shape, labels)


def assert_same(one: Model, other: Model) -> None:
    assert type(one) is type(other)
    assert one.shape == other.shape
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@each_kind
def test_what_comes_back_is_what_went_in(
    tmp_path: Path, shape: GPTShape | RNNShape, labels: tuple[str, ...] | None, kind: type
) -> None:
    model = make_model(shape, labels)
    save_model(model, tmp_path, eos_id=60, bos_id=59)
    assert read_shape(tmp_path) == shape
    assert read_shape(tmp_path, dropout=0.5) == dataclasses.replace(shape, dropout=0.5)
    assert read_labels(tmp_path) == labels
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is kind
    assert labels_of(again) == labels
    assert again.training
    assert_same(model, again)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (60, 59)


@each_kind
@torch.no_grad()
def test_context_and_dropout_are_changed_and_the_vocabulary_extended(
    tmp_path: Path, shape: GPTShape | RNNShape, labels: tuple[str, ...] | None, kind: type
) -> None:
    model = make_model(shape, labels).eval()
    save_model(model, tmp_path)
    changed = load_model(tmp_path, context=8, vocab_size=64, dropout=0.0).eval()
    assert changed.shape == dataclasses.replace(shape, context=8, vocab_size=64, dropout=0.0)
    assert torch.equal(changed.wte.weight[:61], model.wte.weight)
    torch.testing.assert_close(changed.wte.weight[61:], model.wte.weight.mean(0).expand(3, 16))
    tokens = torch.arange(16).reshape(2, 8)
    assert torch.equal(changed(tokens), model(tokens))
    save_model(changed, tmp_path / "again")
    assert_same(changed, load_model(tmp_path / "again"))


def test_nanogpts_file_is_a_gpt(tmp_path: Path) -> None:
    model = make_model(GPT_SHAPE, None)
    sizes = {"vocab_size": 61, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True, "dropout": 0.1}
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    torch.save({"model": state, "model_args": sizes}, tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        assert read_shape(path) == dataclasses.replace(GPT_SHAPE, activation="gelu")
        assert read_labels(path) is None
        assert torch.equal(load_model(path).wte.weight, model.wte.weight)


def test_the_labels_of_an_adapter_are_its_own(tmp_path: Path) -> None:
    for name, labels in (("writes", None), ("answers", ("b", "a")), ("rewards", REWARD)):
        model = make_model(GPT_SHAPE, None)
        model = model if labels is None else as_classifier(model, labels)
        add_lora(model, LoraSettings(rank=2))
        save_adapter(model, tmp_path / name, base="somewhere")
        assert read_labels(tmp_path / name) == labels


def test_a_kind_that_there_is_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    for read in (load_model, read_shape):
        with pytest.raises(ModelError, match=r"config\.json: model_type = 'mamba'"):
            read(tmp_path)
    (tmp_path / "config.json").unlink()
    for read in (load_model, read_shape, read_labels):
        with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
            read(tmp_path)
