"""Real dialogues with GPT-2's own vocabulary: the ids of transformers' `apply_chat_template`, for every template."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptlab.text.dialogue import BUILT_IN, Message, Template
from gptlab.text.tokenizer import EOS, Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="GPTLAB_DATA names no folder with real data")

ROLES = ("user", "assistant")


def hh_rlhf() -> list[list[Message]]:
    lines = gzip.decompress((Path(DATA or "") / "hh-rlhf" / "helpful-base-test.jsonl.gz").read_bytes()).splitlines()
    texts = [json.loads(line)["chosen"] for line in lines[:300]]
    return [
        [
            Message("user" if speaker == "Human" else "assistant", words.strip())
            for speaker, words in re.findall(r"\n\n(Human|Assistant):(.*?)(?=\n\nHuman:|\n\nAssistant:|\Z)", text, re.S)
        ]
        for text in texts
    ]


def daily_dialog() -> list[list[Message]]:
    lines = gzip.decompress((Path(DATA or "") / "dailydialog" / "dialogues_test.txt.gz").read_bytes()).decode()
    turns = [line.split("__eou__")[:-1] for line in lines.splitlines()[:300]]
    return [[Message(ROLES[n % 2], words.strip()) for n, words in enumerate(dialogue)] for dialogue in turns]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


@pytest.mark.parametrize("name", BUILT_IN)
def test_real_dialogues(name: str, gpt2: Tokenizer, tmp_path: Path) -> None:
    template = Template.named(name, EOS)
    tokenizer = gpt2.with_special_tokens(template.special_tokens)
    tokenizer.save(tmp_path)
    template.save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    dialogues = [*hh_rlhf(), *daily_dialog()]
    assert sum(map(len, dialogues)) > 3000
    for messages in dialogues:
        ids, learned = template.encode(messages, tokenizer)
        plain = [{"role": message.role, "content": message.content} for message in messages]
        assert ids == theirs.apply_chat_template(plain, return_dict=False)
        answers = [message.content for message in messages if message.role == "assistant"]
        space = " " if name == "hh" else ""
        said = "".join(f"{space}{answer}{template.end}" for answer in answers)
        assert tokenizer.decode([i for i, is_answer in zip(ids, learned, strict=True) if is_answer]) == said
        last = max(n for n, message in enumerate(messages) if message.role == "assistant")
        prompt = template.prompt_ids(messages[:last], tokenizer)
        assert prompt == ids[: len(prompt)]
        assert prompt == theirs.apply_chat_template(plain[:last], return_dict=False, add_generation_prompt=True)


def test_the_space_after_assistant_belongs_to_the_answer(gpt2: Tokenizer) -> None:
    hh = Template.named("hh", EOS)
    prompt = hh.prompt_ids([Message("user", "Is it?")], gpt2)
    ids, _ = hh.encode([Message("user", "Is it?"), Message("assistant", "Yes")], gpt2)
    assert gpt2.decode(prompt[-2:]) == "Assistant:"
    assert [gpt2.decode([i]) for i in ids[len(prompt) :]] == [" Yes", EOS]
