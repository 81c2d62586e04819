"""Greedy ids equal transformers' `generate` from the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model

SHAPES = [
    GPTShape(vocab_size=101, context=64, n_layer=2, n_head=2, n_embd=32),
    GPTShape(vocab_size=257, context=80, n_layer=3, n_head=4, n_embd=64, tie_head=False),
    GPTShape(vocab_size=50, context=48, n_layer=1, n_head=1, n_embd=8),
]
LENGTHS = [1, 3, 17, 8, 30]
EOS = 7


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n_layer}x{s.n_embd}")
def test_greedy_ids(shape: GPTShape, penalty: float, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5)  # at GPT-2's 0.02 a random model says one token for ever
    save_model(model, tmp_path, eos_id=EOS)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [torch.randint(shape.vocab_size, (length,)).tolist() for length in LENGTHS]

    written = generate(model, prompts, Sampling(greedy=True, repetition_penalty=penalty), max_new_tokens=18, eos_id=EOS)
    for prompt, completion in zip(prompts, written, strict=True):
        ids = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=18,
            repetition_penalty=penalty, pad_token_id=EOS,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(completion.ids) == (ids[:-1] if ids[-1] == EOS else ids)
        assert completion.stopped == ("eos" if ids[-1] == EOS else "length")
    assert len({completion.ids for completion in written}) == len(prompts)
