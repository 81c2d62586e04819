"""A DPO run that is killed while its reference is asked, and while it trains, ends with the same weights, bit for bit;
what the reference said is kept whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.text.tokenizer import Tokenizer

GPTLAB = str(Path(sys.executable).with_name("gptlab"))

PAIRS = [
    {"prompt": f"Is {n} even?", "chosen": "Yes." if n % 2 == 0 else f"No, {n} is odd.", "rejected": f"Who wants {n}?"}
    for n in range(400)
]
RECIPE = """
name = "liked"
start = "base"
data = { kind = "preferences", sources = [{ path = "pairs.jsonl" }], validation = { share = 0.3 } }
training = { max_steps = 40, batch_size = 8, precision = "float32" }
validation = { every_steps = 10 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps(pair) for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "liked.toml").write_text(RECIPE)
    tokenizer = Tokenizer.train(lines, 400)
    torch.manual_seed(0)
    save_model(GPT(GPTShape(tokenizer.vocab_size, 64, 2, 2, 64)), tmp_path / "base", eos_id=tokenizer.eos_id)
    tokenizer.save(tmp_path / "base")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "GPTLAB_CACHE": str(folder / "cache"), "GPTLAB_KERNELS": "torch"}


def train(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GPTLAB, "train", "liked.toml"], cwd=folder, env=environment(folder), capture_output=True, text=True
    )


def killed(folder: Path, when: Callable[[], bool]) -> None:
    process = subprocess.Popen(
        [GPTLAB, "train", "liked.toml"], cwd=folder, env=environment(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None:
        if when():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL


def weights(folder: Path) -> list[bytes]:
    last = folder / "runs/liked/checkpoints/000040"
    return [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


@pytest.mark.slow
def test_killed_and_continued(folder: Path) -> None:
    assert train(folder).returncode == 0
    expected = weights(folder)
    (folder / "runs").rename(folder / "whole")
    (folder / "cache").rename(folder / "whole-cache")

    references, metrics = folder / "cache/references", folder / "runs/liked/metrics.jsonl"
    killed(folder, references.exists)
    assert not (folder / "runs").exists()
    killed(folder, lambda: metrics.exists() and '"step": 13,' in metrics.read_text())
    killed(folder, lambda: '"step": 27,' in metrics.read_text())
    again = train(folder)
    assert again.returncode == 0, again.stderr
    assert "continues after step 20" in again.stdout
    assert weights(folder) == expected
    kept = [path.relative_to(folder / "whole-cache") for path in (folder / "whole-cache/references").glob("*/*.npy")]
    assert len(kept) == 2
    for file in kept:
        assert (folder / "cache" / file).read_bytes() == (folder / "whole-cache" / file).read_bytes()
