"""Hugging Face's GPT-2 folders: what comes back is what went in, in every form in which they are found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptlab.errors import ModelError
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, read_labels, read_shape, save_model, shape_from_config, write_tensors


def make_model(tie_head: bool = True, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "context": 20, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1}
    model = GPT(GPTShape(**{**shape, **changes}, tie_head=tie_head))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def assert_same(one: GPT, other: GPT) -> None:
    assert one.shape == other.shape
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
def test_a_round_trip_changes_no_bit(tmp_path: Path, tie_head: bool) -> None:
    model = make_model(tie_head, dropout=0.25, layer_norm_epsilon=1e-6, activation="gelu")
    save_model(model, tmp_path, eos_id=60)
    assert read_shape(tmp_path) == model.shape
    again = load_model(tmp_path)
    assert_same(model, again)
    assert (again.head_weight is again.wte.weight) == tie_head
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in again.parameters())
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tie_head
    for name in ("config.json", "generation_config.json"):
        saved = json.loads((tmp_path / name).read_text())
        assert (saved["bos_token_id"], saved["eos_token_id"]) == (60, 60)


def test_loading_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_of_the_bare_model_with_its_mask_opens(tmp_path: Path) -> None:
    """Files of GPT2Model have no prefix; old ones hold the causal mask and -1e4 as if they were weights."""
    model = make_model()
    save_model(model, tmp_path)

    def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 20, 20, dtype=torch.uint8) for n in range(2)}
        masks |= {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
        return {name.removeprefix("transformer."): t for name, t in tensors.items()} | masks

    rewrite(tmp_path, bare)
    assert_same(model, load_model(tmp_path))


def test_a_tied_head_that_is_stored_again_is_taken_once(tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": model.wte.weight.detach().clone()})
    assert_same(model, load_model(tmp_path))
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": model.wte.weight.detach() + 1})
    with pytest.raises(ModelError, match=r"lm_head\.weight is not wte\.weight, though config\.json ties them"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model()
    save_model(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    again = load_model(tmp_path)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter.to(dtype).float(), again.state_dict()[name])


def test_shards_are_put_together(tmp_path: Path) -> None:
    model = make_model(tie_head=False)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + (place % 3)}-of-00003.safetensors" for place, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(model, load_model(tmp_path))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: (is missing|cannot be read)"):
        load_model(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_file_is_read(tmp_path: Path, zipped: bool) -> None:
    model = make_model()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(model, load_model(tmp_path))


@pytest.mark.parametrize("tie_head", [True, False])
@torch.no_grad()
def test_a_context_is_shortened(tmp_path: Path, tie_head: bool) -> None:
    model = make_model(tie_head).eval()
    save_model(model, tmp_path)
    short = load_model(tmp_path, context=7).eval()
    assert short.shape == dataclasses.replace(model.shape, context=7)
    assert torch.equal(short.wpe.weight, model.wpe.weight[:7])
    tokens = torch.arange(14).reshape(2, 7)
    assert torch.equal(short(tokens), model(tokens))
    save_model(short, tmp_path / "again")
    assert_same(short, load_model(tmp_path / "again"))
    for context in (21, 0):
        with pytest.raises(ModelError, match=f"context = {context}: the model has 20 positions"):
            load_model(tmp_path, context=context)


@pytest.mark.parametrize("tie_head", [True, False])
@torch.no_grad()
def test_a_vocabulary_is_extended_by_average_tokens(tmp_path: Path, tie_head: bool) -> None:
    model = make_model(tie_head).eval()
    save_model(model, tmp_path)
    if tie_head:  # the head once more, as old files have it
        rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": model.wte.weight.detach().clone()})
    larger = load_model(tmp_path, vocab_size=64).eval()
    assert larger.shape == dataclasses.replace(model.shape, vocab_size=64)
    assert (larger.head_weight is larger.wte.weight) == tie_head
    for table, old in ((larger.wte.weight, model.wte.weight), (larger.head_weight, model.head_weight)):
        assert torch.equal(table[:61], old)
        assert torch.equal(table[61:], old.double().mean(0).float().expand(3, 16))
    tokens = torch.arange(40).reshape(2, 20)
    logits = larger.logits(larger(tokens))
    torch.testing.assert_close(logits[..., :61], model.logits(model(tokens)))
    torch.testing.assert_close(logits[..., 63], logits[..., :61].mean(-1), atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match="vocab_size = 60: the model has 61 tokens; it can only be extended"):
        load_model(tmp_path, vocab_size=60)


def test_a_dropout_takes_the_place_of_the_configs(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    assert load_model(tmp_path, dropout=0.0).shape.dropout == 0.0
    set_config(tmp_path, embd_pdrop=0.0)
    with pytest.raises(ModelError, match=r"embd_pdrop = 0\.0, .*: this GPT-2 has one dropout"):
        load_model(tmp_path)
    assert load_model(tmp_path, dropout=0.3).h[1].dropout == read_shape(tmp_path, dropout=0.3).dropout == 0.3


@pytest.mark.parametrize(
    ("name", "activation"), [("gelu_new", "gelu_new"), ("gelu_pytorch_tanh", "gelu_new"), ("gelu", "gelu")]
)
def test_activations_by_their_names(tmp_path: Path, name: str, activation: str) -> None:
    save_model(make_model(), tmp_path)
    set_config(tmp_path, activation_function=name)
    assert load_model(tmp_path).shape.activation == activation


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].t()
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].to(torch.int8)
        return tensors | {"score.weight": torch.zeros(2, 16)}

    rewrite(tmp_path, spoil)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: the weights do not fit config.json: ")
    assert "missing ln_f.bias" in message
    assert "unexpected score.weight" in message
    assert "transformer.h.0.mlp.c_fc.weight is float32 (64, 16), wanted float32 (16, 64)" in message
    assert "transformer.wpe.weight is int8 (20, 16), wanted float32 (20, 16)" in message


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    set_config(tmp_path, n_layer=4)
    with pytest.raises(ModelError, match=r"missing h\.2\.attn\.c_attn\.bias; .*; and 16 more"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type = 'gpt_neo': this GPT-2 can only do 'gpt2'"),
        ({"model_type": None}, "model_type = None"),
        ({"activation_function": "relu"}, "activation_function = 'relu': .*'gelu_new' or .* or 'gelu'"),
        ({"n_inner": 65}, r"n_inner = 65: this GPT-2's is 4 · n_embd = 64"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False"),
        ({"embd_pdrop": 0.0}, r"resid_pdrop = 0\.1, embd_pdrop = 0\.0, attn_pdrop = 0\.1: this GPT-2 has one dropout"),
        ({"n_head": 3}, "n_embd = 16 is not divisible by n_head = 3"),
        ({"n_layer": "2"}, "n_layer = '2': a whole number is wanted"),
        ({"n_positions": None}, "n_positions = None: a whole number is wanted"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    save_model(make_model(), tmp_path)
    set_config(tmp_path, **fields)
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        load_model(tmp_path)


@pytest.mark.parametrize("tie_head", [True, False])
def test_a_classifier_round_trip_changes_no_bit(tmp_path: Path, tie_head: bool) -> None:
    torch.manual_seed(0)
    model = GPTClassifier(GPTShape(61, 20, 2, 2, 16, tie_head=tie_head), ("b", "a", "c"))
    save_model(model, tmp_path, eos_id=60)
    again = load_model(tmp_path)
    assert isinstance(again, GPTClassifier)
    assert again.labels == read_labels(tmp_path) == ("b", "a", "c")
    assert_same(model, again)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["score.weight"].shape == (3, 16)
    assert "lm_head.weight" not in stored
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["id2label"] == {"0": "b", "1": "a", "2": "c"}
    assert config["label2id"] == {"b": 0, "a": 1, "c": 2}
    assert (config["pad_token_id"], config["eos_token_id"]) == (60, 60)
    assert not (tmp_path / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "regression"}, "problem_type = 'regression': this GPT-2 can only do None or 'single_label"),
        ({"problem_type": "multi_label_classification"}, "problem_type = 'multi_label_classification'"),
        (
            {"id2label": {"0": "a"}},
            "problem_type = 'single_label_classification': this GPT-2 can only do None or 'r",
        ),
        ({"id2label": None, "num_labels": 1}, "problem_type = 'single_label_classification'"),
        ({"id2label": None, "num_labels": 0}, r"id2label: labels = \[\]: a classifier has two or more"),
        ({"id2label": None, "num_labels": "3"}, "num_labels = '3': a whole number is wanted"),
        ({"id2label": {"0": "a", "1": "a"}}, r"labels = \['a', 'a'\]: a classifier has two or more, each once"),
        ({"id2label": {"1": "a", "2": "b"}}, r"id2label = \{.*\}: a name for each id is wanted, from 0 on"),
        ({"id2label": ["a", "b"]}, r"id2label = \['a', 'b'\]: a name for each id"),
    ],
)
def test_a_head_that_chooses_no_class_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    save_model(GPTClassifier(GPTShape(61, 20, 2, 2, 16), ("a", "b")), tmp_path)
    set_config(tmp_path, **fields)
    for read in (load_model, read_labels):
        with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("ends", "padding"),
    [({}, None), ({"eos_id": 60}, None), ({"eos_id": 60, "bos_id": 60}, None), ({"eos_id": 60, "bos_id": 59}, 59)],
    ids=str,
)
def test_a_reward_model_round_trip_changes_no_bit(tmp_path: Path, ends: dict[str, int], padding: int | None) -> None:
    """What closes an answer, where its reward is read, is never its padding: transformers would overlook it."""
    torch.manual_seed(0)
    model = GPTClassifier(GPTShape(61, 20, 2, 2, 16), REWARD)
    save_model(model, tmp_path, **ends)
    again = load_model(tmp_path)
    assert isinstance(again, GPTClassifier)
    assert again.labels == read_labels(tmp_path) == REWARD
    assert_same(model, again)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0})
    assert (config["problem_type"], config["pad_token_id"]) == ("regression", padding)
    set_config(tmp_path, problem_type=None, id2label=None, num_labels=1)
    assert read_labels(tmp_path) == ("LABEL_0",)
    assert_same(model, load_model(tmp_path))


def test_a_head_of_other_classes_than_the_config_has_is_named(tmp_path: Path) -> None:
    save_model(GPTClassifier(GPTShape(61, 20, 2, 2, 16), ("a", "b")), tmp_path)
    set_config(tmp_path, id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(ModelError, match=r"score\.weight is float32 \(2, 16\), wanted float32 \(3, 16\)"):
        load_model(tmp_path)
    set_config(tmp_path, architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelError, match=r"unexpected score\.weight"):
        load_model(tmp_path)


def test_an_old_config_is_understood() -> None:
    old = {"model_type": "gpt2", "vocab_size": 9, "n_ctx": 7, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_inner": 16}
    assert shape_from_config(old) == GPTShape(9, 7, 1, 2, 4, dropout=0.1, tie_head=True)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read \(No such file"):
        load_model(tmp_path)
    save_model(make_model(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: wanted model\.safetensors or pytorch_model\.bin"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not JSON"):
        load_model(tmp_path)


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "b.turned": torch.randn(4, 5).t(),
        "flag": torch.tensor([True, False, True]),
        "half": torch.randn(3).to(torch.bfloat16),
        "bytes": torch.randint(256, (5056,), dtype=torch.uint8),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "ours.safetensors", tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs.safetensors")
    ours, theirs = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)
    write_tensors(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}


PEAK = """
import sys, threading, torch
from pathlib import Path
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, save_model

def own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))

def growth(function, *arguments, **named):
    before, done, peak = own_memory(), threading.Event(), [0]
    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], own_memory())
    watcher = threading.Thread(target=watch)
    watcher.start()
    function(*arguments, **named)
    done.set()
    watcher.join()
    return peak[0] - before

folder = Path(sys.argv[1])
torch.set_num_threads(1)
save_model(GPT(GPTShape(100, 16, 1, 1, 8)), folder / "small")
load_model(folder / "small", vocab_size=101)
"""
SAVING = PEAK + "print(growth(save_model, GPT(GPTShape(10_000, 64, 6, 8, 512)), folder))"
LOADING = PEAK + "print(growth(load_model, folder, context=60, vocab_size=10_100))"
WEIGHTS_BYTES = 96_272_384
"""Of GPTShape(10_000, 64, 6, 8, 512) in float32; the largest tensor has 20 MB."""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own memory from /proc")


def run_alone(script: str, folder: Path) -> int:
    """What the script prints, in a process of its own: an allocator keeps what others freed before."""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@on_linux
def test_saving_needs_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    assert run_alone(SAVING, tmp_path) < 0.3 * WEIGHTS_BYTES


@on_linux
@pytest.mark.parametrize("form", ["model.safetensors", "before torch 1.6", "ckpt.pt"])
def test_loading_holds_the_weights_once(tmp_path: Path, form: str) -> None:
    """And the largest tensor beside them; also while rows are added. Pages of a mapped file are not counted: the
    kernel takes them back when it needs them."""
    model = GPT(GPTShape(10_000, 64, 6, 8, 512))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if form != "model.safetensors":
        (tmp_path / "model.safetensors").unlink()
    if form == "ckpt.pt":
        (tmp_path / "config.json").unlink()
        weights = {f"transformer.{name}": p.detach() for name, p in model.named_parameters()}
        moments = {name: {"exp_avg": p + 1, "exp_avg_sq": p + 2} for name, p in weights.items()}
        sizes = {"vocab_size": 10_000, "block_size": 64, "n_layer": 6, "n_head": 8, "n_embd": 512, "bias": True}
        torch.save({"model": weights, "optimizer": {"state": moments}, "model_args": sizes}, tmp_path / form)
    elif form == "before torch 1.6":
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert 0.5 * WEIGHTS_BYTES < run_alone(LOADING, tmp_path) < 1.5 * WEIGHTS_BYTES
