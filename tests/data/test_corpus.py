"""Preparing a corpus: what goes where, what is dropped, and that no kill, second process or full disk harms it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data.corpus import Corpus, CorpusSettings, prepare_corpus
from gptlab.data.token_file import TokenFile
from gptlab.errors import DataError, GptlabError, RecipeError
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer

WORDS = ["the", "of", "and", "a", "to", "in", "he", "have", "it", "that", "for", "they", "with", "not", "on", "she"]


def sentence(number: int) -> str:
    """A text that no other number has."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, size=random.integers(3, 40))) + f" {number}."


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def settings_of(*paths: Path | dict[str, Any], **sections: Any) -> CorpusSettings:
    sources = [path if isinstance(path, dict) else {"path": str(path)} for path in paths]
    return build(CorpusSettings, {"sources": sources, **sections}, "recipe.toml")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([sentence(n) for n in range(200)], 400)


class Counting(Tokenizer):
    """The tokenizer, remembering what it was given."""

    encoded: list[str]

    def encode_documents(self, texts: Any) -> Any:
        self.encoded += texts
        return super().encode_documents(texts)


@pytest.fixture
def counting(tokenizer: Tokenizer, tmp_path: Path) -> Counting:
    tokenizer.save(tmp_path / "tokenizer")
    counting = Counting.read(tmp_path / "tokenizer")
    counting.encoded = []
    return counting


@pytest.fixture
def prepare(tokenizer: Tokenizer, tmp_path: Path) -> Any:
    def call(settings: CorpusSettings, **options: Any) -> Corpus:
        return prepare_corpus(settings, options.pop("tokenizer", tokenizer), cache=tmp_path / "cache", **options)

    return call


def texts(tokenizer: Tokenizer, file: TokenFile | None) -> list[str]:
    assert file is not None
    assert (file.tokens[np.append(file.documents[1:], file.count) - 1] == file.eos_id).all()
    return [tokenizer.decode(file.document(d)) for d in range(len(file.documents))]


# What goes where


def test_documents_are_joined_with_eos_in_order(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    documents = [sentence(n) for n in range(5000)]  # several batches, encoded by several threads
    held = [sentence(n) for n in range(9000, 9003)]
    own = {"sources": [{"path": str(write_jsonl(tmp_path / "held.jsonl", held))}]}
    corpus = prepare(settings_of(write_jsonl(tmp_path / "a.jsonl", documents), validation=own))
    assert texts(tokenizer, corpus.train) == documents
    ids = [id for text in documents for id in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert corpus.train.tokens.tolist() == ids
    assert texts(tokenizer, corpus.validation) == held
    assert corpus.test is None
    train, validation = corpus.table
    assert (train.name, train.split, train.divided_by, train.documents) == ("a.jsonl", "train", "whole", 5000)
    assert train.bytes == corpus.train.text_bytes == sum(len(text.encode()) for text in documents)
    assert train.words == corpus.train.words == sum(len(text.split()) for text in documents)
    assert (train.tokens, validation.tokens) == (corpus.train.count, corpus.validation.count)
    corpus.train.verify()


def test_a_share_by_document(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    documents = [sentence(n % 1500) for n in range(2000)]  # 500 of them twice
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    corpus = prepare(settings_of(path, validation={"share": 0.1}, test={"share": 0.2}))
    train, validation, test = (texts(tokenizer, file) for file in (corpus.train, corpus.validation, corpus.test))
    assert not set(train) & set(validation)
    assert not set(train) & set(test)
    assert not set(validation) & set(test)
    assert len(train) == len(set(train))
    assert len(validation) > len(set(validation))  # scored as they are
    assert set(train) | set(validation) | set(test) == set(documents)
    assert 150 < len(validation) < 250
    assert 330 < len(test) < 470
    [counts] = [counts for counts in corpus.table if counts.split == "train"]
    assert counts.divided_by == "document"
    assert counts.duplicates == 2000 - len(train) - len(validation) - len(test)


def test_the_seed_decides_only_where_a_share_is_held_out(prepare: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(100)])
    own = {"sources": [{"path": str(write_jsonl(tmp_path / "b.jsonl", [sentence(1000)]))}]}
    by_share, by_source = settings_of(path), settings_of(path, validation=own)
    first, again, other = (prepare(by_share, seed=seed) for seed in (1, 1, 2))
    assert first.folder == again.folder != other.folder
    assert first.validation.tokens.tolist() != other.validation.tokens.tolist()
    assert prepare(by_source, seed=1).folder == prepare(by_source, seed=2).folder


@pytest.mark.parametrize("seed", range(10))
def test_a_small_source_is_not_left_without_validation(prepare: Any, tmp_path: Path, seed: int) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(20)])
    corpus = prepare(settings_of(path, validation={"share": 0.01}, test={"share": 0.01}), seed=seed)
    counts = [len(file.documents) for file in (corpus.train, corpus.validation, corpus.test)]
    assert sum(counts) == 20
    assert min(counts) >= 1
    assert counts[0] >= 15


def test_one_book_is_divided_by_its_tail(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    book = "".join(f"{sentence(n)}\n" for n in range(500))
    (tmp_path / "book.txt").write_text(book)
    corpus = prepare(settings_of(tmp_path / "book.txt", validation={"share": 0.1}, test={"share": 0.2}))
    [train], [validation], [test] = (texts(tokenizer, f) for f in (corpus.train, corpus.validation, corpus.test))
    assert train + test + validation == book
    assert all(piece.endswith("\n") for piece in (train, test, validation))
    assert len(validation) / len(book) == pytest.approx(0.1, abs=0.005)
    assert len(test) / len(book) == pytest.approx(0.2, abs=0.005)
    assert {counts.divided_by for counts in corpus.table} == {"tail"}


@pytest.mark.parametrize("text", ["word " * 1000, "字" * 5000], ids=["no line ends", "no spaces"])
def test_a_tail_without_lines(tokenizer: Tokenizer, prepare: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    corpus = prepare(settings_of(tmp_path / "book.txt", validation={"share": 0.25}))
    [train], [validation] = texts(tokenizer, corpus.train), texts(tokenizer, corpus.validation)
    assert train + validation == text
    assert len(validation) / len(text) == pytest.approx(0.25, abs=0.002)
    assert not validation.startswith("ord")


def test_sources_mix_by_repeat(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    few, many = [sentence(n) for n in range(30)], [sentence(n) for n in range(100, 200)]
    sources = [
        {"path": str(write_jsonl(tmp_path / "few.jsonl", few)), "repeat": 3},
        {"path": str(write_jsonl(tmp_path / "many.jsonl", many))},
    ]
    corpus = prepare(settings_of(*sources))
    train, validation = texts(tokenizer, corpus.train), texts(tokenizer, corpus.validation)
    first = [text for text in few if text not in validation]
    assert sorted(train) == sorted(first * 3 + [text for text in many if text not in validation])
    assert sorted(validation) == sorted(set(validation))
    [counts] = [c for c in corpus.table if (c.name, c.split) == ("few.jsonl", "train")]
    assert (counts.documents, counts.bytes) == (3 * len(first), 3 * len("".join(first).encode()))
    assert corpus.train.words == sum(len(text.split()) for text in train)
    corpus.train.verify()


# Duplicates and overlap


def test_duplicates_of_training_are_dropped_and_counted(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    documents = [sentence(n) for n in range(50)]
    held = [sentence(1000)] * 3
    own = {"sources": [{"path": str(write_jsonl(tmp_path / "held.jsonl", held))}]}
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    write_jsonl(first, documents + documents[:7])
    write_jsonl(second, [*documents[40:], "one of its own"])
    corpus = prepare(settings_of(first, second, validation=own))
    assert texts(tokenizer, corpus.train) == [*documents, "one of its own"]
    assert texts(tokenizer, corpus.validation) == held
    assert [(c.name, c.documents, c.duplicates) for c in corpus.table if c.split == "train"] == [
        ("first.jsonl", 50, 7),
        ("second.jsonl", 1, 10),
    ]


@pytest.fixture
def overlapping(tmp_path: Path) -> dict[str, Any]:
    train, held = [sentence(n) for n in range(60)], [sentence(n) for n in (5, 17, 1000)]
    return {
        "sources": [{"path": str(write_jsonl(tmp_path / "train.jsonl", train))}],
        "validation": {"sources": [{"path": str(write_jsonl(tmp_path / "held.jsonl", held))}]},
    }


def test_overlap_is_an_error(prepare: Any, overlapping: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'2 training document.*train\.jsonl.*starts .*set data\.overlap = "drop"') as e:
        prepare(build(CorpusSettings, overlapping, "recipe.toml"))
    assert sentence(5)[:40] in str(e.value)
    assert not list((tmp_path / "cache/corpora").glob("*.partial"))


def test_overlap_can_be_dropped(tokenizer: Tokenizer, prepare: Any, overlapping: dict[str, Any]) -> None:
    corpus = prepare(build(CorpusSettings, overlapping | {"overlap": "drop"}, "recipe.toml"))
    assert texts(tokenizer, corpus.train) == [sentence(n) for n in range(60) if n not in (5, 17)]
    assert len(corpus.validation.documents) == 3
    assert corpus.table[0].overlapping == 2


def test_pieces_of_divided_books_are_compared_too(prepare: Any, tmp_path: Path) -> None:
    """The whole second book is what the first one's tail holds out, though the first is read before it."""
    lines = [f"{'x' * 30} {n}\n" for n in range(100)]
    (tmp_path / "first.txt").write_text("".join(lines))
    write_jsonl(tmp_path / "second.jsonl", ["".join(lines[75:]), *(sentence(n) for n in range(30))])
    sources = [tmp_path / "second.jsonl", tmp_path / "first.txt"]
    with pytest.raises(DataError, match="1 training document"):
        prepare(settings_of(*sources, validation={"share": 0.25}), seed=3)


# Settings, errors, warnings


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sources": []}, "sources.*at least 1"),
        ({}, "sources: is missing"),
        ({"validation": {"share": 0.1, "sources": [{"path": "b"}]}}, "validation: give either share"),
        ({"validation": {}}, "validation: give either share"),
        ({"validation": {"share": 1.0}}, "less than 1"),
        ({"validation": {"share": 0.5}, "test": {"share": 0.5}}, "leave nothing to train on"),
        ({"validation": {"sources": [{"path": "b", "repeat": 2}]}}, "repeat is for training"),
        ({"sources": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "two sources are named 'x'"),
        ({"overlap": "dorp"}, "did you mean 'drop'"),
        ({"overlaps": "drop"}, "unknown key.*did you mean 'overlap'"),
    ],
)
def test_impossible_settings(tree: dict[str, Any], message: str) -> None:
    given = tree if not tree or "sources" in tree else {"sources": [{"path": "a"}], **tree}
    with pytest.raises(RecipeError, match=message):
        build(CorpusSettings, given, "recipe.toml")


def test_derived_names_are_numbered(prepare: Any, tmp_path: Path) -> None:
    paths = []
    for n in range(3):
        (tmp_path / str(n)).mkdir()
        paths.append(write_jsonl(tmp_path / str(n) / "a.jsonl", [sentence(100 * n + i) for i in range(30)]))
    corpus = prepare(settings_of(*paths))
    assert [c.name for c in corpus.table if c.split == "train"] == ["a.jsonl", "a.jsonl-2", "a.jsonl-3"]


def test_a_source_that_yields_nothing(prepare: Any, tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(30)])
    with pytest.raises(DataError, match=r"empty\.jsonl.*yields nothing"):
        prepare(settings_of(good, write_jsonl(tmp_path / "empty.jsonl", ["", " "])))
    with pytest.raises(DataError, match=r"'again\.jsonl' gives train nothing: \d+ duplicates of documents before"):
        prepare(settings_of(good, write_jsonl(tmp_path / "again.jsonl", [sentence(n) for n in range(30)])))


def test_an_empty_validation_is_an_error(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("tiny")
    with pytest.raises(DataError, match=r"validation is empty.*Raise data\.validation\.share"):
        prepare(settings_of(tmp_path / "a.txt"))


def test_warnings(prepare: Any, tmp_path: Path) -> None:
    large = write_jsonl(tmp_path / "large.jsonl", [sentence(n) for n in range(3000)])
    small = {"path": str(write_jsonl(tmp_path / "small.jsonl", ["a b", "c d"])), "limit_documents": 1000}
    assert prepare(settings_of(large)).warnings == []
    for corpus in (prepare(settings_of(large, small)), prepare(settings_of(large, small))):  # also when opened again
        limit, sibling = corpus.warnings
        assert "'small.jsonl' gave" in limit
        assert "of 1,000 that limit_documents allows" in limit
        assert "less than a thousandth of the largest" in sibling


def test_progress(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.data.preparing.REPORT_SECONDS", 0)
    paths = [
        write_jsonl(tmp_path / f"{c}.jsonl", [sentence(1000 * i + n) for n in range(900)]) for i, c in enumerate("ab")
    ]
    seen: list[Any] = []
    corpus = prepare(settings_of(*paths), on_progress=seen.append)
    total = sum(path.stat().st_size for path in paths)
    assert {p.source for p in seen} == {"a.jsonl", "b.jsonl"}
    assert {p.bytes_total for p in seen} == {total}
    for name in ("bytes_read", "documents", "tokens"):
        values = [getattr(p, name) for p in seen]
        assert values == sorted(values)
    assert (seen[-1].bytes_read, seen[-1].documents) == (total, 1800)
    assert seen[-1].tokens == corpus.train.count + corpus.validation.count


# The cache


def test_the_same_call_opens_what_is_prepared(prepare: Any, counting: Counting, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(100)])
    first = prepare(settings_of(path), tokenizer=counting)
    counting.encoded = []
    again = prepare(settings_of(path), tokenizer=counting)
    assert again.folder == first.folder == tmp_path / "cache/corpora" / first.folder.name
    assert again.table == first.table
    assert counting.encoded == []
    assert sorted(p.name for p in first.folder.iterdir()) == ["train.tokens", "validation.tokens"]
    write_jsonl(path, [sentence(n) for n in range(101)])
    assert prepare(settings_of(path), tokenizer=counting).folder != first.folder


def test_another_tokenizer_makes_another_corpus(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(100)])
    other = Tokenizer.train([sentence(n) for n in range(50)], 300)
    assert prepare(settings_of(path)).folder != prepare(settings_of(path), tokenizer=other).folder


def test_a_damaged_cache_is_made_again(prepare: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(100)])
    file = prepare(settings_of(path)).train.path
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    prepare(settings_of(path))
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) for n in range(100)])
    (tmp_path / "file").write_text("")
    with pytest.raises(GptlabError, match=r"cannot be read or written.*Set GPTLAB_CACHE"):
        prepare_corpus(settings_of(path), tokenizer, cache=tmp_path / "file")


# Kills, other processes, full disks: each in a process of its own

WORKER = """
import json, os, signal, sys, threading
from pathlib import Path
from gptlab.data import preparing
from gptlab.data.corpus import CorpusSettings, prepare_corpus
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer
settings, tokenizer, cache, patch = sys.argv[1:]
preparing.JOURNAL_SECONDS, preparing.REPORT_SECONDS, preparing.BATCH_CHARACTERS = 0, 0, 5000
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
on_progress = None
exec(patch)
prepare_corpus(
    build(CorpusSettings, json.loads(settings), "recipe.toml"), Tokenizer.read(Path(tokenizer)),
    cache=Path(cache), on_progress=on_progress,
)
"""

DIE_AT_DOCUMENT = """
def on_progress(p):
    if p.documents >= {}:
        die()
"""
DIE_AT_SYNC = """
real, left = os.fsync, {}
def fsync(file):
    global left
    left -= 1
    if left == 0:
        die()
    real(file)
os.fsync = fsync
"""
DIE_BETWEEN_FINISHED_FILES = """
finish = preparing.TokenFileWriter.finish
preparing.TokenFileWriter.finish = lambda self, header: finish(self, header) or die()
"""
DIE_BEFORE_RENAMING = "Path.rename = lambda *_: die()"
DISK_OF_10_KB = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"


@pytest.fixture
def worker(tokenizer: Tokenizer, tmp_path: Path) -> Any:
    tokenizer.save(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "a.jsonl", [sentence(n % 700) for n in range(800)])
    (tmp_path / "book.txt").write_text("\n".join(sentence(n) for n in range(2000, 2200)))
    sources = [{"path": str(tmp_path / "a.jsonl"), "repeat": 2}, {"path": str(tmp_path / "book.txt")}]
    tree = {"sources": sources, "validation": {"share": 0.1}}

    def start(cache: str, patch: str = "") -> subprocess.Popen[str]:
        arguments = [json.dumps(tree), str(tmp_path / "tokenizer"), str(tmp_path / cache), patch]
        command = [sys.executable, "-c", WORKER, *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    start.tree = tree  # type: ignore[attr-defined]
    return start


def files(cache: Path) -> dict[str, bytes]:
    [folder] = [path for path in (cache / "corpora").iterdir() if path.is_dir()]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(process: subprocess.Popen[str]) -> int:
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, -9), error
    return process.returncode


@pytest.mark.parametrize(
    "patch",
    [
        DIE_AT_DOCUMENT.format(400),
        *(DIE_AT_SYNC.format(n) for n in (1, 6, 23, 62, 95)),
        DIE_BETWEEN_FINISHED_FILES,
        DIE_BEFORE_RENAMING,
    ],
    ids=["reading", *(f"at fsync {n}" for n in (1, 6, 23, 62, 95)), "between finished files", "before renaming"],
)
def test_kill_9_then_the_same_call(worker: Any, counting: Counting, tmp_path: Path, patch: str) -> None:
    """Killed while reading, inside a journal's writing, and while the finished files are put together."""
    assert run(worker("killed", patch)) == -9
    settings = build(CorpusSettings, worker.tree, "recipe.toml")
    [partial] = (tmp_path / "killed/corpora").glob("*.partial")
    journal = partial / "journal.json"
    pieces = json.loads(journal.read_text())["pieces"] if journal.exists() else 0
    prepare_corpus(settings, counting, cache=tmp_path / "killed")
    continued = len(counting.encoded)
    counting.encoded = []
    prepare_corpus(settings, counting, cache=tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert continued <= len(counting.encoded) - 0.8 * pieces  # a fifth may have been duplicates


def test_killed_again_and_again(worker: Any, tmp_path: Path) -> None:
    kills = 0
    while run(worker("killed", DIE_AT_SYNC.format(30))) == -9:
        kills += 1
    assert kills >= 2
    assert run(worker("whole")) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_text_that_changed_meanwhile_starts_over(worker: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The same size and time of change, so the same fingerprint: only the digests tell."""
    import os

    path = tmp_path / "a.jsonl"
    assert run(worker("killed", DIE_AT_DOCUMENT.format(400))) == -9
    before = path.stat()
    path.write_text(path.read_text().replace("the ", "The ", 50))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settings = build(CorpusSettings, worker.tree, "recipe.toml")
    prepare_corpus(settings, tokenizer, cache=tmp_path / "killed")
    prepare_corpus(settings, tokenizer, cache=tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_damaged_journal_starts_over(worker: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert run(worker("killed", DIE_AT_DOCUMENT.format(400))) == -9
    [journal] = (tmp_path / "killed/corpora").glob("*.partial/journal.json")
    journal.write_text("{")
    settings = build(CorpusSettings, worker.tree, "recipe.toml")
    assert prepare_corpus(settings, tokenizer, cache=tmp_path / "killed").train.count


def test_two_processes_prepare_once(worker: Any, tmp_path: Path) -> None:
    """The first is stopped in the middle until the second has waited for it."""
    mark = tmp_path / "second"
    wait = f"""
import time
def on_progress(p):
    while p.documents > 300 and not os.path.exists({str(mark)!r}):
        time.sleep(0.02)
"""
    encodes_nothing = f"""
Tokenizer.encode_documents = lambda *_: 1 / 0
on_progress = lambda p: Path({str(mark)!r}).touch()
"""
    first = worker("cache", wait)
    while not list((tmp_path / "cache").glob("corpora/*.partial/journal.json")):
        assert first.poll() is None
        threading.Event().wait(0.02)
    second = worker("cache", encodes_nothing)
    assert (run(first), run(second)) == (0, 0)
    assert mark.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_full_disk(worker: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    process = worker("cache", DISK_OF_10_KB)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("gptlab.errors.GptlabError")
    for part in ("corpora", "the disk is full", "bytes more are needed", "are free", "GPTLAB_CACHE", "continues"):
        assert part in last
    settings = build(CorpusSettings, worker.tree, "recipe.toml")
    prepare_corpus(settings, tokenizer, cache=tmp_path / "cache")
    prepare_corpus(settings, tokenizer, cache=tmp_path / "whole")
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


MEASURE = """
import resource, sys
from pathlib import Path
from gptlab.data.corpus import CorpusSettings, prepare_corpus
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer
tokenizer = Tokenizer.read(Path(sys.argv[1]))
tree = {"sources": [{"path": sys.argv[2]}], "validation": {"share": 0.1}}
corpus = prepare_corpus(build(CorpusSettings, tree, ""), tokenizer, cache=Path(sys.argv[3]))
print(corpus.train.text_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    peaks = {}
    for copies in (10, 100):
        path = tmp_path / f"{copies}.jsonl.gz"
        with gzip.open(path, "wt", compresslevel=1) as file:
            for n in range(copies):
                book = " ".join(sentence(1000 + i) for i in range(500))
                for part in range(10):
                    file.write(json.dumps({"text": f"{n} {part} {book}"}) + "\n")
        command = [sys.executable, "-c", MEASURE, tmp_path / "tokenizer", path, tmp_path / "cache"]
        text_bytes, peaks[copies] = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert text_bytes > 36e6
    assert peaks[100] - peaks[10] < 10e3  # KiB, for 33 MB more
