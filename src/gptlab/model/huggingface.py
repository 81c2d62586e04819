"""Hugging Face's GPT-2 format, read and written: config.json, generation_config.json, model.safetensors.

transformers keeps the linear weights of the blocks as Conv1D does, (in, out); here they are (out, in), so they
are transposed on the way in and out. A tied head is stored once, as wte. The format of a .safetensors file:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.gpt import GPT, Activation, GPTShape
from gptlab.model.nanogpt import is_nanogpt, open_nanogpt
from gptlab.model.weights import Stored, fill, read_folder, read_json, start_at_mean

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""The weights that Hugging Face's files hold as (in, out)."""

ACTIVATIONS: dict[str, Activation] = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}
"""The activation_function of config.json → the shape's."""

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
    """Writes the three files into `folder`, which transformers' `AutoModelForCausalLM` then reads.

    One tensor at a time is copied to the CPU. `eos_id`: the token at which writing ends; `bos_id`: that a text begins
    with, by default the same, as GPT-2 has it. OSError where the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": eos_id if bos_id is None else bos_id, "eos_token_id": eos_id}
    _write_json(folder / "config.json", _config(model) | ends)
    _write_json(folder / "generation_config.json", ends)
    write_tensors(folder / "model.safetensors", _stored_tensors(model))


def load_model(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    context: int | None = None,
    vocab_size: int | None = None,
    dropout: float | None = None,
) -> GPT:
    """The GPT-2 in a Hugging Face folder or in nanoGPT's ckpt.pt, in float32 on `device`, in training mode as a new
    module is.

    Reads model.safetensors or pytorch_model.bin (with `weights_only`), whole or in shards, with or without the
    prefix `transformer.`, in any floating-point type. The weights are in memory once: the model is made without
    storage and filled tensor by tensor. ModelError names what is missing, unexpected, wrongly shaped or damaged.

    context:    fewer positions than the model has: its first ones
    vocab_size: more tokens than the model has: the new rows, of an untied head too, begin at the mean of the others
    dropout:    in place of the file's
    """
    stored = _open(path, dropout)
    shape = _changed(stored.shape, context, vocab_size)
    with torch.device("meta"):
        model = GPT(shape)
    model.to_empty(device=device)
    if shape.tie_head:
        model.lm_head.weight = model.wte.weight  # to_empty gives each its own storage
    fill(model, stored)
    for table in {model.wte.weight, model.lm_head.weight}:  # one of them, where they are tied
        start_at_mean(table, stored.shape.vocab_size)
    return model


def read_shape(path: Path, *, dropout: float | None = None) -> GPTShape:
    """The shape of the model that `load_model` would read there, without its weights."""
    return _open(path, dropout).shape


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
        if not isinstance(value, int):
            raise ModelError(f"{'n_positions' if name == 'context' else name} = {value!r}: a whole number is wanted")
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
        name if name == "lm_head.weight" else f"transformer.{name}": _turned(name, parameter.detach())
        for name, parameter in model.named_parameters()  # names a shared parameter once, as wte
    }


def _turned(name: str, tensor: Tensor) -> Tensor:
    """(out, in) ↔ (in, out) for the weights that Conv1D turns around."""
    return tensor.t() if name.endswith(CONV1D) else tensor


def _config(model: GPT) -> dict[str, Any]:
    shape = model.shape
    return {
        "architectures": ["GPT2LMHeadModel"],
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


def _open(path: Path, dropout: float | None) -> Stored:
    if is_nanogpt(path):
        stored = open_nanogpt(path)
        return stored if dropout is None else replace(stored, shape=replace(stored.shape, dropout=dropout))
    config = read_json(path / "config.json")
    try:
        shape = shape_from_config(config, dropout=dropout)
    except ModelError as error:
        raise ModelError(f"{path / 'config.json'}: {error}") from None
    return Stored(path, "config.json", shape, read_folder(path), _turned)


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


def _common_dropout(config: Mapping[str, Any]) -> float:
    dropouts = {name: config.get(name, 0.1) for name in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        listed = ", ".join(f"{name} = {value}" for name, value in dropouts.items())
        raise ModelError(f"{listed}: this GPT-2 has one dropout; make them equal (they matter in training alone)")
    return next(iter(dropouts.values()))


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
