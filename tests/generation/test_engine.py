"""The engine against the naive one: a full forward over the text for every token, one row at a time."""

from __future__ import annotations

import pytest
import torch

from gptlab.errors import ModelError, TokenizerError, UserError
from gptlab.generation.decoder import Decoder
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.kernels import native
from gptlab.kernels.decode import Precision
from gptlab.model.gpt import GPT

GREEDY = Sampling(greedy=True)
PROMPTS = [[1], [5, 9, 3, 60, 2, 2, 7], [8, 8], list(range(17)), [33, 4, 4, 4]]


@torch.no_grad()
def naive(model: GPT, prompt: list[int], n: int) -> tuple[list[int], int]:
    """Greedy ids without cache or batch, and how often the context was full."""
    model.eval()
    context, rereads = model.shape.context, 0
    window, written = list(prompt), []
    if len(window) > context:
        window, rereads = window[-max(context - n, context // 2) :], 1
    while True:
        hidden = model(torch.tensor([window]))[0, -1]
        written.append(int(model.logits(hidden).argmax()))
        window.append(written[-1])
        if len(written) == n:
            return written, rereads
        if len(window) > context:
            window, rereads = window[-(context // 2) :], rereads + 1


def test_cached_is_uncached_and_batched_is_alone(model: GPT) -> None:
    completions = generate(model, PROMPTS, GREEDY, max_new_tokens=7)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert list(completion.ids) == naive(model, prompt, 7)[0]
    assert len({completion.ids for completion in completions}) == len(PROMPTS)


def test_logits_of_a_batch_are_those_of_each_alone(model: GPT) -> None:
    """Uneven rows, some of which leave: logits of every step within 1e-4 of the forward without a cache."""
    model.eval()
    rows = [list(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        decoder = Decoder(model)
        cache, logits = decoder.read(rows, model.shape.context)
        for step in range(6):
            for row, found in zip(rows, logits, strict=True):
                torch.testing.assert_close(found, model.logits(model(torch.tensor([row]))[0, -1]), atol=1e-4, rtol=0)
            if step in (1, 3):  # the longest row leaves, then the first
                kept = [0, 1, 2, 4] if step == 1 else [1, 2, 3]
                cache.keep(kept)
                rows = [rows[n] for n in kept]
            ids = torch.tensor([(7 * step + n) % 61 for n in range(len(rows))])
            for row, id in zip(rows, ids.tolist(), strict=True):
                row.append(id)
            logits = decoder.step(ids, cache)


@pytest.mark.parametrize("n", [25, 60])
def test_full_context_keeps_the_last_half(model: GPT, n: int) -> None:
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, GREEDY, max_new_tokens=n), strict=True):
        ids, rereads = naive(model, prompt, n)
        assert list(completion.ids) == ids
        assert completion.reread == rereads > 0


@pytest.mark.parametrize(("n", "kept"), [(4, 20), (20, 12)])
def test_a_prompt_longer_than_the_context_loses_its_beginning(model: GPT, n: int, kept: int) -> None:
    prompt = [i * 7 % 61 for i in range(50)]
    (completion,) = generate(model, [prompt], GREEDY, max_new_tokens=n)
    (cut,) = generate(model, [prompt[-kept:]], GREEDY, max_new_tokens=n)
    assert completion.ids == cut.ids
    assert completion.reread == cut.reread + 1


def test_a_prompt_that_fills_the_context_is_read_whole(model: GPT) -> None:
    prompt = [i * 7 % 61 for i in range(24)]
    (completion,) = generate(model, [prompt], GREEDY, max_new_tokens=1)
    assert (list(completion.ids), completion.reread) == (naive(model, prompt, 1)[0], 0)


def test_samples_do_not_depend_on_what_is_beside_them(model: GPT) -> None:
    sampling = Sampling(temperature=1.2, top_k=20, repetition_penalty=1.1)
    whole = generate(model, PROMPTS, sampling, max_new_tokens=40, samples=3, seed=5)
    small = generate(model, PROMPTS, sampling, max_new_tokens=40, samples=3, seed=5, batch_size=2)
    fewer = generate(model, PROMPTS[:2], sampling, max_new_tokens=40, samples=1, seed=5)
    assert whole == small
    assert [c for c in whole if c.prompt < 2 and c.sample == 0] == fewer


def test_order_seeds_and_samples(model: GPT) -> None:
    first = generate(model, PROMPTS, Sampling(), max_new_tokens=12, samples=2, seed=1)
    assert [(c.prompt, c.sample) for c in first] == [(p, s) for p in range(len(PROMPTS)) for s in range(2)]
    assert first == generate(model, PROMPTS, Sampling(), max_new_tokens=12, samples=2, seed=1)
    assert len({c.ids for c in first}) == len(first)  # each row has a stream of its own
    assert all(
        a.ids != b.ids
        for a, b in zip(first, generate(model, PROMPTS, Sampling(), max_new_tokens=12, samples=2, seed=2), strict=True)
    )


def test_one_prompt_twice_has_two_streams(model: GPT) -> None:
    one, two = generate(model, [[3, 4]] * 2, Sampling(), max_new_tokens=12)
    assert one.ids != two.ids


def test_global_random_state_is_left_alone(model: GPT) -> None:
    before = torch.get_rng_state()
    generate(model, [[1]], Sampling(), max_new_tokens=5)
    assert torch.equal(before, torch.get_rng_state())


def test_eos_ends_a_row_and_changes_no_other(model: GPT) -> None:
    free = generate(model, PROMPTS, GREEDY, max_new_tokens=12)
    eos_id = free[1].ids[4]
    for completion, unstopped in zip(
        generate(model, PROMPTS, GREEDY, max_new_tokens=12, eos_id=eos_id), free, strict=True
    ):
        if eos_id in unstopped.ids:
            assert completion.ids == unstopped.ids[: unstopped.ids.index(eos_id)]
            assert completion.stopped == "eos"
        else:
            assert completion.ids == unstopped.ids
            assert completion.stopped == "length"


def test_an_empty_prompt_starts_from_eos(model: GPT) -> None:
    (completion,) = generate(model, [[]], GREEDY, max_new_tokens=5, eos_id=9)
    ids = naive(model, [9], 5)[0]
    assert list(completion.ids) == (ids[: ids.index(9)] if 9 in ids else ids)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate(model, [[1], []], GREEDY, max_new_tokens=5)


def test_tokens_are_told_as_they_are_written(model: GPT) -> None:
    told: dict[tuple[int, int], list[int]] = {}
    completions = generate(
        model, PROMPTS, Sampling(), max_new_tokens=30, samples=2, eos_id=3,
        on_token=lambda prompt, sample, id: told.setdefault((prompt, sample), []).append(id),
    )  # fmt: skip
    assert told == {(c.prompt, c.sample): list(c.ids) for c in completions if c.ids}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_dropout_is_off(model: GPT, training: bool) -> None:
    model.train(training)
    first = generate(model, PROMPTS, GREEDY, max_new_tokens=5)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert first == generate(model, PROMPTS, GREEDY, max_new_tokens=5)


def test_interrupting_passes_through_and_restores_the_mode(model: GPT) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, GREEDY, max_new_tokens=5, on_token=interrupt)
    assert model.training


def test_weights_can_be_trained_after_writing(model: GPT) -> None:
    """Nothing of inference mode sticks to the model."""
    generate(model, PROMPTS, GREEDY, max_new_tokens=5)
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()
    assert model.wte.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(model: GPT, dtype: torch.dtype) -> None:
    (completion,) = generate(model.to(dtype), [[1, 2]], Sampling(top_k=5), max_new_tokens=30)
    assert len(completion.ids) == 30


@pytest.mark.parametrize("kernels", ["C++", "torch"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_weights_batched_alone_and_from_a_kept_decoder(model: GPT, precision: Precision, kernels: str) -> None:
    """Beyond the context: what is written beside a row changes nothing, nor does preparing the weights once."""
    with native.torch_only("asked for" if kernels == "torch" else ""):
        decoder = Decoder(model, precision)
        together = generate(model, PROMPTS, GREEDY, max_new_tokens=40, precision=precision)
        assert generate(decoder, PROMPTS, GREEDY, max_new_tokens=40) == together
        for prompt, completion in zip(PROMPTS, together, strict=True):
            assert generate(decoder, [prompt], GREEDY, max_new_tokens=40)[0].ids == completion.ids
    assert together != generate(model, PROMPTS, GREEDY, max_new_tokens=40)


def test_a_padded_vocabulary_is_never_written(model: GPT) -> None:
    for sampling in (GREEDY, Sampling(), Sampling(top_k=5), Sampling(top_p=0.5)):
        completions = generate(model, PROMPTS, sampling, max_new_tokens=40, vocab_size=9)
        assert {id for completion in completions for id in completion.ids} <= set(range(9))


def test_a_precision_that_there_is_not(model: GPT) -> None:
    with pytest.raises(UserError, match="precision 'half': wanted float32, bfloat16, int8"):
        generate(model, [[1]], GREEDY, max_new_tokens=3, precision="half")  # type: ignore[arg-type]


def test_no_prompts_no_completions(model: GPT) -> None:
    assert generate(model, [], GREEDY, max_new_tokens=5) == []


@pytest.mark.parametrize("name", ["max_new_tokens", "samples", "batch_size"])
def test_counts_below_one_are_named(model: GPT, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} = 0: must be at least 1"):
        generate(model, [[1]], GREEDY, **{"max_new_tokens": 3, name: 0})


def test_negative_seed(model: GPT) -> None:
    with pytest.raises(UserError, match="seed = -1"):
        generate(model, [[1]], GREEDY, max_new_tokens=3, seed=-1)


@pytest.mark.parametrize("id", [61, -1])
def test_an_id_the_model_does_not_know(model: GPT, id: int) -> None:
    with pytest.raises(TokenizerError, match=f"prompt 2 has the id {id}, the model knows 0 to 60"):
        generate(model, [[1], [2, id]], GREEDY, max_new_tokens=3)


def test_weights_that_are_not_finite(model: GPT) -> None:
    with torch.no_grad():
        model.ln_f.weight[0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        generate(model, [[1]], Sampling(), max_new_tokens=3)
