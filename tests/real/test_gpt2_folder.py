"""A GPT-2 folder from the hub (random weights, but its real layout) opens and agrees with transformers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptlab.model.huggingface import load_model


@pytest.fixture
def folder() -> Path:
    if "GPTLAB_DATA" not in os.environ:
        pytest.skip("GPTLAB_DATA is not set: it names the folder with the data of the real tests")
    return Path(os.environ["GPTLAB_DATA"]) / "tiny-models" / "tiny-gpt2-random"


def test_tiny_gpt2_from_the_hub(folder: Path) -> None:
    model = load_model(folder).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(50_257, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(tokens)), theirs(tokens).logits, atol=1e-5, rtol=0)
