"""An RNN's folder: config.json and model.safetensors. Hugging Face has no type for it, so model_type is our own.

The weights have torch's names and layout: rnn.weight_ih_l0 (gates · n_hidden, n_embd), …; a tied head is stored once,
as wte. config.json has GPT-2's names where they mean the same, and beside them n_hidden and cell; that of a classifier
has also id2label and label2id, as has a reward model's, with one label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.classifier import labels_of
from gptlab.model.huggingface import label_fields, listed_labels, write_tensors
from gptlab.model.rnn import RNN, RNNShape
from gptlab.model.weights import Stored, load_stored, read_folder, read_json

MODEL_TYPE = "gptlab-rnn"

FIELDS = {
    "vocab_size": int, "context": int, "n_layer": int, "n_embd": int, "n_hidden": int,
    "cell": str, "dropout": float, "tie_head": bool,
}  # fmt: skip
"""The shape's, and their types."""

HUGGING_FACES = {"context": "n_positions", "tie_head": "tie_word_embeddings"}
"""What config.json calls otherwise, by the shape's names."""


def save_rnn(model: RNN, folder: Path, *, eos_id: int | None = None, bos_id: int | None = None) -> None:
    """Writes the two files into `folder`.

    `eos_id`: the token at which writing ends; `bos_id`: that a text begins with, by default the same. OSError where the
    disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        "architectures": [type(model).__name__],
        **{HUGGING_FACES.get(name, name): getattr(model.shape, name) for name in FIELDS},
        "torch_dtype": str(model.wte.weight.dtype).removeprefix("torch."),
        "bos_token_id": eos_id if bos_id is None else bos_id,
        "eos_token_id": eos_id,
    }
    if labels := labels_of(model):
        config |= label_fields(labels)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()))  # names a tied head once, as wte


def load_rnn(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    context: int | None = None,
    vocab_size: int | None = None,
    dropout: float | None = None,
) -> RNN:
    """The RNN in a folder, an RNNClassifier where that is one, in float32 on `device`, in training mode as a new module
    is. ModelError names what is missing, unexpected, wrongly shaped or damaged.

    context:    in place of the file's, longer or shorter: an RNN has no positions
    vocab_size: more tokens than the model has: the new rows, of an untied head too, begin at the mean of the others
    dropout:    in place of the file's
    """
    stored = _open(path, dropout)
    known = stored.shape.vocab_size
    if vocab_size is not None and vocab_size < known:
        raise ModelError(f"vocab_size = {vocab_size:,}: the model has {known:,} tokens; it can only be extended")
    shape = replace(stored.shape, context=context or stored.shape.context, vocab_size=vocab_size or known)
    return cast(RNN, load_stored(stored, shape, device))


def read_rnn_shape(path: Path, *, dropout: float | None = None) -> RNNShape:
    """The shape of the RNN that `load_rnn` would read there, without its weights."""
    return _open(path, dropout).shape


def read_rnn_labels(path: Path) -> tuple[str, ...] | None:
    """The labels of the classifier that `load_rnn` would read there; None where it is a language model."""
    return _open(path, None).labels


def is_rnn(path: Path) -> bool:
    """Whether there is a folder with an RNN; ModelError where its config.json is damaged."""
    config = path / "config.json"
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def _open(path: Path, dropout: float | None) -> Stored[RNNShape]:
    file = path / "config.json"
    config = read_json(file)
    try:
        if config.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type = {config.get('model_type')!r}: an RNN's is {MODEL_TYPE!r}")
        fields = {name: _field(config, HUGGING_FACES.get(name, name), kind) for name, kind in FIELDS.items()}
        shape = RNNShape(**fields)
        labels = None if config.get("id2label") is None else listed_labels(config)
    except (ValueError, ModelError) as error:
        raise ModelError(f"{file}: {error}") from None
    if dropout is not None:
        shape = replace(shape, dropout=dropout)
    return Stored(path, "config.json", shape, read_folder(path), _as_it_is, labels)


def _field(config: Mapping[str, Any], name: str, kind: type) -> Any:
    value = config.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        wanted = {int: "a whole number", float: "a fraction", str: "a name", bool: "true or false"}[kind]
        raise ValueError(f"{name} = {value!r}: wanted {wanted}")
    return value


def _as_it_is(name: str, tensor: Tensor) -> Tensor:
    return tensor
