"""Dialogues from real data: DailyDialog with its official split, and the chosen answers of HH-RLHF."""

from __future__ import annotations

import gzip
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data.batch import IGNORE
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.dialogues import Dialogues, DialogueSettings, prepare_dialogues
from gptlab.errors import DataError
from gptlab.settings import build
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")

DAILY, HH = Path(DATA or "") / "dailydialog", Path(DATA or "") / "hh-rlhf"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def prepare(tree: dict[str, Any], tokenizer: Tokenizer, cache: Path, *, template: str, context: int) -> Dialogues:
    settings = build(DialogueSettings, tree, "recipe.toml")
    return prepare_dialogues(settings, tokenizer, Template.named(template, tokenizer.eos), context=context, cache=cache)


def daily(**keys: Any) -> dict[str, Any]:
    paths = {split: DAILY / f"dialogues_{split}.txt.gz" for split in ("train", "validation", "test")}
    sources = {split: [{"path": str(path), "format": "dailydialog"}] for split, path in paths.items()}
    held = {split: {"sources": sources[split]} for split in ("validation", "test")}
    return {"sources": sources["train"], **held, **keys}


def lines(split: str) -> list[str]:
    return gzip.decompress((DAILY / f"dialogues_{split}.txt.gz").read_bytes()).decode().splitlines()


def decoded(tokenizer: Tokenizer, rows: DialogueRows, number: int) -> str:
    batch = rows.batch(np.array([number]))
    return tokenizer.decode([*batch.tokens[0].tolist(), int(batch.targets[0, -1])])


def test_dailydialogs_test_dialogues_stand_in_its_training_set(tokenizer: Tokenizer, cache: Path) -> None:
    """93 of 1,000 test and 69 of 1,000 validation dialogues do, word for word."""
    train, held = lines("train"), {*lines("validation"), *lines("test")}
    assert sum(line in set(train) for line in lines("test")) == 93
    overlapping = sum(line in held for line in train)
    with pytest.raises(DataError, match=rf"^{overlapping} training dialogue\(s\) also stand in validation or test"):
        prepare(daily(), tokenizer, cache, template="eos", context=512)
    dialogues = prepare(daily(overlap="drop"), tokenizer, cache, template="eos", context=512)
    counts = dialogues.table[0]
    assert counts.overlapping == overlapping == 172
    assert counts.dialogues + counts.too_long == len(set(train) - held)
    assert counts.duplicates == len(train) - overlapping - len(set(train) - held)
    assert [row.unanswered for row in dialogues.table[1:]] == [367, 340], "dialogues of an odd number of utterances"


def test_dailydialogs_utterances(tokenizer: Tokenizer, cache: Path) -> None:
    """With their history, each from the second on is an answer: 6,740 in the test set."""
    tree = daily(overlap="drop", history=3)
    tree = {**tree, "sources": tree.pop("validation")["sources"], "validation": tree.pop("test")}
    rows = prepare(tree, tokenizer, cache, template="eos", context=1024).validation
    assert len(rows) == 6740
    utterances = [text.strip() for text in lines("test")[0].split("__eou__") if text.strip()]
    for number in range(len(utterances) - 1):
        shown = utterances[max(0, number - 2) : number + 2]
        assert decoded(tokenizer, rows, number) == "".join(f"{text}<|endoftext|>" for text in shown)
        targets = rows.batch(np.array([number])).targets[0].tolist()
        assert tokenizer.decode([id for id in targets if id != IGNORE]) == f"{shown[-1]}<|endoftext|>"


def test_hh_rlhf(tokenizer: Tokenizer, cache: Path) -> None:
    files = sorted(HH.glob("*.jsonl.gz"))
    tree = {"sources": [{"path": str(path), "format": "hh"} for path in files]}
    dialogues = prepare(tree, tokenizer, cache, template="hh", context=1024)
    records = [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(records) == 8552
    counted: dict[str, int] = {}
    for row in dialogues.table:
        for cause, count in row.bad.items():
            counted[cause] = counted.get(cause, 0) + count
    speakers = [re.findall(r"\n\n(Human|Assistant):", record["chosen"]) for record in records]
    twice = sum(any(a == b for a, b in pairwise(who)) for who in speakers)
    assert twice == 18
    assert counted == {"an empty message": 6, "roles out of order": twice}
    written = sum(row.rows + row.too_long + row.duplicates for row in dialogues.table)
    assert written == len(records) - 24
    assert 0.03 < len(dialogues.validation) / len(dialogues.train) < 0.07
    [helpful] = [row for row in dialogues.table if row.name == "helpful-base-test.jsonl.gz" and row.split == "train"]
    assert helpful.bad_at["an empty message"] == ["line 121"]
    assert helpful.bad_at["roles out of order"][:2] == ["line 356", "line 568"]

    texts = {re.sub(r"(Human|Assistant): +", r"\1: ", record["chosen"].strip()) for record in records}
    found = [decoded(tokenizer, dialogues.train, number) for number in range(0, len(dialogues.train), 40)]
    whole = [text for text in found if text.replace("<|endoftext|>", "").strip() in texts]
    assert len(whole) > 0.97 * len(found), "all but those that were cut to fit"
    assert all(text.endswith("<|endoftext|>") for text in found)
    asked, answer = dialogues.validation.prompts(1)[0]
    assert asked[-1].role == "user"
    assert any(record["chosen"].endswith(f"Assistant: {answer}") for record in records)
