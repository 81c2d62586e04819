"""Bad input, as a person would hit it on the command line: one message, no traceback, and nothing changed on disk.

Each message must name the culprit, what was wanted, and what to do; the exit code is 2 for a mistake, 1 for a failure.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.cli import main

NUMBERS = [f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, and {n} + 1 = {n + 1}." for n in range(300)]
RECIPE = """
name = "tiny"
[model]
n_layer = 1
n_head = 2
n_embd = 16
context = 16
[tokenizer]
train = 300
[data]
sources = [{ path = "numbers.txt", document = "block" }]
validation = { share = 0.1 }
[training]
max_steps = 1
batch_size = 4
precision = "float32"
[validation]
sampled_rows = 8
[variants.wide]
"model.n_embd" = 32
"""
RECORDS = [json.dumps({"title": str(n), "text": text}) for n, text in enumerate(NUMBERS)]
SAVED = "training.max_steps=3 checkpoints.every_steps=1 checkpoints.keep=3"
Snapshot = dict[str, bytes | None]


def write_files(folder: Path) -> None:
    text = "\n\n".join(NUMBERS)
    files: dict[str, str | bytes] = {
        "tiny.toml": RECIPE,
        "cut.toml": RECIPE[: RECIPE.index("]") - 1],
        "latin.toml": f"# café\n{RECIPE}".encode("latin-1"),
        "two.toml": RECIPE.replace("max_steps = 1", "max_steps = 1\nminutes = 2"),
        "no-length.toml": RECIPE.replace("max_steps = 1", ""),
        "no-model.toml": RECIPE[: RECIPE.index("[model]")] + RECIPE[RECIPE.index("[tokenizer]") :],
        "odd-variants.toml": RECIPE.replace('[variants.wide]\n"model.n_embd" = 32', "[variants]\nwide = 32"),
        "my+recipe.toml": RECIPE.replace('name = "tiny"', ""),
        "numbers.txt": text,
        "some.txt": "\n\n".join(NUMBERS[:20]),
        "short.txt": "Hello world.",
        "character.txt": "a",
        "empty.txt": "",
        "white.txt": " \n\n\t\n",
        "latin.txt": f"{text}\ncafé\n".encode("latin-1"),
        "paper.pdf": b"%PDF-1.7",
        "cut.txt.gz": gzip.compress(text.encode())[:-20],
        "renamed.txt.gz": text,
        "good.jsonl": "\n".join(RECORDS),
        "broken.jsonl": "\n".join([*RECORDS[:40], '{"text": "The num', *RECORDS[40:]]),
        "number.jsonl": "\n".join([*RECORDS[:3], '{"text": 5}', *RECORDS[3:]]),
        "table.csv": "title,body\na,b\n",
        "headed.csv": "title,text\n",
        "uneven.csv": "title,text\na,b,c\n",
        "wordpiece/tokenizer.json": '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}',
        "odd/tokenizer.json": '{"model": {"type": "BPE"}, "added_tokens": 3, "pre_tokenizer": {"type": "ByteLevel"}}',
        "half/vocab.json": "{}",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nothing").mkdir()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all sorts of files and a finished run, and a copy of it whose checkpoints are all damaged."""
    folder = tmp_path_factory.mktemp("work")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPTLAB_CACHE", str(folder / "cache"))
        assert main_code(["train", "tiny.toml", *SAVED.split(), "--name", "trained"]) == 0
        shutil.copytree("runs/trained/checkpoints/000003", "bare")
        for name in ("tokenizer.json", "manifest.json"):
            Path("bare", name).unlink()
        shutil.copytree("runs", "damaged")
        for file in Path("damaged/trained/checkpoints").glob("*/model.safetensors"):
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("GPTLAB_CACHE", str(made / "cache"))
    monkeypatch.delenv("GPTLAB_DEVICE", raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return made


def main_code(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def snapshot(folder: Path) -> Snapshot:
    """Every file's content, of folders None, but for the cache, where only what is whole counts."""
    cached = {str(path): None for path in (folder / "cache").rglob("*.partial")}
    files = (path for path in folder.rglob("*") if folder / "cache" not in (path, *path.parents))
    return cached | {str(path): None if path.is_dir() else path.read_bytes() for path in files}


USAGE = [
    ("trian tiny.toml", "no verb 'trian'", "'train'", "gptlab --help"),
    ("train", "Missing argument 'recipe'", "gptlab train --help"),
    ("train tiny.toml --frsh", "--frsh", "--fresh"),
    ("train quickstrat", "'quickstrat'", "did you mean 'quickstart'", "mini-gpt"),
    ("train tiny.tml", "no such file", "'tiny.tml'"),
    ("train nothing", "nothing is a folder", "a recipe is a TOML file"),
    ("train cut.toml", "cut.toml: is not valid TOML: Expected ']'"),
    ("train latin.toml", "latin.toml: is not UTF-8 text"),
    ("train no-model.toml", "no-model.toml: model: n_layer, n_head, n_embd, context: missing"),
    ("train two.toml", "two.toml: training", "found max_steps and minutes"),
    ("train no-length.toml", "no-length.toml: training", "exactly one of epochs, max_steps, tokens, minutes"),
    ("train odd-variants.toml --variant wide", "odd-variants.toml: variants", "[variants.NAME]"),
    ("train tiny.toml --name trained model.n_embd=8", "runs/trained is a run of another recipe",
     "model.n_embd: 16 there, 8 now", "--fresh", "--name NAME"),
    ("train tiny.toml --name trained --data some.txt", "data.sources.0.path: 'numbers.txt' there, 'some.txt' now"),
    ("train tiny.toml --name a/b", "'a/b'", "letters, digits", "--name NAME"),
    ("train my+recipe.toml", "'my+recipe'", "--name NAME"),
    ("train tiny.toml --runs numbers.txt", "numbers.txt is a file", "--runs"),
    ("train tiny.toml --runs numbers.txt/below", "numbers.txt is a file", "--runs"),
    ("train tiny.toml --device tpu", "device 'tpu'", "cpu"),
    ("train tiny.toml --device cuda:99", "device 'cuda:99'", "cpu"),
    ("train tiny.toml --device cpu training.precision=float16", "'float16'", "float32 or bfloat16"),
    ("recipes mini", "'mini'", "did you mean 'mini-gpt'"),
    ("recipes --to nothing", "--to copies one recipe", "name it"),
    ("recipes quickstart --to numbers.txt", "numbers.txt is there already", "another folder"),
    ("recipes quickstart --to numbers.txt/x", "numbers.txt/x/quickstart.toml", "another folder"),
    ("report traned", "runs/traned: there is no such run", "did you mean 'trained'"),
    ("report cache", "cache: has no recipe.toml, so it is no run"),
    ("report trained --runs nowhere", "nowhere/trained", "no runs"),
]  # fmt: skip

CHANGES = [
    ("training.bach_size=4", "tiny.toml: training.bach_size", "did you mean 'batch_size'"),
    ("optimiser.kind=sgd", "tiny.toml: optimiser", "did you mean 'optimizer'"),
    ('model.n_layer="32"', "model.n_layer = '32'", "valid integer"),
    ("model.n_layer=true", "model.n_layer = True", "valid integer"),
    ("model.n_layer=1.5", "model.n_layer = 1.5", "valid integer"),
    ("training.compile=yes", "training.compile = 'yes'", "valid boolean"),
    ("model=3", "model = 3", "wanted a section with keys"),
    ("model.n_embd=15", "n_embd = 15 is not divisible by n_head = 2"),
    ("model.dropout=1.5", "model.dropout = 1.5", "less than 1"),
    ("optimizer.learning_rate=-1", "optimizer.learning_rate = -1", "greater than 0"),
    ("optimizer.learning_rate=inf", "optimizer.learning_rate = inf", "finite"),
    ("optimizer.kind=adamm", "'adamm'", "'adafactor'", "did you mean 'adam'"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas.1 = 1.5", "less than 1"),
    ("optimizer.betas=[0.9]", "optimizer.betas.1: is missing"),
    ("seed=99999999999999999999", "seed = 99999999999999999999", "less than"),
    ("training.batch_size=0", "training.batch_size = 0", "greater than or equal to 1"),
    ("training.micro_batch_size=0", "training.micro_batch_size = 0", "equal to 1 or 'auto'"),
    ("training.micro_batch_size=many", "'many'", "a valid integer or 'auto'"),
    ("training.epochs=1 training.max_steps=2", "exactly one of", "found epochs and max_steps"),
    ("--variant wade", "tiny.toml: no variant 'wade'", "did you mean 'wide'"),
    ("training.batch_size", "'training.batch_size'", "section.key=value"),
    ("training.batch_size=", "'training.batch_size='", "section.key=value"),
    ("model.n_layer.one=1", "model.n_layer.one=1", "'n_layer' is a value"),
    ("tokenizer.train=100", "tokenizer.train = 100", "greater than or equal to 257"),
    ("tokenizer.from=gpt2 tokenizer.train=300", "tokenizer: both are given", "wanted one of from", "train = 32000"),
    ("tokenizer.from=nothing", "nothing: no tokenizer", "looked for tokenizer.json", "found an empty folder"),
    ("tokenizer.from=wordpiece", "wordpiece/tokenizer.json: is a WordPiece tokenizer", "byte-level BPE"),
    ("tokenizer.from=odd", "odd/tokenizer.json: is JSON, but not of a tokenizer"),
    ("tokenizer.from=half", "half: vocab.json is there, but merges.txt", "is not"),
    ("tokenizer.from=numbers.txt", "numbers.txt: is not JSON"),
    ("data.sources=[]", "data.sources = []", "wanted at least 1"),
    ("data.sources=numbers.txt", "data.sources = 'numbers.txt'", "wanted a list"),
    ("data.sources=[{path=numbers.txt}]", "{path=numbers.txt}", "not valid TOML", "quotation marks", "a shell"),
    ("data.sources=[{}]", "data.sources.0", "one of path, hub and embedded", "given: none"),
    ("data.sources=[{embedded='python-doc'}]", "'python-doc'", "did you mean 'python-docs'"),
    ("data.sources=[{hub='a/b/c'}]", "'a/b/c' is no name on the hub", "OWNER/NAME"),
    ("data.sources=[{path='a.txt',colum='x'}]", "data.sources.0.colum", "did you mean 'column'"),
    ("data.sources=[{path='a.txt',document='pattern',pattern='('}]", "'('", "no regular expression"),
    ("data.validation={}", "data.validation", "share = 0.05", "sources of its own"),
    ("data.validation.share=0.6 data.test.share=0.4", "leave nothing to train on", "below 1"),
]

DATA = [
    ("numbers.tx", "numbers.tx: there is no such file", "did you mean 'numbers.txt'"),
    ("*.book", "*.book: no file matches"),
    ("nothing", "nothing: a folder with no file in it that is read", ".txt"),
    ("paper.pdf", "paper.pdf: .pdf is not read", "wanted .txt"),
    ("empty.txt", "'empty.txt' yields nothing", "take it out"),
    ("white.txt", "'white.txt' yields nothing", "empty (1)"),
    ("headed.csv", "'headed.csv' yields nothing", "no documents"),
    ("latin.txt", "latin.txt, line 600: byte 0xe9", "not UTF-8", "iconv"),
    ("cut.txt.gz", "cut.txt.gz: cannot be read", "damaged", "download it again"),
    ("renamed.txt.gz", "renamed.txt.gz: cannot be read", "not what its name says"),
    ("broken.jsonl", "broken.jsonl, line 41: is not JSON"),
    ("number.jsonl", "number.jsonl, line 4: column 'text' holds '5'", "not text"),
    ("table.csv", "table.csv, line 1 (the header): there is no column 'text'", "'title', 'body'"),
    ("uneven.csv", "uneven.csv, line 2: 3 fields where the header has 2"),
    ("short.txt", "short.txt: ", "too few for one row of 16", "smaller model.context"),
    ("character.txt", "validation is empty", "share of 0.1", "Raise data.validation.share"),
    ("numbers.txt empty.txt", "'empty.txt' yields nothing"),
    ("numbers.txt numbers.txt", "'numbers.txt-2' gives train nothing", "duplicates"),
    ("good.jsonl data.sources=[{path='good.jsonl',column='txet'}]", "'txet'", "did you mean 'text'"),
    ("a.txt data.sources=[{path='numbers.txt',share=1e-9}]", "share = 1e-09 keeps none of its 1 documents"),
    ("a.txt data.sources=[{path='numbers.txt',document='block'}] "
     "data.validation={sources=[{path='some.txt',document='block'}]}",
     "20 training document(s) also stand in validation", "numbers.txt", 'data.overlap = "drop"'),
]  # fmt: skip

GENERATE = [
    ("./gone x", "no folder gone", "no run"),
    ("numbers.txt x", "numbers.txt: is no model", "config.json"),
    ("bare x", "bare: has a model but no tokenizer", "tokenizer.json"),
    ("trained x --checkpoint 99", "no checkpoint 99", "there is 1, 2, 3"),
    ("trained x --checkpoint newest", "--checkpoint newest", "best, last or the number of a step"),
    ("bare x --checkpoint 2", "bare: is no run", "no checkpoint 2"),
    ("trained x --greedy --temperature 1", "--greedy with --temperature", "leave one of them out"),
    ("trained x --temperature 0", "temperature = 0.0", "above 0", "greedy"),
    ("trained x --temperature hot", "--temperature", "valid number"),
    ("trained x --top-p 2", "top_p = 2.0", "at most 1"),
    ("trained x --max-new-tokens 0", "--max-new-tokens", "greater than or equal to 1"),
    ("trained x --precision float16", "precision 'float16'", "float32, bfloat16, int8"),
    ("trained -", "no prompt on standard input", "one a line"),
    ("trained", "Missing argument 'PROMPT'", "gptlab generate --help"),
]

FAILURES = [
    ("train tiny.toml model.n_embd=4000000", "not even one row fits", "a smaller model"),
    (f"train tiny.toml --name trained --runs damaged {SAVED} training.max_steps=9",
     "none of its checkpoints can be continued from", "--fresh"),
    ("generate trained x --runs damaged", "checkpoint 3 is damaged", "model.safetensors", "there is 1, 2"),
    ("generate damaged/trained/checkpoints/000002 x", "000002/model.safetensors: is not what was written"),
    (f"generate {'a-long-prompt' * 40} trained", "a-long-prompt", "File name too long"),
]  # fmt: skip


def cases() -> Iterator[Any]:
    groups = {"": USAGE, "train tiny.toml ": CHANGES, "train tiny.toml --data ": DATA, "generate ": GENERATE}
    for prefix, group in groups.items():
        yield from (pytest.param(prefix + command, words, 2, id=prefix + command) for command, *words in group)
    yield from (pytest.param(command, words, 1, id=command) for command, *words in FAILURES)


@pytest.mark.parametrize(("command", "words", "code"), list(cases()))
def test_it_is_refused_in_one_message_and_nothing_is_changed(command, words, code, work, capsys) -> None:
    before = snapshot(work)
    assert main_code(command.split()) == code
    said = capsys.readouterr()
    assert all(word in said.err for word in words), said.err
    assert said.err.startswith(("gptlab: ", "Usage: "))
    assert "Traceback" not in said.out + said.err
    assert snapshot(work) == before


def test_a_disk_too_small_for_the_checkpoints(work, capsys, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 0, 10_000))
    before = snapshot(work)
    assert main_code(["train", "tiny.toml"]) == 2
    said = capsys.readouterr().err
    assert "runs/tiny: the checkpoints need" in said
    assert "10.0 kB are free" in said
    assert "--runs" in said
    assert snapshot(work) == before


def test_a_cache_that_cannot_be_written(work, capsys, monkeypatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", "numbers.txt")
    before = snapshot(work)
    for tokenizer in ("train=300", "from=runs/trained/checkpoints/000003"):
        assert main_code(["prepare", "tiny.toml", f"tokenizer.{tokenizer}"]) == 1
        said = capsys.readouterr().err
        assert "numbers.txt" in said
        assert "Set GPTLAB_CACHE" in said
    assert snapshot(work) == before


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("train tiny.toml data.sources=[{hub='owner/set'}]", 1, ("owner/set", "HF_ENDPOINT", "a local folder")),
        ("generate traned x", 2, ("no folder traned", "did you mean 'trained'", "the hub", "HF_ENDPOINT")),
    ],
)
def test_a_hub_that_does_not_answer(command, code, words, work) -> None:
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(work / "cache/hub")}
    program = [sys.executable, "-c", "from gptlab.cli import main; main()", *command.split()]
    before = snapshot(work)
    ended = subprocess.run(program, env={**os.environ, **closed}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert all(word in ended.stderr for word in words), ended.stderr
    assert "Traceback" not in ended.stderr
    assert snapshot(work) == before


def test_what_is_damaged_in_the_cache_is_made_again(work, capsys) -> None:
    assert main_code(["prepare", "tiny.toml"]) == 0
    said = capsys.readouterr().out
    parts = [path for path in (work / "cache").rglob("*") if path.name in ("train.tokens", "tokenizer.json")]
    whole = {path: path.read_bytes() for path in parts}
    assert {path.name for path in whole} == {"train.tokens", "tokenizer.json"}
    for path in whole:
        os.truncate(path, path.stat().st_size // 2)
    assert main_code(["prepare", "tiny.toml"]) == 0
    assert capsys.readouterr().out == said
    mended = {path for path, data in whole.items() if path.read_bytes() == data}
    assert {path.name for path in mended} == {"train.tokens", "tokenizer.json"}


def test_what_the_messages_advise_works(work, capsys) -> None:
    overlapping = ["data.validation={sources=[{path='some.txt',document='block'}]}", "data.overlap=drop"]
    assert main_code(["prepare", "tiny.toml", *overlapping]) == 0
    assert "20 also in validation or test" in capsys.readouterr().out
    assert main_code(["prepare", "tiny.toml", "--data", "numbers.txt", "empty.txt"]) == 2
    assert main_code(["generate", "trained", "", "--max-new-tokens", "3"]) == 0  # begins as after an end of text
    Path("marked.toml").write_text(RECIPE, encoding="utf-8-sig")  # as Notepad writes it
    assert main_code(["prepare", "marked.toml", "--variant", "wide"]) == 0


def test_a_loss_that_is_never_finite_is_said_and_leaves_a_run_that_can_be_read(work, capsys) -> None:
    assert main_code(["train", "tiny.toml", "optimizer.learning_rate=1e308", "--name", "wild"]) == 1
    said = capsys.readouterr().err
    assert "runs/wild: the loss on validation was never finite" in said
    assert "optimizer.learning_rate" in said
    assert main_code(["report", "wild"]) == 0
