"""nanoGPT's checkpoint, ckpt.pt, read as a GPT-2: https://github.com/karpathy/nanoGPT (train.py writes it).

It is a dict by torch.save: "model" (the state dict, its names with "_orig_mod." in front where torch.compile made it),
"model_args", and what training goes on from: the optimizer's state, the step, the settings. The names are GPT-2's,
weights are (out, in) as here, the head is the embedding. With bias = False no layer has a bias; zeros say the same.

The GELU is the exact one since 2023-05-17 (commit 594068e), GPT-2's before. A file does not say which: one without
"bias" in model_args (added 2023-01-27) is older, all others are taken for newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import ModelError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.meta import without_memory
from gptlab.model.weights import Stored, drain, read_pickle

CHECKPOINT = "ckpt.pt"

COMPILED = "_orig_mod."
"""What torch.compile puts before a name."""


def is_nanogpt(path: Path) -> bool:
    """Whether nanoGPT's reader is the one for this path: a .pt file, or a folder with ckpt.pt and no config.json."""
    if path.is_dir():
        return (path / CHECKPOINT).is_file() and not (path / "config.json").exists()
    return path.suffix == ".pt" and path.is_file()


def open_nanogpt(path: Path) -> Stored:
    """The model in a ckpt.pt, or in the folder of one; the file is mapped, and of the optimizer nothing is read.

    ModelError where it is no checkpoint of nanoGPT's, damaged, or a pickle with code in it.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    checkpoint = read_pickle(file)
    parts = [checkpoint.get(part) for part in ("model", "model_args")] if isinstance(checkpoint, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ModelError(f'{file}: is no checkpoint of nanoGPT: that is a dict with "model" and "model_args"')
    arguments = checkpoint["model_args"]
    try:
        shape = shape_from_arguments(arguments)
    except ModelError as error:
        raise ModelError(f"{file}: model_args: {error}") from None
    weights = {str(name).removeprefix(COMPILED): tensor for name, tensor in checkpoint["model"].items()}
    if not arguments.get("bias", True):
        weights = _zero_biases(shape) | weights
    return Stored(file, "its model_args", shape, drain(weights, f"{file}: model"), lambda _, tensor: tensor)


def shape_from_arguments(arguments: Mapping[str, Any]) -> GPTShape:
    """The shape that nanoGPT's model_args describe; ModelError names what is missing or wrong."""
    names = {"block_size": "context", **{name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}}
    for name in names:
        if not isinstance(arguments.get(name), int):
            raise ModelError(f"{name} = {arguments.get(name)!r}: a whole number is wanted")
    try:
        return GPTShape(
            **{ours: arguments[name] for name, ours in names.items()},
            dropout=arguments.get("dropout", 0.0),
            activation="gelu" if "bias" in arguments else "gelu_new",
        )
    except ValueError as error:
        raise ModelError(str(error)) from None


def _zero_biases(shape: GPTShape) -> dict[str, Tensor]:
    with without_memory():
        parameters = GPT(shape).named_parameters()
    return {f"transformer.{name}": torch.zeros(p.shape) for name, p in parameters if name.endswith(".bias")}
