"""PEFT's folder of an adapter, read and written: adapter_config.json and adapter_model.safetensors; beside them, of a
classifier or a reward model, labels.json: PEFT has no place for the names of classes.

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
from gptlab.model.adapter_config import (
    CLASSIFIER,
    TABLES,
    check_config,
    first_new_row,
    learned_rows,
    make_config,
    saved_modules,
    settings_from_config,
)
from gptlab.model.classifier import HEADS, checked_labels, labels_of
from gptlab.model.gpt import GPT
from gptlab.model.huggingface import CONV1D, numbered_labels, write_tensors
from gptlab.model.lora import adapter_parameters, add_lora, lora_settings, train_new_rows
from gptlab.model.rnn import RNN
from gptlab.model.weights import drain, read_json, read_pickle, tied

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LABELS = "labels.json"
PREFIX = "base_model.model."
NEW_ROWS = "token_adapter.trainable_tokens_delta"

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
    return max([*sizes, *(rows[-1] + 1 for rows in learned_rows(read_json(folder / CONFIG)))], default=None)


def adapter_labels(folder: Path) -> tuple[str, ...] | None:
    """The labels of a classifier's adapter, in the order of its logits, a reward model's one; None for a language
    model's.

    Where labels.json is missing, as it is beside PEFT's own, they are numbered as transformers does. ModelError where
    they cannot be read.
    """
    config, file = read_json(folder / CONFIG), folder / LABELS
    task = config.get("task_type")
    if task is None and "score" in saved_modules(config):
        task = CLASSIFIER  # PEFT was only told to save the head, as TRL advises for reward models
    if task != CLASSIFIER:
        return None
    if file.is_file():
        labels = read_json(file).get("labels")
    else:
        labels = list(numbered_labels(len(_read_tensors(folder).get("score.weight", ()))))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{file}: labels = {labels!r}: a list of names is wanted")
    try:
        return checked_labels(labels)
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from None


def save_adapter(model: GPT | RNN, folder: Path, *, base: str) -> None:
    """Writes the adapter of a model that has one, which PEFT's `PeftModel.from_pretrained` then reads.

    `base`: the model that it adds to, as PEFT is to find it. Where the vocabulary was extended, that model's must be as
    large before PEFT reads this (`resize_token_embeddings`). ValueError for a plain model, OSError where the disk does
    not take it.
    """
    settings = lora_settings(model)
    if settings is None or not isinstance(model, GPT):
        raise ValueError("a plain model has no adapter to save")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, make_config(model, settings, base=base))
    if (labels := labels_of(model)) is not None:
        _write_json(folder / LABELS, {"labels": labels})
    tensors = _stored(model)
    if tied(model) and "wte.weight" in tensors:
        tensors["lm_head.weight"] = tensors["wte.weight"]
    write_tensors(
        folder / TENSORS,
        {
            f"{PREFIX}{name}" if name.startswith(HEADS) else f"{PREFIX}transformer.{name}": tensor
            for name, tensor in tensors.items()
        },
    )


def load_adapter(model: GPT | RNN, folder: Path) -> None:
    """Adds the adapter in a folder to the plain model that it was trained on, to be merged or trained on.

    A classifier's is added to a classifier with its labels (`as_classifier`), whose head it fills.

    Reads what `save_adapter` and PEFT write for GPT-2; a pickle (adapter_model.bin) with `weights_only`. An output
    layer that PEFT learned apart from the embedding it was tied to is untied. Draws no random numbers. ModelError
    names what this LoRA cannot do, and tensors that are missing, unexpected or wrongly shaped; after that the model is
    of no use.
    """
    config, stored = read_json(folder / CONFIG), _read_tensors(folder)
    if not isinstance(model, GPT):
        raise ModelError(f"{folder}: is the adapter of a GPT, and its base is an RNN")
    try:
        check_config(config, model)
        first = first_new_row(config, model.shape.vocab_size)
        if tied(model) and _unties(config, stored):
            model.shape = replace(model.shape, tie_head=False)
            model.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())
        add_lora(model, settings_from_config(model, config, stored), initialize=False)
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


def _unties(config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> bool:
    """Whether PEFT learned embedding or output layer apart from the other, to which it was tied."""
    tables = [stored[name] for table in TABLES if (name := f"{table}.weight") in stored]
    if len(tables) == 2:
        return not torch.equal(*tables)
    return not set(TABLES).isdisjoint(saved_modules(config))


@torch.no_grad()
def _fill(model: GPT, config: Mapping[str, Any], stored: dict[str, Tensor]) -> list[str]:
    """Copies the stored tensors into the adapted model; what is wrong with them."""
    if tied(model):
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
    return name == f"lm_head.{NEW_ROWS}" and len(learned_rows(config)) < 2


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
