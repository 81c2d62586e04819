from __future__ import annotations

import pytest
import torch

from gptlab.model.gpt import GPT, GPTShape


@pytest.fixture
def model() -> GPT:
    """A tiny model with matrices so large that its text is no single repeated token."""
    torch.manual_seed(0)
    model = GPT(GPTShape(vocab_size=61, context=24, n_layer=2, n_head=2, n_embd=16, dropout=0.3, tie_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    return model
