"""The tables and sentences of a study say what its runs say, in any state."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.report.table import Table
from gptlab.studies import findings, tables
from gptlab.studies.measures import difference_of, name_of, span_of, text_of
from gptlab.studies.results import Results, read_results
from gptlab.studies.rows import rows_of, write_csv
from gptlab.studies.samples import side_by_side
from gptlab.studies.statistics import agreement

MakeStudy = Callable[..., Path]
ARMS: dict[str, dict[str, Any]] = {"base": {}, "wide": {"model.n_embd": 256}, "deep": {"model.n_layer": 4}}
VALUES = {
    "base": (160.0, 162.0, 161.0), "wide": (120.0, 122.1, 121.0), "deep": (161.0, 160.0, 162.5),
}  # fmt: skip


def make(make_study: MakeStudy, tmp_path: Path, study: dict[str, Any] | None = None, **changes: Any) -> Results:
    """Three arms with three seeds; `changes` of their scores by ARM_SEED."""
    scores: dict[str, dict[int, Any]] = {
        arm: {seed: {"perplexity": value} for seed, value in enumerate(values, 1)} for arm, values in VALUES.items()
    }
    for place, score in changes.items():
        arm, _, seed = place.rpartition("_")
        scores[arm][int(seed)] = score
    return read_results(make_study(tmp_path, {"arms": ARMS, **(study or {})}, scores))


def column(table: Table, head: str) -> list[str]:
    return [row[table.heads.index(head)].replace("\u00a0", " ") for row in table.rows]


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        ("perplexity", 160.614, "160.61"), ("perplexity", 3.05, "3.05"), ("loss", 5.0752, "5.0752"),
        ("accuracy", 0.741, "74.1\u00a0%"), ("memory_bytes", 8.4e9, "8.4 GB"), ("seconds", 250.0, "4 min 10 s"),
        ("parameters", 13_311_360.0, "13,311,360"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_their_measure_asks(measure: str, value: float, text: str) -> None:
    assert text_of(measure, value) == text


def test_differences_of_shares_are_points() -> None:
    assert difference_of("accuracy", -0.012) == "-1.2 points"
    assert difference_of("perplexity", 3.0) == "+3.00"
    assert span_of("accuracy", 0.714, 0.767) == "71.4\u00a0to\u00a076.7\u00a0%"
    assert (name_of("memory_bytes"), name_of("bits_per_byte")) == ("peak memory", "bits per byte")


def test_the_ranking_and_the_differences(make_study: MakeStudy, tmp_path: Path) -> None:
    results = make(make_study, tmp_path, {"measures": ["loss", "seconds"]}, deep_3="diverged")
    ranking, gaps = tables.ranking_table(results), tables.difference_table(results)
    assert column(ranking, "arm") == ["wide", "deep", "base (baseline)"]
    assert column(ranking, "seeds") == ["3 of 3", "2 of 3", "3 of 3"]
    assert column(ranking, "diverged") == ["", "1", ""]
    assert column(ranking, "95\u00a0% interval")[0] == "118.42 to 123.64"
    assert ranking.heads[:3] == ["arm", "rank", "perplexity"]
    assert "loss" in ranking.heads
    assert "training time" not in ranking.heads  # which the table of the cost has
    assert "training time" in tables.cost_table(results).heads
    assert column(gaps, "verdict") == ["better", "within seed noise"]
    assert column(gaps, "difference in perplexity") == ["-39.97", "-0.50"]


def test_of_memory_the_most_counts_in_every_table(make_study: MakeStudy, tmp_path: Path) -> None:
    held = {f"base_{seed}": {"perplexity": 160.0, "memory_bytes": 1e9 * seed} for seed in (1, 2, 3)}
    published = {"source": "A.", "differs": ["Data."], "values": {"base": {"memory_bytes": 4_000_000_000}}}
    results = make(make_study, tmp_path, {"measures": ["memory_bytes"], "published": published}, **held)
    assert column(tables.cost_table(results), "peak memory")[0] == "3.0 GB"
    assert column(tables.published_table(results), "here: peak memory")[0] == "3.0 GB"
    assert rows_of(results)["ranking"][1]["memory_bytes"] == 3e9


def test_a_p_below_a_thousandth_is_a_number(make_study: MakeStudy, tmp_path: Path) -> None:
    alike = {f"wide_{seed}": {"perplexity": 120.0 + value} for seed, value in enumerate((0.0, 2.001, 1.0), 1)}
    gaps = tables.difference_table(make(make_study, tmp_path, **alike))
    assert column(gaps, "p")[0] == "< 0.001"
    assert gaps.numeric[gaps.heads.index("p")]


def test_what_is_published_stands_beside(make_study: MakeStudy, tmp_path: Path) -> None:
    values = {
        "base": {"validation perplexity": 160.61, "memory_bytes": 1e9},
        "wide": {"validation perplexity": 122.75},
        "huge": {"validation perplexity": "out of memory"},
    }
    published = {"source": "A.", "metric": "validation perplexity", "differs": ["Data."], "values": values}
    results = make(make_study, tmp_path, {"published": published})
    table = tables.published_table(results)
    assert table.heads == [
        "arm", "reported: validation perplexity", "here: perplexity", "reported: memory_bytes", "here: peak memory"
    ]  # fmt: skip
    assert column(table, "arm") == ["base", "wide", "huge", "deep"]
    assert column(table, "reported: validation perplexity") == ["160.61", "122.75", "out of memory", ""]
    assert column(table, "here: perplexity") == ["161.00", "121.03", "", "161.17"]
    assert column(tables.rank_table(agreement(results)), "rank here") == ["1", "2"]


def test_what_is_measured_here_too_stands_before_the_rest(make_study: MakeStudy, tmp_path: Path) -> None:
    """Under its own name or another; a share in per cent, to the last digit."""
    row = {"layers": 2, "memory (GB)": 13.52, "minutes": 200.0, "score": 0.8273}
    published = {
        "source": "A.", "metric": "score", "differs": ["Data."], "values": {"base": row},
        "measures": {"memory (GB)": "memory_bytes", "minutes": "seconds"},
    }  # fmt: skip
    base = {"base_1": {"accuracy": 0.741}}
    table = tables.published_table(make(make_study, tmp_path, {"metric": "accuracy", "published": published}, **base))
    assert table.heads == [
        "arm", "reported: score", "here: accuracy", "reported: memory (GB)", "here: peak memory", "reported: minutes",
        "here: training time", "reported: layers",
    ]  # fmt: skip
    cells = [cell.replace("\u00a0", " ") for cell in table.rows[0]]
    assert cells == ["base", "82.73 %", "74.1 %", "13.52", "890 MB", "200.0", "1 min", "2"]


REPORTED = {"source": "A.", "metric": "perplexity", "differs": ["Data."]}


def agreed(make_study: MakeStudy, tmp_path: Path, reported: dict[str, float], **study: Any) -> str | None:
    values = {arm: {"perplexity": value} for arm, value in reported.items()}
    results = make(make_study, tmp_path, {"published": {**REPORTED, "values": values}, **study})
    return findings.agreement_sentence(agreement(results))


def test_pairs_that_stand_the_other_way_round_are_named(make_study: MakeStudy, tmp_path: Path) -> None:
    found = agreed(make_study, tmp_path, {"base": 160.0, "wide": 159.0, "deep": 150.0})
    assert found == (
        "Of the 3 pairs of arms that differ there, 1 stand in the same order here beyond seed noise, 1 the other way "
        "round (wide before deep), and of 1 it cannot be told. The rank correlation of what is reported and the means "
        "here is -0.50."
    )


def test_of_one_seed_the_ranks_alone_are_told(make_study: MakeStudy, tmp_path: Path) -> None:
    found = agreed(make_study, tmp_path, {"base": 160.0, "wide": 122.0, "deep": 170.0}, seeds=[1])
    assert found == "The rank correlation of what is reported and the means here is 1.00."


def test_of_one_seed_and_two_arms_nothing_is_told(make_study: MakeStudy, tmp_path: Path) -> None:
    assert agreed(make_study, tmp_path, {"base": 160.0, "wide": 122.0}, seeds=[1]) is None


def test_settings_are_those_in_which_recipes_differ(make_study: MakeStudy, tmp_path: Path) -> None:
    table = tables.setting_table(make(make_study, tmp_path))
    assert table.heads == ["arm", "model.n_embd", "model.n_layer"]
    assert table.rows == [["base", "128", "2"], ["wide", "256", "2"], ["deep", "128", "4"]]


def test_the_summary_says_how_sure_it_is(make_study: MakeStudy, tmp_path: Path) -> None:
    told = findings.summary(make(make_study, tmp_path)).replace("\u00a0", " ")
    assert told.startswith("five compares 3 arms in 9 runs, all of which finished.")
    assert "The best perplexity is that of wide, 121.03 (95 %: 118.42 to 123.64; 3 seeds)." in told
    assert "The baseline (base) has 161.00" in told
    assert "The difference, -39.97 (95 %: " in told
    assert "stands out of seed noise (adjusted p < 0.001)" in told
    assert "1 better than the baseline (wide); 1 within seed noise of it (deep)." in told


def test_with_one_seed_nothing_is_claimed(make_study: MakeStudy, tmp_path: Path) -> None:
    results = make(make_study, tmp_path, {"seeds": [1]})
    assert "whether it is more than seed noise is not known" in findings.summary(results)
    assert any(warning.startswith("Every arm has one seed") for warning in findings.all_warnings(results))


def test_warnings_name_what_is_not_as_it_should_be(make_study: MakeStudy, tmp_path: Path) -> None:
    other = {"perplexity": 122.0, "origin": {"device": "GPU, Test 8", "versions": {"torch": "2.9.0"}}}
    results = make(
        make_study, tmp_path, {"budget": {"minutes": 60.0}}, base_2="failed", deep_1="waiting", deep_2="running",
        wide_1=other,
    )  # fmt: skip
    told = "\n".join(findings.all_warnings(results))
    for sentence in (
        "base-2 failed: DataError: books/: there is no such file.", "1 run not made yet: deep-1.",
        "1 run not finished: deep-2.", "Not all seeds have a score: base, deep.", "2 different devices",
        "2 different versions",
    ):  # fmt: skip
        assert sentence in told
    assert "commits" not in told
    assert "budget" not in told  # while a run goes on, others may follow


def test_what_the_budget_did_not_let_begin_is_told(make_study: MakeStudy, tmp_path: Path) -> None:
    results = make(make_study, tmp_path, {"budget": {"minutes": 60.0}}, deep_3="waiting")
    assert "1 run not made: deep-3. The budget is 1 h." in findings.all_warnings(results)


def test_what_the_budget_leaves_out_is_not_waited_for(make_study: MakeStudy, tmp_path: Path) -> None:
    results = make(make_study, tmp_path, {"budget": {"runs": 8}}, deep_3="waiting")
    assert "The budget of 8 runs leaves out deep-3." in findings.all_warnings(results)
    assert "in 9 runs: 8 finished, 1 left out by the budget." in findings.summary(results)


def test_samples_are_the_last_of_one_seed(make_study: MakeStudy, tmp_path: Path) -> None:
    found = side_by_side(make(make_study, tmp_path, base_1="waiting"))
    assert found is not None
    assert found["seed"] == 2  # all three arms have it
    assert [text["arm"] for text in found["prompts"][0]["texts"]] == ["wide", "deep", "base"]
    assert found["prompts"][0]["texts"][0]["text"] == " wide writes 40"


def test_csv_tables_can_be_read_back(make_study: MakeStudy, tmp_path: Path) -> None:
    rows = rows_of(make(make_study, tmp_path, {"measures": ["seconds"]}, deep_3="failed"))
    write_csv(tmp_path / "tables" / "runs.csv", rows["runs"])
    with (tmp_path / "tables" / "runs.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 9
    assert (read[0]["run"], float(read[0]["perplexity"]), read[-1]["status"]) == ("base-1", 160.0, "failed")
    assert read[-1]["perplexity"] == ""
    assert [row["arm"] for row in rows["ranking"]] == ["wide", "deep", "base"]
    assert rows["ranking"][0]["seconds"] == 60.0
    assert rows["ranking"][0]["seeds"] == 3
    assert {row["event"] for row in rows["curves"]} == {"step", "validation"}
    assert rows["trials"] == rows["published"] == []
