"""PEFT's adapter folders: what comes back is what went in, and what does not fit is named (tests/parity has PEFT)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.adapter import (
    adapter_base,
    adapter_labels,
    adapter_vocab_size,
    is_adapter,
    load_adapter,
    save_adapter,
)
from gptlab.model.classifier import REWARD, GPTClassifier, as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora, lora_settings, merge_lora, train_new_rows
from gptlab.model.rnn import RNN, RNNShape

VOCABULARY = 61
LABELS = ("no", "ýes", "perhaps")


def make_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "context": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTShape(**{**shape, **changes}))


def make_adapted(
    settings: LoraSettings | None = None, new_rows: int = 0, *, labels: tuple[str, ...] | None = None, **changes: Any
) -> Any:
    """An adapted model with random numbers in all that is learned; with `labels` a classifier."""
    model: Any = make_model(**changes)
    if labels:
        model = as_classifier(model, labels)
    add_lora(model, settings or LoraSettings(rank=3))
    if new_rows:
        train_new_rows(model, VOCABULARY - new_rows)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


def save(model: GPT, folder: Path) -> Path:
    save_adapter(model, folder, base="someone/gpt2")
    return folder


def set_config(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "adapter_model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("settings", "new_rows", "tie_head"),
    [
        (LoraSettings(), 0, True),
        (LoraSettings(rank=5, alpha=2.5, dropout=0.25, rslora=True, targets=("attn.c_attn",)), 0, True),
        (LoraSettings(also_train=("biases", "layer_norms", "wpe")), 0, False),
        (LoraSettings(also_train=("wte",)), 0, True),
        (LoraSettings(also_train=("wte",)), 3, False),
        (LoraSettings(also_train=("wte", "lm_head")), 0, False),
        (LoraSettings(targets=("c_proj",), also_train=("h.1.mlp.c_fc", "ln_1")), 0, True),
        (LoraSettings(), 3, True),
        (LoraSettings(), 1, False),
    ],
)
def test_a_round_trip_changes_no_bit(tmp_path: Path, settings: LoraSettings, new_rows: int, tie_head: bool) -> None:
    model = make_adapted(settings, new_rows, tie_head=tie_head)
    save(model, tmp_path)
    again = make_model(tie_head=tie_head)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    load_adapter(again, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert lora_settings(again) == settings
    assert again.shape == model.shape
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(parameter, theirs[name]), name
    tokens = torch.tensor([[5, 60, 58, 1]])
    assert torch.equal(model.eval().logits(model(tokens)), again.eval().logits(again(tokens)))


def test_only_the_adapter_is_stored(tmp_path: Path) -> None:
    save(make_adapted(LoraSettings(rank=1, targets=("attn.c_attn",)), new_rows=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    prefix = "base_model.model.transformer"
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()} == {
        f"{prefix}.h.0.attn.c_attn.lora_A.weight": (1, 16),
        f"{prefix}.h.0.attn.c_attn.lora_B.weight": (48, 1),
        f"{prefix}.h.1.attn.c_attn.lora_A.weight": (1, 16),
        f"{prefix}.h.1.attn.c_attn.lora_B.weight": (48, 1),
        f"{prefix}.wte.token_adapter.trainable_tokens_delta": (2, 16),
    }
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "someone/gpt2",
        "inference_mode": True,
        "r": 1,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": ["attn.c_attn"],
        "fan_in_fan_out": True,
        "init_lora_weights": True,
        "bias": "none",
        "modules_to_save": None,
        "ensure_weight_tying": False,
        "trainable_token_indices": {"wte": [59, 60]},
    }


@pytest.mark.parametrize(
    ("settings", "new_rows", "tie_head"),
    [
        (LoraSettings(), 0, True),
        (LoraSettings(rank=4, also_train=("biases", "layer_norms")), 0, False),
        (LoraSettings(also_train=("wte",)), 0, True),
        (LoraSettings(targets=("attn.c_attn",)), 3, True),
        (LoraSettings(), 3, False),
    ],
)
def test_a_classifier_round_trip_changes_no_bit(
    tmp_path: Path, settings: LoraSettings, new_rows: int, tie_head: bool
) -> None:
    model = make_adapted(settings, new_rows, tie_head=tie_head, labels=LABELS)
    save(model, tmp_path)
    assert adapter_labels(tmp_path) == LABELS
    assert json.loads((tmp_path / "labels.json").read_text()) == {"labels": list(LABELS)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"][0] == "score"
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(stored["base_model.model.score.weight"], model.score.weight)
    assert not any("lm_head" in name for name in stored)
    again = as_classifier(make_model(tie_head=tie_head), LABELS)
    load_adapter(again, tmp_path)
    assert lora_settings(again) == settings
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(parameter, theirs[name]), name
    merge_lora(again)
    assert type(again) is GPTClassifier
    tokens = torch.tensor([[5, 60, 58, 1]])
    before = model.eval().classify(model(tokens)[:, -1])
    torch.testing.assert_close(again.eval().classify(again(tokens)[:, -1]), before, atol=1e-5, rtol=1e-5)


def test_classes_that_nobody_named_are_numbered(tmp_path: Path) -> None:
    save(make_adapted(labels=LABELS), tmp_path)
    (tmp_path / "labels.json").unlink()
    assert adapter_labels(tmp_path) == ("LABEL_0", "LABEL_1", "LABEL_2")
    save(make_adapted(), tmp_path / "writes")
    assert adapter_labels(tmp_path / "writes") is None


def test_an_adapter_without_a_task_that_saves_a_head_is_a_classifier_s(tmp_path: Path) -> None:
    """TRL advises LoraConfig(modules_to_save=["score"]) for reward models."""
    model = make_adapted(labels=REWARD)
    save(model, tmp_path / "rewards")
    save(make_adapted(), tmp_path / "writes")
    for folder in (tmp_path / "rewards", tmp_path / "writes"):
        set_config(folder, task_type=None)
    (tmp_path / "rewards" / "labels.json").unlink()
    labels = adapter_labels(tmp_path / "rewards")
    assert labels == ("LABEL_0",)
    again = as_classifier(make_model(), labels)
    load_adapter(again, tmp_path / "rewards")
    assert torch.equal(again.score.weight, model.score.weight)
    assert adapter_labels(tmp_path / "writes") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"labels\.json: is not JSON"),
        ('{"labels": "ab"}', r"labels\.json: labels = 'ab': a list of names is wanted"),
        ('{"classes": ["a", "b"]}', r"labels\.json: labels = None: a list"),
        ('{"labels": ["a", 1]}', r"labels\.json: labels = \['a', 1\]: a list"),
        ('{"labels": ["a", "a"]}', r"labels = \['a', 'a'\]: a classifier has two or more, each once"),
    ],
)
def test_damaged_labels_are_named(tmp_path: Path, content: str, message: str) -> None:
    save(make_adapted(labels=LABELS), tmp_path)
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        adapter_labels(tmp_path)


def test_a_classifier_s_adapter_without_a_head_is_refused(tmp_path: Path) -> None:
    save(make_adapted(labels=LABELS), tmp_path)
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if "score" not in name})
    with pytest.raises(ModelError, match=r"the adapter does not fit the model: missing score\.weight"):
        load_adapter(as_classifier(make_model(), LABELS), tmp_path)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(ModelError, match=r"labels = \[\]: a classifier has two or more"):
        adapter_labels(tmp_path)


def test_an_adapter_for_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    save(make_adapted(labels=LABELS), tmp_path / "answers")
    save(make_adapted(), tmp_path / "writes")
    with pytest.raises(ModelError, match="task_type = 'SEQ_CLS': is the adapter of a classifier, which the model is"):
        load_adapter(make_model(), tmp_path / "answers")
    with pytest.raises(ModelError, match="task_type = 'CAUSAL_LM': is the adapter of a language model, which"):
        load_adapter(as_classifier(make_model(), LABELS), tmp_path / "writes")
    with pytest.raises(ModelError, match=r"score\.weight is float32 \(3, 16\), wanted float32 \(2, 16\)"):
        load_adapter(as_classifier(make_model(), LABELS[:2]), tmp_path / "answers")
    rnn = RNN(RNNShape(VOCABULARY, context=16, n_layer=1, n_embd=16, n_hidden=16))
    with pytest.raises(ModelError, match="writes: is the adapter of a GPT, and its base is an RNN"):
        load_adapter(rnn, tmp_path / "writes")
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(rnn, tmp_path, base="x")


def test_folders_are_told_apart(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    save(make_adapted(new_rows=2), tmp_path)
    assert is_adapter(tmp_path)
    assert adapter_base(tmp_path) == "someone/gpt2"
    assert adapter_vocab_size(tmp_path) == VOCABULARY
    save(make_adapted(LoraSettings(also_train=("wte",))), tmp_path)
    assert adapter_vocab_size(tmp_path) == VOCABULARY
    save(make_adapted(), tmp_path)
    assert adapter_vocab_size(tmp_path) is None
    for base in ("", None, 5):
        set_config(tmp_path, base_model_name_or_path=base)
        with pytest.raises(ModelError, match=rf"base_model_name_or_path = {base!r}: the name of a model is wanted"):
            adapter_base(tmp_path)


def test_a_plain_model_has_no_adapter_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter to save"):
        save(make_model(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_adapted()
    save(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    again = make_model()
    load_adapter(again, tmp_path)
    found = again.h[0].attn.c_attn.lora_A
    assert found.dtype == torch.float32
    assert torch.equal(found, model.h[0].attn.c_attn.lora_A.to(dtype).float())


def test_the_adapter_of_a_bare_model_is_read(tmp_path: Path) -> None:
    """Over transformers' GPT2Model the names have no `transformer.`."""
    model = make_adapted()
    save(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {name.replace("transformer.", ""): t for name, t in tensors.items()})
    set_config(tmp_path, target_modules=r"h\.\d+\.(attn|mlp)\..*", task_type=None)
    again = make_model()
    load_adapter(again, tmp_path)
    assert torch.equal(again.h[1].mlp.c_proj.lora_B, model.h[1].mlp.c_proj.lora_B)


def test_a_pickle_is_read_and_never_run(tmp_path: Path) -> None:
    model = make_adapted()
    save(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    again = make_model()
    load_adapter(again, tmp_path)
    assert torch.equal(again.h[1].mlp.c_proj.lora_B, model.h[1].mlp.c_proj.lora_B)

    torch.save({"h.0.attn.c_attn.lora_A.weight": _Evil(tmp_path / "ran")}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin: is refused"):
        load_adapter(make_model(), tmp_path)
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_an_output_layer_learned_apart_is_untied_and_stays_so(tmp_path: Path) -> None:
    model = make_adapted(LoraSettings(also_train=("wte",)))
    save(model, tmp_path)
    head = torch.randn(VOCABULARY, 16)
    rewrite(tmp_path, lambda tensors: tensors | {"base_model.model.lm_head.weight": head})
    again = make_model()
    load_adapter(again, tmp_path)
    assert not again.shape.tie_head
    assert torch.equal(again.wte.weight, model.wte.weight)
    assert torch.equal(again.head_weight, head)
    merge_lora(again)
    assert torch.equal(again.head_weight, head)


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    save(make_adapted(LoraSettings(also_train=("layer_norms",))), tmp_path)

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "base_model.model.transformer"
        del tensors[f"{prefix}.ln_f.bias"]
        tensors[f"{prefix}.h.0.mlp.c_fc.lora_B.weight"] = tensors[f"{prefix}.h.0.mlp.c_fc.lora_B.weight"].t()
        tensors[f"{prefix}.h.1.ln_1.weight"] = tensors[f"{prefix}.h.1.ln_1.weight"].to(torch.int8)
        return tensors | {"base_model.model.score.weight": torch.zeros(2, 16)}

    rewrite(tmp_path, spoil)
    with pytest.raises(ModelError) as caught:
        load_adapter(make_model(), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: the adapter does not fit the model: missing ln_f.bias; ")
    assert "; unexpected score.weight; " in message
    assert "h.0.mlp.c_fc.lora_B.weight is float32 (8, 64), wanted float32 (64, 8)" in message
    assert "h.1.ln_1.weight is int8 (16,), wanted float32 (16,)" in message


def test_the_adapter_of_another_size_is_refused_and_the_list_is_cut(tmp_path: Path) -> None:
    save(make_adapted(n_embd=32, n_layer=3), tmp_path)
    with pytest.raises(
        ModelError, match=r"unexpected h\.2\.attn\.c_attn\.lora_A\.weight|wanted float32 \(3, 16\).*and \d+ more$"
    ):
        load_adapter(make_model(), tmp_path)
    save(make_adapted(n_layer=3), tmp_path)
    with pytest.raises(ModelError, match=r"the model: (unexpected h\.2\.\S+; ){7}unexpected h\.2\.\S+$"):
        load_adapter(make_model(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type = 'IA3': this LoRA can only do 'LORA'"),
        ({"peft_type": None}, r"peft_type = None"),
        ({"task_type": "TOKEN_CLS"}, r"task_type = 'TOKEN_CLS': this LoRA can only do 'CAUSAL_LM' or 'SEQ_CLS'"),
        ({"use_dora": True}, r"use_dora = True: is a variant of LoRA that there is not here"),
        ({"rank_pattern": {"c_attn": 4}}, r"rank_pattern = \{'c_attn': 4\}: is a variant"),
        ({"alpha_pattern": {"c_attn": 4}}, r"alpha_pattern = "),
        ({"lora_bias": True}, r"lora_bias = True"),
        ({"layers_to_transform": [0]}, r"layers_to_transform = \[0\]"),
        ({"some_new_trick": {"a": 1}}, r"some_new_trick = "),
        (
            {"init_lora_weights": "pissa"},
            r"init_lora_weights = 'pissa': this LoRA can only do True or False or 'gaussian'",
        ),
        ({"bias": "some"}, r"bias = 'some'"),
        ({"r": "4"}, r"rank = '4'"),
        ({"lora_dropout": 1}, r"dropout = 1"),
        ({"target_modules": None}, r"target_modules = None: a list of names or a pattern is wanted"),
        ({"target_modules": "h.(0"}, r"target_modules = 'h\.\(0': is no pattern: "),
        ({"target_modules": "q_proj"}, r"targets = \[\]: wanted at least 1 of them, found 0"),
        ({"target_modules": ["c_attn", "wte"]}, r"lora\.targets has 'wte', which names nothing here"),
        ({"modules_to_save": ["score"]}, r"lora\.also_train has 'score', which names nothing here"),
        (
            {"trainable_token_indices": {"wte": [3, 60]}},
            r"trainable_token_indices = \[\[3, 60\]\]: here only the last rows of a vocabulary are learned apart",
        ),
        ({"trainable_token_indices": [58, 59]}, r"only the last rows"),
        (
            {"trainable_token_indices": [60, 61, 62]},
            r"trainable_token_indices has token 62, the model 61 tokens: extend its vocabulary first",
        ),
        ({"trainable_token_indices": {"wte": [60], "lm_head": [59, 60]}}, r"only the last rows"),
    ],
)
def test_what_this_lora_cannot_do_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    save(make_adapted(), tmp_path)
    set_config(tmp_path, **fields)
    with pytest.raises(ModelError, match=rf"adapter_config\.json: .*{message}"):
        load_adapter(make_model(), tmp_path)


def test_an_old_config_is_understood(tmp_path: Path) -> None:
    """Of a PEFT that had fewer fields, and others that say nothing here."""
    save(make_adapted(LoraSettings(rank=8, alpha=8, targets=("c_attn",))), tmp_path)
    old = {
        "base_model_name_or_path": "gpt2", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 8, "lora_dropout": 0.05, "merge_weights": False, "modules_to_save": None,
        "peft_type": "LORA", "r": 8, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(old))
    model = make_model()
    load_adapter(model, tmp_path)
    assert lora_settings(model) == LoraSettings(rank=8, alpha=8, dropout=0.05, targets=("c_attn",))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    save(make_adapted(), tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: cannot be read"):
        load_adapter(make_model(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: cannot be read, it is missing"):
        load_adapter(make_model(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json: is not JSON"):
        load_adapter(make_model(), tmp_path)
