"""The forty questions beside the benchmarks that many dialogue models have been tuned on or judged by."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from gptlab.evaluation.prompts import topic_prompts

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def benchmark_questions() -> list[str]:
    records = [
        json.loads(line)
        for path in sorted((Path(DATA or "") / "eval-prompts").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [text for record in records for text in record.get("turns", [record.get("instruction", "")])]


def test_no_question_is_a_benchmarks() -> None:
    known = [words(text) for text in benchmark_questions()]
    assert len(known) > 400
    for prompt in topic_prompts():
        ours = words(prompt.text)
        assert max(len(ours & theirs) / len(ours | theirs) for theirs in known) < 0.5, prompt.text
