"""`gptlab runs`: the runs there are, and what two of them differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab import words
from gptlab.errors import UserError

if TYPE_CHECKING:
    from gptlab.report.diff import Entry, RunDiff
    from gptlab.report.listing import RunRow
    from gptlab.report.table import Column, Table

WIDEST = 40
"""Of a cell at most so many characters are printed; --json has all."""


def runs(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER | diff A B]", help="Where runs are; or two to compare.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also each run of each study.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    folder: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where names are looked for.")] = Path("runs"),
) -> None:
    """The runs in a folder, the newest first: state, model, steps, best score, cost.

    A study is one line; its name lists its runs. `diff A B`: in what two runs differ, and by how much their scores.
    """
    match what or []:
        case ["diff", a, b]:
            _print_diff(a, b, folder, as_json=as_json)
        case ["diff", *names]:
            raise UserError(f"gptlab runs diff: wanted two runs, found {len(names)}; gptlab runs lists them")
        case []:
            _print_list(folder, every=every, as_json=as_json)
        case [name]:
            place = Path(name) if Path(name).is_dir() else folder / name
            _print_list(place, every=every, as_json=as_json)
        case more:
            raise UserError(f"gptlab runs: wanted one folder, or diff A B; found {' '.join(more)}")


def _print_list(place: Path, *, every: bool, as_json: bool) -> None:
    from gptlab.report.listing import list_runs
    from gptlab.report.table import make_table
    from gptlab.run.files import to_json

    rows = list_runs(place)
    if as_json:
        typer.echo(to_json({"runs": [_plain(row) for row in rows]}))
        return
    if not rows:
        typer.echo(f"{place} has no runs yet; gptlab train makes one")
        return
    shown = [row for row in rows if every or not _is_inside(row)]
    head, *lines = _lines(make_table([asdict(row) for row in shown], _columns()))
    said = dict(zip((row.name for row in shown), lines, strict=True))
    if head:
        typer.echo(head)
    for study, group in groupby(rows, key=lambda row: row.study):
        members = list(group)
        if study and _is_inside(members[0]):
            typer.echo(_heading(study, members))
        for row in members:
            if row.name in said:
                typer.echo(said[row.name])


def _is_inside(row: RunRow) -> bool:
    """Whether the row is of a study in the listed folder."""
    return "/" in row.name


def _plain(row: RunRow) -> dict[str, Any]:
    return {**asdict(row), "folder": str(row.folder), "begun": row.begun.isoformat()}


def _columns() -> Sequence[Column]:
    from gptlab.report.table import put, text

    return [
        ("run", lambda row: row["name"]),
        ("state", lambda row: row["state"]),
        ("task", lambda row: row["data"] if row["objective"] == "language" else row["objective"]),
        ("model", _model),
        ("step", _steps),
        ("best", lambda row: put(lambda name: f"{name} {text(name, row['score'])}", row["metric"])),
        ("time", lambda row: put(words.duration, row["seconds"])),
        ("memory", lambda row: put(words.size, row["memory_bytes"])),
        ("begun", lambda row: _ago(row["begun"])),
        ("", lambda row: row["fault"].partition("\n")[0]),
    ]


def _model(row: Mapping[str, Any]) -> str:
    kind, count = (row["model"] or "").upper(), row["parameters"]
    part = row["trainable"] != count
    return " ".join(filter(None, [kind, words.large(count) if count else "",
                                  f"({words.large(row['trainable'])} trained)" if part else ""]))  # fmt: skip


def _steps(row: Mapping[str, Any]) -> str | None:
    step, total = row["step"], row["total_steps"]
    if step is None:
        return None
    return words.number(step) if total in (None, step) else f"{words.number(step)}/{words.number(total)}"


def _ago(begun: datetime) -> str:
    seconds = (datetime.now(UTC) - begun).total_seconds()
    return f"{words.duration(max(0.0, seconds))} ago"


def _heading(study: str, rows: Sequence[RunRow]) -> str:
    from gptlab.report.listing import STATES

    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{study}/  a study; runs: {states}; the newest begun {_ago(rows[0].begun)}"


def _print_diff(a: str, b: str, folder: Path, *, as_json: bool) -> None:
    from gptlab.report.diff import SECTIONS, diff_runs
    from gptlab.run.files import to_json

    found = diff_runs(a, b, folder)
    if as_json:
        typer.echo(to_json({**asdict(found), "a": str(found.a), "b": str(found.b)}))
        return
    typer.echo(f"{found.a} → {found.b}")
    for section in SECTIONS:
        if entries := getattr(found, section):
            typer.echo(f"\n{section}")
            for line in _lines(_diff_table(section, entries, found)):
                typer.echo(f"  {line}")
    if equal := [section for section in SECTIONS if not getattr(found, section)]:
        typer.echo(f"\nno difference in {', '.join(equal)}")


def _diff_table(section: str, entries: Sequence[Entry], found: RunDiff) -> Table:
    from gptlab.report.table import make_table

    rows = [_cells(section, entry) for entry in entries]
    columns: list[Column] = [
        ("", lambda row: row["key"]),
        (found.a.name, lambda row: row["a"]),
        (found.b.name, lambda row: row["b"]),
        ("difference", lambda row: row["difference"]),
    ]
    return make_table(rows, columns)


def _cells(section: str, entry: Entry) -> dict[str, str]:
    """An entry in words; where rounding would make the two sides look alike, as they are."""
    from gptlab.run.files import to_json

    a, b = (_cell(section, entry.key, value) for value in (entry.a, entry.b))
    if a == b:
        a, b = to_json(entry.a), to_json(entry.b)
    return {"key": entry.key, "a": _short(a), "b": _short(b), "difference": _difference(entry)}


def _cell(section: str, key: str, value: Any) -> str:
    from gptlab.report.table import text
    from gptlab.run.files import to_json

    if value is None:
        return "not set" if section == "recipe" else "–"
    if section == "recipe":
        return to_json(value)
    return words.duration(value) if key == "seconds" else text(key, value)


def _difference(entry: Entry) -> str:
    """As in "-1.75 (-7.3 %)"."""
    if (gap := entry.difference) is None:
        return ""
    sign = "-" if gap < 0 else "+"
    share = f" ({sign}{words.share(abs(gap / entry.a))})" if entry.a else ""
    return f"{sign}{_cell('cost', entry.key, abs(gap))}{share}"


def _short(cell: str) -> str:
    return words.cut(words.printable(" ".join(cell.split())), WIDEST)


def _lines(table: Table) -> Iterator[str]:
    """The table as lines of text, heads first."""
    return words.aligned([table.heads, *table.rows], table.numeric)
