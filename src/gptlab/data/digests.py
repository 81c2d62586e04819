"""Which documents have been seen: 16 bytes a document, and no Python object each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b

import numpy as np

DIGEST_BYTES = 16


def digest(data: bytes, seed: int = 0) -> bytes:
    """The 16 bytes that stand for a document; another seed gives other, unrelated ones."""
    hasher = _keyed(seed).copy()
    hasher.update(data)
    return hasher.digest()


@cache
def _keyed(seed: int) -> blake2b:
    """The hash with nothing in it yet; a copy of it costs half of what a new one does."""
    return blake2b(digest_size=DIGEST_BYTES, key=str(seed).encode(), person=b"gptlab document")


def as_array(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as one array (n,) of 16-byte strings, which numpy compares and sorts whole."""
    return np.frombuffer(b"".join(digests), dtype=f"S{DIGEST_BYTES}")


class DigestSet:
    """A growing set of digests: sorted runs, each more than twice as long as the next.

    So a look-up searches at most log2(n) runs, and each digest is merged at most log2(n) times: a
    log-structured merge tree (O'Neil et al., 1996) held in memory.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def contains(self, digests: np.ndarray) -> np.ndarray:
        """For each of (n,) digests whether it is in the set, (n,) bool."""
        found = np.zeros(len(digests), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            found |= run[at] == digests
        return found

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Adds (n,) digests; for each whether it was new, (n,) bool. Of equal ones the first is new."""
        unique, first = np.unique(digests, return_index=True)
        unseen = ~self.contains(unique)
        new = np.zeros(len(digests), dtype=bool)
        new[first[unseen]] = True
        self._insert(unique[unseen])
        return new

    def _insert(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # timsort: two sorted runs are merged in linear time
        if len(run):
            self._runs.append(run)
