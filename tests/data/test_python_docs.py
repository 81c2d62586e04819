"""The embedded text is the standard library's own documentation, the same each time, and nothing is run to get it."""

from __future__ import annotations

import gc
import inspect
import json
import subprocess
import sys
import textwrap
from typing import get_args

import pytest

from gptlab.data.python_docs import EMBEDDED_DOCS, docs_of, part_with, python_docs
from gptlab.data.sources import Source, SourceSettings


@pytest.fixture(scope="module")
def docs() -> dict[str, str]:
    return dict(python_docs())


def test_what_is_there(docs: dict[str, str]) -> None:
    assert 1.5e6 < sum(len(text.encode()) for text in docs.values()) < 5e6
    assert len(docs) > 300
    assert {"json", "json.decoder", "argparse", "assert", "lambda"} <= docs.keys()
    assert all(text.strip() and text.endswith("\n") for text in docs.values())
    assert not [name for name in docs if {"test", "tests"} & set(name.split("."))]


def test_docstrings_are_those_that_inspect_finds(docs: dict[str, str]) -> None:
    assert docs["json"].startswith("# json\n\nJSON (JavaScript Object Notation)")
    for thing in (
        json,
        json.dumps,
        json.JSONDecoder,
        json.JSONDecoder.raw_decode,
        textwrap.dedent,
        textwrap.TextWrapper,
    ):
        module = getattr(thing, "__module__", "json")
        assert (inspect.getdoc(thing) or "missing").strip() in docs[module], thing


def test_headings_have_full_names_and_signatures(docs: dict[str, str]) -> None:
    assert "\n## textwrap.dedent(text)\n\nRemove any common leading whitespace" in docs["textwrap"]
    assert "\n## json.dumps(obj, *, skipkeys=False, ensure_ascii=True, " in docs["json"]
    assert "\n## textwrap.TextWrapper\n\n" in docs["textwrap"]
    assert "\n## textwrap.TextWrapper.wrap(self, text)\n\n" in docs["textwrap"]


def test_the_order_is_fixed_and_the_collector_is_left_as_it_was(docs: dict[str, str]) -> None:
    assert gc.isenabled()
    assert list(dict(python_docs())) == list(docs)
    names = [name for name in docs if docs[name].startswith("# ")]
    assert names == sorted(names, key=lambda name: name.split("."))


def test_no_documented_module_is_imported_for_it(docs: dict[str, str]) -> None:
    code = (
        "import sys; from gptlab.data.python_docs import python_docs\nbefore = set(sys.modules)\n"
        "list(python_docs()); print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert not docs.keys() & set(done.stdout.split())


def modules(docs: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in docs.items() if text.startswith(("# ", "## "))}


def test_the_parts_divide_the_packages_and_the_topics_are_in_one(docs: dict[str, str]) -> None:
    train, validation = dict(python_docs("train")), dict(python_docs("validation"))
    assert {**train, **validation} == docs
    assert not train.keys() & validation.keys()
    assert {name.partition(".")[0] for name in validation}.isdisjoint(name.partition(".")[0] for name in modules(train))
    assert all(part_with(name) == "validation" for name in validation)
    assert {"assert", "lambda"} <= train.keys()


def test_a_tenth_is_held_out_of_many_packages(docs: dict[str, str]) -> None:
    validation = dict(python_docs("validation"))
    held_out = sum(map(len, validation.values())) / sum(map(len, modules(docs).values()))
    assert 0.08 < held_out < 0.12
    assert len({name.partition(".")[0] for name in validation}) > 15


def test_a_source_names_its_part(docs: dict[str, str]) -> None:
    assert get_args(EMBEDDED_DOCS) == ("python-docs", "python-docs:train", "python-docs:validation")
    assert dict(docs_of("python-docs")) == docs
    prints = set()
    for embedded, part in (("python-docs:train", "train"), ("python-docs:validation", "validation")):
        source = Source(SourceSettings(embedded=embedded))  # type: ignore[arg-type]
        assert source.name == embedded
        assert list(source.documents()) == [text for _, text in python_docs(part)]  # type: ignore[arg-type]
        prints.add(source.fingerprint())
    assert len(prints | {Source(SourceSettings(embedded="python-docs")).fingerprint()}) == 3
