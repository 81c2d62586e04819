"""Hugging Face's GPT-2 format, read and written: config.json, generation_config.json, model.safetensors; of language
models (GPT2LMHeadModel), classifiers and reward models (GPT2ForSequenceClassification, with one label).

transformers keeps the linear weights of the blocks as Conv1D does, (in, out); here they are (out, in), so they
are transposed on the way in and out. A tied head is stored once, as wte. The format of a .safetensors file:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.classifier import HEADS, Task, checked_labels, labels_of, task_of
from gptlab.model.gpt import GPT, Activation, GPTShape
from gptlab.model.nanogpt import is_nanogpt, open_nanogpt
from gptlab.model.weights import Stored, load_stored, read_folder, read_json

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""The weights that Hugging Face's files hold as (in, out)."""

ACTIVATIONS: dict[str, Activation] = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}
"""The activation_function of config.json → the shape's."""

LANGUAGE_MODEL, CLASSIFIER = "GPT2LMHeadModel", "GPT2ForSequenceClassification"
"""The architectures of config.json."""

PROBLEM_TYPES: dict[Task, str] = {"classification": "single_label_classification", "reward": "regression"}
"""The problem_type of classes that exclude each other, and of a number: of the latter transformers' pipeline gives the
logit as it is."""

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

FIXED = {
    "model_type": ("gpt2",),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
"""Fields of config.json that this model has only one answer to."""

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_model(model: GPT, folder: Path, *, eos_id: int | None = None, bos_id: int | None = None) -> None:
    """Writes the three files into `folder`, which transformers' `AutoModelForCausalLM` then reads; of a classifier two,
    for `AutoModelForSequenceClassification`.

    One tensor at a time is copied to the CPU. `eos_id`: the token at which writing, or an answer, ends, and by which
    transformers pads texts for a classifier; `bos_id`: that a text begins with, by default the same, as GPT-2 has it.
    OSError where the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": eos_id if bos_id is None else bos_id, "eos_token_id": eos_id}
    labels = labels_of(model)
    if labels is None:
        _write_json(folder / "config.json", _config(model, LANGUAGE_MODEL) | ends)
        _write_json(folder / "generation_config.json", ends)
    else:
        task = task_of(labels)
        padding = {"pad_token_id": _padding(task, eos_id, bos_id)}
        answers = {"problem_type": PROBLEM_TYPES[task], **label_fields(labels)}
        _write_json(folder / "config.json", _config(model, CLASSIFIER) | ends | padding | answers)
    write_tensors(folder / "model.safetensors", _stored_tensors(model))


def _padding(task: Task, eos_id: int | None, bos_id: int | None) -> int | None:
    """The token by which transformers is to pad: it reads a text at the last one that is another, and, where it knows
    none, one text at a time.

    A text of a class ends with its words. An answer ends with `eos_id`, where its reward is read: that is no padding.
    """
    if task == "classification":
        return eos_id
    return None if bos_id == eos_id else bos_id


def load_model(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    context: int | None = None,
    vocab_size: int | None = None,
    dropout: float | None = None,
) -> GPT:
    """The GPT-2 in a Hugging Face folder or in nanoGPT's ckpt.pt, a GPTClassifier where that is one, in float32 on
    `device`, in training mode as a new module is.

    Reads model.safetensors or pytorch_model.bin (with `weights_only`), whole or in shards, with or without the
    prefix `transformer.`, in any floating-point type. The weights are in memory once: the model is made without
    storage and filled tensor by tensor. ModelError names what is missing, unexpected, wrongly shaped or damaged.

    context:    fewer positions than the model has: its first ones
    vocab_size: more tokens than the model has: the new rows, of an untied head too, begin at the mean of the others
    dropout:    in place of the file's
    """
    stored = _open(path, dropout)
    return cast(GPT, load_stored(stored, _changed(stored.shape, context, vocab_size), device))


def read_shape(path: Path, *, dropout: float | None = None) -> GPTShape:
    """The shape of the model that `load_model` would read there, without its weights."""
    return _open(path, dropout).shape


def read_labels(path: Path) -> tuple[str, ...] | None:
    """The labels of the classifier that `load_model` would read there; None where it is a language model."""
    if is_nanogpt(path):
        return None
    config = read_json(path / "config.json")
    with _said_of(path / "config.json"):
        return labels_from_config(config)


def shape_from_config(config: Mapping[str, Any], *, dropout: float | None = None) -> GPTShape:
    """The shape that a config.json of GPT-2 describes; ModelError names the field that this model cannot follow.

    `dropout` takes the place of the config's three, which otherwise have to be equal.
    """
    for name, able in FIXED.items():
        _one_of(config, name, able, default=None if name == "model_type" else able[0])
    activation = ACTIVATIONS[_one_of(config, "activation_function", tuple(ACTIVATIONS), default="gelu_new")]
    context = config.get("n_positions", config.get("n_ctx"))
    sizes = {"context": context, **{name: config.get(name) for name in ("vocab_size", "n_embd", "n_layer", "n_head")}}
    for name, value in sizes.items():
        _whole_number(value, "n_positions" if name == "context" else name)
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ModelError(f"n_inner = {config['n_inner']}: this GPT-2's is 4 · n_embd = {4 * sizes['n_embd']}")
    try:
        return GPTShape(
            **sizes,
            dropout=_common_dropout(config) if dropout is None else dropout,
            tie_head=config.get("tie_word_embeddings", True),
            layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
            activation=activation,
        )
    except ValueError as error:
        raise ModelError(str(error)) from None


def labels_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels that a config.json of GPT-2 gives a classifier, in the order of their ids; None for a language model.

    ModelError where its head neither chooses one of two or more classes nor gives one number, a reward.
    """
    if CLASSIFIER not in (config.get("architectures") or ()):
        return None
    if config.get("id2label") is None:  # as transformers leaves it where classes have no names
        numbered = numbered_labels(_whole_number(config.get("num_labels", 2), "num_labels"))
        config = {**config, **label_fields(numbered)}
    labels = listed_labels(config)
    _one_of(config, "problem_type", (None, PROBLEM_TYPES[task_of(labels)]), default=None)
    return labels


def listed_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a config's id2label in the order of their ids; ModelError where they are no classes."""
    names = config["id2label"]
    if not isinstance(names, Mapping) or names.keys() != {str(number) for number in range(len(names))}:
        raise ModelError(f"id2label = {names}: a name for each id is wanted, from 0 on")
    try:
        return checked_labels([str(names[str(number)]) for number in range(len(names))])
    except ValueError as error:
        raise ModelError(f"id2label: {error}") from None


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """A config's fields for these labels."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def numbered_labels(classes: int) -> tuple[str, ...]:
    """How transformers calls classes that have no names."""
    return tuple(f"LABEL_{number}" for number in range(classes))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a .safetensors file, holding one tensor at a time on the CPU (safetensors' own save holds all).

    A tensor may be on any device and need not be contiguous. OSError where the disk does not take it.
    """
    # Largest items first, as safetensors orders them, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            out.write(flat.view(torch.uint8).numpy().data)


def _stored_tensors(model: GPT) -> dict[str, Tensor]:
    """The model's parameters by the names and in the layout of the file; views, nothing is copied."""
    return {
        name if name.startswith(HEADS) else f"transformer.{name}": _turned(name, parameter.detach())
        for name, parameter in model.named_parameters()  # names a shared parameter once, as wte
    }


def _turned(name: str, tensor: Tensor) -> Tensor:
    """(out, in) ↔ (in, out) for the weights that Conv1D turns around."""
    return tensor.t() if name.endswith(CONV1D) else tensor


def _config(model: GPT, architecture: str) -> dict[str, Any]:
    shape = model.shape
    return {
        "architectures": [architecture],
        "vocab_size": shape.vocab_size,
        "n_positions": shape.context,
        "n_ctx": shape.context,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_inner": None,
        "layer_norm_epsilon": shape.layer_norm_epsilon,
        "initializer_range": 0.02,
        "activation_function": shape.activation,
        **dict.fromkeys(DROPOUTS, shape.dropout),
        "tie_word_embeddings": shape.tie_head,
        "torch_dtype": str(model.wte.weight.dtype).removeprefix("torch."),
        "use_cache": True,
        **{name: able[0] for name, able in FIXED.items()},
    }


def _open(path: Path, dropout: float | None) -> Stored[GPTShape]:
    if is_nanogpt(path):
        stored = open_nanogpt(path)
        return stored if dropout is None else replace(stored, shape=replace(stored.shape, dropout=dropout))
    config = read_json(path / "config.json")
    with _said_of(path / "config.json"):
        shape, labels = shape_from_config(config, dropout=dropout), labels_from_config(config)
    return Stored(path, "config.json", shape, read_folder(path), _turned, labels)


@contextmanager
def _said_of(file: Path) -> Iterator[None]:
    """A ModelError names the file first."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def _changed(shape: GPTShape, context: int | None, vocab_size: int | None) -> GPTShape:
    """The shape with fewer positions and more tokens; ModelError where it would be the other way round."""
    context = shape.context if context is None else context
    vocab_size = shape.vocab_size if vocab_size is None else vocab_size
    if not 1 <= context <= shape.context:
        raise ModelError(f"context = {context:,}: the model has {shape.context:,} positions; it can only be shortened")
    if vocab_size < shape.vocab_size:
        raise ModelError(
            f"vocab_size = {vocab_size:,}: the model has {shape.vocab_size:,} tokens; it can only be extended"
        )
    return replace(shape, context=context, vocab_size=vocab_size)


def _one_of(config: Mapping[str, Any], name: str, able: tuple[Any, ...], *, default: Any) -> Any:
    value = config.get(name, default)
    if value not in able:
        raise ModelError(f"{name} = {value!r}: this GPT-2 can only do {' or '.join(map(repr, able))}")
    return value


def _whole_number(value: Any, name: str) -> int:
    if not isinstance(value, int):
        raise ModelError(f"{name} = {value!r}: a whole number is wanted")
    return value


def _common_dropout(config: Mapping[str, Any]) -> float:
    dropouts = {name: config.get(name, 0.1) for name in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        listed = ", ".join(f"{name} = {value}" for name, value in dropouts.items())
        raise ModelError(f"{listed}: this GPT-2 has one dropout; make them equal (they matter in training alone)")
    return next(iter(dropouts.values()))


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
