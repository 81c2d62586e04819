"""A LoRA run from a folder as the hub has DialoGPT's: killed and continued it ends with the same adapter, bit for bit;
then it chats, and what is exported is read by PEFT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.text.tokenizer import Tokenizer

GPTLAB = str(Path(sys.executable).with_name("gptlab"))

TURNS = [[f"Is {n} even?", "Yes." if n % 2 == 0 else f"No, {n} is odd."] for n in range(200)]
RECIPE = """
name = "talk"
start = "dialogpt"
lora = { rank = 4, dropout = 0.1, also_train = ["layer_norms"] }
data = { kind = "dialogues", sources = [{ path = "chats.jsonl" }], validation = { share = 0.1 } }
training = { max_steps = 60, batch_size = 8, precision = "float32" }
validation = { every_steps = 10 }
samples = { prompts = ["Is 3 even?"], max_new_tokens = 5 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """DialoGPT's layout: pytorch_model.bin in half precision, the causal masks among the weights."""
    lines = [json.dumps({"turns": turns}) for turns in TURNS]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "talk.toml").write_text(RECIPE)
    tokenizer = Tokenizer.train(lines, 400)
    torch.manual_seed(0)
    place = tmp_path / "dialogpt"
    model = GPT(GPTShape(tokenizer.vocab_size, 128, 2, 2, 32, dropout=0.1))
    save_model(model, place, eos_id=tokenizer.eos_id)
    tokenizer.save(place)
    from safetensors.torch import load_file

    stored = load_file(place / "model.safetensors")
    weights = {name.removeprefix("transformer."): weight.half() for name, weight in stored.items()}
    masks = {f"h.{n}.attn.bias": torch.ones(128, 128, dtype=torch.uint8).tril()[None, None] for n in range(2)}
    torch.save(weights | masks | {"lm_head.weight": weights["wte.weight"]}, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    return tmp_path


def gptlab(folder: Path, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
    command = [GPTLAB, *words]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, input=input)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "GPTLAB_CACHE": str(folder / "cache"), "GPTLAB_KERNELS": "torch"}


def killed(folder: Path, at_step: int) -> None:
    """The training, killed when it has logged this step."""
    metrics = folder / "runs/talk/metrics.jsonl"
    process = subprocess.Popen(
        [GPTLAB, "train", "talk.toml"], cwd=folder, env=environment(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None:
        if metrics.exists() and f'"step": {at_step},' in metrics.read_text():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL


def adapter(folder: Path) -> list[bytes]:
    last = folder / "runs/talk/checkpoints/000060"
    return [(last / name).read_bytes() for name in ("adapter_model.safetensors", "optimizer.safetensors")]


def test_killed_and_continued_then_talked_to_and_exported(folder: Path) -> None:
    assert gptlab(folder, "train", "talk.toml").returncode == 0
    expected = adapter(folder)
    (folder / "runs").rename(folder / "whole")
    killed(folder, 14)
    killed(folder, 37)
    again = gptlab(folder, "train", "talk.toml")
    assert again.returncode == 0, again.stderr
    assert "continues after step 30" in again.stdout
    assert adapter(folder) == expected

    asked = "Is 4 even?\nIs 5 even?\n"
    said = gptlab(folder, "chat", "talk", "--greedy", "--max-new-tokens", "8", "--json", input=asked)
    assert said.returncode == 0, said.stderr
    assert [turn["question"] for turn in json.loads(said.stdout)["turns"]] == ["Is 4 even?", "Is 5 even?"]

    exported = gptlab(folder, "export", "talk", "--to", "out")
    assert exported.returncode == 0, exported.stderr
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from gptlab.run.open import open_model

    base = AutoModelForCausalLM.from_pretrained(folder / "dialogpt").float()
    theirs = PeftModel.from_pretrained(base, folder / "out")
    ours = open_model(folder / "runs/talk")
    ids = torch.tensor([ours.require_tokenizer().encode("Is 4 even? Yes.")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.model.logits(ours.model(ids)), rtol=0, atol=1e-5)
