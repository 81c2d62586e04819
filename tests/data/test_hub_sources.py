"""A data set on the hub as a source, streamed from a hub that the test serves on 127.0.0.1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

STORIES = ["One.", "Second, “quoted”", "Dritte: Zürich 🙂"]


@pytest.fixture
def on_hub(hub: Any, hub_environment: dict[str, str]) -> Any:
    """Evaluates expressions in one process, with Source and with a hub that has acme/stories and acme/table."""
    stories = hub.folder / "datasets" / "acme" / "stories"
    table = hub.folder / "datasets" / "acme" / "table"
    stories.mkdir(parents=True)
    table.mkdir()
    (stories / "train.jsonl").write_text("".join(json.dumps({"text": f"story {n}"}) + "\n" for n in range(5000)))
    (stories / "test.jsonl").write_text(json.dumps({"text": "the test"}) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"story": [*STORIES, None]}), table / "train.parquet")

    def evaluate(*expressions: str, **environment: str) -> list[Any]:
        """The value of each, or the message of the GptlabError that it raised."""
        code = (
            "import json\nfrom gptlab.data.sources import *\nfrom gptlab.errors import GptlabError\n"
            "def source(**keys): return Source(SourceSettings(**keys))\n"
            "def value(expression):\n"
            "    try: return eval(expression)\n"
            "    except GptlabError as error: return str(error)\n"
            f"print(json.dumps([value(expression) for expression in {expressions!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env={**hub_environment, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def test_a_data_set_is_streamed(on_hub: Any, tmp_path: Path) -> None:
    first, test, table, prints = on_hub(
        "list(source(hub='acme/stories', limit_documents=3).documents())",
        "list(source(hub='acme/stories', split='test').documents())",
        "[s := source(hub='acme/table', column='story'), list(s.documents()), s.documents_empty, s.bytes_read][1:]",
        "[source(hub='acme/stories', split=split).fingerprint() for split in ('train', 'test', 'train')]",
    )
    assert first == ["story 0", "story 1", "story 2"]
    assert test == ["the test"]
    assert table == [STORIES, 1, sum(len(text.encode()) for text in STORIES)]
    assert prints[0] == prints[2] != prints[1]
    kept = [path for path in (tmp_path / "hf").rglob("*") if path.suffix in (".jsonl", ".parquet", ".arrow")]
    assert kept == [], "so a data set larger than the disk can be read"


def test_what_the_hub_does_not_have_is_named(on_hub: Any) -> None:
    wanted = {
        "hub='acme/none'": "'acme/none' is neither a path here nor a dataset on the hub",
        "hub='acme/stories', split='tset'": "Bad split: tset. Available splits: ",
        "hub='acme/stories', config='x'": "BuilderConfig 'x' not found",
        "hub='acme/stories', column='txt'": "record 1: there is no column 'txt' (did you mean 'text'?)",
        "hub='acme/stories', revision='v9'": "no such revision",
    }
    said = on_hub(*(f"list(source({keys}).documents())" for keys in wanted))
    for message, expected in zip(said, wanted.values(), strict=True):
        assert expected in message


def test_no_network_and_a_missing_package_are_said(on_hub: Any) -> None:
    (unreachable,) = on_hub("list(source(hub='acme/stories').documents())", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the dataset acme/stories could not be read from the hub at http://127.0.0.1:9" in unreachable
    hide = "__import__('sys').modules.__setitem__('datasets', None)"
    _, missing = on_hub(hide, "list(source(hub='acme/stories').documents())")
    assert "pip install 'gptlab[hub]'" in missing
