"""Which labels there are, and which of them a value in the data means."""

from __future__ import annotations

from itertools import permutations

import pytest

from gptlab.data.label_names import class_of_each, labels_among, unknown_label
from gptlab.errors import DataError

TWO = ("unacceptable", "acceptable")
FOUR = ("World", "Sports", "Business", "Sci/Tech")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "0"], ("0", "9", "10")),
        (["1", "-1", "0"], ("-1", "0", "1")),
        (["b", "10", "B", "9"], ("9", "10", "B", "b")),
        (["2", "02"], ("02", "2")),
    ],
)
def test_labels_are_sorted_numbers_as_numbers(values: list[str], labels: tuple[str, ...]) -> None:
    for order in permutations(values):
        assert labels_among(order) == labels, "whichever comes first in the data"


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (TWO, TWO, {"unacceptable": 0, "acceptable": 1}),
        (("0", "1"), TWO, {"0": 0, "1": 1}),
        (("1", "2"), TWO, {"1": 0, "2": 1}),
        (("0",), TWO, {"0": 0}),
        (("2",), TWO, {"2": 1}),
        (("1", "2", "3", "4"), FOUR, {"1": 0, "2": 1, "3": 2, "4": 3}),
        (("2", "4"), FOUR, {"2": 1, "4": 3}),
        (("0", "3"), FOUR, {"0": 0, "3": 3}),
        (("Sports", "0", "2"), FOUR, {"Sports": 1, "0": 0, "2": 2}),
        (("0", "-1"), TWO, {"0": 0, "-1": None}),
        (("-1", "0", "1"), ("-1", "0", "1"), {"-1": 0, "0": 1, "1": 2}),
        (("1", "2"), ("2", "1"), {"1": 1, "2": 0}),
    ],
)
def test_a_value_is_a_name_or_a_number(
    values: tuple[str, ...], labels: tuple[str, ...], classes: dict[str, int | None]
) -> None:
    assert class_of_each(values, labels, ordered=True) == classes


@pytest.mark.parametrize(
    ("values", "labels", "ordered"),
    [
        (("0", "2"), ("0", "1"), True),  # a name that is a number: then numbers are nothing else
        (("a", "2"), ("a", "b"), False),  # training's own labels have no order that numbers could mean
        (("0", "2"), TWO, True),  # since 0 occurs they count from 0
        (("1", "2", "3"), TWO, True),
        (("0", "acceptabel"), TWO, True),
    ],
)
def test_what_means_no_label_is_left_out(values: tuple[str, ...], labels: tuple[str, ...], ordered: bool) -> None:
    assert set(values) - set(class_of_each(values, labels, ordered=ordered)) == {values[-1]}


@pytest.mark.parametrize(("values", "listed"), [(("1", "2"), "1, 2"), (("3", "-1"), "3")])
def test_numbers_that_may_count_from_0_or_from_1(values: tuple[str, ...], listed: str) -> None:
    with pytest.raises(DataError, match=rf"numbers \({listed}\), and neither 0 nor 4 is among them"):
        class_of_each(values, FOUR, ordered=True)


def test_an_unknown_label_is_named_with_its_place() -> None:
    error = unknown_label("acceptabel", "a.tsv, line 7", TWO, ordered=True)
    assert str(error) == (
        "a.tsv, line 7: the label 'acceptabel' is none of unacceptable, acceptable (did you mean 'acceptable'?), nor "
        "the number of one"
    )
    many = tuple(f"class {n}" for n in range(30))
    error = unknown_label("other", "b.csv, line 2", many, ordered=False)
    assert str(error).startswith(
        "b.csv, line 2: the label 'other' stands nowhere in training, which has class 0, class 1"
    )
    assert str(error).endswith("class 19, …")
