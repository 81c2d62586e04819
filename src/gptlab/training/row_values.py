"""What is computed once for each row and kept in the cache: a teacher's logits, a reference's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gptlab.data.locking import only_one
from gptlab.errors import CheckpointError, GptlabError
from gptlab.hub import cache_folder
from gptlab.model.adapter import is_adapter
from gptlab.run.base import weights_fingerprint
from gptlab.run.checkpoint import verify_folder, write_folder
from gptlab.run.open import base_of


def kept_values(
    kind: str,
    file: str,
    key: str,
    shape: tuple[int, ...],
    compute: Callable[[], np.ndarray],
    waiting: Callable[[], None],
) -> np.ndarray:
    """The float32 array of this `shape` from the cache's folder KIND/, where it is computed and put if it is not there,
    whole. `key`: all that it depends on. Another process that wants the same waits, and calls `waiting` meanwhile.

    GptlabError where the cache cannot be written, and whatever `compute` raises.
    """
    folder = cache_folder() / kind / blake2b(key.encode(), digest_size=8).hexdigest()
    with suppress(CheckpointError):
        return _read(folder, file, shape)
    try:
        with only_one(folder, waiting):
            with suppress(CheckpointError):
                return _read(folder, file, shape)
            values = compute()
            write_folder(folder, lambda temporary: np.save(temporary / file, values), bytes_needed=values.nbytes)
            return values
    except OSError as error:
        raise GptlabError(
            f"{error.filename or folder}: cannot be written: {error.strerror}. Set GPTLAB_CACHE to a folder on another "
            "disk."
        ) from error


def _read(folder: Path, file: str, shape: tuple[int, ...]) -> np.ndarray:
    """CheckpointError where there is nothing, or not what was written."""
    verify_folder(folder)
    values: np.ndarray = np.load(folder / file, allow_pickle=False)
    if values.shape != shape or values.dtype != np.float32:
        raise CheckpointError(f"{folder}: has {values.dtype} {values.shape}; wanted float32 {shape}")
    return values


def model_fingerprint(folder: Path, runs: Path) -> str:
    """Of the weights in a folder; of an adapter and of the base that it adds to."""
    own = weights_fingerprint(folder)
    return f"{own}+{weights_fingerprint(base_of(folder, runs))}" if is_adapter(folder) else own
