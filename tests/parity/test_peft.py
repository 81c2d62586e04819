"""An adapter gives the same logits and gradients as PEFT's over transformers' GPT-2, in both directions and merged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from gptlab.model.adapter import (
    NEW_ROWS,
    adapter_base,
    adapter_labels,
    adapter_vocab_size,
    load_adapter,
    save_adapter,
)
from gptlab.model.classifier import GPTClassifier, as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import CONV1D, load_model, save_model
from gptlab.model.lora import LoraSettings, add_lora, lora_settings, merge_lora, train_new_rows, trainable_counts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the quantisers that PEFT looks for
    from peft import LoraConfig, PeftModel, get_peft_model

SHAPE = {"vocab_size": 61, "context": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}

CASES = {
    "default": {},
    "rslora": {"rslora": True, "rank": 5, "alpha": 3},
    "one target": {"targets": ("attn.c_attn",)},
    "one layer": {"targets": ("h.1.mlp.c_fc", "h.0.attn.c_proj"), "rank": 1},
    "both projections": {"targets": ("c_proj",)},
    "biases": {"also_train": ("biases",), "targets": ("attn.c_attn",)},
    "layer norms": {"also_train": ("layer_norms",)},
    "biases and layer norms": {"also_train": ("biases", "layer_norms")},
    "positions": {"also_train": ("wpe", "ln_f")},
    "a layer as a whole": {"also_train": ("h.1.mlp.c_fc",), "targets": ("c_attn",)},
    "embedding": {"also_train": ("wte",)},
}
with_settings = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
with_tie = pytest.mark.parametrize("tie_head", [True, False], ids=["tied", "untied"])


def make_model(tie_head: bool = True) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTShape(**SHAPE, tie_head=tie_head)).double()
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    """Weights far from the start, so that no adapter is zero and no LayerNorm one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def adapted(settings: LoraSettings, tie_head: bool = True, new_rows: int = 0) -> GPT:
    model = make_model(tie_head)
    add_lora(model, settings)
    if new_rows:
        train_new_rows(model, SHAPE["vocab_size"] - new_rows)
    randomize(model)
    return model


def peft_base(folder: Path, tie_head: bool = True) -> GPT2LMHeadModel:
    """The base of `make_model`, read by transformers."""
    if not folder.exists():  # transformers has its weights from the file as long as they live
        save_model(make_model(tie_head), folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def open_peft(base: Path, adapter: Path, tie_head: bool = True) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys that are missing or that it does not know
        return PeftModel.from_pretrained(peft_base(base, tie_head), adapter, is_trainable=True)


def some_tokens(vocab_size: int = SHAPE["vocab_size"]) -> Tensor:
    torch.manual_seed(2)
    tokens = torch.randint(vocab_size, (3, SHAPE["context"]))
    tokens[0, :3] = vocab_size - torch.tensor([1, 2, 1])  # new tokens, where there are any
    return tokens


def gradients_of_peft(model: PeftModel) -> dict[str, Tensor]:
    """By our names and in our layout, of all that PEFT trains."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            short = name.removeprefix("base_model.model.").removeprefix("transformer.").replace(".default", "")
            short = short.replace(".modules_to_save", "").replace(NEW_ROWS, "rows")
            short = short.removesuffix(".weight") if ".lora_" in short else short
            gradients[short] = parameter.grad.t() if short.endswith(CONV1D) else parameter.grad
    return gradients


def assert_equal(ours: GPT, theirs: PeftModel) -> None:
    """Logits, what is learned, and its gradients, to 1e-6 (in float64)."""
    tokens = some_tokens(ours.shape.vocab_size)
    logits, their_logits = logits_of(ours, tokens), theirs(tokens).logits
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, their_logits, atol=1e-6, rtol=0)
    for some_logits in (logits, their_logits):
        loss_of(some_logits, tokens).backward()
    gradients = gradients_of_peft(theirs)
    assert gradients.keys() == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def logits_of(model: GPT, tokens: Tensor) -> Tensor:
    """(rows, time, vocabulary), or of a classifier (rows, classes)."""
    hidden = model(tokens)
    return model.classify(hidden[:, -1]) if isinstance(model, GPTClassifier) else model.logits(hidden)


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    if logits.dim() == 2:
        return F.cross_entropy(logits, torch.arange(len(tokens)) % logits.shape[1])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def assert_merges_to(ours: GPT, theirs: PeftModel) -> None:
    merge_lora(ours)
    merged = theirs.merge_and_unload().state_dict()
    for name, parameter in ours.named_parameters():
        other = merged[name if name.startswith(("lm_head", "score")) else f"transformer.{name}"]
        torch.testing.assert_close(parameter, other.t() if name.endswith(CONV1D) else other, atol=1e-6, rtol=0)


@with_settings
@with_tie
def test_peft_reads_ours(tmp_path: Path, settings: dict[str, Any], tie_head: bool) -> None:
    model = adapted(LoraSettings(**settings), tie_head)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = open_peft(tmp_path / "base", tmp_path / "adapter", tie_head)
    assert theirs.get_nb_trainable_parameters()[0] == trainable_counts(model)["trainable"]
    assert_equal(model, theirs)
    assert_merges_to(model, theirs)


@with_tie
def test_peft_reads_new_rows(tmp_path: Path, tie_head: bool) -> None:
    model = adapted(LoraSettings(also_train=("layer_norms",)), tie_head, new_rows=3)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = open_peft(tmp_path / "base", tmp_path / "adapter", tie_head)
    assert_equal(model, theirs)
    assert_merges_to(model, theirs)


@with_tie
def test_a_base_that_has_not_the_new_tokens_is_extended_by_the_reader(tmp_path: Path, tie_head: bool) -> None:
    """As AutoPeftModelForCausalLM does; its new rows begin at random, and the adapter has them all."""
    published = peft_base(tmp_path / "base", tie_head)
    size = SHAPE["vocab_size"]
    model = load_double(tmp_path, vocab_size=size + 2)
    add_lora(model, LoraSettings())
    train_new_rows(model, size)
    randomize(model)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert adapter_vocab_size(tmp_path / "adapter") == size + 2
    published.resize_token_embeddings(size + 2)
    theirs = PeftModel.from_pretrained(published, tmp_path / "adapter", is_trainable=True)
    assert_equal(model.eval(), theirs)


PEFT_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {"targets": ("c_attn",)}),
    "all linear": ({"target_modules": "all-linear", "lora_alpha": 3}, {"alpha": 3}),
    "a pattern": (
        {"target_modules": r".*\.h\.1\.(attn|mlp)\.c_proj"},
        {"targets": ("h.1.attn.c_proj", "h.1.mlp.c_proj")},
    ),
    "rslora": ({"target_modules": ["c_proj"], "use_rslora": True}, {"targets": ("c_proj",), "rslora": True}),
    "biases": ({"bias": "all"}, {"targets": ("c_attn",), "also_train": ("biases",)}),
    "layer norms": (
        {"modules_to_save": ["ln_1", "ln_2", "ln_f"]},
        {"targets": ("c_attn",), "also_train": ("layer_norms",)},
    ),
    "both": (
        {"bias": "all", "modules_to_save": ["ln_1", "ln_2", "ln_f"]},
        {"targets": ("c_attn",), "also_train": ("biases", "layer_norms")},
    ),
    "tied embedding": (
        {"modules_to_save": ["wte", "lm_head"], "ensure_weight_tying": True},
        {"targets": ("c_attn",), "also_train": ("wte",)},
    ),
    "a layer as a whole": (
        {"modules_to_save": ["mlp.c_fc"]},
        {"targets": ("c_attn",), "also_train": ("mlp.c_fc",)},
    ),
    "a tied embedding learned alone": ({"modules_to_save": ["wte"]}, {"targets": ("c_attn",), "also_train": ("wte",)}),
    "a tied embedding learned apart from the head": (
        {"modules_to_save": ["wte", "lm_head"]},
        {"targets": ("c_attn",), "also_train": ("wte", "lm_head")},
    ),
    "a tied head learned alone": (
        {"modules_to_save": ["lm_head"]},
        {"targets": ("c_attn",), "also_train": ("lm_head",)},
    ),
}


@pytest.mark.parametrize(("config", "settings"), PEFT_CASES.values(), ids=PEFT_CASES.keys())
def test_we_read_peft(tmp_path: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    theirs = make_peft(tmp_path, **config)
    model = load_double(tmp_path)
    load_adapter(model, tmp_path / "adapter")
    found = lora_settings(model)
    assert found is not None
    if config.get("target_modules") == "all-linear":
        assert len(found.targets) == 8
        found = found.model_copy(update={"targets": LoraSettings().targets})
    assert found == LoraSettings(rank=4, **{"alpha": 8, **settings})
    assert adapter_base(tmp_path / "adapter") == str(tmp_path / "base")
    assert_equal(model.eval(), theirs)
    assert_merges_to(model, theirs)


def test_biases_of_the_targets_alone_are_read(tmp_path: Path) -> None:
    """PEFT's "lora_only": here all biases are learned then, and those of other layers begin as the base's."""
    theirs = make_peft(tmp_path, bias="lora_only")
    model = load_double(tmp_path)
    load_adapter(model, tmp_path / "adapter")
    tokens = some_tokens()
    torch.testing.assert_close(model.eval().logits(model(tokens)), theirs(tokens).logits, atol=1e-6, rtol=0)
    save_adapter(model, tmp_path / "again", base=str(tmp_path / "base"))
    again = open_peft(tmp_path / "base", tmp_path / "again")
    torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("apart", [True, False])
@with_tie
def test_an_adapter_with_new_tokens_is_read(tmp_path: Path, apart: bool, tie_head: bool) -> None:
    """Of tokens that were added before: rows learned apart, or all of embedding and head, which PEFT stores unasked."""
    config: dict[str, Any] = {}
    if apart:
        tokens = [61, 62, 63]
        config = {"trainable_token_indices": {"wte": tokens} if tie_head else {"wte": tokens, "lm_head": tokens}}
    theirs = make_peft(tmp_path, tie_head, vocab_size=64, **config)
    assert adapter_vocab_size(tmp_path / "adapter") == 64
    model = load_double(tmp_path, vocab_size=64)
    load_adapter(model, tmp_path / "adapter")
    some = torch.randint(64, (2, 12))
    torch.testing.assert_close(model.eval().logits(model(some)), theirs(some).logits, atol=1e-6, rtol=0)
    if apart:
        assert_equal(model, theirs)
    assert_merges_to(model, theirs)


def test_dropout_falls_in_the_same_places(tmp_path: Path) -> None:
    model = adapted(LoraSettings(dropout=0.3))
    save_adapter(model, tmp_path / "adapter", base="base")
    theirs = open_peft(tmp_path / "base", tmp_path / "adapter")
    for config in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        assert getattr(theirs.config, config) == 0
    outputs = []
    for some_model in (model, theirs):
        some_model.train()
        tokens = some_tokens()
        torch.manual_seed(5)
        outputs.append(model.logits(model(tokens)) if some_model is model else theirs(tokens).logits)
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)


def make_peft(folder: Path, tie_head: bool = True, vocab_size: int | None = None, **config: Any) -> PeftModel:
    """PEFT's model with random numbers in all that it learns, saved as folder/adapter; its base is in folder/base."""
    base = peft_base(folder / "base", tie_head)
    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if vocab_size:
            base.resize_token_embeddings(vocab_size)
        config = {"target_modules": ["c_attn"], "r": 4, "fan_in_fan_out": True, **config}
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
        randomize(model)
        model.save_pretrained(folder / "adapter")
    return model


def load_double(folder: Path, **changes: Any) -> GPT:
    return load_model(folder / "base", **changes).double()


# Classifiers. The base is the language model of before; the classes are in the adapter alone.

CLASSES = ("against", "for", "neither")


def adapted_classifier(settings: LoraSettings, tie_head: bool = True, new_rows: int = 0) -> GPTClassifier:
    model = as_classifier(make_model(tie_head), CLASSES)
    assert isinstance(model, GPTClassifier)
    add_lora(model, settings)
    if new_rows:
        train_new_rows(model, SHAPE["vocab_size"] - new_rows)
    randomize(model)
    return model


def peft_classifier_base(folder: Path, tie_head: bool = True) -> GPT2ForSequenceClassification:
    """The base of `make_model` with a new head, as transformers makes it of a language model."""
    if not folder.exists():
        save_model(make_model(tie_head), folder, eos_id=SHAPE["vocab_size"] - 1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float64).eval()
    model.config.pad_token_id = 0  # no row of `some_tokens` ends in it
    return model


def without_warnings(call: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return call()


@with_settings
@with_tie
def test_peft_reads_our_classifier(tmp_path: Path, settings: dict[str, Any], tie_head: bool) -> None:
    model = adapted_classifier(LoraSettings(**settings), tie_head)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = peft_classifier_base(tmp_path / "base", tie_head)
    theirs = without_warnings(lambda: PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True))
    assert theirs.get_nb_trainable_parameters()[0] == trainable_counts(model)["trainable"]
    assert_equal(model, theirs)
    assert_merges_to(model, theirs)


def test_peft_reads_the_new_rows_of_our_classifier(tmp_path: Path) -> None:
    model = adapted_classifier(LoraSettings(also_train=("layer_norms",)), new_rows=3)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = peft_classifier_base(tmp_path / "base")
    theirs = without_warnings(lambda: PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True))
    assert_equal(model, theirs)
    assert_merges_to(model, theirs)


PEFT_CLASSIFIER_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: PEFT_CASES[name] for name in ("default", "all linear", "a pattern", "biases", "layer norms", "both")},
    "the head by its name": ({"modules_to_save": ["score"]}, {"targets": ("c_attn",)}),
    "embedding": ({"modules_to_save": ["wte", "score"]}, {"targets": ("c_attn",), "also_train": ("wte",)}),
}


@pytest.mark.parametrize(("config", "settings"), PEFT_CLASSIFIER_CASES.values(), ids=PEFT_CLASSIFIER_CASES.keys())
@with_tie
def test_we_read_peft_s_classifier(
    tmp_path: Path, config: dict[str, Any], settings: dict[str, Any], tie_head: bool
) -> None:
    """Its classes have no names: they are numbered, as transformers numbers them."""
    base = peft_classifier_base(tmp_path / "base", tie_head)
    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {"target_modules": ["c_attn"], "r": 4, "fan_in_fan_out": True, **config}
        theirs = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **config)).eval()
        randomize(theirs)
        theirs.save_pretrained(tmp_path / "adapter")
    labels = adapter_labels(tmp_path / "adapter")
    assert labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    model = as_classifier(load_double(tmp_path), labels)
    load_adapter(model, tmp_path / "adapter")
    found = lora_settings(model)
    assert found is not None
    if config["target_modules"] == "all-linear":
        assert len(found.targets) == 8
        found = found.model_copy(update={"targets": LoraSettings().targets})
    assert found == LoraSettings(rank=4, **{"alpha": 8, **settings})
    assert isinstance(model, GPTClassifier)
    assert_equal(model.eval(), theirs)
    assert_merges_to(model, theirs)
