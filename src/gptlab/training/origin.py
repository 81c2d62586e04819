"""Where a run comes from: versions, device, commit, data."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from gptlab import __version__
from gptlab.device import describe_device
from gptlab.model.build import parameter_count
from gptlab.model.folder import Model
from gptlab.model.lora import trainable_counts
from gptlab.run.base import weights_fingerprint
from gptlab.settings import Tree
from gptlab.training.prepare import Prepared
from gptlab.training.start import Start

SHAPE = ("cell", "n_layer", "n_head", "n_embd", "n_hidden", "vocab_size")


def make_origin(
    data: Prepared, device: torch.device, model: Model, command: str, start: Start | None, asked: Tree,
) -> Tree:  # fmt: skip
    """Where a run comes from, as origin.json keeps it. `asked`: what it says of a model that the run asks."""
    import numpy as np

    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(device),
        "parameters": parameter_count(model),
        "shape": {name: value for name, value in asdict(model.shape).items() if name in SHAPE},
        **({"trainable": counts} if (counts := trainable_counts(model))["trainable"] < counts["all"] else {}),
        **({"labels": list(data.vocabulary.labels or ())} if data.vocabulary.task == "classification" else {}),
        "versions": {
            "gptlab": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "platform": platform.platform(),
        },
        "commit": _commit(),
        **({"start": _start(start, data)} if start else {}),
        **asked,
        "data": {
            "fingerprints": dict(data.fingerprints),
            "table": [asdict(row) for row in data.table],
            "tokenizer": {
                "vocab_size": data.tokenizer.vocab_size,
                "fingerprint": data.tokenizer.fingerprint,
                "bytes_per_token": round(data.bytes_per_token, 3),
            },
            **({"template": data.template.name} if data.template else {}),
        },
    }  # fmt: skip


def _start(start: Start, data: Prepared) -> Tree:
    """What the run began with; `vocab_size` is the start's own, without tokens that were added."""
    first = data.vocabulary.first_added
    return {
        "name": start.name, "folder": str(start.folder.absolute()),
        "vocab_size": start.shape.vocab_size if first is None else first,
        **({} if first is None else {"first_added": first}),
        "fingerprint": weights_fingerprint(start.folder),
    }  # fmt: skip


def _commit() -> str:
    """The commit of the lab's own source, "" where it is not a checkout."""
    try:
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
