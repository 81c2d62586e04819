"""Preferences from real data: the four test files of HH-RLHF, 8,552 pairs."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data.batch import IGNORE
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.preferences import Preferences, PreferenceSettings, prepare_preferences
from gptlab.settings import build
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")

HH = Path(DATA or "") / "hh-rlhf"
FILES = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]

KEPT = {
    "harmless-base": (2299, 0, {"an empty message": 4, "roles out of order": 9}),
    "helpful-base": (2333, 2, {"an empty message": 4, "roles out of order": 15}),
    "helpful-online": (1129, 2, {"an empty message": 4, "no answer": 2}),
    "helpful-rejection-sampled": (2714, 32, {"roles out of order": 3}),
}
"""Of each file the pairs that are kept, those with equal sides (as the data's own description counts them), and bad
rows by cause."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


@pytest.fixture(scope="module")
def prepared(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Preferences]:
    """By context: one in which nearly all pairs fit, and one that cuts half of them."""
    tree: dict[str, Any] = {"sources": [{"path": str(HH / f"{name}-test.jsonl.gz"), "name": name} for name in FILES]}
    settings, template = build(PreferenceSettings, tree, "recipe.toml"), Template.named("hh", tokenizer.eos)
    cache = tmp_path_factory.mktemp("cache")
    return {
        context: prepare_preferences(settings, tokenizer, template, context=context, targets="answers", cache=cache)
        for context in (2048, 192)
    }


def records(name: str) -> list[dict[str, str]]:
    lines = gzip.decompress((HH / f"{name}-test.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines]


def decoded(tokenizer: Tokenizer, rows: PreferenceRows, number: int) -> list[tuple[str, str]]:
    """(all of it, the answer) of both sides of a pair."""
    batch = rows.batch(np.array([number]))
    found = []
    for ids, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        answer = [id for id in targets if id != IGNORE]
        start = next(place for place, id in enumerate(targets) if id != IGNORE)
        found.append((tokenizer.decode([*ids[: start + 1], *answer]), tokenizer.decode(answer)))
    return found


def test_what_is_kept_and_what_is_not(prepared: dict[int, Preferences]) -> None:
    table = prepared[2048].table
    for name, (pairs, equal, bad) in KEPT.items():
        rows = [row for row in table if row.name == name]
        assert sum(row.pairs for row in rows) == pairs
        [own] = [row for row in rows if row.split == "train"]
        assert (own.equal, own.bad, own.cut_equal, own.duplicates) == (equal, bad, 0, 0)
        raw = records(name)
        assert len(raw) == pairs + equal + sum(bad.values())
        same = [number for number, each in enumerate(raw, start=1) if each["chosen"] == each["rejected"]]
        assert len(same) == equal
        assert own.equal_at == [f"line {number}" for number in same[:5]]
    assert sum(row.pairs for row in table) == 8475
    assert all(row.prompt_cut == row.answers_cut == 0 for row in table)
    assert sum("prefer nothing" in text for text in prepared[2048].warnings) == 3


def test_the_sides_are_the_texts_as_they_were_published(tokenizer: Tokenizer, prepared: dict[int, Preferences]) -> None:
    """But for white space around a turn, which is the format's."""
    rows = prepared[2048].train
    published = {" ".join(each[side].split()) for name in FILES for each in records(name) for side in each}
    for number in range(0, len(rows), 97):
        (chosen, _), (rejected, _) = decoded(tokenizer, rows, number)
        for text in (chosen, rejected):
            assert text.endswith("<|endoftext|>")
            assert " ".join(text.replace("<|endoftext|>", " ").split()) in published
    asked, answer = prepared[2048].validation.prompts(1)[0]
    assert asked[-1].role == "user"
    assert any(each["chosen"].rstrip().endswith(f"Assistant: {answer}") for name in FILES for each in records(name))


def test_cutting_keeps_the_answers(tokenizer: Tokenizer, prepared: dict[int, Preferences]) -> None:
    whole, cut = prepared[2048].train, prepared[192].train
    assert cut.max_length == 191
    assert 0.3 < sum(row.prompt_cut for row in prepared[192].table) / 8475 < 0.7
    assert sum(row.cut_equal for row in prepared[192].table) == 8475 - sum(row.pairs for row in prepared[192].table) > 0
    assert (cut.lengths() <= 191).all()
    assert (whole.lengths() < 2048).all()
    for number in range(0, len(cut), 97):
        (chosen, chosen_answer), (rejected, rejected_answer) = decoded(tokenizer, cut, number)
        assert chosen.removesuffix(chosen_answer) == rejected.removesuffix(rejected_answer), "the same prompt"


def test_which_side_is_longer(prepared: dict[int, Preferences]) -> None:
    """In the helpful pairs of the first round the chosen answer is, in the harmless ones the rejected."""
    rows = {row.name: row for row in prepared[2048].table if row.split == "train"}
    assert rows["helpful-base"].longer > rows["helpful-base"].pairs / 2 > rows["harmless-base"].longer
    lengths = prepared[2048].train.lengths()
    assert int((lengths[:, 0] > lengths[:, 1]).sum()) == sum(row.longer for row in rows.values())
    assert lengths.sum(axis=0).tolist() == [
        sum(row.chosen_tokens for row in rows.values()), sum(row.rejected_tokens for row in rows.values())
    ]  # fmt: skip


def test_no_prompt_of_validation_is_trained_on(prepared: dict[int, Preferences]) -> None:
    both = prepared[2048]
    held, learned = ({str(prompt) for prompt, _ in rows.prompts(512)} for rows in (both.validation, both.train))
    assert len(learned) == 512
    assert not held & learned
    assert 0.03 < len(both.validation) / len(both.train) < 0.07
