"""The report says what the run's files say, in any state of the run, and lets nothing of them act in the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.report.facts import SHOWN_SAMPLES, gather
from gptlab.report.report import split_loop
from gptlab.run.run import Run

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]


def test_a_finished_run_is_told_in_full(make_run: MakeRun, written: Written) -> None:
    page, markdown = written(make_run())
    for told in (
        "books is a GPT of 13.3 million parameters (2 layers, 4 heads, width 128, a context of 128 tokens).",
        "It was trained for 40 steps, in which it saw 163,840 tokens (0.40 epochs), in 4 min 10 s on CPU, Test 7, 2",
        "Its best perplexity on the validation set was 49.40, at step 30;",
        "on the test set, which played no part in that choice, it is 54.60.",
        "A model that knows only how often each token occurs has 812.41.",
        "best, step 30", "last, step 40", "897.85", "973,000", "128, 64",  # scores: what was scored, and how
        "41.2 MB", "9,786,000", "50,257", "4.21", "100:abc",  # data
        "continued at step 20",  # notes
        "655", "890 MB", "50 %", "float32", "32 rows", "sessions",  # cost
        "gptlab train mini-gpt --data 'my books/*.txt'", "2.13.0", "3f1c9e2", "n_embd = 128",  # to repeat it
        "temperature 0.8, top-k 40, at most 40 tokens",
    ):  # fmt: skip
        assert told in page.text
        assert told in re.sub(r"\\(?=[*#|<>\[\]])", "", markdown.replace("\u00a0", " "))
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.text + markdown)


def test_the_page_is_one_file_that_asks_for_nothing(make_run: MakeRun, written: Written) -> None:
    folder = make_run()
    page, markdown = written(folder)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", (folder / "report.html").read_text(encoding="utf-8"))
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    linked = re.findall(r"\]\((.*?)\)", markdown)
    assert linked == [f"plots/{name}.png" for name in ("loss", "learning_rate", "gradient_norm", "throughput")]
    assert all((folder / path).is_file() and (folder / path).with_suffix(".svg").is_file() for path in linked)


def test_text_of_the_run_cannot_act_in_the_page(make_run: MakeRun, written: Written) -> None:
    evil = "</td><script>alert(1)</script> ``` {{ 111 * 111 }} & | \u2028 <b>"
    line = json.dumps({"step": 5, "prompt": evil, "text": f" {evil}\n# No heading\n```", "stopped": "eos"}) + "\n"
    note = json.dumps({"event": "note", "step": 1, "text": evil}) + "\n"
    origin = json.dumps({"command": evil, "device": evil, "data": {"table": [{"name": evil, "split": "train"}]}})
    page, markdown = written(make_run(samples=line, metrics=note, origin=origin))
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert page.text.count("</td><script>alert(1)</script> ``` {{ 111 * 111 }} & |") == 8  # each place has it as text
    assert "12321" not in page.text + markdown  # nor is it taken for a template
    outside, fence = [], ""
    for row in markdown.splitlines():
        ticks = re.match("`{3,}", row)
        if ticks and not fence:
            fence = ticks[0]
        elif row == fence:
            fence = ""
        elif not fence:
            outside.append(re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", row))
    assert not fence
    assert "# No heading" not in outside
    assert not re.search(r"(?<!\\)<", "\n".join(outside))


def test_a_run_that_is_still_going_says_what_it_knows(make_run: MakeRun, written: Written) -> None:
    state = json.dumps({"status": "running", "step": 40, "total_steps": 1000, "best": None})
    page, _ = written(make_run(state=state, evaluation=None))
    assert "It has so far been trained for 40 of 1,000 steps, in which it saw 163,840 tokens" in page.text
    assert "in 20 s on CPU" in page.text  # by the last line of the metrics
    assert "Its best perplexity on a sample of the validation set was 54.60, at step 30." in page.text
    assert "unigram" not in page.text.partition("Curves")[0].partition("The unigram")[0]


def test_a_stopped_run_is_not_called_finished(make_run: MakeRun, written: Written) -> None:
    state = json.dumps({"status": "interrupted", "step": 40, "total_steps": 1000, "elapsed_seconds": 20.0})
    assert "It was stopped after 40 of 1,000 steps" in written(make_run(state=state))[0].text


def test_a_run_before_its_first_step_has_a_report(make_run: MakeRun, written: Written) -> None:
    nothing = dict.fromkeys(("origin", "state", "evaluation", "metrics", "samples"))
    page, markdown = written(make_run(**nothing))
    headings = [
        name
        for name in ("Tuning", "Scores", "Rewards", "Curves", "Samples", "Data", "Notes", "Cost")
        if name in page.text
    ]
    assert headings == []
    assert "n_embd = 128" in page.text
    assert "n_embd = 128" in markdown
    assert not re.search(r"\bNone\b|Undefined", page.text)


def test_a_run_that_diverged_has_a_report(make_run: MakeRun, written: Written) -> None:
    """Losses that are not finite stand in the metrics as strings ("NaN", "Infinity")."""
    lines = [
        {"event": "step", "step": 1, "loss": 10.0, "learning_rate": 1.0, "tokens": 1},
        {"event": "step", "step": 2, "loss": "NaN", "learning_rate": 1.0, "tokens": 2},
        {"event": "step", "step": 3, "loss": 900.0, "learning_rate": 1.0, "tokens": 3},
        {"event": "validation", "step": 3, "loss": "Infinity", "perplexity": "Infinity"},
        {"event": "validation", "step": 2, "loss": 800.0, "perplexity": "Infinity"},
    ]
    page, _ = written(make_run(metrics="".join(json.dumps(line) + "\n" for line in lines), evaluation=None))
    assert "was ∞, at step 2" in page.text


def test_it_can_be_made_again_and_is_the_same(make_run: MakeRun, written: Written) -> None:
    folder = make_run()
    files = ("report.html", "report.md", "plots/loss.svg", "plots/loss.png")
    written(folder)
    first = [(folder / name).read_bytes() for name in files]
    written(folder)
    assert [(folder / name).read_bytes() for name in files] == first


def test_gather_finds_the_facts(make_run: MakeRun) -> None:
    facts = gather(Run.open(make_run()))
    assert [(row["model"], row["on"], row.get("step")) for row in facts["scores"]] == [
        ("best", "validation", 30),
        ("best", "test", 30),
        ("last", "validation", 40),
    ]
    assert all((row["context"], row["stride"]) == (128, 64) for row in facts["scores"])
    assert facts["test"]["loss"] == 4.0
    assert facts["unigram_perplexity"] == facts["best"]["unigram_perplexity"] == pytest.approx(812.41, abs=0.01)
    assert facts["cost"] == {
        "seconds": 250.0, "sessions": 2, "tokens": 163_840, "epochs": 0.4, "tokens_per_second": 163_840 / 250,
        "step_seconds": 0.5, "memory_bytes": 890_000_040, "peak_share": 0.5, "precision": "float32",
        "micro_batch_size": 32,
    }  # fmt: skip
    assert [sample["step"] for sample in facts["samples"][0]["texts"]] == [40, 30, 20, 10]


def test_of_many_samples_the_first_the_last_and_some_between_are_shown(make_run: MakeRun) -> None:
    lines = [{"step": step, "prompt": "p", "text": "t", "stopped": "eos"} for step in range(1, 101)]
    facts = gather(Run.open(make_run(samples="".join(json.dumps(line) + "\n" for line in lines))))
    steps = [sample["step"] for sample in facts["samples"][0]["texts"]]
    assert len(steps) == SHOWN_SAMPLES
    assert (steps[0], steps[-1]) == (100, 1)
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("and so and so it was", ""),
        ("I am the man. I am the man. I am the man. I am", " I am the man. I am the man."),
        ("x\n----------------------------------\ny", ""),
        ("def f():\n                    pass", ""),
        ("no " * 9, "no no no no no"),
        ("", ""),
    ],
)
def test_a_loop_is_what_stands_three_times_in_a_row(text: str, loop: str) -> None:
    before, found, after = split_loop(text)
    assert before + found + after == text
    assert bool(found) == bool(loop)
    assert loop in found


def test_a_long_text_is_searched_in_a_moment() -> None:
    """The search must not grow with the square of the text: this takes minutes if it does."""
    text = " ".join(str(number) for number in range(20_000))
    assert split_loop(text)[0] == text or split_loop(text)[1]
