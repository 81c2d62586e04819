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
from gptlab.settings import Tree
from gptlab.training.prepare import Prepared


def make_origin(data: Prepared, device: torch.device, parameters: int, command: str) -> Tree:
    """Where a run comes from, as origin.json keeps it."""
    import numpy as np

    corpus = data.corpus
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(device),
        "parameters": parameters,
        "versions": {
            "gptlab": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "platform": platform.platform(),
        },
        "commit": _commit(),
        "data": {
            "fingerprints": {name: file.checksum for name, file in corpus.files.items()},
            "table": [asdict(row) for row in corpus.table],
            "tokenizer": {
                "vocab_size": data.tokenizer.vocab_size,
                "fingerprint": data.tokenizer.fingerprint,
                "bytes_per_token": round(data.bytes_per_token, 3),
            },
        },
    }  # fmt: skip


def _commit() -> str:
    """The commit of the lab's own source, "" where it is not a checkout."""
    try:
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
