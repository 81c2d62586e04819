from __future__ import annotations

import pytest
import torch

from gptlab.errors import RecipeError, TokenizerError
from gptlab.evaluation.samples import SampleSettings, TextStream, complete
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.gpt import GPT, GPTShape
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer

TEXT = "Ünïcödé — 日本語 and naïve café, emoji 🙂 and plain words."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 2, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(3)
    model = GPT(GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16, tie_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    return model


def test_completions_are_the_engines_as_text(model: GPT, tokenizer: Tokenizer) -> None:
    prompts = [TEXT[:7], "", "plain"]
    texts = complete(model, tokenizer, prompts, Sampling(top_k=9), max_new_tokens=40, seed=4, samples=2)
    ids = generate(
        model, [tokenizer.encode(prompt) for prompt in prompts], Sampling(top_k=9),
        max_new_tokens=40, seed=4, samples=2, eos_id=tokenizer.eos_id,
    )  # fmt: skip
    assert [t.prompt for t in texts] == [prompt for prompt in prompts for _ in range(2)]
    assert [(t.text, t.tokens, t.stopped, t.reread) for t in texts] == [
        (tokenizer.decode(c.ids), len(c.ids), c.stopped, c.reread) for c in ids
    ]


def test_streamed_text_joined_is_the_text(model: GPT, tokenizer: Tokenizer) -> None:
    """A random model writes bytes that are no UTF-8, so this goes through whole, cut and impossible characters."""
    told: dict[tuple[int, int], str] = {}

    def tell(prompt: int, sample: int, text: str) -> None:
        told[prompt, sample] = told.get((prompt, sample), "") + text

    texts = complete(model, tokenizer, [TEXT, "a", ""], Sampling(), max_new_tokens=60, samples=3, on_text=tell)
    assert [told.get(divmod(n, 3), "") for n in range(9)] == [t.text for t in texts]
    assert any("\ufffd" in t.text for t in texts)


def test_a_character_is_told_when_it_is_whole(tokenizer: Tokenizer) -> None:
    """Two samples at once; the character is four tokens, for no merge knows it."""
    character = chr(0x10FFFD)
    ids = tokenizer.encode(character)
    assert len(ids) == 4
    told: list[tuple[int, int, str]] = []
    stream = TextStream(tokenizer, lambda *piece: told.append(piece))
    for place, id in enumerate(ids):
        stream.write(0, 0, id)
        stream.write(0, 1, tokenizer.encode("ab!?")[place])
    stream.write(1, 0, ids[0])
    assert [text for _, sample, text in told if sample == 1] == list("ab!?")
    assert [piece for piece in told if piece[1] == 0] == [(0, 0, character)]
    stream.close()
    assert told[-1] == (1, 0, "\ufffd")  # cut off for good


def test_a_tokenizer_larger_than_the_model(model: GPT) -> None:
    larger = Tokenizer.train(["the theory of other things there"] * 3, 300)
    small = GPT(GPTShape(257, context=8, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(TokenizerError, match="prompt 1 has the id"):
        complete(small, larger, ["the theory"], Sampling(), max_new_tokens=2)


def test_section() -> None:
    settings = build(SampleSettings, {"prompts": ["a", ""], "top_p": 0.9, "top_k": 0}, "recipe.toml")
    assert settings.prompts == ("a", "")
    assert settings.sampling == Sampling(temperature=0.8, top_p=0.9)
    assert SampleSettings().sampling == Sampling(temperature=0.8, top_k=40)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0), ("top_p", 1.5), ("top_k", -1), ("max_new_tokens", 0), ("prompts", [3]), ("prompt", ["a"])],
)
def test_section_names_what_is_wrong(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"recipe.toml: {key}"):
        build(SampleSettings, {key: value}, "recipe.toml")
