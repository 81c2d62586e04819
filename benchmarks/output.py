"""What a benchmark prints and writes: the machine, the versions, a plain table, JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

PACKAGES = (
    "gptlab", "torch", "numpy", "transformers", "trl", "peft", "ctranslate2", "liger-kernel", "tokenizers", "tiktoken",
    "bitsandbytes", "lm_eval",
)  # fmt: skip

ENVIRONMENT = (
    "ours, and what is said to be in our environment: with what gptlab's command line sets before torch is imported; "
    "peers: as their users run them. "
    "Each variant's own variables stand beside it; all have the same cores and number of threads."
)


def machine(threads: int | None) -> dict[str, Any]:
    """Where, when and with what: the beginning of every result. `threads`: None for all cores of this process."""
    import psutil
    import torch

    from gptlab.device import describe_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": {
            "device": [describe_device(torch.device(name)) for name in devices],
            "cores": cores,
            "threads": min(threads or cores, cores),
            "memory_megabytes": psutil.virtual_memory().total / 1e6,
            "system": platform.platform(),
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "environment": ENVIRONMENT,
    }


def _commit() -> str:
    """The checkout's commit, and whether files differ from it; "" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + (" and changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def print_table(title: str, summary: Mapping[str, Any]) -> None:
    """One line a variant; then who was left out, and why."""
    variants: Mapping[str, Any] = summary["variants"]
    facts = dict.fromkeys(key for each in variants.values() for key, value in each.items() if _is_fact(key, value))
    head = ["", summary["unit"], "least–most", "peak MB", *(f"× {name}" for name in summary["baselines"]), *facts]
    rows = [
        [
            name,
            _short(each["median"]),
            f"{_short(each['least'])}–{_short(each['most'])}",
            f"{each['peak_megabytes']:,.0f}",
            *(f"{each['times_as_fast'][other]:.2f}" for other in summary["baselines"]),
            *(_short(each[key]) if key in each else "" for key in facts),
        ]
        for name, each in variants.items()
    ]
    print(f"\n{title}")
    print_columns([head, *rows])
    for name, why in summary["left_out"].items():
        print(f"  left out: {name}: {why}")
    sys.stdout.flush()


def print_columns(rows: list[list[str]]) -> None:
    """Rows of equal length, the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def _is_fact(key: str, value: Any) -> bool:
    usual = {"median", "least", "most", "peak_megabytes", "amount_a_round"}
    return isinstance(value, int | float | str) and key not in usual


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """The result as JSON, five digits a figure (null for one that is not finite, which JSON has not), into --out or
    results/NAME.json; a --quick one only into --out."""
    if options.quick and not options.out:
        return
    path = Path(options.out) if options.out else HERE / "results" / f"{Path(sys.argv[0]).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
