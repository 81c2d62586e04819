"""Writing with an RNN by the one engine, against the naive way: the whole text for every token, one row at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch

from gptlab.errors import ModelError, TokenizerError, UserError
from gptlab.generation.decoder import Decoder
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.kernels.decode import Precision
from gptlab.model.rnn import RNN, Cell, RNNShape

GREEDY = Sampling(greedy=True)
PROMPTS = [[1], [5, 9, 3, 60, 2, 2, 7], [8, 8], list(range(17)), [33, 4, 4, 4]]
CONTEXT = 12
"""Of the rows it is trained on; one of the prompts is longer."""


@pytest.fixture(params=get_args(Cell))
def model(request: pytest.FixtureRequest) -> RNN:
    """A tiny model with weights so large that its text is no single repeated token."""
    torch.manual_seed(0)
    shape = RNNShape(61, CONTEXT, n_layer=2, n_embd=16, n_hidden=20, cell=request.param, dropout=0.3, tie_head=False)
    model = RNN(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.2 if "_hh_" in name else 0.6)  # a larger recurrence is chaotic: rounding would grow
    return model


@torch.no_grad()
def naive(model: RNN, prompt: list[int], n: int) -> list[int]:
    """Greedy ids without a state or a batch."""
    model.eval()
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
    return ids[len(prompt) :]


def test_cached_is_uncached_and_batched_is_alone_far_beyond_the_context(model: RNN) -> None:
    completions = generate(model, PROMPTS, GREEDY, max_new_tokens=40)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert list(completion.ids) == naive(model, prompt, 40)
        assert completion.reread == 0  # whatever was read is in the state
    assert len({completion.ids for completion in completions}) > 3


@torch.no_grad()
def test_logits_of_a_batch_are_those_of_each_alone(model: RNN) -> None:
    """Uneven rows, some of which leave: logits of every step within 1e-4 of the forward over the whole text."""
    model.eval()
    rows = [list(prompt) for prompt in PROMPTS]
    decoder = Decoder(model)
    state, logits = decoder.read(rows, CONTEXT)
    for step in range(6):
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, model.logits(model(torch.tensor([row]))[0, -1]), atol=1e-4, rtol=1e-4)
        if step in (1, 3):  # the longest row leaves, then the first
            kept = [0, 1, 2, 4] if step == 1 else [3, 1, 2]
            state.keep(kept)
            rows = [rows[n] for n in kept]
        ids = torch.tensor([(7 * step + n) % 61 for n in range(len(rows))])
        for row, id in zip(rows, ids.tolist(), strict=True):
            row.append(id)
        logits = decoder.step(ids, state)


def test_samples_do_not_depend_on_what_is_beside_them(model: RNN) -> None:
    sampling = Sampling(temperature=1.2, top_k=20, repetition_penalty=1.1)
    whole = generate(model, PROMPTS, sampling, max_new_tokens=30, samples=3, seed=5)
    assert whole == generate(model, PROMPTS, sampling, max_new_tokens=30, samples=3, seed=5, batch_size=2)
    fewer = generate(model, PROMPTS[:2], sampling, max_new_tokens=30, samples=1, seed=5)
    assert [c for c in whole if c.prompt < 2 and c.sample == 0] == fewer
    others = generate(model, PROMPTS, sampling, max_new_tokens=30, samples=3, seed=6)
    assert all(a.ids != b.ids for a, b in zip(whole, others, strict=True))


def test_eos_ends_a_row_and_changes_no_other(model: RNN) -> None:
    free = generate(model, PROMPTS, GREEDY, max_new_tokens=12)
    eos_id = free[1].ids[4]
    for stopped, whole in zip(generate(model, PROMPTS, GREEDY, max_new_tokens=12, eos_id=eos_id), free, strict=True):
        ended = eos_id in whole.ids
        assert stopped.ids == (whole.ids[: whole.ids.index(eos_id)] if ended else whole.ids)
        assert stopped.stopped == ("eos" if ended else "length")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_dropout_is_off(model: RNN, training: bool) -> None:
    model.train(training)
    first = generate(model, PROMPTS, GREEDY, max_new_tokens=5)
    assert all(module.training is training for module in model.modules())
    assert first == generate(model, PROMPTS, GREEDY, max_new_tokens=5)


def test_weights_can_be_trained_after_writing(model: RNN) -> None:
    """Nothing of inference mode sticks to the model."""
    generate(model, PROMPTS, GREEDY, max_new_tokens=5)
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_writes(model: RNN, dtype: torch.dtype) -> None:
    (completion,) = generate(model.to(dtype), [[1, 2]], Sampling(top_k=5), max_new_tokens=30)
    assert len(completion.ids) == 30


def test_threads_may_share_a_decoder(model: RNN) -> None:
    decoder = Decoder(model.eval())

    def write(n: int) -> list[tuple[int, ...]]:
        return [c.ids for c in generate(decoder, [[n + 1, 7 * n + 2], [n]], GREEDY, max_new_tokens=20)]

    alone = [write(n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == alone


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_weights_are_not_rounded(model: RNN, precision: Precision) -> None:
    with pytest.raises(UserError, match=f"precision '{precision}': is for GPTs; an RNN writes with float32 weights"):
        generate(model, [[1]], GREEDY, max_new_tokens=3, precision=precision)


def test_what_cannot_be_written_is_refused(model: RNN) -> None:
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate(model, [[1], []], GREEDY, max_new_tokens=5)
    with pytest.raises(TokenizerError, match="prompt 1 has the id 61, the model knows 0 to 60"):
        generate(model, [[61]], GREEDY, max_new_tokens=5)
    with torch.no_grad():
        model.wte.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        generate(model, [[1]], GREEDY, max_new_tokens=3)
