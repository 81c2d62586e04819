"""The set of digests against Python's own set, whatever the batches it is fed in."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gptlab.data.digests import DIGEST_BYTES, DigestSet, as_array, digest


@pytest.mark.parametrize("batch", [1, 7, 300, 5000])
def test_equals_a_python_set(batch: int) -> None:
    numbers = np.random.default_rng(batch).integers(0, 3000, size=5000)  # many come again, some within a batch
    digests = [digest(str(n).encode()) for n in numbers]
    ours, reference = DigestSet(), set()
    for start in range(0, len(digests), batch):
        part = digests[start : start + batch]
        known = [d in reference for d in part]
        assert ours.contains(as_array(part)).tolist() == known
        new = ours.add(as_array(part))
        for d, is_new in zip(part, new, strict=True):
            assert is_new == (d not in reference)
            reference.add(d)
    assert len(ours) == len(reference)


def test_a_digest_that_ends_in_zeros_is_still_itself() -> None:
    """numpy's fixed-width strings drop trailing NULs when read as Python objects; comparisons must not."""
    short, long = b"\1" + bytes(15), b"\1" + bytes(14) + b"\1"
    digests = DigestSet()
    assert digests.add(as_array([short, long, short])).tolist() == [True, True, False]


def test_sixteen_bytes_a_document() -> None:
    n = 200_000
    random = np.random.default_rng(0).bytes(n * DIGEST_BYTES)
    tracemalloc.start()
    digests = DigestSet()
    for start in range(0, n, 1000):
        digests.add(np.frombuffer(random, f"S{DIGEST_BYTES}", count=1000, offset=start * DIGEST_BYTES))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(digests) == n
    assert held < 1.1 * n * DIGEST_BYTES


def test_the_seed_makes_unrelated_digests() -> None:
    assert digest(b"text", 0) == digest(b"text", 0) != digest(b"text", 1)
