"""The documents in docs/ say what the code says: names in the tour, keys and defaults of recipes, floors, files."""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gptlab.data.corpus import CorpusSettings, prepare_corpus
from gptlab.settings import Section, apply_changes, build
from gptlab.studies.plan import check
from gptlab.studies.settings import StudySettings
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gptlab"
DOCS = ROOT / "docs"
FORMATS = (DOCS / "formats.md").read_text(encoding="utf-8")
TOUR = (DOCS / "tour.md").read_text(encoding="utf-8")

TOP = "The top"


def in_backticks(text: str) -> list[str]:
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"`([^`]+)`", without_blocks)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


# Paths, links, names


@pytest.mark.parametrize("name", ["architecture.md", "formats.md", "tour.md"])
def test_every_file_named_is_there(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    paths = re.findall(r"[\w/]+/\w+\.py", text)
    assert paths
    missing = [path for path in paths if not (PACKAGE / path).is_file() and not (ROOT / path).is_file()]
    assert not missing


@pytest.mark.parametrize("path", sorted([*DOCS.glob("*.md"), ROOT / "README.md"]), ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if heading:
            assert heading in {slug(line) for line in linked.read_text(encoding="utf-8").splitlines()}, target


def slug(line: str) -> str:
    """The anchor of a heading, as renderers make it; "" of any other line."""
    if not line.startswith("#"):
        return ""
    return re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")


def sections_of_the_tour() -> list[str]:
    return re.split(r"^## ", TOUR, flags=re.MULTILINE)


def defined_in(path: Path) -> set[str]:
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, definitions)
    }


@pytest.mark.parametrize("section", sections_of_the_tour(), ids=lambda text: text.splitlines()[0][:30])
def test_every_name_in_the_tour_is_in_a_file_of_its_section(section: str) -> None:
    """A `name()` is defined in one of the files named in the section; any other `name` at least stands in one."""
    words = in_backticks(section)
    files = [PACKAGE / word for word in words if word.endswith(".py")]
    defined = set().union(*map(defined_in, files))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for word in words:
        if word.endswith("()"):
            assert word[:-2] in defined, f"{word} is defined in none of {[path.name for path in files]}"
        elif re.fullmatch(r"[\w.]+", word) and not word.endswith(".py"):
            assert re.search(rf"\b{re.escape(word)}\b", text), f"{word} stands in none of {[p.name for p in files]}"


def test_the_tour_has_five_stops_in_order() -> None:
    heads = [line.split("`")[1] for line in TOUR.splitlines() if re.match(r"## \d", line)]
    assert heads == [
        "training/recipe.py", "training/assemble.py", "training/loop.py", "objectives/language.py", "model/gpt.py",
    ]  # fmt: skip


def test_the_floors_in_architecture_md_are_those_the_test_keeps() -> None:
    heights = runpy.run_path(str(ROOT / "tests" / "test_floors.py"))["FLOORS"]
    picture = blocks((DOCS / "architecture.md").read_text(encoding="utf-8"), "")[0]
    floors = [re.split(r"\s{2,}", line)[:-1] for line in picture.splitlines()]
    drawn = [name for floor in floors for name in floor]
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(drawn) == there
    assert [heights[name] for name in drawn] == sorted((heights[name] for name in drawn), reverse=True)
    assert all(len({heights[name] for name in floor}) == 1 for floor in floors)


# formats.md: recipes


def sections(cls: type[Section] = Recipe, path: str = "", of: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(how a recipe writes it, its class) of each section: "[model]", "[[data.sources]]"; of several kinds the second
    and later ones as `[data] kind = "dialogues"`, and so what stands in them, where it has other keys."""
    for name, field in cls.model_fields.items():
        kinds = list(sections_in(field.annotation))
        for number, (inner, many) in enumerate(kinds):
            kind = f' kind = "{inner.model_fields["kind"].default}"' if number else of
            place = f"{path}{field.alias or name}"
            yield (f"[[{place}]]" if many else f"[{place}]") + kind, inner
            yield from sections(inner, f"{place}.", kind)


def told_sections() -> list[tuple[str, type[Section]]]:
    """Those that formats.md has a table for: what stands in a second kind only where its keys are others."""
    found = dict(sections())
    first = {place: found.get(place.partition(" ")[0]) for place in found}
    return [
        (place, cls)
        for place, cls in found.items()
        if " " not in place or place.startswith("[data]") or set(cls.model_fields) != set(first[place].model_fields)
    ]


def sections_in(annotation: Any, many: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections in `X`, `X | Y`, `X | None` or `tuple[X, ...]`, and whether they are in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, many
        return
    for part in get_args(annotation):
        yield from sections_in(part, many or getattr(annotation, "__origin__", None) is tuple)


def documented(text: str = FORMATS, after: str = "## A recipe") -> dict[str, dict[str, tuple[str, str]]]:
    """Section → key → (default, meaning), as the tables after a heading have them."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for part in re.split(r"^### ", text.partition(after)[2], flags=re.MULTILINE)[1:]:
        heading = part.splitlines()[0]
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", part, flags=re.MULTILINE)
        for section in in_backticks(heading) or [heading]:
            found[section] = {key: (default, meaning) for key, default, meaning in rows}
    return found


def words_of(annotation: Any) -> set[str]:
    """The strings of every Literal in an annotation."""
    return {part for part in get_args(annotation) if isinstance(part, str)}.union(*map(words_of, get_args(annotation)))


def expected(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "–" if default is None else default


@pytest.mark.parametrize(("section", "cls"), [(TOP, Recipe), *told_sections()], ids=lambda value: str(value)[:40])
def test_formats_md_names_every_key_of_a_recipe_with_its_default(section: str, cls: type[Section]) -> None:
    check_table(documented()[section], cls)


STUDIES = (DOCS / "studies.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("section", "cls"), [(TOP, StudySettings), *sections(StudySettings)], ids=lambda value: str(value)[:40]
)
def test_studies_md_names_every_key_of_a_study_with_its_default(section: str, cls: type[Section]) -> None:
    check_table(documented(STUDIES, "## The keys of a study")[section], cls)


def test_the_study_in_studies_md_is_one() -> None:
    tree = tomllib.loads(blocks(STUDIES, "toml")[0])
    variant = tree.pop("variants")["quick"]
    check(build(StudySettings, tree, "studies.md"))
    check(build(StudySettings, {**tree, **variant}, "studies.md"))


def check_table(table: dict[str, tuple[str, str]], cls: type[Section]) -> None:
    """The table has the section's keys, with their defaults and all the words that they take."""
    fields = {field.alias or name: field for name, field in cls.model_fields.items()}
    own_heading = {name for name, field in fields.items() if list(sections_in(field.annotation))}
    assert set(table) | own_heading == set(fields)
    for key, (default, meaning) in table.items():
        if default.startswith("`"):
            written = tomllib.loads(f"value = {default.strip('`')}")["value"]
            assert (tuple(written) if isinstance(written, list) else written) == expected(fields[key]), key
        else:
            assert default == expected(fields[key]), key
        assert words_of(fields[key].annotation) <= set(in_backticks(meaning)), key


def test_formats_md_names_no_section_that_is_not_there() -> None:
    assert set(documented()) == {TOP, *dict(told_sections())}


def test_the_recipe_in_formats_md_is_one() -> None:
    tree = tomllib.loads(blocks(FORMATS, "toml")[0])
    variant = tree.pop("variants")["tiny"]
    assert build(Recipe, tree, "formats.md").model.numbers()["n_layer"] == 12
    assert build(Recipe, apply_changes(tree, variant), "formats.md").training.epochs == 0.1


# formats.md: token files


def test_a_token_file_is_read_as_formats_md_reads_it(tmp_path: Path) -> None:
    documents = [f"The number {n} comes before {n + 1}." for n in range(200)]
    (tmp_path / "numbers.txt").write_text("\n".join(documents), encoding="utf-8")
    tokenizer = Tokenizer.train(documents, 300)
    source = {"path": str(tmp_path / "numbers.txt"), "document": "line"}
    corpus = prepare_corpus(build(CorpusSettings, {"sources": [source]}, "test"), tokenizer, cache=tmp_path)
    for file in (corpus.train, corpus.validation):
        read: dict[str, Any] = {"path": file.path}
        exec(blocks(FORMATS, "python")[0], read)
        assert (read["magic"], read["version"], read["count"]) == (b"GPTLABTK", 1, file.count)
        assert f"{file.count}-{read['crc32']:08x}" == file.checksum
        np.testing.assert_array_equal(read["tokens"], file.tokens)
        np.testing.assert_array_equal(read["offsets"], file.documents)
        assert read["header"] == file.header
        told = FORMATS.partition("The header has")[2].partition("## ")[0]
        assert {*file.header, *file.header["sources"][0]} <= set(in_backticks(told))
