"""Scores and their 95 % intervals in words: the ends of `accuracy` are a row's `accuracy_low` and `accuracy_high`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptlab.report.table import put

SHARES = ("accuracy", "win_rate")
"""What is told in per cent."""


def percent(share: float) -> str:
    """0.7413 → "74.1 %": of a thousand texts one is a tenth."""
    return f"{100 * share:.1f}\u00a0%"


def score(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def ends(row: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    """The ends of a score's interval, a share's in per cent; None where they are not known."""
    if row.get(f"{key}_low") is None:
        return None
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return (f"{100 * low:.1f}", f"{100 * high:.1f}") if key in SHARES else (score(low), score(high))


def interval(row: Mapping[str, Any], key: str) -> str | None:
    """As in "95 %: 71.4 to 76.7"; None where it is not known."""
    return put(lambda found: f"95\u00a0%: {found[0]} to {found[1]}", ends(row, key))


def with_interval(row: Mapping[str, Any], key: str) -> str | None:
    """The score, and on a line of its own its interval, for a page is not as wide as all three."""
    figure = put(percent if key in SHARES else score, row.get(key))
    bounds = ends(row, key)
    return f"{figure}\n[{', '.join(bounds)}]" if figure and bounds else figure


def joined(*parts: str | None) -> str:
    """What of a remark is known."""
    return "; ".join(filter(None, parts))
