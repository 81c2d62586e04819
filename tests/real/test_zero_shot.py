"""BLiMP, LAMBADA and HellaSwag as they are published, and what a model that knows nothing makes of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.data.choices import Kind, read_choices
from gptlab.device import Precision
from gptlab.evaluation.choice import evaluate_choices
from gptlab.model.gpt import GPT, GPTShape
from gptlab.text.tokenizer import Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")

PLACES: dict[Kind, Path] = {
    "blimp": Path(DATA or "") / "blimp" / "BLiMP.zip",
    "lambada": Path(DATA or "") / "lambada",
    "hellaswag": Path(DATA or "") / "hellaswag",
}

PARADIGMS = {
    "anaphor_agreement": 2, "argument_structure": 9, "binding": 7, "control_raising": 5, "determiner_noun_agreement": 8,
    "ellipsis": 2, "filler_gap_dependency": 7, "irregular_forms": 2, "island_effects": 8, "npi_licensing": 7,
    "quantifiers": 4, "subject_verb_agreement": 6,
}  # fmt: skip
"""Of each phenomenon, as the paper counts them (Warstadt et al., 2020)."""


def test_blimp() -> None:
    items = read_choices("blimp", PLACES["blimp"])
    assert len(items) == 67_000
    assert set(Counter(item.groups["paradigms"] for item in items).values()) == {1000}
    assert Counter(item.groups["phenomena"] for item in items) == {name: 1000 * n for name, n in PARADIGMS.items()}
    assert len({item.groups["fields"] for item in items}) == 4
    assert items[0].continuations == (
        " Who should Derek hug after shocking Richard?", " Who should Derek hug Richard after shocking?"
    )  # fmt: skip


def test_lambada() -> None:
    items = read_choices("lambada", PLACES["lambada"])
    assert len(items) == 5153
    assert items[0].context.endswith("I don't care about")
    assert items[0].continuations == (" signs",)


def test_hellaswag() -> None:
    items = read_choices("hellaswag", PLACES["hellaswag"])
    assert len(items) == 10_042
    assert Counter(item.answer for item in items) == {0: 2515, 1: 2485, 2: 2584, 3: 2458}
    assert (items[0].context, items[0].answer) == ("Roof shingle removal: A man is sitting on a roof. he", 3)
    assert items[0].continuations[3] == " starts pulling up roofing on a roof."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


def by_chance(kind: Kind, tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, context=128, n_layer=1, n_head=2, n_embd=32))
    precision = Precision("float32", torch.float32, "")
    return evaluate_choices(
        kind, model, tokenizer, PLACES[kind], device=torch.device("cpu"), precision=precision, limit=limit
    )


def test_who_knows_nothing_guesses(tokenizer: Tokenizer) -> None:
    """Up to what the lengths tell: a longer text is less probable."""
    blimp = by_chance("blimp", tokenizer, 670)
    assert set(blimp["phenomena"]) == set(PARADIGMS)
    assert len(blimp["paradigms"]) == 67
    assert blimp["accuracy"] == pytest.approx(0.5, abs=0.07)
    hellaswag = by_chance("hellaswag", tokenizer, 200)
    assert hellaswag["accuracy_normalised"] == pytest.approx(0.25, abs=0.1)
    lambada = by_chance("lambada", tokenizer, 200)
    assert lambada["accuracy"] < 0.02
    assert lambada["perplexity"] > tokenizer.vocab_size / 2
    assert lambada["truncated"] > 0
