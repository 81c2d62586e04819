"""A tokenizer with ChatML's tokens, and models that speak it: one at random, one that says nothing."""

from __future__ import annotations

import pytest
import torch

from gptlab.model.gpt import GPT, GPTShape
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def chatml() -> Template:
    return Template.named("chatml", "<|endoftext|>")


@pytest.fixture(scope="session")
def chat_tokenizer(chatml: Template) -> Tokenizer:
    text = "user assistant system Hello, who are you? I am a model and you are the user."
    return Tokenizer.train([text] * 3, 320).with_special_tokens(chatml.special_tokens)


@pytest.fixture(scope="session")
def chat_model(chat_tokenizer: Tokenizer) -> GPT:
    """Matrices so large that its text is no single repeated token."""
    torch.manual_seed(3)
    model = GPT(GPTShape(chat_tokenizer.vocab_size, context=64, n_layer=1, n_head=2, n_embd=16, tie_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    return model.eval()


@pytest.fixture(scope="session")
def silent_model(chatml: Template, chat_tokenizer: Tokenizer) -> GPT:
    """Whatever it reads, it closes its answer at once."""
    model = GPT(GPTShape(chat_tokenizer.vocab_size, context=64, n_layer=1, n_head=1, n_embd=4, tie_head=False))
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[chatml.end_id(chat_tokenizer)] = 100
    return model.eval()
