"""Questions about Python's standard library, made of its documentation: the embedded source `python-questions`.

    Question("json.dumps", "What does json.dumps do?", right="Serialize obj to a JSON formatted str.", wrong=…)

The right answer is the first sentence of the docstring, the wrong one that of something else. The parts are those of
`python-docs`: who has read its part train has read nothing of what the questions of the part validation are about.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from gptlab.data.first_sentence import first_sentence
from gptlab.data.python_docs import Kind, Part, documented_modules, part_of, part_with

EMBEDDED_QUESTIONS = Literal["python-questions", "python-questions:train", "python-questions:validation"]

WORDING: dict[Kind, str] = {
    "module": "What is the module {} for?",
    "class": "What is {}?",
    "value": "What is {}?",
    "function": "What does {} do?",
}

GROUP = 16
"""About so many questions, of one kind and with answers of nearly the same length, exchange their answers."""


@dataclass(frozen=True)
class Question:
    """A question about what has this full name, the answer to it, and the answer to another."""

    name: str
    question: str
    right: str
    wrong: str


class Fact(NamedTuple):
    """What the documentation says in a sentence of something."""

    name: str
    kind: Kind
    sentence: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def questions_of(embedded: str) -> Iterator[Question]:
    """The questions of a source by its name, one of EMBEDDED_QUESTIONS."""
    return python_questions(part_of(embedded))


def python_questions(part: Part = "all") -> Iterator[Question]:
    """The questions, in the order of the modules; the same ones wherever the version of Python is the same.

    No sentence answers two of them. A wrong answer is that of a question of the same kind and part about another
    package, and about as long as the right one. As every sentence is the right answer once and a wrong one once,
    nothing in an answer by itself tells which it is.
    """
    facts = [fact for fact in _facts() if part in ("all", part_with(fact.name))]
    wrong: dict[str, str] = {}
    for kinds in (("module",), ("class",), ("function", "value")):
        wrong.update(_exchanged([fact for fact in facts if fact.kind in kinds]))
    for fact in facts:
        if fact.name in wrong:
            yield Question(fact.name, WORDING[fact.kind].format(fact.name), fact.sentence, wrong[fact.name])


@cache
def _facts() -> tuple[Fact, ...]:
    """What is said of public names, where the same is said of nothing else. Kept, since reading takes a second."""
    found: dict[str, Fact] = {}
    for _, entries in documented_modules():
        for entry in entries:
            if sentence := first_sentence(entry.docstring, entry.name):
                found.setdefault(entry.name, Fact(entry.name, entry.kind, sentence))
    said = Counter(fact.sentence for fact in found.values())
    return tuple(fact for fact in found.values() if said[fact.sentence] == 1 and _is_public(fact.name))


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _exchanged(facts: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """(name, another's sentence) for each fact, but for those of a package that has more than half of a group."""
    by_length = sorted(facts, key=lambda fact: (len(fact.sentence), _key(fact.name)))
    groups = max(1, len(facts) // GROUP)
    for n in range(groups):
        group = by_length[n * len(facts) // groups : (n + 1) * len(facts) // groups]
        by_package: dict[str, list[Fact]] = {}
        for fact in sorted(group, key=lambda fact: (_key(f"{n} {fact.package}"), _key(fact.name))):
            by_package.setdefault(fact.package, []).append(fact)
        largest = max(by_package.values(), key=len, default=[])
        del largest[len(group) - len(largest) :]
        # In the order of packages, and moved on by the size of the largest: none comes to stand where its own was.
        ordered = [fact for each in by_package.values() for fact in each]
        moved = ordered[len(largest) :] + ordered[: len(largest)]
        yield from ((fact.name, other.sentence) for fact, other in zip(ordered, moved, strict=True))


def _key(text: str) -> bytes:
    """A place in an order that has nothing to do with the alphabet."""
    return hashlib.blake2b(text.encode(), digest_size=8, key=b"python-questions").digest()
