"""Hugging Face's GPT-2 format, read and written: config.json, generation_config.json, model.safetensors.

transformers keeps the linear weights of the blocks as Conv1D does, (in, out); here they are (out, in), so they
are transposed on the way in and out. A tied head is stored once, as wte. The format of a .safetensors file:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.gpt import GPT, GPTShape

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""The weights that Hugging Face's files hold as (in, out)."""

MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")
"""The causal mask, which old files hold among the weights."""

FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
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


def save_model(model: GPT, folder: Path, *, eos_id: int | None = None) -> None:
    """Writes the three files into `folder`, which transformers' `AutoModelForCausalLM` then reads.

    One tensor at a time is copied to the CPU. `eos_id`: the token that ends a text (GPT-2 also begins with it).
    OSError where the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": eos_id, "eos_token_id": eos_id}
    _write_json(folder / "config.json", _config(model) | ends)
    _write_json(folder / "generation_config.json", ends)
    write_tensors(folder / "model.safetensors", _stored_tensors(model))


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> GPT:
    """The GPT-2 in a Hugging Face folder, in float32 on `device`, in training mode as a new module is.

    Reads model.safetensors or pytorch_model.bin (with `weights_only`), whole or in shards, with or without the
    prefix `transformer.`, in any floating-point type. The weights are in memory once: the model is made without
    storage and filled tensor by tensor. ModelError names what is missing, unexpected, wrongly shaped or damaged.
    """
    config = _read_json(folder / "config.json")
    try:
        shape = shape_from_config(config)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    with torch.device("meta"):
        model = GPT(shape)
    model.to_empty(device=device)
    if shape.tie_head:
        model.lm_head.weight = model.wte.weight  # to_empty gives each its own storage
    _fill(model, folder)
    return model


def shape_from_config(config: Mapping[str, Any]) -> GPTShape:
    """The shape that a config.json of GPT-2 describes; ModelError names the field that this model cannot follow."""
    for name, able in FIXED.items():
        value = config.get(name, able[0] if name != "model_type" else None)
        if value not in able:
            raise ModelError(f"{name} = {value!r}: this GPT-2 can only do {' or '.join(map(repr, able))}")
    context = config.get("n_positions", config.get("n_ctx"))
    sizes = {"context": context, **{name: config.get(name) for name in ("vocab_size", "n_embd", "n_layer", "n_head")}}
    for name, value in sizes.items():
        if not isinstance(value, int):
            raise ModelError(f"{'n_positions' if name == 'context' else name} = {value!r}: a whole number is wanted")
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ModelError(f"n_inner = {config['n_inner']}: this GPT-2's is 4 · n_embd = {4 * sizes['n_embd']}")
    dropouts = {name: config.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(dropouts.values())) > 1:
        listed = ", ".join(f"{name} = {value}" for name, value in dropouts.items())
        raise ModelError(f"{listed}: this GPT-2 has one dropout; make them equal (they matter in training alone)")
    try:
        return GPTShape(
            **sizes,
            dropout=dropouts["resid_pdrop"],
            tie_head=config.get("tie_word_embeddings", True),
            layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
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
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), shape.dropout),
        "tie_word_embeddings": shape.tie_head,
        "torch_dtype": str(model.wte.weight.dtype).removeprefix("torch."),
        "use_cache": True,
        **{name: able[0] for name, able in FIXED.items()},
    }


@torch.no_grad()
def _fill(model: GPT, folder: Path) -> None:
    """Copies the folder's tensors into the model's parameters; ModelError names everything that does not fit."""
    wanted = dict(model.named_parameters())
    missing, wrong = set(wanted), []
    tied_head = None
    for stored_name, tensor in _read_tensors(folder):
        name = stored_name.removeprefix("transformer.")
        if name.endswith(MASK_BUFFERS):
            continue
        if name == "lm_head.weight" and model.shape.tie_head:
            tied_head = tensor
            continue
        parameter, turned = wanted.get(name), _turned(name, tensor) if tensor.dim() == 2 else tensor
        if parameter is None:
            wrong.append(f"unexpected {stored_name}")
        elif parameter.shape != turned.shape or not turned.is_floating_point():
            transposed = _turned(name, parameter) if parameter.dim() == 2 else parameter
            wrong.append(f"{stored_name} is {_kind(tensor)}, wanted {_kind(transposed)}")
        else:
            parameter.copy_(turned)
        missing.discard(name)
    if not missing and not wrong and tied_head is not None and not _same(tied_head, model.wte.weight):
        wrong.append("lm_head.weight is not wte.weight, though config.json ties them (tie_word_embeddings)")
    wrong = [f"missing {name}" for name in sorted(missing)] + wrong
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ModelError(f"{folder}: the weights do not fit config.json: {'; '.join(wrong[:8])}{more}")


def _same(stored: Tensor, weight: Tensor) -> bool:
    return stored.shape == weight.shape and torch.equal(stored.to(weight), weight)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt", device="cpu") as stored:
                    for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                        yield name, stored.get_tensor(name)
            else:  # written before 2020 a file is no zip archive, and cannot be mapped
                yield from torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file)).items()
        except FileNotFoundError:
            raise ModelError(f"{file}: is missing, though the index of its shards names it") from None
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            raise ModelError(f"{file}: cannot be read, it is damaged or no file of weights: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / part for part in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    raise ModelError(f"{folder}: has no weights: wanted {' or '.join(names)} (or the index of its shards)")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); a model folder has a config.json") from error
    except ValueError as error:
        raise ModelError(f"{file}: is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: is not a JSON object")
    return tree


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
