"""Pairs beside TRL's reading of them, and their ids beside those that transformers' chat template makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from trl.data_utils import common_prefix_length, extract_prompt

from gptlab.data.pairs import read_pair
from gptlab.data.preference_encoding import encode_answers
from gptlab.text.dialogue import BUILT_IN, Template
from gptlab.text.tokenizer import EOS, Tokenizer

ASKED = [
    {"role": "user", "content": "What colour is the sky?"},
    {"role": "assistant", "content": "Blue, by day."},
    {"role": "user", "content": "And at night? 🙂"},
]
CHOSEN = {"role": "assistant", "content": "Black, with a few stars."}
REJECTED = {"role": "assistant", "content": "It is green."}


def whole(prompt: list[dict[str, str]]) -> dict[str, Any]:
    return {"chosen": [*prompt, CHOSEN], "rejected": [*prompt, REJECTED]}


@pytest.mark.parametrize("prompt", [ASKED, ASKED[:1], [{"role": "system", "content": "Be brief."}, *ASKED]])
def test_the_prompt_that_both_sides_share(prompt: list[dict[str, str]]) -> None:
    """TRL calls it implicit; with it named, the pair is the same."""
    theirs = extract_prompt(whole(prompt))
    ours = read_pair("messages", whole(prompt))
    assert [vars(message) for message in ours.prompt] == theirs["prompt"] == prompt
    assert [[{"role": "assistant", "content": text}] for text in ours[1:]] == [theirs["chosen"], theirs["rejected"]]
    assert read_pair("prompt", theirs) == ours
    assert read_pair("prompt", {"prompt": prompt, **whole(prompt)}) == ours


@pytest.mark.parametrize("name", BUILT_IN)
def test_ids(name: str, tmp_path: Path) -> None:
    """As TRL's DPOTrainer makes them: the prompt with what begins an answer, then what the whole has beyond it. What a
    template writes behind the token that closes an answer, as chatml's line end, is left out here."""
    template = Template.named(name, EOS)
    texts = [message["content"] for message in [*ASKED, CHOSEN, REJECTED]]
    tokenizer = Tokenizer.train(texts * 5, 320).with_special_tokens(template.special_tokens)
    tokenizer.save(tmp_path)
    template.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    def ids(messages: list[dict[str, str]], **options: Any) -> list[int]:
        return theirs.apply_chat_template(messages, return_dict=True, **options)["input_ids"]

    prompt, sides = ids(ASKED, add_generation_prompt=True), [ids([*ASKED, side]) for side in (CHOSEN, REJECTED)]
    pair = read_pair("messages", whole(ASKED))
    ours = encode_answers(pair.prompt, pair[1:], template, tokenizer, 1000)
    for found, expected in zip(ours.ids, sides, strict=True):
        assert ours.start == common_prefix_length(prompt, expected) == len(prompt)
        assert found.tolist() == expected[: len(found)]
        assert found[-1] == template.end_id(tokenizer)
        assert not theirs.decode(expected[len(found) :]).strip()
