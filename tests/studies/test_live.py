"""What is said while a study runs: how far a run is, how long all take yet, the table, and the lines of a log."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console

from gptlab.run.run import Run
from gptlab.studies import live
from gptlab.studies.live import LineScreen, Screen, TerminalScreen, progress_of, rows, summary, time_left
from gptlab.studies.results import Results, read_results

MakeStudy = Callable[..., Path]

FINISHED = {"perplexity": 160.0, "seconds": 60.0}


def arms(*names: str) -> dict[str, Any]:
    return {"arms": {name: {"training.batch_size": 8 + i} for i, name in enumerate(names)}, "seeds": [1, 2]}


@pytest.fixture
def half_way(tmp_path: Path, make_study: MakeStudy) -> Results:
    """Two arms, two seeds: one run has ended after a minute, one is half done, one failed, one waits."""
    scores = {"plain": {1: FINISHED, 2: "running"}, "wide": {1: "failed"}}
    return read_results(half_a_minute(make_study(tmp_path, arms("plain", "wide"), scores), "plain-2"))


def half_a_minute(folder: Path, name: str) -> Path:
    """The half that a run of this study has done took so long."""
    run = Run(folder / name)
    run.write_state({**run.state, "elapsed_seconds": 30.0})
    return folder


def run_of(results: Results, name: str) -> Any:
    return next(result for result in results.runs if result.item.name == name)


def test_a_run_tells_how_far_it_is(half_way: Results) -> None:
    result = run_of(half_way, "plain-2")
    progress = progress_of(result)
    assert progress is not None
    assert (progress.step, progress.total) == (20, 40)
    last, validation = result.run.metrics("step")[-1], result.run.metrics("validation")[-1]
    assert (progress.loss, progress.validation) == (last["loss"], validation["loss"])


def test_a_run_that_has_not_begun_tells_nothing(half_way: Results) -> None:
    assert progress_of(run_of(half_way, "wide-2")) is None


def test_lines_go_on_where_the_state_was_last_saved(half_way: Results) -> None:
    result = run_of(half_way, "plain-2")
    result.run.log({"event": "step", "step": 33, "loss": 4.5, "seconds": 99.0})
    progress = progress_of(result)
    assert progress is not None
    assert (progress.step, progress.loss, progress.seconds) == (33, 4.5, 99.0)


def test_only_the_end_of_a_long_record_is_read(half_way: Results) -> None:
    """A line that the tail begins in, and one that is half written, are no lines; the rest gives what reading all of it
    gives."""
    run: Run = run_of(half_way, "plain-2").run
    for step in range(21, 2021):
        run.log(
            {"event": "step", "step": step, "loss": 5 - step / 1000, "seconds": step / 10, "größe": "ß" * (step % 7)}
        )
    with (run.folder / "metrics.jsonl").open("ab") as out:
        out.write('{"event": "step", "step": 9999, "größ'.encode()[:-1])
    tail = live._tail(run)
    assert tail == run.metrics()[-len(tail) :]
    assert 100 < len(tail) < 400
    progress = progress_of(run_of(half_way, "plain-2"))
    assert progress is not None
    assert (progress.step, progress.validation) == (2020, None)


def test_a_loss_that_is_no_number_is_told_as_such(half_way: Results) -> None:
    result = run_of(half_way, "plain-2")
    result.run.log({"event": "step", "step": 21, "loss": float("inf"), "seconds": 31.0})
    assert ", loss inf, " in next(row[1] for row in rows(half_way) if row[0] == "plain-2")


def test_the_time_left_is_what_the_same_arm_took_and_what_is_done_taken_off(half_way: Results) -> None:
    """plain-2 has half of 60 s left; wide-2 is taken for as long as all that have ended; wide-1 failed."""
    assert time_left(half_way, 1) == pytest.approx(90)
    assert time_left(half_way, 2) == pytest.approx(60), "no shorter than the longest run"


def test_the_time_left_follows_each_arm(tmp_path: Path, make_study: MakeStudy) -> None:
    scores = {"plain": {1: {**FINISHED, "seconds": 10.0}}, "wide": {1: {**FINISHED, "seconds": 50.0}}}
    results = read_results(make_study(tmp_path, arms("plain", "wide"), scores))
    assert time_left(results, 1) == pytest.approx(60)
    assert time_left(results, 2) == pytest.approx(50)


def test_before_a_run_has_ended_those_that_are_going_tell(tmp_path: Path, make_study: MakeStudy) -> None:
    """Half of a run took 30 s, so that run takes 30 s more and each other 60."""
    folder = half_a_minute(make_study(tmp_path, arms("plain", "wide"), {"plain": {1: "running"}}), "plain-1")
    results = read_results(folder)
    assert time_left(results, 1) == pytest.approx(30 + 3 * 60)


def test_before_anything_is_known_nothing_is_told(tmp_path: Path, make_study: MakeStudy) -> None:
    results = read_results(make_study(tmp_path, arms("plain", "wide"), {}))
    assert time_left(results, 2) is None
    run = Run.create(results.folder / "plain-1", {"name": "plain-1"}, {})
    run.write_state({"status": "running", "step": 0, "total_steps": 1000, "elapsed_seconds": 0.0})
    run.log({"event": "step", "step": 10, "loss": 9.0, "seconds": 30.0})
    assert time_left(read_results(results.folder), 2) is None, "a hundredth of a run says too little"


def test_a_length_in_minutes_counts_by_the_clock(tmp_path: Path, make_study: MakeStudy) -> None:
    """Until it is turned into steps: 30 s of 2 minutes are a quarter."""
    study = {**arms("plain"), "seeds": [1], "changes": {"training.minutes": 2.0}}
    folder = make_study(tmp_path, study, {"plain": {1: "running"}})
    run = Run(folder / "plain-1")
    run.write_state({**run.state, "total_steps": None, "elapsed_seconds": 30.0})
    assert time_left(read_results(folder), 1) == pytest.approx(90)


def test_first_runs_are_waited_for_before_the_arms(tmp_path: Path, make_study: MakeStudy) -> None:
    """With many workers: the first run, and then the longest of the others."""
    study = {**arms("plain", "wide"), "first": {"base": {"training.batch_size": 4}}}
    folder = half_a_minute(make_study(tmp_path, study, {"base": {1337: "running"}}), "base")
    assert time_left(read_results(folder), 8) == pytest.approx(30 + 60)


def test_runs_beyond_the_budget_are_not_waited_for(tmp_path: Path, make_study: MakeStudy) -> None:
    study = {**arms("plain", "wide"), "budget": {"runs": 2}}
    folder = make_study(tmp_path, study, {"plain": {1: FINISHED}})
    assert time_left(read_results(folder), 1) == pytest.approx(60)


def test_no_round_is_waited_for_that_the_budget_does_not_let_begin(tmp_path: Path, make_study: MakeStudy) -> None:
    """A minute an arm, five minutes in all, of which one is spent; what the first round takes is left in any case."""
    study = {**arms("plain", "wide"), "seeds": list(range(1, 11)), "budget": {"minutes": 5.0}}
    folder = make_study(tmp_path / "five", study, {"plain": {1: FINISHED}})
    assert time_left(read_results(folder), 1) == pytest.approx(4 * 60)
    study = {**study, "budget": {"minutes": 1.5}}
    folder = make_study(tmp_path / "less", study, {"plain": {1: FINISHED}})
    assert time_left(read_results(folder), 1) == pytest.approx(60)


def test_a_study_that_has_ended_has_no_time_left(tmp_path: Path, make_study: MakeStudy) -> None:
    folder = make_study(tmp_path, arms("plain"), {"plain": {1: FINISHED, 2: "diverged"}})
    assert time_left(read_results(folder), 2) == 0
    assert summary(read_results(folder), 0.0) == "2 of 2 runs have ended (1 finished, 1 diverged)"


def test_the_table_has_a_row_a_run(half_way: Results) -> None:
    table = {name: others for name, *others in rows(half_way)}
    assert list(table) == ["plain-1", "wide-1", "plain-2", "wide-2"]
    assert table["plain-1"] == ["finished", "160.00", "1 min"]
    assert table["wide-2"] == ["waiting", "", ""]
    assert table["wide-1"][:2] == ["failed: DataError: books/: there is no such file", ""]
    state, score, seconds = table["plain-2"]
    assert re.fullmatch(r"running 50 %, loss \d\.\d{3}, validation \d\.\d{3}", state)
    assert (score, seconds) == ("", "30 s")
    assert summary(half_way, 90) == (
        "2 of 4 runs have ended (1 finished, 1 failed), 1 is running, about 1 min 30 s left"
    )


def test_many_runs_are_folded_by_arm(tmp_path: Path, make_study: MakeStudy) -> None:
    """What is going stays; what waits is one row; of each arm the mean."""
    scores: dict[str, dict[int, Any]] = {
        "plain": {seed: {"perplexity": 100.0 + seed, "seconds": 60.0} for seed in range(1, 10)},
        "wide": {1: {"perplexity": 90.0, "seconds": 60.0}, 2: "diverged", 3: "running"},
    }
    folder = make_study(tmp_path, {**arms("plain", "wide"), "seeds": list(range(1, 15))}, scores)
    names, states, metrics, _ = zip(*rows(read_results(folder)), strict=True)
    assert names == ("wide-3", "16 runs", "plain", "wide")
    assert states[1:] == ("waiting", "9 finished", "1 finished, 1 diverged")
    assert metrics[2:] == ("mean 105.00", "mean 90.00")


def test_the_trials_of_a_search_are_folded_into_one_row_by_their_best(tmp_path: Path, make_study: MakeStudy) -> None:
    space = {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
    scores: dict[str, dict[int, Any]] = {
        f"trial-{i:03}": {1: {"perplexity": 100.0 + i, "seconds": 60.0}} for i in range(1, 4)
    }
    drawn = {f"trial-{i:03}": {"optimizer.learning_rate": i / 1000} for i in range(1, 5)}
    study = {"search": {"trials": 30, "space": space, "confirm": [101, 102, 103]}, "seeds": [1]}
    results = read_results(make_study(tmp_path, study, {**scores, "trial-004": {1: "pruned"}}, drawn))
    folded = rows(results)
    assert folded[0] == ("32 runs", "waiting", "", "")
    assert folded[1][:3] == ("trials", "3 finished, 1 pruned", "best 101.00")
    assert len(folded) == 2


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("seconds", "1 min"), ("memory_bytes", "890 MB"), ("accuracy", "74.1\u00a0%"), ("loss", "5.0752")],
)
def test_a_metric_is_told_in_its_unit(tmp_path: Path, make_study: MakeStudy, metric: str, shown: str) -> None:
    study = {**arms("plain"), "metric": metric, "seeds": [1]}
    folder = make_study(tmp_path, study, {"plain": {1: {"seconds": 60.0, "accuracy": 0.7413, "perplexity": 160.0}}})
    assert rows(read_results(folder))[0][2] == shown


def test_the_log_has_a_line_where_a_run_begins_or_ends(half_way: Results) -> None:
    """Nothing is said of what had happened before, but in the summary."""
    file = io.StringIO()
    screen = LineScreen(file)
    screen.show(half_way, None)
    after = {
        "wide-2": {"status": "running"},
        "plain-2": {"status": "failed", "words": "OSError: \x1b[31mthe disk is full"},
    }
    now = replace(half_way, runs=[replace(run, **after.get(run.item.name, {})) for run in half_way.runs])
    screen.show(now, 100.0)
    screen.show(now, 99.0)
    screen.show(half_way, 98.0)
    lines = file.getvalue().splitlines()
    assert lines[0] == "2 of 4 runs have ended (1 finished, 1 failed), 1 is running"
    assert lines[1] == "wide-2: begins"
    assert [line.split()[0] for line in lines[2:]] == ["plain-2:", "wide-2:"], "what does not change is not said again"


def test_the_log_tells_the_score_of_a_run_that_finished(tmp_path: Path, make_study: MakeStudy) -> None:
    folder = make_study(tmp_path, arms("plain"), {"plain": {1: FINISHED}})
    after = read_results(folder)
    before = replace(after, runs=[replace(result, status="running") for result in after.runs])
    file = io.StringIO()
    screen = LineScreen(file)
    screen.show(before, None)
    screen.show(after, None)
    assert "plain-1: finished, perplexity 160.00, 1 min" in file.getvalue().splitlines()


def test_the_log_has_a_summary_now_and_then(half_way: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(live.time, "monotonic", lambda: clock)
    file = io.StringIO()
    screen = LineScreen(file)
    for second in range(150):
        clock = 1000.0 + second
        screen.show(half_way, 90.0)
    assert file.getvalue().count("about 1 min 30 s left\n") == 3


def terminal(width: int, height: int) -> tuple[TerminalScreen, io.StringIO]:
    screen, out = TerminalScreen(), io.StringIO()
    screen.console = Console(file=out, width=width, height=height, force_terminal=True, legacy_windows=False)
    return screen, out


def test_a_terminal_keeps_one_table_and_what_is_said_above_it(half_way: Results) -> None:
    screen, out = terminal(120, 30)
    screen.say("before [it] begins")
    screen.show(half_way, 90.0)
    screen.say("a word [bold] between")
    screen.show(half_way, 30.0)
    screen.end()
    screen.end()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "before [it] begins" in text
    assert "a word [bold] between" in text, "square brackets are text"
    last = text[text.rindex("2 of 4 runs") :]
    assert "about 30 s left" in last
    assert [line.split()[0] for line in last.splitlines()[1:6]] == ["run", "plain-1", "wide-1", "plain-2", "wide-2"]


def test_a_low_terminal_folds_the_table(half_way: Results) -> None:
    screen, out = terminal(120, 7)
    screen.show(half_way, None)
    screen.end()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    shown = [line.split("  ")[0] for line in text[text.rindex("\nrun ") + 1 :].splitlines()]
    assert shown[:5] == ["run", "plain-2", "1 run", "plain-1", "wide-1"]


NOTEBOOK = """
from pathlib import Path
from gptlab.studies.live import make_screen
from gptlab.studies.results import read_results

screen, results = make_screen(), read_results(Path({folder!r}))
screen.say("it begins")
for left in (None, 60.0, 30.0):
    screen.show(results, left)
screen.end()
"""


def test_a_notebook_has_one_table_that_is_replaced(
    tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    study = {"arms": {"plain": {}}, "seeds": [1], "metric": "a<b", "direction": "min"}
    folder = make_study(tmp_path, study, {"plain": {1: "running"}})
    notebook = new_notebook(cells=[new_code_cell(NOTEBOOK.format(folder=str(folder)))])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert [output.text for output in outputs if output.get("name") == "stdout"] == ["it begins\n"]
    (html,) = (output.data["text/html"] for output in outputs if output.output_type == "display_data")
    assert "about 30 s left" in html
    assert html.count("<tr>") == 2
    assert "a&lt;b" in html
    assert "a<b" not in html


def test_nothing_is_printed_where_nobody_asked(half_way: Results, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say("a word")
    screen.show(half_way, 1.0)
    screen.end()
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_lines() -> None:
    assert type(live.make_screen()) is LineScreen
