"""The hub's data sets that recipes name, in the layout they have there, served on 127.0.0.1 and trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

WORDS = ["the", "of", "lobster", "actor", "play", "sea", "theatre", "in", "a", "record", "year", "city", "river", "was"]
LAYOUT = {
    "Salesforce/wikitext": {
        "wikitext-2-raw-v1": {"train": "train", "validation": "validation", "test": "test"},
        "wikitext-103-raw-v1": {"train": "train"},
    },
    "Skylion007/openwebtext": {"plain_text": {"train": "train"}},
    "HuggingFaceFW/fineweb-edu": {"sample-10BT": {"train": "train"}},
    "fancyzhx/ag_news": {"default": {"train": "train"}},
}


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * (place + 3) + place * place) % len(WORDS)] for place in range(20)) + f" {number} ."


def wikitext(first: int) -> list[str]:
    """Two hundred articles, a line a record: a title, a heading that every article has, a paragraph."""
    numbers = range(first, first + 200)
    return [
        line
        for n in numbers
        for line in ("", f" = Article {n} = \n", "", " = = History = = \n", "", f" {sentence(n)} \n")
    ]


@pytest.fixture
def data_sets(hub: Any) -> None:
    for first, (repository, configurations) in enumerate(LAYOUT.items()):
        folder: Path = hub.folder / "datasets" / repository
        card = []
        for name, splits in configurations.items():
            (folder / name).mkdir(parents=True)
            files = []
            for number, split in enumerate(splits):
                start = 10_000 * first + 1000 * number  # no text stands in two of them
                texts = [sentence(start + n) for n in range(600)]
                records = wikitext(start) if repository == "Salesforce/wikitext" else texts
                file = f"{name}/{split}-00000-of-00001.parquet"
                pyarrow.parquet.write_table(pyarrow.table({"text": records}), folder / file)
                files.append({"split": split, "path": file})
            card.append({"config_name": name, "data_files": files})
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n")


CODE = """
import json, sys
from pathlib import Path
from gptlab.training.assemble import train_recipe
from gptlab.training.recipe import load_recipe
small = ["training.max_steps=2", "tokenizer.train=400", "model.n_layer=1", "model.n_embd=16", "model.context=64",
         "samples.max_new_tokens=3", "training.batch_size=8"]
tables = {}
for name, variant in json.loads(sys.argv[1]):
    run = train_recipe(load_recipe(name, *small, variant=variant), runs=Path("runs"), device="cpu")
    tables[run.name] = [run.state["status"], run.origin["data"]["table"]]
print(json.dumps(tables))
"""


@pytest.mark.slow
def test_recipes_train_on_the_data_sets_they_name(
    data_sets: None, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    asked = [("gpt2-small-scratch", "tiny"), ("mini-gpt", "published-data"), ("gpt2-124m", "tiny")]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(asked)], cwd=tmp_path, capture_output=True, text=True,
        env={**hub_environment, "GPTLAB_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    assert {status for status, _ in runs.values()} == {"finished"}
    wiki = {row["split"]: row for row in runs["gpt2-small-scratch-tiny"][1]}
    assert set(wiki) == {"train", "validation", "test"}
    assert all(row["documents"] >= 200 for row in wiki.values())
    mixed = {row["name"] for row in runs["mini-gpt-published-data"][1] if row["split"] == "train" and row["tokens"]}
    assert mixed == {"Salesforce/wikitext", "Skylion007/openwebtext", "fancyzhx/ag_news"}
