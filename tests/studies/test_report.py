"""A study's report: one page that opens offline, Markdown, figures and tables, in any state of the study."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import RecipeError
from gptlab.studies.plan import FIRST_SEED
from gptlab.studies.report import write_study_report

MakeStudy = Callable[..., Path]
EVIL = "</td><script>alert(1)</script> ``` {{ 111 * 111 }} & | <b>"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def written(folder: Path) -> tuple[Page, str]:
    path = write_study_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), (folder / "report.md").read_text(encoding="utf-8")


def test_a_study_is_told_in_full(make_study: MakeStudy, tmp_path: Path) -> None:
    """With text in it that would act in the page, were it not escaped."""
    arms = {"base": {}, "wide": {"model.n_embd": 256}}
    published = {
        "source": EVIL, "metric": "perplexity", "differs": ["The data are others.", EVIL],
        "values": {"base": {"perplexity": 160.61}, "wide": {"perplexity": 122.75, "memory": "out of memory"}},
    }  # fmt: skip
    scores: dict[str, dict[int, Any]] = {
        "base": {1: {"perplexity": 161.0}, 2: {"perplexity": 163.0}, 3: "diverged"},
        "wide": {1: {"perplexity": 121.0}, 2: {"perplexity": 122.5}, 3: "failed"},
    }
    folder = make_study(
        tmp_path, {"arms": arms, "question": f"Does width help? {EVIL}", "published": published}, scores
    )
    page, markdown = written(folder)
    for told in (
        "Does width help?", "Ranking", "Differences from the baseline", "The best perplexity is that of wide",
        "base diverged", "wide-3 failed: DataError", "reported: perplexity", "160.61", "out of memory",
        "The data are others.", "wide writes 40", "gptlab train base-1 --fresh", "2.13.0", "3f1c9e2",
        "model.n_embd", "tables/ranking.csv",
    ):  # fmt: skip
        assert told in page.text
        assert told in re.sub(r"\\(?=[*#|<>\[\]_])", "", markdown.replace("\u00a0", " "))
    assert not re.search(r"\bNone\b|Undefined", page.text + markdown)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img")]
    assert page.text.count("<script>alert(1)</script>") >= 4  # it is there, as text
    assert "12321" not in page.text + markdown
    assert "<script>" not in re.sub(r"(`{3,})\w*\n.*?\n\1", "", markdown.replace("\\<", ""), flags=re.DOTALL)
    places = [attributes.get("href") or "" for tag, attributes in page.tags if tag == "a"]
    places += re.findall(r"(?<!\\)\]\((.*?)\)", markdown)
    assert "base-1/report.html" in places
    assert all((folder / place).is_file() for place in places)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    tables = {file.name for file in (folder / "tables").iterdir()}
    assert tables == {"ranking.csv", "differences.csv", "runs.csv", "curves.csv", "published.csv"}
    names = {file.stem for file in (folder / "plots").glob("*.svg")}
    assert names == {file.stem for file in (folder / "plots").glob("*.png")} >= {"comparison", "curves"}


def test_the_commands_repeat_it(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"arms": {"base": {}, "wide": {"model.n_embd": 256}}}, {})
    assert "It was made by" not in written(folder)[0].text
    typed = "gptlab study five --data 'my books/*.txt'"
    (folder / "command.txt").write_text(f"{typed}\n", encoding="utf-8")
    page, markdown = written(folder)
    anew = f"gptlab study {folder} --name five-again"
    for command in (typed, f"gptlab study {folder}", anew):
        assert f": {command} " in page.text
        assert f"\n{command}\n" in markdown


def test_what_no_longer_applies_is_removed(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"arms": {"base": {}, "wide": {}}}, {"base": {1: {"perplexity": 160.0}}})
    others = [folder / "plots" / "curve-x.svg", folder / "plots" / "curve-x.png", folder / "tables" / "trials.csv"]
    kept = [folder / "plots" / "mine.pdf", folder / "notes.csv"]
    for path in (*others, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("", encoding="utf-8")
    written(folder)
    assert not [path for path in others if path.exists()]
    assert all(path.exists() for path in kept)
    assert (folder / "tables" / "ranking.csv").exists()


def test_a_range_test_that_is_all_there_is_reads_as_finished(make_study: MakeStudy, tmp_path: Path) -> None:
    study = {"arms": {"recipe": {}}, "seeds": [1], "range_test": {}, "budget": {"runs": 1}}
    rates = [10 ** (-6 + step / 10) for step in range(60)]
    lines = [
        {"event": "step", "step": step, "loss": 9 - step / 10 if step < 40 else step - 35.0, "learning_rate": rate,
         "tokens": step, "seconds": step, "memory_bytes": 1}
        for step, rate in enumerate(rates, 1)
    ]  # fmt: skip
    folder = make_study(tmp_path, study, {"range-test": {FIRST_SEED: {"lines": lines}}})
    page, _ = written(folder)
    begins = "five is a learning rate range test alone, in 1 run, which finished. A tenth of the rate"
    assert f"Report of a study finished five {begins}" in page.text
    assert "The budget of 1 run leaves out recipe-1." in page.text
    for untrue in ("waiting", "not finished", "not made", "No run has", "one seed"):
        assert untrue not in page.text


def test_captions_say_what_the_curves_are_of(
    make_study: MakeStudy, lines_of: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    sampled = [
        {**line, "event": "validation_sampled"} if line["event"] == "validation" else line
        for line in lines_of({"optimizer": {"learning_rate": 1e-3}})
    ]
    scores = {"base": {1: {"perplexity": 160.0, "lines": sampled}}}
    page, _ = written(make_study(tmp_path, {"arms": {"base": {}}}, scores))
    assert "Validation on the fixed sample of rows over the steps: " in page.text
    assert "base: each seed's training and validation on the fixed sample of rows; the first steps lie" in page.text
    whole, _ = written(
        make_study(tmp_path, {"name": "whole", "arms": {"base": {}}}, {"base": {1: {"perplexity": 9.0}}})
    )
    assert "Validation over the steps: " in whole.text
    assert "sample of rows" not in whole.text


def test_nothing_made_yet_is_a_report_too(make_study: MakeStudy, tmp_path: Path) -> None:
    page, markdown = written(make_study(tmp_path, {"arms": {"base": {}, "wide": {"model.n_embd": 256}}}, {}))
    assert "five compares 2 arms in 6 runs: 6 waiting. No run has a perplexity yet." in page.text
    assert "not finished" in page.text
    assert "Curves" not in page.text
    assert not re.search(r"\bNone\b|Undefined", page.text + markdown)


def test_a_search_shows_its_trials(make_study: MakeStudy, tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.n_embd": [64, 128]}
    drawn = {f"trial-{n:03}": {"optimizer.learning_rate": 10**-n, "model.n_embd": 64} for n in (2, 3, 4)}
    scores: dict[str, dict[int, Any]] = {name: {1: {"perplexity": 100.0 + n}} for n, name in enumerate(drawn)}
    scores |= {"baseline": {101: {"perplexity": 120.0}}, "best": {101: {"perplexity": 100.0}}}
    scores["trial-004"] = {1: "pruned"}
    study = {"search": {"trials": 4, "space": space, "confirm": [101]}}
    page, markdown = written(make_study(tmp_path, study, scores, {**drawn, "best": drawn["trial-002"]}))
    assert "five searches in 4 trials" in page.text
    assert "The best trial, trial-002, has model.n_embd 64, optimizer.learning_rate 0.01." in page.text
    assert "the best trial, 100.00 (1 seed)" in page.text
    for told in ("Trials", "pruned", "What each key does", "partly luck"):
        assert told in page.text
        assert told in markdown


def test_a_folder_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"study\.toml"):
        write_study_report(tmp_path)
