"""What an adapter adds to: found again by its folder or name, and checked by the fingerprint of its weights.

A checkpoint of a LoRA run holds the adapter alone. Beside it base.json says which base it was trained on:
`folder`, relative to the checkpoint (the run's own base/), and `fingerprint`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from gptlab.errors import CheckpointError, ModelError
from gptlab.model.adapter import adapter_base, is_adapter
from gptlab.run.checkpoint import BASE, write_folder
from gptlab.run.files import read_tree

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "ckpt.pt")


def weights_fingerprint(path: Path) -> str:
    """16 hex digits of the weights in a folder (or of one file): what the adapter's numbers are differences to."""
    files = [path] if path.is_file() else sorted(file for name in WEIGHT_FILES for file in path.glob(name))
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
    if link and (found := weights_fingerprint(folder)) != link["fingerprint"]:
        raise CheckpointError(
            f"{adapter}: was trained on other weights than {folder} has (fingerprint {link['fingerprint']} there, "
            f"{found} here): put the right base there"
        )
    return folder


def link_base(source: Path, folder: Path) -> None:
    """Makes `folder` stand for the plain model in `source`: a link, or a copy where there are no links."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:

        def copy(temporary: Path) -> None:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copyfile(file, temporary / file.name)

        write_folder(folder, copy, bytes_needed=sum(file.stat().st_size for file in source.iterdir()))
