"""The README's commands are run, in the order in which it has them, in one folder with the files it speaks of.

What is run is what is written, but for time: quickstart gets `--minutes 0.4`, and any other length of training becomes
a few steps, each command's more than the one before, so that a command that continues a run does. `script/quickstart`
runs as the `gptlab quickstart` that it ends in; the scripts themselves make environments, which test_scripts.py tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from gptlab.cli import VERBS
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
SHELL = [line for language, text in FENCES if language == "sh" for line in text.splitlines() if line]
PYTHON = [text for language, text in FENCES if language == "python"]

SCRIPTS = ("script/quickstart", "script/test")
ACTIVATE = ". .venv/bin/activate"
LENGTH = re.compile(r"training\.(epochs|max_steps|tokens|minutes)=[\d.]+")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the README's commands are for a POSIX shell")


def runnable(place: int) -> str | None:
    """What is run for the README's line at this place; None for one that only needs to be true."""
    return shortened(SHELL[place], steps=2 * sum(line.startswith("gptlab train ") for line in SHELL[: place + 1]))


def shortened(line: str, steps: int) -> str | None:
    if line in ("script/quickstart", "gptlab quickstart"):
        return "gptlab quickstart --minutes 0.4"
    if line.startswith("gptlab train "):
        length = f"training.max_steps={steps}"
        return LENGTH.sub(length, line) if LENGTH.search(line) else f"{line} {length}"
    if line.startswith("gptlab study "):
        return f"{line} training.max_steps=3 budget.runs=2"
    if line.startswith(tuple(f"gptlab {verb} " for verb in VERBS)) or line == "gptlab recipes":
        return line
    if line in (*SCRIPTS, ACTIVATE):
        return None
    raise AssertionError(f"README.md has a command that this test does not know how to run: {line}")


def prepared(folder: Path) -> None:
    """Puts the files that the README's commands read into `folder`."""
    texts = [topics[name] for name in sorted(topics)]
    (folder / "my-text.txt").write_text("\n\n".join(texts[:20]), encoding="utf-8")
    (folder / "books").mkdir()
    for number, part in enumerate((texts[20:35], texts[35:50])):
        (folder / "books" / f"{number}.txt").write_text("\n\n".join(part), encoding="utf-8")
    # A name of a model is a folder first: this one stands for GPT-2, which is half a gigabyte on the hub.
    tokenizer = Tokenizer.train(texts[:20], 1000)
    tokenizer.save(folder / "gpt2")
    save_model(GPT(GPTShape(tokenizer.vocab_size, context=64, n_layer=2, n_head=2, n_embd=32)), folder / "gpt2")
    tokenizer.save(folder / "microsoft" / "DialoGPT-small")
    tuned = GPT(GPTShape(tokenizer.vocab_size, context=256, n_layer=2, n_head=2, n_embd=32))
    save_model(tuned, folder / "microsoft" / "DialoGPT-small", eos_id=tokenizer.eos_id)
    turns = [{"role": "user", "content": "What is {}?"}, {"role": "assistant", "content": "It is a topic: {}."}]
    chats = [
        {"messages": [{**turn, "content": turn["content"].format(name)} for turn in turns]} for name in sorted(topics)
    ]
    (folder / "my-chats.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats), encoding="utf-8")
    preferred(folder)
    labelled(folder)
    questions(folder)


def preferred(folder: Path) -> None:
    """Questions with an answer and a worse one, in two files that share none."""
    pairs = [
        {"prompt": f"What is {name}?", "chosen": f"It is a topic: {name}.", "rejected": f"I forgot what {name} is."}
        for name in sorted(topics)
    ]
    for file, part in (("my-pairs.jsonl", pairs[::2]), ("other-pairs.jsonl", pairs[1::2])):
        (folder / file).write_text("".join(f"{json.dumps(pair)}\n" for pair in part), encoding="utf-8")


def labelled(folder: Path) -> None:
    """Sentences with classes, in the form of CoLA's files and as a table of one's own."""
    nouns = [f"{name.lower()} {number}" for number in range(3) for name in sorted(topics)]
    for file, part in {
        "in_domain_train": nouns[:160],
        "in_domain_dev": nouns[160:190],
        "out_of_domain_dev": nouns[190:],
    }.items():
        lines = [f"xx\t{n % 2}\t\t{'It is' if n % 2 else 'Is of it'} a {noun}.\n" for n, noun in enumerate(part)]
        (folder / f"{file}.tsv").write_text("".join(lines), encoding="utf-8")
    rows = [f"the {noun} was {'good' if n % 3 else 'bad'},{'yes' if n % 3 else 'no'}" for n, noun in enumerate(nouns)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")


def questions(folder: Path) -> None:
    """A handful of each published test, in its own form."""
    pair = {"field": "syntax", "linguistics_term": "binding", "UID": "principle_A", "sentence_good": "It is."}
    lines = [json.dumps({**pair, "sentence_bad": f"Is {number} it."}) for number in range(8)]
    with zipfile.ZipFile(folder / "BLiMP.zip", "w") as archive:
        archive.writestr("data/principle_A.jsonl", "\n".join(lines))
    (folder / "lambada_test.jsonl").write_text(json.dumps({"text": "He said that it was a book"}) + "\n")
    task = {
        "activity_label": "Walking",
        "ctx_a": "A man walks.",
        "ctx_b": "he",
        "endings": ["stops.", "x.", "y.", "z."],
    }
    (folder / "hellaswag_val.jsonl").write_text(json.dumps({**task, "label": 0}) + "\n")


def environment(folder: Path) -> dict[str, str]:
    """That of someone who has activated .venv; without a network, and with a cache of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GPTLAB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs it; what asks a person something is told Hello."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=900, input="Hello!\n"
    )


Ran = tuple[Path, dict[str, subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """(the folder, what came of each line that is run), after all of the README's shell lines."""
    folder = tmp_path_factory.mktemp("readme")
    prepared(folder)
    commands = {line: runnable(place) for place, line in enumerate(SHELL)}
    return folder, {line: run(folder, "sh", "-c", command) for line, command in commands.items() if command}


def test_no_line_is_passed_over() -> None:
    assert {language for language, _ in FENCES} <= {"sh", "python", "text"}
    assert len(set(SHELL)) == len(SHELL)
    assert SCRIPTS[0] in SHELL
    assert PYTHON
    for place in range(len(SHELL)):
        runnable(place)


def test_a_line_that_is_not_known_fails() -> None:
    for line in ("gptlab serve mine", "gptlab", "pip install gptlab", "git clone somewhere", "script/else"):
        with pytest.raises(AssertionError, match="does not know"):
            shortened(line, 1)


def test_what_is_not_run_is_true() -> None:
    for script in SCRIPTS:
        assert os.access(ROOT / script, os.X_OK)
    assert 'gptlab" quickstart "$@"' in (ROOT / "script/quickstart").read_text(encoding="utf-8")
    assert "venv=$root/.venv" in (ROOT / "script/environment").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [line for place, line in enumerate(SHELL) if runnable(place)])
def test_the_shell_command_works(ran: Ran, line: str) -> None:
    result = ran[1][line]
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()
    assert "Traceback" not in result.stderr


def test_quickstart_ends_as_the_readme_says(ran: Ran) -> None:
    folder, results = ran
    said = results["script/quickstart"].stdout
    made = Run.open(folder / "runs" / "quickstart")
    scores = made.evaluation["best"]["validation"]
    assert scores["perplexity"] < scores["unigram_perplexity"]  # half a minute is enough to learn from context
    assert f"validation perplexity {scores['perplexity']:,.2f}" in said
    assert "report   runs/quickstart/report.html" in said
    for name in ("quickstart", "quickstart-answers", "quickstart-preferences"):
        assert f"runs/{name}/report.html" in said
        assert (folder / "runs" / name / "report.html").stat().st_size > 10_000
    assert said.count("documentation  ") == 3
    assert len(re.findall(r"^ +after \w+ +[\d.]+ %", said, flags=re.MULTILINE)) == 3


def test_the_longer_run_was_continued(ran: Ran) -> None:
    folder, results = ran
    line = next(line for line in reversed(SHELL) if line.startswith("gptlab train quickstart --name mine"))
    assert "runs/mine continues after step" in results[line].stdout
    assert len(Run.open(folder / "runs" / "mine").metrics("start")) == 2


def test_json_is_as_the_readme_shows_it(ran: Ran) -> None:
    shown = re.search(r'`\{"completions": \[\{(.*?)\}\]\}`', README)
    assert shown
    outputs = [
        result.stdout for line, result in ran[1].items() if line.startswith("gptlab generate") and "--json" in line
    ]
    assert outputs
    for output in outputs:
        assert list(json.loads(output)["completions"][0]) == re.findall(r'"(\w+)"', shown[1])


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_works(ran: Ran, code: str) -> None:
    result = run(ran[0], sys.executable, "-c", LENGTH.sub("training.max_steps=2", code))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Once upon a time" in result.stdout


def test_the_table_of_verbs_is_complete() -> None:
    assert re.findall(r"^\| `gptlab (\w+)` \|", README, flags=re.MULTILINE) == list(VERBS)


def test_no_command_in_the_text_names_a_verb_that_is_not_there() -> None:
    named = re.findall(r"`gptlab ([a-z]+)", without_fences(README))
    assert named
    assert set(named) <= set(VERBS)


def test_formats_md_names_every_file_and_key_of_a_real_run(ran: Ran) -> None:
    formats = without_fences((ROOT / "docs" / "formats.md").read_text(encoding="utf-8"))
    made = Run.open(ran[0] / "runs" / "quickstart")
    files = {path.name for path in made.folder.rglob("*") if path.is_file() and path.parent.name != "plots"}
    assert files <= set(re.findall(r"`([^`]+)`", formats))
    best = json.loads((made.checkpoint() / "manifest.json").read_text(encoding="utf-8"))
    state = json.loads((made.checkpoint("last") / "state.json").read_text(encoding="utf-8"))
    keys = {*best, *state, *state["values"], *made.origin, *made.origin["data"], *made.origin["versions"], *made.state}
    keys |= {*made.state["decisions"], *made.evaluation, *made.evaluation["best"]["validation"]}
    assert keys <= set(re.findall(r"`(\w+)`", formats))
    events = formats.partition("### `metrics.jsonl`")[2]
    for event in ("start", "step", "validation", "validation_sampled"):
        row = re.search(rf"^\| `{event}` \| (.*) \|$", events, flags=re.MULTILINE)
        assert row
        assert set(made.metrics(event)[0]) - {"event", "step"} == set(re.findall(r"`(\w+)`", row[1])), event
    sample = formats.partition("### `samples.jsonl`")[2].partition("### ")[0]
    assert set(made.samples()[0]) <= set(re.findall(r"`(\w+)`", sample))
