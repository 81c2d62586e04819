"""The recipes that ship: each and its variants load, the published shapes have their counts, and `tiny` trains."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.catalog import shipped
from gptlab.data.python_docs import python_docs
from gptlab.data.sources import Source
from gptlab.model.build import build_model, parameter_count
from gptlab.run.run import Run
from gptlab.training.assemble import train_recipe
from gptlab.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
GPT2_VOCABULARY = 50_257


def variants(name: str) -> list[str]:
    return list(tomllib.loads(shipped("recipe")[name].read_text(encoding="utf-8")).get("variants", {}))


VARIANTS = [(name, variant) for name in shipped("recipe") for variant in variants(name)]
TINY = [name for name, variant in VARIANTS if variant == "tiny"]
PUBLISHED = ["gpt2-small-scratch", "gpt2-medium-scratch", "mini-gpt", "gpt2-124m", "hh-reward", "hh-dpo", "hh-dpo-lora"]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_loads_and_changes_the_recipe(name: str, variant: str) -> None:
    changed, plain = load_recipe(name, variant=variant), load_recipe(name)
    assert changed.name == f"{name}-{variant}"
    assert changed.model_copy(update={"name": name}) != plain


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_it_is_how_to_run_it_on_what_and_what_was_seen(name: str) -> None:
    text = shipped("recipe")[name].read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    first = header.splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 120
    assert f"\n# gptlab train {name}" in header
    assert re.search(r"GPU|CPU", header)
    assert re.search(r"not run here", header, re.IGNORECASE)
    assert "tiny" in variants(name)


@pytest.mark.parametrize(
    ("name", "variant", "millions", "in_blocks"),
    [
        ("gpt2-small-scratch", None, 109.7, 85.05),
        ("gpt2-medium-scratch", None, 335.2, 302.3),
        ("gpt2-124m", None, 124.4, 85.05),
        ("mini-gpt", None, 13.3, None),
        ("mini-gpt", "higher-rate", 13.3, None),
        ("mini-gpt", "wider", 27.3, None),
        ("mini-gpt", "one-layer", 13.1, None),
        ("mini-gpt", "larger-batch", 13.3, None),
    ],
)
def test_the_published_parameter_counts(
    name: str, variant: str | None, millions: float, in_blocks: float | None
) -> None:
    recipe = load_recipe(name, variant=variant)
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.tokenizer.train or GPT2_VOCABULARY)
    assert round(parameter_count(model) / 1e6, 1) == millions
    if in_blocks is not None:
        assert sum(p.numel() for block in model.h for p in block.parameters()) / 1e6 == pytest.approx(
            in_blocks, abs=0.05
        )


def test_the_experiments_differ_from_the_baseline_in_one_thing_each() -> None:
    baseline = load_recipe("mini-gpt")
    assert load_recipe("mini-gpt", "optimizer.learning_rate=5e-4", variant="higher-rate", name="mini-gpt") == baseline
    assert load_recipe("mini-gpt", "model.n_embd=128", variant="wider", name="mini-gpt") == baseline
    assert load_recipe("mini-gpt", "model.n_layer=2", variant="one-layer", name="mini-gpt") == baseline
    back = ("training.batch_size=32", "validation.sampled_rows=320")
    assert load_recipe("mini-gpt", *back, variant="larger-batch", name="mini-gpt") == baseline
    assert baseline.validation.sampled_rows == 10 * baseline.training.batch_size


def test_an_article_of_wikitext_is_a_document_and_its_sections_are_not(tmp_path: Path) -> None:
    articles = [
        " = Homarus gammarus = \n \n It is a lobster . \n \n = = Description = = \n \n = 60 cm for the next \n",
        " = Robert Boulter = \n \n He is an actor . \n = = = Theatre = = = \n",
    ]
    (tmp_path / "wiki.txt").write_text("".join(articles))
    for name in ("gpt2-small-scratch", "gpt2-medium-scratch"):
        data = load_recipe(name).data
        assert data.validation.sources
        assert data.test
        assert data.test.sources
        for settings in (*data.sources, *data.validation.sources, *data.test.sources):
            here = settings.model_copy(
                update={"hub": None, "config": None, "split": "train", "path": str(tmp_path / "wiki.txt")}
            )
            assert list(Source(here).documents()) == articles


def test_half_a_million_tokens_a_step() -> None:
    recipe = load_recipe("gpt2-124m")
    assert recipe.training.batch_size * recipe.model.numbers()["context"] == 2**19


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "docs.txt"
    path.write_text("\n\n".join(text for _, text in python_docs())[:150_000])
    return path


@pytest.fixture(scope="module")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a small-base, and dialogues to tune it by."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_CACHE", str(folder / "cache"))
        small = ("training.max_steps=3", "tokenizer.train=500", "samples.max_new_tokens=5")
        train_recipe(load_recipe("small-base", *small, data=[str(text)]), runs=folder, device="cpu")
    lines = [line for line in text.read_text().splitlines() if len(line) > 20][:400]
    turns = [{"turns": [f"What comes after {line[:12]}?", line]} for line in lines]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in turns))
    return folder


def tuned(kind: str) -> list[str]:
    """The recipes that tune a small base by their variant tiny, on data of this kind."""
    return [name for name in TINY if (recipe := load_recipe(name)).start and recipe.data.kind == kind]


def train_tiny(name: str, base: Path, file: str) -> Run:
    """Three steps of a recipe's variant tiny on a file of one's own; a run that is there already is finished."""
    changes = ("training.max_steps=3", "samples.max_new_tokens=5")
    recipe = load_recipe(name, *changes, variant="tiny", data=[str(base / file)])
    return train_recipe(recipe, runs=base, device="cpu")


@pytest.mark.parametrize("name", tuned("dialogues"))
def test_tiny_tunes_a_small_base_on_dialogues_of_ones_own(
    name: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(base / "cache"))
    run = train_tiny(name, base, "chats.jsonl")
    assert run.evaluation["best"]["validation"]["loss"] < run.evaluation["start"]["validation"]["loss"]
    assert run.origin["data"]["template"] == run.recipe["data"]["template"]
    assert ("trainable" in run.origin) == (name == "hh-lora")


@pytest.fixture(scope="module")
def judged(base: Path) -> Path:
    """The folder with pairs in HH-RLHF's form, and the two runs that DPO begins from: its start and its judge."""
    chats = [json.loads(line)["turns"] for line in (base / "chats.jsonl").read_text().splitlines()]
    sides = [
        {"chosen": (question, answer), "rejected": (question, chats[number - 1][1])}
        for number, (question, answer) in enumerate(chats)
    ]
    lines = [
        json.dumps({side: f"\n\nHuman: {asked}\n\nAssistant: {said}" for side, (asked, said) in pair.items()})
        for pair in sides
    ]
    (base / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_CACHE", str(base / "cache"))
        train_tiny("hh-sft", base, "chats.jsonl")
        train_tiny("hh-reward", base, "pairs.jsonl")
    return base


def test_tiny_learns_which_answer_is_preferred(judged: Path) -> None:
    run = Run.open(judged / "hh-reward-tiny")
    scores = run.evaluation["best"]["validation"]
    assert run.evaluation["objective"] == "reward"
    assert 5 < scores["pairs"] < 50, "a share of 0.05 of some 400"
    assert scores["accuracy_low"] <= scores["accuracy"] <= scores["accuracy_high"]
    assert scores["loss"] == pytest.approx(math.log(2), abs=0.3), "three steps from chance"


@pytest.mark.parametrize("name", [name for name in tuned("preferences") if name != "hh-reward"])
def test_tiny_aligns_a_tuned_model_and_a_reward_model_judges_it(
    name: str, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(judged / "cache"))
    run = train_tiny(name, judged, "pairs.jsonl")
    assert run.evaluation["start"]["validation"]["loss"] == pytest.approx(math.log(2), abs=0.03)
    assert run.origin["reference"]["name"] == "hh-sft-tiny"
    assert ("trainable" in run.origin) == (name == "hh-dpo-lora")
    against = run.evaluation["against_start"]
    assert (against["start"], against["reward"]["model"]) == ("hh-sft-tiny", "hh-reward-tiny")
    assert against["win_rate_low"] <= against["win_rate"] <= against["win_rate_high"]
    assert run.metrics("reward"), "the judge spoke at every evaluation"


def test_formats_md_names_every_key_of_runs_on_pairs(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(judged / "cache"))
    runs = [Run.open(judged / "hh-reward-tiny"), train_tiny("hh-dpo", judged, "pairs.jsonl")]
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")))
    for run in runs:
        events = [run.metrics(event) for event in ("step", "validation", "validation_sampled", "reward")]
        assert keys_in([run.evaluation, run.origin, events]) <= told


def keys_in(value: Any) -> set[str]:
    """The keys of all objects in a piece of JSON."""
    if isinstance(value, list):
        return set().union(*map(keys_in, value))
    return set(value).union(*map(keys_in, value.values())) if isinstance(value, dict) else set()


def test_the_judge_of_hh_dpo_learns_from_other_pairs() -> None:
    taught, judge = (
        {source.files for source in load_recipe(name).data.sources} for name in ("hh-dpo", "hh-reward")
    )  # fmt: skip
    assert not taught & judge
    assert load_recipe("hh-dpo-lora").data == load_recipe("hh-dpo").data
    assert load_recipe("hh-dpo").samples.reward == "hh-reward"


@pytest.mark.parametrize("name", [*tuned("labels"), "cola-distillation"])
def test_a_classifiers_recipe_learns_from_files(name: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)
    monkeypatch.setenv("GPTLAB_CACHE", str(base / "cache"))
    rows = [(n % 3 > 0, f"What comes {'after' if n % 3 else 'before'} {n}?") for n in range(90)]
    for file, part in (
        ("in_domain_train", rows[:60]),
        ("in_domain_dev", rows[60:75]),
        ("out_of_domain_dev", rows[75:]),
    ):
        Path(f"{file}.tsv").write_text("".join(f"x\t{int(label)}\t\t{text}\n" for label, text in part))
    Path("texts.csv").write_text("".join(["text,label\n", *(f"{text},{label}\n" for label, text in rows)]))
    changes, variant = ["training.max_steps=3", "training.batch_size=16"], "tiny"
    if name == "cola-distillation":
        train_recipe(load_recipe("cola-lora", *changes, variant="tiny", name="teacher"), runs=base, device="cpu")
        changes += ["objective.teacher=teacher", "tokenizer.from=small-base/checkpoints/000003", "model.n_hidden=32"]
        variant = "files"
    run = train_recipe(load_recipe(name, *changes, variant=variant), runs=base, device="cpu")
    assert run.evaluation["best"]["validation"]["texts"] > 5
    assert ("trainable" in run.origin) == (name != "cola-distillation")


def test_a_student_of_every_second_layer_learns_from_its_teacher(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(base / "cache"))
    recipe = load_recipe("distilgpt2", "training.max_steps=3", "samples.prompts=[]", variant="tiny")
    run = train_recipe(recipe, runs=base, device="cpu")
    assert run.origin["shape"]["n_layer"] == 2
    assert run.origin["teacher"]["name"] == "small-base"
    best = run.evaluation["best"]["validation"]
    assert best["loss"] == pytest.approx(0.7 * best["distillation"] + 0.3 * best["cross_entropy"])


@pytest.mark.parametrize("name", [name for name in TINY if not load_recipe(name).start])
def test_tiny_trains_on_a_text_of_ones_own(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(
        name, "training.max_steps=3", "tokenizer.train=500", "samples.max_new_tokens=5",
        variant="tiny", data=[str(text)],
    )  # fmt: skip
    run = train_recipe(recipe, runs=tmp_path, device="cpu")
    assert run.state["status"] == "finished"
    scores = run.evaluation["best"]["validation"]
    assert 1 < scores["perplexity"] < 600, "three steps from chance, which is 500"
