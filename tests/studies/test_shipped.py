"""The studies that ship: each with its variants can be made, has the published figures, and `tiny` needs no network."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.catalog import shipped
from gptlab.data.python_questions import questions_of
from gptlab.model.build import build_model, parameter_count
from gptlab.report.report import write_report
from gptlab.settings import flatten, plain
from gptlab.studies import plan
from gptlab.studies.claims import Claims
from gptlab.studies.results import read_result
from gptlab.studies.settings import StudySettings, load_study
from gptlab.training.assemble import train_recipe
from gptlab.training.recipe import Recipe

NAMES = list(shipped("study"))
GPT2_VOCABULARY = 50_257
FILES = {"cola-lora", "distillation"}
"""Whose variant tiny reads CoLA's own files in the current folder."""

PUBLISHED = {
    "mini-gpt-five", "small-vs-medium", "dialogpt-sizes", "dialogpt-batch", "dialogpt-learning-rate", "dialogpt-epochs",
    "optimizers", "lora-ranks", "accumulation", "helpful-only", "cola-lora", "distillation", "dpo-beta",
}  # fmt: skip
"""Which repeat a publication."""


def variants(name: str) -> list[str]:
    return list(tomllib.loads(shipped("study")[name].read_text(encoding="utf-8")).get("variants", {}))


def recipes_of(study: StudySettings) -> dict[str, Recipe]:
    """The recipe of each run, by the run's name; of a search with the baseline's values."""
    return {item.name: plan.recipe_of(study, item) for item in plan.items(study)}


def test_all_of_them_are_there() -> None:
    assert set(NAMES) == PUBLISHED | {"mini-gpt-search", "learning-rate-range"}
    assert {name for name in NAMES if load_study(name).published} == PUBLISHED


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name in NAMES for v in (None, *variants(name))])
def test_every_run_of_every_variant_has_a_recipe(name: str, variant: str | None) -> None:
    study = load_study(name, variant=variant)
    plan.check(study)
    assert study.name == (name if variant is None else f"{name}-{variant}")
    assert study.question.endswith("?")
    assert variant is None or study.model_copy(update={"name": name}) != load_study(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_it_is_and_how_and_where_to_run_it(name: str) -> None:
    text = shipped("study")[name].read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert header.splitlines()[0].startswith("# ")
    assert max(map(len, header.splitlines())) <= 120
    assert f"\n# gptlab study {name}" in header
    assert f"gptlab study {name} --variant tiny" in header or name == "learning-rate-range"
    assert re.search(r"CPU", header)
    assert "tiny" in variants(name)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_rows_are_arms_and_the_metric_is_one_of_their_columns(name: str) -> None:
    study = load_study(name)
    assert study.published is not None
    assert set(study.published.values) <= set(plan.arms(study))
    assert set(study.published.values) <= set(plan.arms(load_study(name, variant="tiny")))
    if study.published.metric is not None:
        assert study.published.metric == study.metric
        assert all(isinstance(row[study.metric], float) for row in study.published.values.values())


def test_the_parameters_that_five_experiments_report_are_those_of_the_arms() -> None:
    study = load_study("mini-gpt-five")
    assert study.published is not None
    for item in plan.items(study)[:5]:
        with torch.device("meta"):
            model = build_model(plan.recipe_of(study, item).model, GPT2_VOCABULARY)
        reported = study.published.values[item.arm]["parameters"]
        assert round(parameter_count(model) / 1e6, 1) == pytest.approx(float(reported) / 1e6)


def test_the_settings_that_five_experiments_report_are_those_of_the_arms() -> None:
    study = load_study("mini-gpt-five", variant="published-data")
    keys = {"width": "model.n_embd", "layers": "model.n_layer", "batch": "training.batch_size"}
    keys |= {"learning rate": "optimizer.learning_rate"}
    assert study.published is not None
    for item in plan.items(study)[:5]:
        recipe = flatten(plain(plan.recipe_of(study, item)))
        row = study.published.values[item.arm]
        assert {column: row[column] for column in keys} == {column: recipe[key] for column, key in keys.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if load_study(name).published])
def test_arms_of_tiny_differ_in_what_the_full_ones_differ(name: str) -> None:
    assert list(plan.arms(load_study(name, variant="tiny"))) == [
        arm for arm in plan.arms(load_study(name)) if (name, arm) != ("dpo-beta", "beta-0.03")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tiny_needs_nothing_but_its_own_first_runs(name: str) -> None:
    study = load_study(name, variant="tiny")
    for run, recipe in recipes_of(study).items():
        tree = plain(recipe)
        named = [recipe.start, tree["objective"].get("teacher"), tree["samples"].get("reward")]
        assert {each for each in named if each} <= set(study.first) - {run}
        assert recipe.tokenizer is None or recipe.tokenizer.train or recipe.tokenizer.from_ in set(study.first) - {run}
        assert all(sources_are_here(name, source) for source in sources(tree["data"]))
        if run not in study.first and recipe.data.kind in ("dialogues", "preferences"):
            validated = {source["embedded"] for source in tree["data"]["validation"]["sources"]}
            assert validated == {"python-questions:validation"}


def sources(data: dict[str, Any]) -> list[dict[str, Any]]:
    held_out = [data[split].get("sources", []) for split in ("validation", "test") if split in data]
    return [source for each in (data["sources"], *held_out) for source in each]


def sources_are_here(name: str, source: dict[str, Any]) -> bool:
    return "embedded" in source or (name in FILES and source["path"].endswith(".tsv"))


def test_the_questions_that_tiny_is_validated_by_are_more_than_a_few() -> None:
    assert sum(1 for _ in questions_of("python-questions:validation")) > 200


def test_a_range_test_takes_the_place_of_a_recipes_minutes_and_is_the_first_run() -> None:
    study = load_study("learning-rate-range", "recipe=quickstart")
    first, *_ = plan.items(study)
    recipe = plan.recipe_of(study, first)
    assert (first.arm, study.budget.runs) == (plan.RANGE_TEST, 1)
    assert (recipe.training.minutes, recipe.training.max_steps) == (None, 200)
    assert recipe.schedule.kind == "range"


@pytest.fixture(scope="module")
def cola(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files in the form of CoLA's, and a cache that the studies share."""
    folder = tmp_path_factory.mktemp("cola")
    words = ("books", "ships", "rivers", "actors", "cities")
    for file, rows in (("in_domain_train", 300), ("in_domain_dev", 60), ("out_of_domain_dev", 60)):
        lines = [f"s\t{n % 2}\t\tThe {words[n % 5]} of {file} {'are' if n % 2 else 'is are'} {n}." for n in range(rows)]
        (folder / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_round_of_tiny_trains_and_has_the_metric_and_the_measures(
    name: str, cola: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cola)
    monkeypatch.setenv("GPTLAB_CACHE", str(cola / "cache"))
    study = load_study(name, variant="tiny")
    folder = plan.study_folder(study, Path("runs"))
    for item in plan.items(study):
        recipe = plan.recipe_of(study, item)
        if (item.stage == 1 and item.round) or item.stage == 2:
            continue
        short = recipe.training.model_copy(update=dict.fromkeys(("epochs", "tokens", "minutes")) | {"max_steps": 3})
        run = train_recipe(recipe.model_copy(update={"training": short}), runs=folder, device="cpu")
        write_report(run)  # without which a run does not count as finished
        if item.stage == 1:
            measures = read_result(study, item, folder, Claims(folder)).measures
            assert study.metric in measures
            assert set(study.measures) - measures.keys() <= {"win_rate"}, "which wants a judge"
