"""What the kernels that multiply share: whether this CPU has them, and memory as they want it."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

from gptlab.kernels import native


def reason(name: str) -> str:
    """Why the kernel `name` cannot be had here, in a few words; "" where it can."""
    return native.reason(name) or _unlike(native.required(name), name)


def library(name: str) -> ctypes.CDLL:
    """The kernel `name`, for its operator, which has been chosen. RuntimeError where it cannot be had."""
    found = native.required(name)
    if missing := _unlike(found, name):
        raise RuntimeError(f"no kernel {name}: {missing}; ask supported() first")
    return found


def _unlike(library: ctypes.CDLL, name: str) -> str:
    if torch.cpu._is_amx_tile_supported():
        return "torch's own products use AMX, which is faster"
    return "" if library[f"{name}_supported"]() else "this CPU has no AVX512-BF16"


def check(name: str, tensor: Tensor | None, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """A kernel reads bare memory: what is not as it wants it would be read as something else. ValueError."""
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype not in dtypes or not tensor.is_contiguous() or tensor.device.type != "cpu":
        found = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, strides {tensor.stride()}"
        wanted = " or ".join(map(str, dtypes))
        raise ValueError(f"{name} is {found}; the kernel wants {wanted} {tuple(shape)} on the CPU, contiguous")


def check_targets(targets: Tensor, positions: int, vocabulary: int) -> None:
    """Targets (positions,) int64 that the vocabulary has; ValueError, or IndexError for one that it has not."""
    check("targets", targets, (positions,), torch.int64)
    if positions == 0:
        return
    lowest, highest = (int(bound) for bound in targets.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise IndexError(f"a target is {lowest if lowest < 0 else highest}; the vocabulary has {vocabulary} entries")


_kept = threading.local()


def scratch(size: int) -> Tensor:
    """Memory of `size` bytes or more, kept from call to call: a page that is new costs ten times its writing.

    It is the calling thread's, and every kernel's: what a call leaves in it is lost to the next.
    """
    kept: Tensor | None = getattr(_kept, "scratch", None)
    if kept is None or len(kept) < size:
        _kept.scratch = kept = None  # given back before more is taken
        with torch.inference_mode(False):  # or it could not be used outside of it
            _kept.scratch = kept = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept
