"""A study's file: what it may say, what is refused and in which words, variants, and changes from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.catalog import shipped
from gptlab.errors import RecipeError
from gptlab.settings import plain, read_toml, to_toml
from gptlab.studies.settings import (
    LESS_IS_BETTER,
    MORE_IS_BETTER,
    STUDY,
    Range,
    find_study,
    load_study,
)

TEXT = """
recipe = "mini-gpt"
seeds = [1, 2]
metric = "perplexity"

[changes]
"training.minutes" = 4.0

[arms.plain]

[arms.wide]
"model.n_embd" = 256

[published]
source = "a table"
metric = "perplexity"
differs = ["the text"]
values = { plain = { perplexity = 160.6, memory = "out of memory", rank = 1 } }

[variants.tiny]
seeds = [1]
changes = { "model.n_layer" = 1 }

[variants.rates]
grid = { "optimizer.learning_rate" = [1e-3, 1e-4] }

[variants.drawn.search]
trials = 4
space = { "optimizer.learning_rate" = { low = 1e-4, high = 1e-2, log = true }, "optimizer.kind" = ["adamw", "muon"] }
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        file = tmp_path / "five.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return to_file


@pytest.fixture
def file(write: Callable[[str], Path]) -> Path:
    return write(TEXT)


def test_a_study_is_what_its_file_says(file: Path) -> None:
    study = load_study(file)
    assert (study.name, study.recipe, study.seeds, study.metric) == ("five", "mini-gpt", (1, 2), "perplexity")
    assert study.changes == {"training.minutes": 4.0}
    assert study.arms == {"plain": {}, "wide": {"model.n_embd": 256}}
    assert study.published
    assert study.published.values["plain"] == {"perplexity": 160.6, "memory": "out of memory", "rank": 1}
    assert (study.checkpoint, study.on, study.direction, study.less_is_better) == ("best", "validation", None, True)


def test_what_is_written_is_read_again_as_it_was(file: Path, tmp_path: Path) -> None:
    """Also with dots in keys, which are no sections, and of a search."""
    for variant in (None, "tiny", "rates", "drawn"):
        study = load_study(file, variant=variant)
        folder = tmp_path / "runs" / study.name
        folder.mkdir(parents=True)
        (folder / STUDY).write_text(to_toml(plain(study)), encoding="utf-8")
        assert load_study(folder) == study
        assert load_study(folder / STUDY) == study


def test_a_variant_changes_single_keys_of_what_all_runs_have(file: Path) -> None:
    study = load_study(file, variant="tiny")
    assert study.name == "five-tiny"
    assert study.changes == {"training.minutes": 4.0, "model.n_layer": 1}
    assert study.seeds == (1,)
    assert list(study.arms) == ["plain", "wide"]


def test_a_variant_may_compare_something_else(file: Path) -> None:
    study = load_study(file, variant="rates")
    assert study.grid == {"optimizer.learning_rate": [1e-3, 1e-4]}
    assert study.arms == {}
    search = load_study(file, variant="drawn").search
    assert search
    assert search.space["optimizer.learning_rate"] == Range(low=1e-4, high=1e-2, log=True)
    assert search.space["optimizer.kind"] == ["adamw", "muon"]


def test_changes_are_the_studys_or_those_of_every_run(file: Path) -> None:
    study = load_study(
        file, "seeds=[5]", "budget.minutes=60.0", "name=mine", "training.minutes=1.0", "optimizer.kind=muon"
    )
    assert (study.seeds, study.budget.minutes, study.name) == ((5,), 60.0, "mine")
    assert study.changes == {"training.minutes": 1.0, "optimizer.kind": "muon"}


def test_data_and_name_stand_in_place_of_the_files(file: Path) -> None:
    study = load_study(file, data=["books/*.txt"], name="books")
    assert (study.data, study.name) == (("books/*.txt",), "books")


def test_a_recipe_beside_the_study_is_meant(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.toml").write_text("", encoding="utf-8")
    monkeypatch.chdir("/")
    file.write_text(TEXT.replace('"mini-gpt"', '"own.toml"'), encoding="utf-8")
    assert Path(load_study(file).recipe) == tmp_path / "own.toml"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('[arms.plain]\n\n[arms.wide]\n"model.n_embd" = 256', "", "wanted one of [arms.NAME], [grid] and [search]"),
        ("[arms.plain]", '[grid]\n"model.n_layer" = [1, 2]\n[arms.plain]', "found arms and grid"),
        ("seeds = [1, 2]", "seeds = [1, 2, 1]", "has a seed twice"),
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ("seeds = [1, 2]", "seeds = [-1]", "seeds.0"),
        ('metric = "perplexity"\n\n', 'metric = "kindness"\n\n', 'direction = "min" or "max"'),
        ('recipe = "mini-gpt"\n', "", "recipe: is missing"),
        ("seeds = [1, 2]", "sedes = [1, 2]", "did you mean 'seeds'?"),
        ("seeds = [1, 2]", "budget = { minutes = 0 }", "budget.minutes"),
        ('differs = ["the text"]', "differs = []", "published.differs"),
        ("seeds = [1, 2]", 'seeds = [1, 2]\nbaseline = ["plain"]', "baseline"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    write: Callable[[str], Path], before: str, after: str, words: str
) -> None:
    assert before in TEXT
    file = write(TEXT.replace(before, after))
    with pytest.raises(RecipeError) as caught:
        load_study(file)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("{ low = 1e-2, high = 1e-4 }", "low = 0.01 is not below high = 0.0001"),
        ("{ low = 0, high = 1, log = true }", "log = true wants low above 0"),
        ("{ low = 1, high = 9, log = true, step = 2 }", "and no step"),
        ("{ low = 1, high = 9, step = 0 }", "step = 0: wanted a number above 0"),
        ("3", "search.space"),
        ("[]", "search.space"),
    ],
)
def test_a_space_that_is_none_is_refused(write: Callable[[str], Path], space: str, words: str) -> None:
    text = (
        f'recipe = "mini-gpt"\nmetric = "loss"\n[search]\ntrials = 4\nspace = {{ "optimizer.learning_rate" = {space} }}'
    )
    with pytest.raises(RecipeError) as caught:
        load_study(write(text))
    assert words in str(caught.value)


def test_a_grid_without_values_is_refused(write: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"grid\.model\.n_layer: wanted at least one value"):
        load_study(write('recipe = "mini-gpt"\nmetric = "loss"\n[grid]\n"model.n_layer" = []'))


def test_a_variant_that_is_not_there_is_named_with_the_nearest(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"no variant 'tinny' \(did you mean 'tiny'\?\); there is tiny, rates, drawn"):
        load_study(file, variant="tinny")


@pytest.mark.parametrize("metric", [*LESS_IS_BETTER, *MORE_IS_BETTER])
def test_what_is_better_is_known_and_can_be_said(file: Path, metric: str) -> None:
    assert load_study(file, f"metric={metric}").less_is_better == (metric in LESS_IS_BETTER)
    assert load_study(file, f"metric={metric}", "direction=max").less_is_better is False
    assert load_study(file, "metric=kindness", "direction=min").less_is_better


def test_a_study_is_found_by_its_file_its_folder_or_its_name(file: Path, tmp_path: Path) -> None:
    assert find_study(str(file)) == file
    for name, there in shipped("study").items():
        assert find_study(name) == there
        assert read_toml(there)["metric"]
    (tmp_path / "runs").mkdir()
    with pytest.raises(RecipeError, match="there is no study"):
        find_study(str(tmp_path / "runs"))


def test_a_key_may_be_written_with_and_without_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'recipe = "mini-gpt"\nmetric = "loss"\n[changes]\ntraining.max_steps = 9\ntraining.batch_size = 4\n'
        "[arms.a]\n[arms.b]\nmodel.n_embd = 64\nmodel.n_layer = 1\n[variants.short.changes]\ntraining.max_steps = 3\n"
    )
    study = load_study(tmp_path / "own.toml", variant="short")
    assert study.changes == {"training.max_steps": 3, "training.batch_size": 4}
    assert study.arms["b"] == {"model.n_embd": 64, "model.n_layer": 1}


def test_pruning_wants_a_metric_that_evaluations_give(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'recipe = "mini-gpt"\nmetric = "win_rate"\n[search]\ntrials = 2\npruning = "median"\n'
        '[search.space]\n"model.dropout" = [0.0, 0.1]\n'
    )
    with pytest.raises(RecipeError, match="win_rate' is only known at a run's end"):
        load_study(tmp_path / "own.toml")
