"""Numbers, and tables of text, as people read them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence


def number(value: float) -> str:
    """1234567 → "1,234,567"; 0.1234 → "0.1234"; what is not finite keeps its name."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 0.001 else f"{value:.2e}"


def perplexity(value: float) -> str:
    """Two decimals, as they are published; none where the number is so large that they say nothing."""
    if math.isnan(value):
        return "nan"
    return f"{value:,.2f}" if value < 10_000 else number(round(value)) if math.isfinite(value) else "∞"


def large(value: float) -> str:
    """13_311_360 → "13.3 million"; below a million every digit."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return number(round(value))


def size(n_bytes: float) -> str:
    """Bytes in decimal units: 2_300_000 → "2.3 MB"."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        units.pop(0)
    return f"{n_bytes:.0f} {units[0]}" if units[0] == "bytes" or n_bytes >= 99.5 else f"{n_bytes:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """250 → "4 min 10 s"; two units, the smaller left out where it is nought."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    left, parts = round(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        parts.append(f"{amount} {unit}" if amount else "")
    first = next(place for place, part in enumerate(parts) if part)
    return " ".join(filter(None, parts[first : first + 2]))


def share(value: float) -> str:
    """0.624 → "62 %"."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def printable(text: str) -> str:
    """Without control characters, which a model may write and a terminal would obey."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def cut(text: str, length: int) -> str:
    """At most `length` characters, the last of them "…" where there were more."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def aligned(lines: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Iterator[str]:
    """Lines of cells as a table of text; the columns that are `numeric` stand to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        yield "  ".join(padded).rstrip()


def percent(share: float) -> str:
    """0.6894 → "68.9 %"."""
    return f"{100 * share:.1f} %"
