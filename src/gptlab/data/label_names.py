"""Labels: the classes there are, and which of them a value in the data means.

A value is a label's name or, where the labels have an order of their own and no name is itself a number, its number.
Numbers count from 0; they count from 1 where the number of labels is among them and 0 is not (AG News: 1 to 4). -1 is
no label, unless it is a name: so the hub writes the labels of GLUE's test sets, which are not public, and those on
which SNLI's annotators did not agree.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from gptlab.errors import DataError, nearest

NO_LABEL = "-1"
SHOWN = 20
"""So many labels are named in an error."""


def labels_among(values: Iterable[str]) -> tuple[str, ...]:
    """The distinct values, sorted: numbers as numbers, then names."""
    numbers = {value: _number(value) for value in values}
    return tuple(sorted(numbers, key=lambda value: (numbers[value] is None, numbers[value] or 0, value)))


def class_of_each(values: Collection[str], labels: Sequence[str], *, ordered: bool) -> dict[str, int | None]:
    """The class that each of the values means, from 0: its place in `labels`; None for NO_LABEL. Values that mean none
    are left out.

    values:  all the different ones in the data
    ordered: whether the order of the labels is that of their numbers

    DataError where it cannot be told whether numbers count from 0 or from 1.
    """
    names = {label: place for place, label in enumerate(labels)}
    found: dict[str, int | None] = {value: names[value] for value in values if value in names}
    if NO_LABEL in values:
        found.setdefault(NO_LABEL, None)
    if not ordered or any(_number(label) is not None for label in labels):
        return found
    numbers = {value: number for value in values if value not in found and (number := _number(value)) is not None}
    first = _first(set(numbers.values()), len(labels))
    return found | {value: number - first for value, number in numbers.items() if 0 <= number - first < len(labels)}


def unknown_label(value: str, where: str, labels: Sequence[str], *, ordered: bool) -> DataError:
    """The error for a value that means none of the labels; those that are not `ordered` are training's own."""
    known = f"{', '.join(labels[:SHOWN])}{', …' if len(labels) > SHOWN else ''}{nearest(value, list(labels))}"
    if ordered:
        return DataError(f"{where}: the label {value!r} is none of {known}, nor the number of one")
    return DataError(f"{where}: the label {value!r} stands nowhere in training, which has {known}")


def not_public(name: str) -> DataError:
    """The error for a source all of whose labels are NO_LABEL."""
    return DataError(
        f"the source {name!r}: every label is -1: they are not public, as those of GLUE's test sets. Score on the "
        'validation split (split = "validation")'
    )


def _first(numbers: set[int], n: int) -> int:
    """The number of the first of n labels."""
    if 0 in numbers or not numbers:
        return 0
    if n in numbers:
        return 1
    if numbers <= set(range(n)):
        listed = ", ".join(map(str, sorted(numbers)))
        raise DataError(
            f"the labels are numbers ({listed}), and neither 0 nor {n} is among them, so that nobody can tell whether "
            "they count from 0 or from 1; write names in their place"
        )
    return 0


def _number(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?[0-9]+", value) else None
