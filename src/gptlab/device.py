"""Which device, which precision; what memory and what arithmetic the machine has.

Nothing is asked of the machine before a function is called.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F

from gptlab.errors import DeviceError
from gptlab.words import size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Precision:
    """What the arithmetic of forward and backward is done in (weights stay float32), and why."""

    name: str
    dtype: torch.dtype
    reason: str


def pick_device(name: str = "auto") -> torch.device:
    """`"auto"` → CUDA, else MPS, else the CPU, unless GPTLAB_DEVICE names one; or the device named.

    DeviceError where this machine does not have it.
    """
    if name == "auto":
        name = os.environ.get("GPTLAB_DEVICE") or "auto"
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(there[0])
    if f"{name}:0" in there:
        name = f"{name}:0"
    if name not in there:
        raise DeviceError(f"device {name!r}: this machine has {', '.join(there)}")
    return torch.device(name)


def pick_precision(name: PrecisionName, device: torch.device) -> Precision:
    """The precision named, or with `"auto"` the fastest that the device does in hardware and that is safe.

    DeviceError where the device cannot do it, or nobody would want it there.
    """
    if name == "auto":
        name, reason = _best_precision(device)
        return Precision(name, DTYPES[name], reason)
    if name not in DTYPES:
        raise DeviceError(f"precision {name!r}: wanted auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise DeviceError("precision 'float16': is for GPUs; on a CPU take float32 or bfloat16")
    if name == "bfloat16" and device.type == "cuda" and not _cuda_has_bfloat16(device):
        raise DeviceError(f"precision 'bfloat16': {torch.cuda.get_device_name(device)} has none; take float16 or auto")
    return Precision(name, DTYPES[name], "as asked")


def _best_precision(device: torch.device) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    if device.type == "cuda":
        return ("bfloat16", "native") if _cuda_has_bfloat16(device) else ("float16", "older GPU, no native bfloat16")
    if device.type == "cpu":
        return ("bfloat16", "the CPU has it") if _cpu_has_bfloat16() else ("float32", "the CPU has no bfloat16")
    return "float32", f"the safe choice on {device.type}"


def _cuda_has_bfloat16(device: torch.device) -> bool:
    """Ampere and later; torch emulates it on older ones, slowly."""
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bfloat16() -> bool:
    return any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Products in `precision` on `device`; weights, sums and the softmax stay float32."""
    return torch.autocast(device.type, precision.dtype, enabled=precision.dtype != torch.float32)


def in_float64(value: torch.Tensor) -> torch.Tensor:
    """A value to be summed exactly: on its device, which nobody waits for; on the host where the device has no float64
    (MPS)."""
    return (value.cpu() if value.device.type == "mps" else value).double()


@contextmanager
def float32_products(
    device: torch.device, kept: str | None = None, say: Callable[[str], None] = lambda text: None
) -> Iterator[str]:
    """The library for float32 products of a CPU, for as long as it lasts: "oneDNN" or "default".

    torch's own choice on x86 is MKL, which is slow on CPUs that are not Intel's. oneDNN's products (430 against 200
    GFLOP/s on an AMD EPYC) are chosen by the setting that also allows it to round to bfloat16, as it does where the
    CPU has AMX; so it is taken only where a probe finds them as exact as float32 is, also by a run that goes on: `kept`
    is its earlier choice, and one line says so where this machine cannot keep it. A setting that allows rounding, the
    user's own, is left alone.
    """
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision if device.type == "cpu" else ""
    if before not in ("none", "ieee") or kept == "default":
        yield "default"
        return
    products.fp32_precision = "bf16"
    try:
        exact = _products_are_float32()
        if not exact:
            products.fp32_precision = before
            if kept == "oneDNN":
                say(
                    "float32 products: oneDNN, which this run began with, rounds them on this machine; torch's default "
                    "library makes them, and what follows is equal to rounding only"
                )
        yield "oneDNN" if exact else "default"
    finally:
        products.fp32_precision = before


def _products_are_float32() -> bool:
    """Whether the products of a small model's shapes are within float32's rounding: some 3e-7 of the result, where
    bfloat16's is 3e-3."""
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((256, 256, 256), (64, 128, 2048), (32, 1024, 256)):
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(columns, inner, generator=generator)
        exact = a.double() @ b.double().t()
        if ((F.linear(a, b) - exact).norm() / exact.norm()).item() > 1e-5:
            return False
    return True


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated now: free on the GPU; on a CPU what system and container still give."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # in torch's own pool
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min([psutil.virtual_memory().available, *_container_memory(Path("/"))])


def _container_memory(root: Path) -> Iterator[int]:
    """Bytes left under each memory limit of this process's control groups, from its own up to the root.

    Reads version 2 (memory.max) and 1 (memory.limit_in_bytes) under `root`. File cache that nobody has touched
    lately counts as free, for the kernel drops it before it refuses memory.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops, names = [mounted, mounted / "unified"], ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            tops = [mounted / "memory"]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for top in tops:
            own = top / path.lstrip("/")
            for group in (own, *own.parents):  # inside a container the path may lead nowhere; the top is its own
                if group.is_relative_to(top):
                    yield from _left_in_group(group, *names)


def _left_in_group(group: Path, limit_file: str, usage_file: str, cache_key: str) -> Iterator[int]:
    limit, usage = _lines(group / limit_file), _lines(group / usage_file)
    if limit and usage and limit[0].isdigit():  # "max": no limit
        counts = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
        yield max(0, int(limit[0]) - int(usage[0]) + int(counts.get(cache_key, 0)))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def current_memory() -> int:
    """Resident bytes of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: allocated by torch on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()  # MPS keeps no peak; torch's pool seldom shrinks
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if platform.system() == "Windows":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


@functools.cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some square matrix products, about 0.2 s long; measured once a process.

    The matrices grow until one product takes 10 ms, so that slow and fast machines are both kept busy. No random
    numbers are drawn: how many would depend on the clock, and a run's own must not.
    """
    width, best = 256, 0.0
    matrix = torch.ones(width, width, device=device, dtype=dtype)
    _multiply(matrix)  # libraries and kernels are loaded by the first product
    deadline = time.perf_counter() + 0.2
    while (start := time.perf_counter()) < deadline:
        _multiply(matrix)
        seconds = time.perf_counter() - start
        best = max(best, 2 * width**3 / seconds)
        if seconds < 0.01 and width < 8192:
            width *= 2
            matrix = torch.ones(width, width, device=device, dtype=dtype)
    return best


def _multiply(matrix: torch.Tensor) -> None:
    """One product, finished on return."""
    torch.mm(matrix, matrix)
    if matrix.device.type != "cpu":
        getattr(torch, matrix.device.type).synchronize()


def describe_device(device: torch.device) -> str:
    """In a few words: "CPU, AMD EPYC 7763, 2 cores" or "Tesla T4, 15.8 GB"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {size(properties.total_memory)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = "MPS" if device.type == "mps" else "CPU"
    return f"{name}, {_cpu_name()}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_name() -> str:
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
