"""PEFT's folder of an adapter, read and written: adapter_config.json and adapter_model.safetensors.

What is learned stands in it under PEFT's names: A and B of every target, biases, modules_to_save, and the rows of new
tokens (trainable_token_indices). A and B lie as they do here; a linear weight that is learned whole is turned round, as
transformers' Conv1D has it. The format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gptlab.errors import ModelError, UserError
from gptlab.model.gpt import GPT
from gptlab.model.huggingface import CONV1D, write_tensors
from gptlab.model.lora import (
    LAYER_NORMS,
    LoraSettings,
    NewRows,
    adapter_parameters,
    add_lora,
    linear_layers,
    lora_settings,
    train_new_rows,
)
from gptlab.model.weights import drain, read_json, read_pickle
from gptlab.settings import build

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
NEW_ROWS = "token_adapter.trainable_tokens_delta"
TABLES = ("wte", "lm_head")

ABLE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}
"""Fields that have only these answers here. Other ways to begin (PiSSA, OLoRA, …) change the base's weights too."""

UNDERSTOOD = {
    *ABLE, "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
    "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
    # without effect on a trained adapter, or on this model:
    "auto_mapping", "eva_config", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_version",
    "qalora_group_size", "revision",
}  # fmt: skip
"""What other fields say belongs to variants of LoRA that there are not here, and an adapter that has one is refused."""

COPIES = (".original_module.bias", ".modules_to_save.bias", ".token_adapter.base_layer.weight")
"""What PEFT also writes: what is frozen, or stands in the file under another name."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, to be read with the model that it was trained on."""
    return (folder / CONFIG).is_file()


def adapter_base(folder: Path) -> str:
    """The name or folder of the model that the adapter was trained on; ModelError where it names none."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / CONFIG}: base_model_name_or_path = {base!r}: the name of a model is wanted")
    return base


def adapter_vocab_size(folder: Path) -> int | None:
    """The tokens that the adapter's model must have, where the adapter says so: its base may have fewer, and is then to
    be extended before `load_adapter`."""
    tables = tuple(f"{table}.{weight}" for table in TABLES for weight in ("weight", "token_adapter.base_layer.weight"))
    sizes = [len(tensor) for name, tensor in _read_tensors(folder).items() if name in tables]
    return max([*sizes, *(rows[-1] + 1 for rows in _learned_rows(read_json(folder / CONFIG)))], default=None)


def save_adapter(model: GPT, folder: Path, *, base: str) -> None:
    """Writes the adapter of a model that has one, which PEFT's `PeftModel.from_pretrained` then reads.

    `base`: the model that it adds to, as PEFT is to find it. Where the vocabulary was extended, that model's must be as
    large before PEFT reads this (`resize_token_embeddings`). ValueError for a plain model, OSError where the disk does
    not take it.
    """
    settings = lora_settings(model)
    if settings is None:
        raise ValueError("a plain model has no adapter to save")
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_config(model, settings) | {"base_model_name_or_path": base}, indent=2)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    tensors = _stored(model)
    if model.shape.tie_head and "wte.weight" in tensors:
        tensors["lm_head.weight"] = tensors["wte.weight"]
    write_tensors(
        folder / TENSORS,
        {
            f"{PREFIX}{name}" if name.startswith("lm_head.") else f"{PREFIX}transformer.{name}": tensor
            for name, tensor in tensors.items()
        },
    )


def load_adapter(model: GPT, folder: Path) -> None:
    """Adds the adapter in a folder to the plain model that it was trained on, to be merged or trained on.

    Reads what `save_adapter` and PEFT write for GPT-2; a pickle (adapter_model.bin) with `weights_only`. An output
    layer that PEFT learned apart from the embedding it was tied to is untied. Draws no random numbers. ModelError
    names what this LoRA cannot do, and tensors that are missing, unexpected or wrongly shaped; after that the model is
    of no use.
    """
    config, stored = read_json(folder / CONFIG), _read_tensors(folder)
    try:
        _refuse_variants(config)
        first = _first_new_row(config, model.shape.vocab_size)
        if model.shape.tie_head and _unties(config, stored):
            model.shape = replace(model.shape, tie_head=False)
            model.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())
        add_lora(model, _settings(model, config, stored), initialize=False)
    except UserError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from None
    if first is not None:
        train_new_rows(model, first)
    if wrong := _fill(model, config, stored):
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ModelError(f"{folder}: the adapter does not fit the model: {'; '.join(wrong[:8])}{more}")


def _stored(model: GPT) -> dict[str, Tensor]:
    """What the adapter stores, by PEFT's names without their prefix and in its layout: views of the parameters."""
    return {
        _peft_name(name): (parameter.t() if name.endswith(CONV1D) else parameter).detach()
        for name, parameter in adapter_parameters(model).items()
    }


def _peft_name(name: str) -> str:
    module, _, last = name.rpartition(".")
    return {"rows": f"{module}.{NEW_ROWS}", "lora_A": f"{name}.weight", "lora_B": f"{name}.weight"}.get(last, name)


def _config(model: GPT, settings: LoraSettings) -> dict[str, Any]:
    learned_apart = {
        name: list(range(model.shape.vocab_size - len(layer.rows), model.shape.vocab_size))
        for name in (TABLES[:1] if model.shape.tie_head else TABLES)  # PEFT follows the tie
        if isinstance(layer := model.get_submodule(name), NewRows)
    }
    saved = _modules_to_save(settings, tied=model.shape.tie_head)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": list(settings.targets),
        "fan_in_fan_out": True,
        "init_lora_weights": True,
        "bias": "all" if "biases" in settings.also_train else "none",
        "modules_to_save": saved or None,
        "ensure_weight_tying": model.shape.tie_head and "wte" in saved,
        "trainable_token_indices": learned_apart or None,
    }


def _modules_to_save(settings: LoraSettings, *, tied: bool) -> list[str]:
    names: list[str] = []
    for name in settings.also_train:
        if name == "layer_norms":
            names += LAYER_NORMS
        elif name in TABLES and tied:
            names += TABLES  # PEFT would untie an embedding that is named alone
        elif name != "biases":
            names.append(name)
    return list(dict.fromkeys(names))


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The stored tensors, by PEFT's names without their prefix."""
    file = folder / TENSORS
    try:
        if file.is_file() or not (folder / PICKLE).is_file():
            tensors = load_file(file)
        else:
            tensors = dict(drain(read_pickle(folder / PICKLE), str(folder / PICKLE)))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read, it is missing, damaged or no file of weights: {error}") from error
    return {name.removeprefix(PREFIX).removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _refuse_variants(config: Mapping[str, Any]) -> None:
    for name, able in ABLE.items():
        if (value := config.get(name, None if name == "peft_type" else able[0])) not in able:
            raise ModelError(f"{name} = {value!r}: this LoRA can only do {' or '.join(map(repr, able))}")
    for name, value in config.items():
        if value and name not in UNDERSTOOD:
            raise ModelError(f"{name} = {value!r}: is a variant of LoRA that there is not here")


def _first_new_row(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """The id from which on rows are learned apart, None where none are."""
    lists = _learned_rows(config)
    if not lists:
        return None
    first, last = lists[0][0], lists[0][-1]
    if any(rows != list(range(first, last + 1)) for rows in lists) or last + 1 < vocab_size:
        raise ModelError(
            f"trainable_token_indices = {lists}: here only the last rows of a vocabulary are learned apart"
        )
    if last >= vocab_size:
        raise ModelError(
            f"trainable_token_indices has token {last}, the model {vocab_size} tokens: extend its vocabulary first"
        )
    return first


def _learned_rows(config: Mapping[str, Any]) -> list[list[int]]:
    """The ids whose rows are learned apart, of each table for which there are any."""
    indices = config.get("trainable_token_indices") or []
    return [rows for rows in (indices.values() if isinstance(indices, dict) else [indices]) if rows]


def _unties(config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> bool:
    """Whether PEFT learned embedding or output layer apart from the other, to which it was tied."""
    tables = [stored[name] for table in TABLES if (name := f"{table}.weight") in stored]
    if len(tables) == 2:
        return not torch.equal(*tables)
    return not set(TABLES).isdisjoint(_saved_modules(config))


def _saved_modules(config: Mapping[str, Any]) -> list[str]:
    names = config.get("modules_to_save") or ()
    return list(dict.fromkeys(str(name).removeprefix("transformer.") for name in names))


def _settings(model: GPT, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> LoraSettings:
    saved = _saved_modules(config)
    # Where a vocabulary was extended, PEFT stores the tables unasked.
    saved += [table for table in TABLES if f"{table}.weight" in stored and table not in saved]
    if model.shape.tie_head and "wte" in saved:
        saved = [name for name in saved if name != "lm_head"]
    also_train = [] if config.get("bias", "none") == "none" else ["biases"]
    if set(LAYER_NORMS) <= set(saved):
        also_train.append("layer_norms")
        saved = [name for name in saved if name not in LAYER_NORMS]
    tree = {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rslora": bool(config.get("use_rslora")),
        "targets": _targets(model, config.get("target_modules")),
        "also_train": also_train + saved,
    }
    return build(LoraSettings, tree, "as [lora]")


def _targets(model: GPT, wanted: object) -> list[str]:
    """PEFT's target_modules: names by their end, or a pattern of whole names."""
    if isinstance(wanted, list):
        return [str(name).removeprefix("transformer.") for name in wanted]
    if not isinstance(wanted, str):
        raise ModelError(f"target_modules = {wanted!r}: a list of names or a pattern is wanted")
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise ModelError(f"target_modules = {wanted!r}: is no pattern: {error}") from None
    return [
        name for name in linear_layers(model) if pattern.fullmatch(f"transformer.{name}") or pattern.fullmatch(name)
    ]


@torch.no_grad()
def _fill(model: GPT, config: Mapping[str, Any], stored: dict[str, Tensor]) -> list[str]:
    """Copies the stored tensors into the adapted model; what is wrong with them."""
    if model.shape.tie_head:
        stored = {re.sub(r"^lm_head\.", "wte.", name): tensor for name, tensor in stored.items()}
    wanted = _stored(model)
    wrong = [f"missing {name}" for name in wanted if name not in stored and not _may_lack(name, config)]
    for name, tensor in stored.items():
        if name not in wanted:
            wrong += [] if name.endswith(COPIES) else [f"unexpected {name}"]
        elif tensor.shape != wanted[name].shape or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            wrong.append(f"{name} is {kind} {tuple(tensor.shape)}, wanted float32 {tuple(wanted[name].shape)}")
        else:
            wanted[name].copy_(tensor)
    return wrong


def _may_lack(name: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT learns less than this LoRA does: only the targets' biases, or new rows of the embedding alone."""
    if name.endswith(".bias"):
        return config.get("bias") == "lora_only" and not name.endswith(".base_layer.bias")
    return name == f"lm_head.{NEW_ROWS}" and len(_learned_rows(config)) < 2
