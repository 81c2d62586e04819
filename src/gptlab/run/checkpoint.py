"""What is inside a checkpoint; written atomically, verified before it is read.

A checkpoint is a folder in Hugging Face's format (model or PEFT's adapter, tokenizer, chat template; of an RNN the
model's files are the lab's own) and, for continuing, optimizer.safetensors (keyed by parameter name),
random.safetensors and state.json. manifest.json has the size and SHA-256 of every file: a folder without a valid
manifest does not exist for the reader.

    .NAME.writing    being written; never read, removed by the next save
    .NAME.replaced   what NAME was, while a new NAME is put in its place
    .NAME.removing   on its way out
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab.errors import CheckpointError
from gptlab.model.adapter import save_adapter
from gptlab.model.folder import Model, save_model
from gptlab.model.huggingface import write_tensors
from gptlab.model.lora import lora_settings
from gptlab.run.files import flush_folder, from_json, to_json, write_text
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.words import size

MANIFEST, STATE, BASE = "manifest.json", "state.json", "base.json"
OPTIMIZER, RANDOM = "optimizer.safetensors", "random.safetensors"
LEFT_OVER = re.compile(r"\.(?P<name>.+)\.(writing|replaced|removing)")

Manifest = dict[str, dict[str, Any]]
"""File name → {"bytes": its size, "sha256": its digest in hex}."""


@dataclass(frozen=True)
class TrainingState:
    """What continuing needs besides the weights.

    step:      optimizer steps done
    values:    plain values that JSON has (and NaN, infinity)
    optimizer: the optimizer's tensors, keyed by parameter name
    random:    the states of the random generators
    """

    step: int
    values: dict[str, Any]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


@dataclass(frozen=True)
class Base:
    """The model that a run's adapter adds to (run/base.py finds it again).

    name:        as PEFT is to find it: a name on the hub, or an absolute folder
    folder:      where it is
    fingerprint: of its weights
    context:     that the adapter is trained with
    """

    name: str
    folder: Path
    fingerprint: str
    context: int

    def write(self, checkpoint: Path, place: Path) -> None:
        """base.json into the folder `checkpoint`, which is to stand at `place`."""
        relative = os.path.relpath(self.folder.absolute(), place.absolute())
        tree = {"folder": Path(relative).as_posix(), "fingerprint": self.fingerprint, "context": self.context}
        (checkpoint / BASE).write_text(to_json(tree, indent=2) + "\n", encoding="utf-8")


def save_checkpoint(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    state: TrainingState | None,
    *,
    template: Template | None = None,
    base: Base | None = None,
) -> None:
    """Writes a checkpoint; without `state` one that can be read but not continued. With a `base` the model is an
    adapted one, of which only the adapter is written.

    CheckpointError before anything is written where the disk is too small; see `write_folder`.
    """

    def write(temporary: Path) -> None:
        save_parts(temporary, model, tokenizer, template, base_name=base.name if base else None)
        if base is not None:
            base.write(temporary, folder)
        if state is not None:
            write_tensors(temporary / OPTIMIZER, state.optimizer)
            write_tensors(temporary / RANDOM, state.random)
            text = to_json({"step": state.step, "values": state.values}, indent=2)
            (temporary / STATE).write_text(text + "\n", encoding="utf-8")

    write_folder(folder, write, bytes_needed=checkpoint_bytes(model, state))


def save_parts(
    folder: Path, model: Model, tokenizer: Tokenizer, template: Template | None, *, base_name: str | None = None
) -> None:
    """Writes what transformers reads into `folder`: weights, tokenizer, chat template; of a model that is adapted to
    `base_name` the adapter alone, as PEFT reads it. (Of an RNN transformers reads the tokenizer only.)"""
    if base_name is None:
        end = template.end_id(tokenizer) if template else tokenizer.eos_id
        save_model(model, folder, eos_id=end, bos_id=tokenizer.eos_id)
    else:
        save_adapter(model, folder, base=base_name)
    tokenizer.save(folder, context=model.shape.context)
    if template is not None:
        template.save(folder)


def checkpoint_bytes(model: Model, state: TrainingState | None) -> int:
    """The size of a checkpoint: its tensors (of an adapted model those that are trained, else all), and 100 bytes for
    each token of the vocabulary and 100 kB besides."""
    adapted = lora_settings(model) is not None
    tensors: list[Tensor] = [p for p in model.parameters() if p.requires_grad or not adapted]
    if state is not None:
        tensors += [*state.optimizer.values(), *state.random.values()]
    return sum(tensor.nbytes for tensor in tensors) + 100 * model.shape.vocab_size + 100_000


def load_state(folder: Path) -> TrainingState:
    """The training state, on the CPU; CheckpointError where the checkpoint keeps none or it cannot be read."""
    if not has_state(folder):
        raise CheckpointError(f"{folder}: keeps no optimizer state, so training cannot continue from it")
    try:
        saved = from_json((folder / STATE).read_text(encoding="utf-8"))
        return TrainingState(
            saved["step"], saved["values"], _read_tensors(folder / OPTIMIZER), _read_tensors(folder / RANDOM)
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its training state cannot be read: {error}") from error


def has_state(folder: Path) -> bool:
    """Whether training can continue from this checkpoint. CheckpointError without a manifest."""
    return OPTIMIZER in read_manifest(folder)


def drop_optimizer(folder: Path) -> None:
    """Makes a checkpoint one that can be read but not continued. A kill at any moment leaves it valid."""
    manifest = read_manifest(folder)
    kept = {name: entry for name, entry in manifest.items() if name not in (OPTIMIZER, RANDOM)}
    if kept != manifest:
        write_text(folder / MANIFEST, _manifest_text(kept))
    for name in (OPTIMIZER, RANDOM):
        (folder / name).unlink(missing_ok=True)


def verify_folder(folder: Path) -> None:
    """CheckpointError naming the first file that is missing, short or different from when it was written."""
    manifest = read_manifest(folder)
    for name, entry in manifest.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing")
        if file.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{file}: has {file.stat().st_size:,} bytes, {entry['bytes']:,} were written")
    for name, entry in manifest.items():  # reading everything comes after the quick look
        if _digest(folder / name) != entry["sha256"]:
            raise CheckpointError(f"{folder / name}: is not what was written (its SHA-256 differs)")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; CheckpointError where there is none or it is damaged."""
    try:
        files: Manifest = from_json((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in files.values()):
            return files
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {MANIFEST}, so it is no checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(f"{folder / MANIFEST}: is damaged")


def write_folder(
    folder: Path, write: Callable[[Path], None], *, bytes_needed: int = 0, expected: Manifest | None = None
) -> None:
    """Has `write(temporary)` fill a folder beside `folder`, flushes, checksums and renames it into place.

    A kill at any moment, also of the machine, leaves the folder that was there before or the new one, whole.
    `bytes_needed` is compared with the free space first; `expected` is what the files must turn out to be.
    CheckpointError where the disk does not take it (what was written is removed), with needed and free space.
    """
    temporary = _beside(folder, "writing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _repair(folder)
        if shutil.disk_usage(folder.parent).free < bytes_needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()
        write(temporary)
        manifest = _flush_files(temporary)
        if expected is not None and manifest != expected:
            raise CheckpointError(f"{folder}: the copy is not what was to be copied")
        (temporary / MANIFEST).write_text(_manifest_text(manifest), encoding="utf-8")
        _flush(temporary / MANIFEST)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise _full(folder, error, max(bytes_needed, _bytes_in(temporary))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there only if something went wrong


def copy_folder(source: Path, target: Path) -> None:
    """Makes `target` hold the checkpoint that `source` is, by the same rules; quick where it does already."""
    wanted = read_manifest(source)
    try:
        there = read_manifest(target)
    except CheckpointError:
        there = {}
    if there.items() >= wanted.items():
        if there != wanted:
            drop_optimizer(target)
        return

    def write(temporary: Path) -> None:
        for name in wanted:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)

    write_folder(target, write, bytes_needed=sum(entry["bytes"] for entry in wanted.values()), expected=wanted)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that a kill never leaves half of it under its name."""
    if folder.exists():
        _repair(folder)
        os.rename(folder, _beside(folder, "removing"))
        shutil.rmtree(_beside(folder, "removing"), ignore_errors=True)


def repair_folders(parent: Path) -> None:
    """Clears away what killed saves and removals have left in `parent`. Only for who alone writes there."""
    for entry in list(parent.glob(".*")):
        if (left := LEFT_OVER.fullmatch(entry.name)) and entry.is_dir():
            _repair(parent / left["name"])


def _repair(folder: Path) -> None:
    replaced = _beside(folder, "replaced")
    if replaced.exists() and not folder.exists():
        os.rename(replaced, folder)  # killed between the two renames of a replacement
    for left in (replaced, _beside(folder, "writing"), _beside(folder, "removing")):
        if left.exists():
            shutil.rmtree(left)


def _put_in_place(temporary: Path, folder: Path) -> None:
    flush_folder(temporary)
    replaced = _beside(folder, "replaced")
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(temporary, folder)
    flush_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush_files(folder: Path) -> Manifest:
    """Brings every file to the disk; their manifest."""
    manifest: Manifest = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
            continue
        _flush(path)
        manifest[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    return manifest


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _manifest_text(files: Mapping[str, Any]) -> str:
    return to_json({"files": files}, indent=2) + "\n"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt", device="cpu") as stored:
        # Clones, so that nothing keeps hold of the file: the checkpoint may be removed later.
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 (it is no mapping)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _full(folder: Path, error: OSError, needed: int) -> CheckpointError:
    try:
        free = f"{size(shutil.disk_usage(folder.parent).free)} are free there"
    except OSError:
        free = "the disk does not answer"
    return CheckpointError(
        f"{folder}: could not be written: {error.strerror or error}. It needs at least {size(needed)}, {free}. "
        "The checkpoints before it are untouched: make room, and the same command continues from the newest."
    )
