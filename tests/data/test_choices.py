"""The published forms of BLiMP, LAMBADA and HellaSwag, in small, and what is none of them."""

from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data.choices import Item, Kind, read_choices
from gptlab.errors import DataError

PAIRS = [
    ("Who should Derek hug?", "Who should hug Derek who?", "syntax", "island_effects", "adjunct_island"),
    ("Amy liked herself.", "Amy liked itself.", "syntax/semantics", "s-selection", "animate_subject_passive"),
    ("Züge fahren.", "Züge fährt.", "morphology", "subject_verb_agreement", "regular_plural"),
]

LAWN = {
    "activity_label": "Mowing the lawn",
    "ctx_a": "A man [step] walks out.",
    "ctx_b": "the Man",
    "endings": ["mows [title] fast.", "eats  it.", "  sleeps.", "flies [substeps]away."],
    "label": "3",
}
LAWN_ITEM = Item(
    "Mowing the lawn: A man walks out. The man", (" mows. fast.", " eats it.", " sleeps.", " flies away."), 3
)

TASK = "Mowing the lawn: A man walks out. the man\n2\nmows.\neats it.\nsleeps.\nflies.\n"
TASK_ITEM = Item("Mowing the lawn: A man walks out. the man", (" mows.", " eats it.", " sleeps.", " flies."), 2)


def pair(good: str, bad: str, field: str, term: str, uid: str) -> dict[str, Any]:
    return {
        "sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term, "UID": uid,
        "lexically_identical": True, "pairID": "0",
    }  # fmt: skip


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """A folder of files, each a paradigm, and a text that is none."""
    folder = tmp_path / "blimp"
    folder.mkdir()
    for each in PAIRS:
        (folder / f"{each[-1]}.jsonl").write_text(lines(pair(*each)), encoding="utf-8")
    (folder / "README.md").write_text("what this is")
    return folder


BLIMP_ITEMS = [
    Item(
        "",
        (" Who should Derek hug?", " Who should hug Derek who?"),
        0,
        {"fields": "syntax", "phenomena": "island_effects", "paradigms": "adjunct_island"},
    ),
    Item(
        "",
        (" Amy liked herself.", " Amy liked itself."),
        0,
        {"fields": "syntax_semantics", "phenomena": "argument_structure", "paradigms": "animate_subject_passive"},
    ),
    Item(
        "",
        (" Züge fahren.", " Züge fährt."),
        0,
        {"fields": "morphology", "phenomena": "subject_verb_agreement", "paradigms": "regular_plural"},
    ),
]


def test_blimp_is_a_folder_a_file_or_the_archive(blimp: Path, tmp_path: Path) -> None:
    assert read_choices("blimp", blimp) == BLIMP_ITEMS
    assert read_choices("blimp", str(blimp / "regular_plural.jsonl")) == BLIMP_ITEMS[2:]
    with zipfile.ZipFile(tmp_path / "BLiMP.zip", "w") as archive:  # as macOS packs it
        archive.mkdir("data")
        for file in blimp.iterdir():
            archive.write(file, f"data/{file.name}")
            archive.writestr(f"__MACOSX/data/._{file.name}", b"\x00\x05\x16\x07")
        archive.writestr("data/.DS_Store", b"\x00\x00\x00\x01Bud1")
    assert read_choices("blimp", tmp_path / "BLiMP.zip") == BLIMP_ITEMS


def test_lambada_parts_at_the_last_space(tmp_path: Path) -> None:
    """Whatever else stands there belongs to the last word, as in the harness' task."""
    file = tmp_path / "lambada.jsonl.gz"
    texts = ["I saw her  again", "it was\n\n“me", "Alone"]
    file.write_bytes(gzip.compress(lines(*({"text": text} for text in texts)).encode()))
    expected = [Item("I saw her ", (" again",), 0), Item("it", (" was\n\n“me",), 0), Item("", (" Alone",), 0)]
    assert read_choices("lambada", file) == expected


def test_hellaswag_loses_its_marks(tmp_path: Path) -> None:
    """The second is as rowanz/hellaswag has it: the label a number, and of WikiHow no second part."""
    wikihow = LAWN | {"activity_label": "Home", "ctx_a": "How to mow [title] Buy a mower.", "ctx_b": "", "label": 0}
    file = tmp_path / "hellaswag_val.jsonl"
    file.write_text(lines(LAWN, wikihow))
    first, second = read_choices("hellaswag", file)
    assert first == LAWN_ITEM
    assert (second.context, second.answer) == ("Home: How to mow. Buy a mower.", 0)


def test_hellaswag_has_a_form_of_six_lines(tmp_path: Path) -> None:
    file = tmp_path / "hellaswag.txt.bz2"
    file.write_bytes(bz2.compress((TASK + TASK.replace("\n2\n", "\n0\n") + "\n").encode()))
    (tmp_path / "SOURCE.md").write_text("where it is from")
    expected = [TASK_ITEM, Item(TASK_ITEM.context, TASK_ITEM.continuations, 0)]
    assert read_choices("hellaswag", file) == read_choices("hellaswag", tmp_path) == expected


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("blimp", "a.jsonl", lines({"text": "a b"}), "line 1: there is no column 'sentence_good'"),
        ("blimp", "a.jsonl", lines(pair("", "b", "c", "d", "e")), "line 1: column 'sentence_good' is empty"),
        ("blimp", "a.jsonl", "\n", "there is nothing in it"),
        ("blimp", "a.md", "text", "has none of what was looked for: .jsonl"),
        ("blimp", "none/here/", None, "there is no such file or folder"),
        ("lambada", "a.jsonl", "{}\n", "line 1: there is no column 'text'"),
        ("lambada", "a.jsonl", lines({"text": "a b"}, {"text": "a "}), "line 2: the text ends with a space"),
        ("lambada", "a.jsonl", '{"text": "a b"}\nno\n', "line 2: is not JSON"),
        ("hellaswag", "a.jsonl", lines(LAWN | {"label": ""}), "line 1: the label is ''; wanted 0 to 3"),
        ("hellaswag", "a.jsonl", lines(LAWN | {"endings": ["a"]}), "wanted a list of four texts"),
        ("hellaswag", "a.jsonl", lines(LAWN | {"endings": ["a", "b", "[c]", "d"]}), "ending 2 is empty"),
        ("hellaswag", "a.txt", TASK + TASK.replace("2\n", "4\n"), "line 7: 'Mowing the lawn: A man walks out. the ma"),
        ("hellaswag", "a.txt", TASK + "Mowing: cut\n1\n", "line 7: 'Mowing: cut' begins no task of six lines"),
        ("hellaswag", "a.txt", TASK + "Mowing: cut\n", "line 7: 'Mowing: cut' begins no task of six lines"),
        ("hellaswag", "a.txt", "Once upon a time\n" * 6, "line 1: 'Once upon a time' begins no task of six lines"),
    ],
)
def test_what_is_not_in_the_format_is_named(
    kind: Kind, name: str, content: str | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_choices(kind, tmp_path / name)
    assert said in str(error.value)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 and no more", "is no zip archive, or a damaged one"),
        (lines(pair(*PAIRS[0]), {"text": "a"}), "BLiMP.zip/data/a.jsonl, line 2: there is no column 'sentence_good'"),
        ("[1]\n", "BLiMP.zip/data/a.jsonl, line 1: there is no column 'sentence_good'"),
        ("{\n", "BLiMP.zip/data/a.jsonl, line 1: is not JSON"),
        ("", "BLiMP.zip: there is nothing in it"),
    ],
)
def test_what_is_wrong_in_an_archive_is_named(content: bytes | str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "BLiMP.zip"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data/a.jsonl", content)
    with pytest.raises(DataError) as error:
        read_choices("blimp", file)
    assert said in str(error.value)


# As the three data sets lie on the hub: a configuration for each paradigm; more than one language; more than one split.

README = """---
configs:
{configs}---
"""
CONFIG = "- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"


@pytest.fixture
def on_hub(hub: Any, hub_environment: dict[str, str]) -> Any:
    """Reads tests in one process from a hub that has them at their published places."""

    def publish(repo: str, tables: dict[tuple[str, str, str], list[dict[str, Any]]]) -> None:
        folder = hub.folder / "datasets" / repo
        configs = ""
        for (config, split, below), records in tables.items():
            (folder / below).mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist(records)
            pyarrow.parquet.write_table(table, folder / below / f"{split}-00000-of-00001.parquet")
            configs += CONFIG.format(name=config, split=split, path=f"{below}/{split}-*")
        (folder / "README.md").write_text(README.format(configs=configs))

    publish("nyu-mll/blimp", {(each[-1], "train", each[-1]): [pair(*each)] for each in PAIRS})
    texts = {"default": "it was her", "de": "sie war es"}
    publish("EleutherAI/lambada_openai", {(name, "test", name): [{"text": text}] for name, text in texts.items()})
    publish("Rowan/hellaswag", {("default", "validation", "data"): [LAWN]})
    publish("acme/unlabelled", {("default", "validation", "data"): [LAWN | {"label": ""}]})

    def read(*calls: tuple[str, str | None]) -> list[Any]:
        """The items' fields, or the message of the GptlabError that was raised."""
        code = (
            "import json\nfrom dataclasses import asdict\nfrom gptlab.data.choices import read_choices\n"
            "from gptlab.errors import GptlabError\n"
            "def value(kind, place):\n"
            "    try: return [asdict(item) for item in read_choices(kind, place)]\n"
            "    except GptlabError as error: return str(error)\n"
            f"print(json.dumps([value(*call) for call in {calls!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def items_of(fields: list[dict[str, Any]]) -> list[Item]:
    return [Item(each["context"], tuple(each["continuations"]), each["answer"], each["groups"]) for each in fields]


def test_the_hub_has_them_where_no_place_is_given(on_hub: Any) -> None:
    blimp, lambada, hellaswag = map(items_of, on_hub(("blimp", None), ("lambada", None), ("hellaswag", None)))
    assert sorted(blimp, key=lambda item: item.groups["paradigms"]) == sorted(
        BLIMP_ITEMS, key=lambda item: item.groups["paradigms"]
    )
    assert lambada == [Item("it was", (" her",), 0)]  # English, not the others
    assert hellaswag == [LAWN_ITEM]


def test_what_the_hub_has_not_is_named(on_hub: Any) -> None:
    none, other, unlabelled = on_hub(
        ("blimp", "acme/none"), ("lambada", "Rowan/hellaswag"), ("hellaswag", "acme/unlabelled")
    )
    assert "'acme/none' is neither a path here nor a dataset on the hub" in none
    assert "the data set Rowan/hellaswag on the hub: Bad split: test" in other
    assert "acme/unlabelled on the hub, record 1: the label is ''; wanted 0 to 3" in unlabelled
