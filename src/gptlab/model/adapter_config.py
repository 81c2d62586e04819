"""PEFT's adapter_config.json: what it says of an adapter, and the `[lora]` that says the same.

The fields are those of PEFT's LoraConfig (peft/tuners/lora/config.py), as of 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from gptlab.errors import ModelError
from gptlab.model.classifier import is_classifier
from gptlab.model.gpt import GPT
from gptlab.model.lora import LAYER_NORMS, LoraSettings, NewRows, linear_layers
from gptlab.model.weights import tied, token_tables
from gptlab.settings import build

TABLES = ("wte", "lm_head")

LANGUAGE_MODEL, CLASSIFIER = "CAUSAL_LM", "SEQ_CLS"
"""PEFT's tasks."""

CLASSIFIER_HEADS = ("score", "classifier")
"""What PEFT learns and stores of any classifier; a GPT-2 has the first."""

ABLE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (LANGUAGE_MODEL, CLASSIFIER, None),
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


def make_config(model: GPT, settings: LoraSettings, *, base: str) -> dict[str, Any]:
    """The config of a model's adapter; `base` is the model that it adds to, as PEFT is to find it."""
    learned_apart = {
        name: list(range(model.shape.vocab_size - len(layer.rows), model.shape.vocab_size))
        for name, layer in token_tables(model).items()  # PEFT follows a tie
        if isinstance(layer, NewRows)
    }
    saved = _modules_to_save(model, settings)
    return {
        "peft_type": "LORA",
        "task_type": CLASSIFIER if is_classifier(model) else LANGUAGE_MODEL,
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
        "ensure_weight_tying": tied(model) and "wte" in saved,
        "trainable_token_indices": learned_apart or None,
        "base_model_name_or_path": base,
    }


def _modules_to_save(model: GPT, settings: LoraSettings) -> list[str]:
    names = ["score"] if is_classifier(model) else []
    for name in settings.also_train:
        if name == "layer_norms":
            names += LAYER_NORMS
        elif name in TABLES and tied(model):
            names += TABLES  # PEFT would untie an embedding that is named alone
        elif name != "biases":
            names.append(name)
    return list(dict.fromkeys(names))


def check_config(config: Mapping[str, Any], model: GPT) -> None:
    """ModelError where this LoRA cannot do what the config says, or where it is for another kind of model."""
    for name, able in ABLE.items():
        if (value := config.get(name, None if name == "peft_type" else able[0])) not in able:
            raise ModelError(f"{name} = {value!r}: this LoRA can only do {' or '.join(map(repr, able))}")
    for name, value in config.items():
        if value and name not in UNDERSTOOD:
            raise ModelError(f"{name} = {value!r}: is a variant of LoRA that there is not here")
    task, other = config.get("task_type"), LANGUAGE_MODEL if is_classifier(model) else CLASSIFIER
    if task == other:
        names = {CLASSIFIER: "classifier", LANGUAGE_MODEL: "language model"}
        raise ModelError(f"task_type = {task!r}: is the adapter of a {names[task]}, which the model is not")


def settings_from_config(model: GPT, config: Mapping[str, Any], stored: Collection[str]) -> LoraSettings:
    """The settings that make the same adapter on a plain model; `stored`: the names of the adapter's tensors.

    ModelError, or RecipeError for a value that `[lora]` has not.
    """
    saved = [name for name in saved_modules(config) if not (is_classifier(model) and name in CLASSIFIER_HEADS)]
    # Where a vocabulary was extended, PEFT stores the tables unasked.
    saved += [table for table in TABLES if f"{table}.weight" in stored and table not in saved]
    if tied(model) and "wte" in saved:
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


def saved_modules(config: Mapping[str, Any]) -> list[str]:
    """The modules that are learned whole, each once."""
    names = config.get("modules_to_save") or ()
    return list(dict.fromkeys(str(name).removeprefix("transformer.") for name in names))


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


def first_new_row(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """The id from which on rows are learned apart, None where none are; ModelError where they are not the last ones."""
    lists = learned_rows(config)
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


def learned_rows(config: Mapping[str, Any]) -> list[list[int]]:
    """The ids whose rows are learned apart, of each table for which there are any."""
    indices = config.get("trainable_token_indices") or []
    return [rows for rows in (indices.values() if isinstance(indices, dict) else [indices]) if rows]
