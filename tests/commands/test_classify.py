from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from gptlab.cli import main
from gptlab.evaluation.classify import classify
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.run.checkpoint import TrainingState
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]

LABELS = ("good", "bad", "neither")
TEXTS = ["A good film.", "a bad one", "It was long, and bad."]


def save_classifier(folder: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """A tiny random classifier with its tokenizer."""
    tokenizer = Tokenizer.train(["A good film, a bad film, and a very long one."] * 3, 290)
    torch.manual_seed(0)
    model = GPTClassifier(GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16), labels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    save_model(model, folder, eos_id=tokenizer.eos_id)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `gptlab classify FOLDER …` in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, model: str = str(folder)) -> Outcome:
        with pytest.raises(SystemExit) as exit:
            main(["classify", model, *arguments])
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def classified(outcome: Outcome) -> list[dict]:
    """What --json gave, without a word beside it."""
    code, out, err = outcome
    assert (code, err) == (0, "")
    return json.loads(out)["classifications"]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_few_classes_have_a_column_each(call: Call, folder: Path) -> None:
    found = classify(open_model(folder, device="cpu"), TEXTS)
    code, out, err = call(*TEXTS)
    assert (code, err) == (0, "")
    lines = ["label     good    bad  neither  text"]
    for each in found:
        good, bad, neither = each.probabilities.values()
        lines.append(f"{each.label:<7}  {good:.3f}  {bad:.3f}  {neither:7.3f}  {each.text}")
    assert out.splitlines() == lines


def test_of_many_classes_the_most_probable_is_shown(call: Call, tmp_path: Path) -> None:
    many = save_classifier(tmp_path / "many", ("a", "b", "c", "d", "the fifth"))
    (found,) = classify(open_model(many, device="cpu"), ["a\n good\tfilm"])
    _, out, _ = call("a\n good\tfilm", model=str(many))
    assert out.splitlines() == [
        "label      probability  text",
        f"{found.label:<9}  {found.probabilities[found.label]:11.3f}  a good film",
    ]


def test_a_label_of_several_lines_has_one_in_the_table(call: Call, tmp_path: Path) -> None:
    lines = save_classifier(tmp_path / "lines", ("so\nso", "good"))
    code, out, _ = call("good", model=str(lines))
    head, answer = out.splitlines()
    assert (code, head.split()) == (0, ["label", "so", "so", "good", "text"])
    assert answer.endswith("  good")


def test_json(call: Call, folder: Path) -> None:
    found = classify(open_model(folder, device="cpu"), TEXTS)
    assert classified(call(*TEXTS, "--json")) == [
        {"text": each.text, "label": each.label, "probabilities": pytest.approx(each.probabilities)} for each in found
    ]


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"]])
def test_standard_input_has_a_text_a_line(call: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    stdin(monkeypatch, "é good\r\n\n \nbad".encode())
    assert [each["text"] for each in classified(call(*arguments, "--json"))] == ["é good", "bad"]


def test_a_file_of_lines(call: Call) -> None:
    Path("lines.txt").write_text("\ufeffA good film.\n\na bad one\r\n", encoding="utf-8")
    assert [each["text"] for each in classified(call("--file", "lines.txt", "--json"))] == TEXTS[:2]


def write_tables() -> None:
    Path("table.csv").write_text('id,text,note\n1,"A good film.",x\n2,a bad one,y\n')
    Path("table.tsv").write_text('text\tid\nA good film.\t"1\na bad one\t2\n')
    Path("table.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[:2]}), "table.parquet")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table(call: Call, suffix: str) -> None:
    write_tables()
    assert [each["text"] for each in classified(call("--file", f"table.{suffix}", "--json"))] == TEXTS[:2]


def test_pairs_are_two_columns(call: Call, folder: Path) -> None:
    Path("pairs.csv").write_text("premise,hypothesis\nA good film.,bad\n")
    columns = ("--column", "premise", "--column", "hypothesis")
    (found,) = classified(call("--file", "pairs.csv", *columns, "--json"))
    (wanted,) = classify(open_model(folder, device="cpu"), [("A good film.", "bad")])
    assert (found["text"], found["label"]) == (["A good film.", "bad"], wanted.label)
    assert found["probabilities"] == pytest.approx(wanted.probabilities)
    assert call("--file", "pairs.csv", *columns)[1].endswith("  A good film. | bad\n")


def test_a_long_file_is_classified_as_its_texts_are(call: Call, folder: Path) -> None:
    texts = [f"{'good ' * (n % 5)}film {n}" for n in range(600)]
    Path("long.txt").write_text("\n".join(texts))
    found = classified(call("--file", "long.txt", "--json"))
    wanted = classify(open_model(folder, device="cpu"), texts)
    assert [each["text"] for each in found] == texts
    for one, other in zip(found, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-6)
    _, out, _ = call("--file", "long.txt")
    assert len(out.splitlines()) == 601  # one header


def test_texts_that_were_cut_are_counted(call: Call) -> None:
    code, out, err = call("a" * 200, "good", "--json")
    assert (code, len(json.loads(out)["classifications"])) == (0, 2)
    assert err == "gptlab: 1 text was longer than the model's 32 tokens and lost the end\n"
    assert "2 texts were" in call("a" * 200, "b" * 200)[2]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich takes stdout and stderr for a terminal of 60 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_has_a_line_a_text_and_obeys_none(call: Call) -> None:
    _, out, _ = call("\x1b]0;title\x07[bold] good", "so very good " * 20)
    assert "\x1b]0;" not in out
    assert "[bold] good" in out
    lines = out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 60
    assert lines[2].endswith("…")


def test_precision_and_device(call: Call) -> None:
    rough, exact = (classified(call("good", "--json", "--precision", p))[0] for p in ("bfloat16", "float32"))
    assert rough["probabilities"] == pytest.approx(exact["probabilities"], abs=0.05)
    assert classified(call("good", "--json", "--device", "cpu"))


def test_a_run_by_name_and_its_checkpoints(call: Call, folder: Path, tmp_path: Path) -> None:
    """The best checkpoint answers, in a pair with the run's own separator; another is had by its step."""
    opened = open_model(folder, device="cpu")
    run = Run.create(tmp_path / "elsewhere" / "mine", {"name": "mine", "data": {"separator": " | "}}, {})
    wanted = {}
    for step in (1, 2):
        with torch.no_grad():
            opened.model.score.weight.neg_()
        state = TrainingState(step, {}, {}, {})
        run.save_checkpoint(step, opened.model, opened.require_tokenizer(), state, keep=2, best=step == 1)
        wanted[step] = classify(opened, ["good | bad"])[0].probabilities
    Path("pair.jsonl").write_text('{"a": "good", "b": "bad"}\n')
    arguments = ("--file", "pair.jsonl", "--column", "a", "--column", "b", "--runs", "elsewhere", "--json")
    for step, options in ((1, ()), (1, ("--checkpoint", "best")), (2, ("--checkpoint", "2"))):
        (found,) = classified(call(*arguments, *options, model="mine"))
        assert found["probabilities"] == pytest.approx(wanted[step])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "nothing to classify"),
        (["good", "--file", "lines.txt"], "not both"),
        (["good", " "], "text 2 is empty"),
        (["\udcff"], "not UTF-8"),
        (["--file", "nothing.txt"], "no such file"),
        (["--file", "picture.png"], "is not read"),
        (["--file", "empty.txt"], "empty.txt: there is no text in it"),
        (["--file", "sentences.csv"], "there is no column 'text'; there is 'sentence'"),
        (["--file", "lines.txt", *["--column", "text"] * 3], "a pair of texts in two"),
        (["--file", "null.jsonl"], "null.jsonl, line 2: the text is empty"),
        (["--file", "number.jsonl"], "line 1: column 'text' holds '5'"),
        (["good", "--checkpoint", "first"], "wanted best, last or the number of a step"),
        (["good", "--device", "abacus"], "abacus"),
        (["good", "--precision", "int8"], "precision 'int8'"),
    ],
)
def test_bad_input_is_named(call: Call, arguments: list[str], wanted: str) -> None:
    for name, text in {
        "lines.txt": "good", "empty.txt": "\n \n", "picture.png": "", "sentences.csv": "sentence\ngood\n",
        "null.jsonl": '{"text": "good"}\n{"text": null}\n', "number.jsonl": '{"text": 5}\n',
    }.items():  # fmt: skip
        Path(name).write_text(text)
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert wanted in err


@pytest.mark.parametrize(("data", "wanted"), [(b"\n \n", "standard input: there is no text"), (b"\xff\xfea", "UTF-8")])
def test_standard_input_that_cannot_be_used(
    call: Call, monkeypatch: pytest.MonkeyPatch, data: bytes, wanted: str
) -> None:
    stdin(monkeypatch, data)
    code, out, err = call("-")
    assert (code, out) == (2, "")
    assert wanted in err


def test_a_language_model_says_what_to_do_with_it(call: Call, folder: Path, tmp_path: Path) -> None:
    tokenizer = open_model(folder).require_tokenizer()
    save_model(GPT(GPTShape(tokenizer.vocab_size, 32, 1, 1, 4)), tmp_path / "gpt")
    tokenizer.save(tmp_path / "gpt")
    code, out, err = call("good", model=str(tmp_path / "gpt"))
    assert (code, out) == (2, "")
    assert "gptlab generate" in err
    assert "gptlab train" in err


def test_a_reward_model_says_what_asks_it(call: Call, tmp_path: Path) -> None:
    code, out, err = call("good", model=str(save_classifier(tmp_path / "judge", REWARD)))
    assert (code, out) == (2, "")
    assert "is a reward model and has no classes" in err
    assert f"gptlab evaluate {tmp_path / 'judge'} --on preferences:FILE" in err


def test_unknown_model(call: Call) -> None:
    code, out, err = call("good", model="no/such/model")
    assert (code, out) == (2, "")
    assert "no/such/model" in err
