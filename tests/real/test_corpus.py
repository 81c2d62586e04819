"""Corpora from real text: WikiText-2 by its articles, and 104 books."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gptlab.data.corpus import Corpus, CorpusSettings, prepare_corpus
from gptlab.data.windows import ScoredWindows, TrainingWindows
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")

ARTICLE = r" = [^=].*[^=] = $"
"""A line with one equals sign on each side; sections have two and more."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


def prepare(tree: dict, tokenizer: Tokenizer, cache: Path) -> Corpus:
    return prepare_corpus(build(CorpusSettings, tree, "recipe.toml"), tokenizer, cache=cache)


def wikitext(file: str) -> list[dict]:
    path = Path(DATA or "") / "wikitext-2" / file
    assert path.exists(), f"{path} is missing"
    return [{"path": str(path), "document": "pattern", "pattern": ARTICLE}]


@pytest.fixture(scope="module")
def wikitext_2(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    tree = {
        "sources": wikitext("train.txt.gz"),
        "validation": {"sources": wikitext("valid.txt.gz")},
        "test": {"sources": wikitext("raw_test.txt.gz")},
    }
    return prepare(tree, tokenizer, tmp_path_factory.mktemp("cache"))


def test_wikitext_2_has_its_articles(wikitext_2: Corpus) -> None:
    """Merity et al. (2016), table 1: 600, 60 and 60 articles. A few lines of tables' legends look like titles
    (" = Played , W = "), five of them twice: 40 words, which are all that is missing from the files' 2,051,910."""
    train, validation, test = wikitext_2.table
    assert (train.documents, train.duplicates, train.words) == (624, 5, 2_051_910 - 40)
    assert (validation.documents, validation.duplicates, validation.words) == (60, 0, 213_886)
    assert (test.documents, test.duplicates, test.words) == (62, 0, 241_211)
    assert {counts.overlapping for counts in wikitext_2.table} == {0}
    assert wikitext_2.warnings == []


def test_wikitext_2_text_is_kept(wikitext_2: Corpus, tokenizer: Tokenizer) -> None:
    assert wikitext_2.test is not None
    text = "".join(tokenizer.decode(wikitext_2.test.document(d)) for d in range(len(wikitext_2.test.documents)))
    assert len(text.encode()) == wikitext_2.test.text_bytes
    assert tokenizer.decode(wikitext_2.test.document(0)).startswith(" = Robert Boulter = \n")


def test_wikitext_2_is_scored_once(wikitext_2: Corpus) -> None:
    windows = ScoredWindows(wikitext_2.validation, 1024)
    weights = [windows.batch(np.arange(i, min(i + 16, len(windows)))).weight for i in range(0, len(windows), 16)]
    assert sum(weights) == windows.scored == wikitext_2.validation.count


def test_the_books(tokenizer: Tokenizer, tmp_path: Path) -> None:
    books = Path(DATA or "") / "classic-books"
    sources = {split: [{"path": str(books / f"{split}.jsonl.gz")}] for split in ("train", "validation", "test")}
    tree = {
        "sources": sources["train"],
        "validation": {"sources": sources["validation"]},
        "test": {"sources": sources["test"]},
    }
    corpus = prepare(tree, tokenizer, tmp_path)
    train, validation, test = corpus.table
    assert (train.documents, train.bytes, train.words) == (104, 48_300_905, 8_568_236)
    assert (validation.documents, validation.bytes, validation.tokens) == (5, 1_623_553, 373_423 + 5)
    assert (test.documents, test.bytes, test.tokens) == (6, 1_770_943, 442_301 + 6)
    corpus.train.verify()
    rows = TrainingWindows(corpus.train, 128, seed=1)
    assert len(rows) == train.tokens // 128
    assert tokenizer.decode(corpus.train.document(0)).startswith("# Title: Thuvia, Maid of Mars")


def test_tiny_shakespeare_by_its_tail(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = Path(DATA or "") / "tinyshakespeare" / "input.txt"
    corpus = prepare({"sources": [{"path": str(path)}], "validation": {"share": 0.1}}, tokenizer, tmp_path)
    train, validation = (tokenizer.decode(file.document(0)) for file in (corpus.train, corpus.validation))
    assert train + validation == path.read_text(encoding="utf-8")
    assert len(validation) / len(train + validation) == pytest.approx(0.1, abs=0.001)
    assert corpus.table[0].divided_by == "tail"
