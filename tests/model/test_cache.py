"""What is decoded with the cache is what the whole text gives at once."""

from __future__ import annotations

import pytest
import torch

from gptlab.model.cache import KeyValueCache
from gptlab.model.gpt import GPT, GPTShape

SHAPE = GPTShape(vocab_size=61, context=20, n_layer=3, n_head=2, n_embd=16)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # far from the start, where all is alike
    return model


@torch.no_grad()
def test_token_by_token_equals_all_at_once(model: GPT) -> None:
    tokens = torch.randint(61, (3, 20))
    cache = KeyValueCache(SHAPE, 3, device=CPU, dtype=torch.float32)
    parts = [model(tokens[:, :7], cache)] + [model(tokens[:, t : t + 1], cache) for t in range(7, 20)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_different_length_are_each_as_if_alone(model: GPT) -> None:
    """The trap: the first token written after a shorter prompt must overwrite padding and stand at its own position."""
    lengths = [2, 9, 5]
    prompts = [torch.randint(61, (length,)) for length in lengths]
    following = torch.randint(61, (3, 8))
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)

    cache = KeyValueCache(SHAPE, 3, device=CPU, dtype=torch.float32, capacity=17)
    read = model(padded, cache)
    cache.set_lengths(lengths)
    written = torch.cat([model(following[:, t : t + 1], cache) for t in range(8)], dim=1)

    for row, length in enumerate(lengths):
        alone = model(torch.cat([prompts[row], following[row]])[None])[0]
        torch.testing.assert_close(read[row, :length], alone[:length], atol=1e-5, rtol=0)
        torch.testing.assert_close(written[row], alone[length:], atol=1e-5, rtol=0)


def test_a_cache_works_where_activations_are_checkpointed(model: GPT) -> None:
    """With gradients on, a checkpointed block would be called without the cache and see one token alone."""
    model.activation_checkpointing = True
    tokens = torch.randint(61, (1, 6))
    cache = KeyValueCache(SHAPE, 1, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        model(tokens[:, :5], cache)
    hidden = model(tokens[:, 5:], cache).detach()
    torch.testing.assert_close(hidden, model(tokens)[:, 5:].detach(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_full_cache_refuses(model: GPT) -> None:
    cache = KeyValueCache(SHAPE, 1, device=CPU, dtype=torch.float32, capacity=4)
    model(torch.zeros(1, 4, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache of 4"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache)
