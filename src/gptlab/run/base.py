"""What an adapter adds to: kept in the run's own base/, found again, and checked by the fingerprint of its weights.

A checkpoint of a LoRA run holds the adapter alone. Beside it base.json says which base it was trained on: `folder`,
relative to the checkpoint, `fingerprint`, and the `context` that the adapter was trained with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from gptlab.errors import CheckpointError, ModelError
from gptlab.model.adapter import adapter_base, is_adapter
from gptlab.run.checkpoint import BASE, write_folder
from gptlab.run.files import read_tree
from gptlab.text.dialogue import TEMPLATE_FILE
from gptlab.text.vocabulary import FILES

WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin", "ckpt.pt")
"""Where weights are, the first that there is; what else lies in the folder is no part of the model."""

KEPT = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
        "pytorch_model*.bin", "pytorch_model.bin.index.json", TEMPLATE_FILE, *FILES)  # fmt: skip


def weights_fingerprint(path: Path) -> str:
    """16 hex digits of the weights in a folder (or of one file): what the adapter's numbers are differences to."""
    files = [path] if path.is_file() else next((found for name in WEIGHTS if (found := sorted(path.glob(name)))), [])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def find_base(adapter: Path, find_model: Callable[[str], Path]) -> Path:
    """The folder of the model that the adapter in a folder was trained on, by base.json, else by PEFT's name for it,
    which `find_model` resolves. ModelError where it is not found, CheckpointError where its weights are others."""
    link = read_tree(adapter / BASE)
    folder = adapter / link["folder"] if link else None
    if folder is None or not folder.is_dir():
        name = adapter_base(adapter)
        try:
            folder = find_model(name)
        except ModelError as error:
            raise ModelError(f"{adapter}: its base model is not there: {error}") from None
    if is_adapter(folder):
        raise ModelError(f"{adapter}: its base {folder} is an adapter too; export that one with --merge first")
    check_base(adapter, folder)
    return folder


def check_base(adapter: Path, folder: Path, fingerprint: str | None = None) -> None:
    """CheckpointError where `folder` has other weights than the adapter was trained on, as far as base.json says.
    `fingerprint`: of the folder's weights, where it is known already."""
    wanted = read_tree(adapter / BASE).get("fingerprint")
    if wanted is not None and (found := fingerprint or weights_fingerprint(folder)) != wanted:
        raise CheckpointError(
            f"{adapter}: was trained on other weights than {folder} has (fingerprint {wanted} there, {found} here): "
            "put the right base there"
        )


def trained_context(adapter: Path) -> int | None:
    """The context that an adapter was trained with, where base.json says it."""
    context: int | None = read_tree(adapter / BASE).get("context")
    return context


def keep_base(source: Path, folder: Path) -> None:
    """Makes `folder` hold the plain model in `source`: the same files under a second name, which costs no room and
    stays when the first goes, or copies where the two are on different disks."""
    files = [file for name in KEPT for file in source.glob(name)]

    def keep(temporary: Path) -> None:
        for file in files:
            try:
                os.link(file.resolve(), temporary / file.name)
            except OSError:
                shutil.copyfile(file, temporary / file.name)

    write_folder(folder, keep)
