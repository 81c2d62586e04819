"""An RNN's folder: what comes back is what went in, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptlab.errors import ModelError
from gptlab.model.classifier import RNNClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.model.rnn import RNN, Cell, RNNShape
from gptlab.model.rnn_files import is_rnn, load_rnn, read_rnn_labels, read_rnn_shape, save_rnn

LABELS = ("unacceptable", "acceptable", "é")


def make(cell: Cell = "lstm", *, tie_head: bool = True, labels: tuple[str, ...] | None = None) -> RNN:
    torch.manual_seed(0)
    shape = RNNShape(61, 20, n_layer=2, n_embd=16, n_hidden=16, cell=cell, dropout=0.25, tie_head=tie_head)
    return RNN(shape) if labels is None else RNNClassifier(shape, labels)


def assert_same(one: RNN, other: RNN) -> None:
    assert one.shape == other.shape
    assert type(one) is type(other)
    for name, parameter in one.state_dict().items():
        assert torch.equal(parameter, other.state_dict()[name]), name


def rewrite(folder: Path, change: Any) -> None:
    """Lets `change` edit the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t.contiguous() for name, t in change(tensors).items()}, folder / "model.safetensors")


def set_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("cell", get_args(Cell))
def test_a_round_trip_changes_no_bit(tmp_path: Path, cell: Cell, tie_head: bool) -> None:
    model = make(cell, tie_head=tie_head)
    save_rnn(model, tmp_path, eos_id=60)
    assert is_rnn(tmp_path)
    assert (read_rnn_shape(tmp_path), read_rnn_labels(tmp_path)) == (model.shape, None)
    again = load_rnn(tmp_path)
    assert_same(model, again)
    assert again.training
    assert (again.head_weight is again.wte.weight) == tie_head
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in again.parameters())
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tie_head
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["cell"]) == ("gptlab-rnn", ["RNN"], cell)
    assert (config["n_positions"], config["bos_token_id"], config["eos_token_id"]) == (20, 60, 60)


def test_what_is_loaded_computes_and_learns_the_same(tmp_path: Path) -> None:
    """torch's layers keep a list of their weights beside them; a stale one would be trained in vain."""
    model = make()
    save_rnn(model, tmp_path)
    tokens = torch.arange(40).reshape(2, 20)
    both = [model.eval(), load_rnn(tmp_path).eval()]
    for each in both:
        each(tokens).square().sum().backward()
        torch.optim.SGD(each.parameters(), 0.1).step()
    assert_same(*both)
    assert torch.equal(both[0](tokens), both[1](tokens))


def test_a_classifier_comes_back_with_its_labels(tmp_path: Path) -> None:
    model = make(labels=LABELS)
    save_rnn(model, tmp_path)
    again = load_rnn(tmp_path)
    assert isinstance(again, RNNClassifier)
    assert again.labels == read_rnn_labels(tmp_path) == LABELS
    assert_same(model, again)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1], "2": LABELS[2]}
    assert config["label2id"] == {label: number for number, label in enumerate(LABELS)}
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != "score.bias"})
    with pytest.raises(ModelError, match=r"missing score\.bias"):
        load_rnn(tmp_path)


def test_loading_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    for model in (make(), make(labels=LABELS)):
        save_rnn(model, tmp_path)
        before = torch.get_rng_state()
        load_rnn(tmp_path)
        assert torch.equal(torch.get_rng_state(), before)


def test_context_and_dropout_are_what_is_asked_for(tmp_path: Path) -> None:
    """An RNN has no positions, so a context may be longer too."""
    model = make()
    save_rnn(model, tmp_path)
    for context in (7, 500):
        changed = load_rnn(tmp_path, context=context, dropout=0.5)
        assert changed.shape == dataclasses.replace(model.shape, context=context, dropout=0.5)
        assert changed.rnn.dropout == read_rnn_shape(tmp_path, dropout=0.5).dropout == 0.5
        assert torch.equal(changed.eval()(torch.arange(50)[None]), model.eval()(torch.arange(50)[None]))


@pytest.mark.parametrize("form", ["tied", "untied", "classifier"])
@torch.no_grad()
def test_a_vocabulary_is_extended_by_average_tokens(tmp_path: Path, form: str) -> None:
    model = make(tie_head=form == "tied", labels=LABELS if form == "classifier" else None).eval()
    save_rnn(model, tmp_path)
    larger = load_rnn(tmp_path, vocab_size=64).eval()
    assert larger.shape == dataclasses.replace(model.shape, vocab_size=64)
    tables = [(larger.wte.weight, model.wte.weight)]
    if form != "classifier":
        tables.append((larger.head_weight, model.head_weight))
        assert (larger.head_weight is larger.wte.weight) == (form == "tied")
    for table, old in tables:
        assert torch.equal(table[:61], old)
        assert torch.equal(table[61:], old.double().mean(0).float().expand(3, 16))
    with pytest.raises(ModelError, match="vocab_size = 60: the model has 61 tokens; it can only be extended"):
        load_rnn(tmp_path, vocab_size=60)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make()
    save_rnn(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    again = load_rnn(tmp_path)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter.to(dtype).float(), again.state_dict()[name])


def test_a_model_of_another_type_is_saved_in_it(tmp_path: Path) -> None:
    save_rnn(make().bfloat16(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["wte.weight"].dtype == torch.bfloat16


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    save_rnn(make(), tmp_path)

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["rnn.bias_hh_l1"]
        tensors["rnn.weight_ih_l0"] = tensors["rnn.weight_ih_l0"].t()
        tensors["wte.weight"] = tensors["wte.weight"].to(torch.int8)
        return tensors | {"score.weight": torch.zeros(2, 16)}

    rewrite(tmp_path, spoil)
    with pytest.raises(ModelError) as caught:
        load_rnn(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: the weights do not fit config.json: ")
    assert "missing rnn.bias_hh_l1" in message
    assert "unexpected score.weight" in message
    assert "rnn.weight_ih_l0 is float32 (16, 64), wanted float32 (64, 16)" in message
    assert "wte.weight is int8 (61, 16), wanted float32 (61, 16)" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2': an RNN's is 'gptlab-rnn'"),
        ({"cell": "elman"}, "cell = 'elman': wanted 'rnn' or 'gru' or 'lstm'"),
        ({"cell": None}, "cell = None: wanted a name"),
        ({"n_layer": "2"}, "n_layer = '2': wanted a whole number"),
        ({"n_layer": True}, "n_layer = True: wanted a whole number"),
        ({"n_positions": None}, "n_positions = None: wanted a whole number"),
        ({"n_hidden": 0}, "n_hidden = 0: must be at least 1"),
        ({"n_hidden": 8}, "n_hidden = 8 is not n_embd = 16"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': wanted true or false"),
        ({"dropout": "0.1"}, "dropout = '0.1': wanted a fraction"),
        ({"id2label": ["a", "b"]}, r"id2label = \['a', 'b'\]: a name for each id is wanted, from 0 on"),
        ({"id2label": {"1": "a", "2": "b"}}, r"id2label = \{.*\}: a name for each id"),
        ({"id2label": {}}, r"id2label: labels = \[\]: a classifier has two or more"),
        ({"id2label": {"0": "a", "1": "a"}}, r"id2label: labels = \['a', 'a'\]: a classifier has two or more"),
    ],
)
def test_what_the_model_cannot_be_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    save_rnn(make(), tmp_path)
    set_config(tmp_path, **fields)
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        load_rnn(tmp_path)


def test_a_dropout_of_zero_may_be_written_without_a_point(tmp_path: Path) -> None:
    save_rnn(make(), tmp_path)
    set_config(tmp_path, dropout=0)
    assert load_rnn(tmp_path).shape.dropout == 0.0


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read \(No such file"):
        load_rnn(tmp_path)
    save_rnn(make(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_rnn(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: wanted model\.safetensors"):
        load_rnn(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not JSON"):
        is_rnn(tmp_path)


def test_what_is_no_rnn_is_told_from_one(tmp_path: Path) -> None:
    save_model(GPT(GPTShape(61, 20, 1, 2, 16)), tmp_path / "gpt")
    assert not is_rnn(tmp_path / "gpt")
    assert not is_rnn(tmp_path / "nowhere")
    (tmp_path / "ckpt.pt").write_bytes(b"")
    assert not is_rnn(tmp_path / "ckpt.pt")
