"""GPT-2's own vocabulary on real text: the ids of tiktoken, `tokenizers` and transformers are the same."""

from __future__ import annotations

import gzip
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import GPT2TokenizerFast

from gptlab.text.tokenizer import EOS, Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="GPTLAB_DATA names no folder with real data")

TRICKY = [
    "",
    " ",
    "\n\n\n",
    "  two  spaces \t and\ttabs \r\n and ends   ",
    "don't I'll we've they're he's I'm she'd DON'T",
    f"special {EOS} in text{EOS}",
    "ünïcödé — “quotes” … 東京 العربية हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b \ufeff \u2028 \x00\x1f",
    "x=1234567890;\n\tif (a>=b) { return a**b; } //////// =======",
    "a" * 3000 + " " * 3000 + "!" * 3000 + "7" * 3000,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(DATA or "") / "gpt2-bpe"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.read(folder)


@pytest.fixture(scope="module")
def wikitext() -> list[str]:
    compressed = (Path(DATA or "") / "wikitext-2" / "raw_test.txt.gz").read_bytes()
    lines = gzip.decompress(compressed).decode().split("\n")
    return ["\n".join(lines[start : start + 100]) for start in range(0, len(lines), 100)]


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer.save(folder)
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    return reference


def test_known_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode(EOS, special=True) == [50256]
    assert tokenizer.bytes_of(262) == b" the"


def test_corpora_are_encoded_by_the_fast_engine(tokenizer: Tokenizer) -> None:
    assert tokenizer._fast is not None


def test_ids_equal_tokenizers(tokenizer: Tokenizer, reference: tokenizers.Tokenizer, wikitext: list[str]) -> None:
    texts = wikitext + TRICKY
    expected = reference.encode_batch_fast(texts)
    for text, ids, encoding in zip(texts, tokenizer.encode_documents(texts), expected, strict=True):
        assert ids.tolist() == encoding.ids, text[:80]
        assert tokenizer.decode(ids) == text


def test_every_character_is_split_alike(tokenizer: Tokenizer, reference: tokenizers.Tokenizer) -> None:
    """The libraries' tables of letters and digits could differ: one text for each character there is, in context."""
    characters = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co")]
    texts = [f"a{c}1{c}!{c} {c}" for c in characters]
    for start in range(0, len(texts), 20000):
        part = texts[start : start + 20000]
        expected = [np.array(encoding.ids) for encoding in reference.encode_batch_fast(part)]
        assert all(map(np.array_equal, tokenizer.encode_documents(part), expected))


def test_ids_equal_transformers(folder: Path, tokenizer: Tokenizer, wikitext: list[str], tmp_path: Path) -> None:
    shutil.copy(folder / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(folder / "vocab.bpe", tmp_path / "merges.txt")
    theirs = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in wikitext[:10] + TRICKY:
        assert theirs(text)["input_ids"] == tokenizer.encode(text, special=True)
    assert Tokenizer.read(tmp_path).fingerprint == tokenizer.fingerprint
    theirs.save_pretrained(tmp_path / "saved")
    assert Tokenizer.read(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_a_vocabulary_trained_on_real_text_is_fast_and_equal(wikitext: list[str], tmp_path: Path) -> None:
    trained = Tokenizer.train(wikitext, 4000)
    assert trained.vocab_size == 4000
    assert trained._fast is not None
    trained.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True
    texts = wikitext + TRICKY
    for ids, expected in zip(trained.encode_documents(texts), reference.encode_batch_fast(texts), strict=True):
        assert ids.tolist() == expected.ids
