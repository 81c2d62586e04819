"""Writing with a model: a prompt is read at once, then token follows token (decoder.py).

Rows of different length stand in one batch, each at its own positions. A row that is finished, or whose
context is full, leaves the batch; a full one comes back with the last half of what it had, which is read
again. An RNN's is never full. Nothing a row writes depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gptlab.errors import ModelError, TokenizerError, UserError
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling, choose
from gptlab.kernels.decode import Precision
from gptlab.model.gpt import GPT
from gptlab.model.rnn import RNN


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    prompt:  the prompt's index           sample: which of its samples
    ids:     the new tokens, without EOS  stopped: by EOS, or by the length that was asked for
    reread:  how often the context was full, so that only the last part of the text was read again
    """

    prompt: int
    sample: int
    ids: tuple[int, ...]
    stopped: Literal["eos", "length"]
    reread: int


def generate(
    model: GPT | RNN | Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = 1,
    eos_id: int | None = None,
    vocab_size: int | None = None,
    on_token: Callable[[int, int, int], None] | None = None,
    batch_size: int = 32,
    precision: Precision = "float32",
) -> list[Completion]:
    """`samples` completions of each prompt, ordered by prompt, then sample.

    Every (seed, prompt index, sample) has a random generator of its own, so a completion is the same whatever
    else is written beside it. An empty prompt starts from `eos_id`, the end of a text before. A prompt longer
    than a GPT's context loses its beginning, which counts as a rereading. Of a model whose vocabulary is padded
    only the first `vocab_size` ids are written. `on_token(prompt, sample, id)` is called
    for each new token (not for EOS), in the order of writing. The model is left in the mode it was in.

    `precision` is that of the weights as tokens are written: on a CPU "bfloat16" writes one text twice as fast as
    "float32" and "int8" four times, each with weights that are rounded. Who calls often while the weights stay makes
    a `Decoder` once and gives it in the model's place; then `precision` is the decoder's own. RNNs have float32 alone.

    Raises UserError for a number or a precision that cannot be and for an empty prompt without `eos_id`;
    TokenizerError for an id the model does not know; ModelError where the model's logits are not finite.
    """
    _check_numbers(seed, max_new_tokens=max_new_tokens, samples=samples, batch_size=batch_size)
    beginning = [] if eos_id is None else [eos_id]
    starts = [list(prompt) or beginning for prompt in prompts]
    decoder = model if isinstance(model, Decoder) else Decoder(model, precision)
    model = decoder.model
    _check_ids(starts, model.shape.vocab_size)
    rows = [
        _Row(n, sample, start, max_new_tokens, decoder.context, _generator(seed, n, sample))
        for n, start in enumerate(starts)
        for sample in range(samples)
    ]
    was_training = model.training
    model.eval()
    try:
        unfinished = rows
        while unfinished:
            by_length = sorted(unfinished, key=lambda row: len(row.window))  # the least padding
            for start in range(0, len(by_length), batch_size):
                _write(decoder, by_length[start : start + batch_size], sampling, eos_id, vocab_size, on_token)
            unfinished = [row for row in unfinished if row.stopped is None]
    finally:
        model.train(was_training)
    return [row.completion() for row in rows]


@torch.inference_mode()
def _write(
    decoder: Decoder,
    rows: list[_Row],
    sampling: Sampling,
    eos_id: int | None,
    vocab_size: int | None,
    on_token: Callable[[int, int, int], None] | None,
) -> None:
    """Writes until every row is finished or its context is full."""
    capacity = max(len(row.window) + row.max_new_tokens - len(row.written) for row in rows)
    cache, logits = decoder.read([row.window for row in rows], min(capacity, decoder.context))
    if not logits.isfinite().all():
        raise ModelError("the model's logits are not finite: its weights are damaged; use an earlier checkpoint")
    while True:
        seen = [row.seen(logits.device) for row in rows] if sampling.repetition_penalty != 1 else []
        ids = choose(logits[:, :vocab_size], sampling, seen, [row.generator for row in rows])
        going_on = [n for n, id in enumerate(ids.tolist()) if rows[n].take(id, eos_id, on_token)]
        if not going_on:
            return
        if len(going_on) < len(rows):
            cache.keep(going_on)
            rows, ids = [rows[n] for n in going_on], ids[going_on]
        logits = decoder.step(ids, cache)


@dataclass
class _Row:
    """A completion in the making. `window` is what the model reads: the end of the text, within its context."""

    prompt: int
    sample: int
    start: list[int]
    max_new_tokens: int
    context: int
    generator: torch.Generator
    written: list[int] = field(default_factory=list)
    stopped: Literal["eos", "length"] | None = None
    reread: int = 0

    def __post_init__(self) -> None:
        self.window = list(self.start)
        if len(self.window) > self.context:
            # Room for what is to be written, where that takes less than half of the context.
            self._shorten(max(self.context - self.max_new_tokens, self.context // 2))

    def take(self, id: int, eos_id: int | None, on_token: Callable[[int, int, int], None] | None) -> bool:
        """Writes a token; whether the row can go on in its batch (it is not finished, its context not full)."""
        if id == eos_id:
            self.stopped = "eos"
            return False
        self.written.append(id)
        self.window.append(id)
        if on_token is not None:
            on_token(self.prompt, self.sample, id)
        if len(self.written) == self.max_new_tokens:
            self.stopped = "length"
            return False
        if len(self.window) > self.context:
            self._shorten(self.context // 2)
            return False
        return True

    def seen(self, device: torch.device) -> Tensor:
        """All ids read and written, (n,)."""
        return torch.tensor(self.start + self.written, device=device)

    def completion(self) -> Completion:
        assert self.stopped is not None
        return Completion(self.prompt, self.sample, tuple(self.written), self.stopped, self.reread)

    def _shorten(self, length: int) -> None:
        self.window = self.window[-max(length, 1) :]
        self.reread += 1


def _generator(seed: int, prompt: int, sample: int) -> torch.Generator:
    # SeedSequence mixes the three numbers; a sum or a product of them would give two rows one stream.
    state = np.random.SeedSequence((seed, prompt, sample)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _check_numbers(seed: int, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} = {value}: must be at least 1")
    if seed < 0:
        raise UserError(f"seed = {seed}: must be at least 0")


def _check_ids(starts: list[list[int]], vocab_size: int) -> None:
    for n, start in enumerate(starts, 1):
        if not start:
            raise UserError(f"prompt {n} is empty and there is no end-of-text token to start from: give it text")
        unknown = next((id for id in start if not 0 <= id < vocab_size), None)
        if unknown is not None:
            known = f"the model knows 0 to {vocab_size - 1}: the tokenizer is another model's"
            raise TokenizerError(f"prompt {n} has the id {unknown}, {known}")
