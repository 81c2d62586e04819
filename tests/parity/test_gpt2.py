"""The same weights give the same logits and gradients as transformers' GPT2LMHeadModel, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import CONV1D, load_model, save_model

SHAPES = [
    GPTShape(vocab_size=101, context=16, n_layer=1, n_head=1, n_embd=8),
    GPTShape(vocab_size=101, context=16, n_layer=1, n_head=1, n_embd=8, tie_head=False),
    GPTShape(vocab_size=311, context=33, n_layer=3, n_head=4, n_embd=32, layer_norm_epsilon=1e-4),
    GPTShape(vocab_size=1000, context=64, n_layer=2, n_head=4, n_embd=128, tie_head=False),
    GPTShape(vocab_size=513, context=48, n_layer=5, n_head=12, n_embd=96),
]
named = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n_layer}x{s.n_embd}-{'un' * (not s.tie_head)}tied")


def randomize(model: torch.nn.Module) -> None:
    """Weights far from the start, biases and layer norms too, so that nothing is zero or one by chance."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def assert_equal(ours: GPT, theirs: GPT2LMHeadModel) -> None:
    """Logits, and the gradients of every parameter, to 1e-5."""
    torch.manual_seed(1)
    tokens, targets = torch.randint(ours.shape.vocab_size, (2, 3, ours.shape.context))
    ours.eval()
    theirs.eval()
    logits, their_logits = ours.logits(ours(tokens)), theirs(tokens).logits
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=0)

    for some_logits in (logits, their_logits):
        F.cross_entropy(some_logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {
        name.removeprefix("transformer."): parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@named
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_reads_ours(tmp_path: Path, shape: GPTShape, attention: str) -> None:
    model = GPT(shape)
    randomize(model)
    save_model(model, tmp_path, eos_id=shape.vocab_size - 1)
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=attention, output_loading_info=True
    )
    assert isinstance(theirs, GPT2LMHeadModel)
    assert not any(loading.values()), loading
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == shape.vocab_size - 1
    assert theirs.config.tie_word_embeddings == shape.tie_head
    assert_equal(model, theirs)


@named
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_we_read_transformers(tmp_path: Path, shape: GPTShape, shard: str) -> None:
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context, n_layer=shape.n_layer, n_head=shape.n_head,
        n_embd=shape.n_embd, layer_norm_epsilon=shape.layer_norm_epsilon, tie_word_embeddings=shape.tie_head,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    model = load_model(tmp_path)
    assert model.shape == shape
    assert_equal(model, theirs)


def test_dropout_falls_in_the_same_places(tmp_path: Path) -> None:
    """With the same seed both draw the same masks: after the embedding, in attention, after both projections."""
    shape = GPTShape(vocab_size=101, context=16, n_layer=2, n_head=2, n_embd=32, dropout=0.3)
    model = GPT(shape)
    randomize(model)
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").train()
    tokens = torch.randint(101, (2, 16))
    outputs = []
    for forward in (lambda: model.logits(model(tokens)), lambda: theirs(tokens).logits):
        torch.manual_seed(3)
        outputs.append(forward())
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
