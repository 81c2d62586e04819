"""Sources of dialogues → the rows of each split, on disk.

Validation and test are read first, so that training can be compared with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from gptlab.data.conversations import EQUALS
from gptlab.data.dialogue_counts import DialogueCounts, Tally
from gptlab.data.dialogue_encoding import DialogueEncoder, Row
from gptlab.data.dialogue_sources import DialogueSource
from gptlab.data.digests import digest
from gptlab.data.divided import Part
from gptlab.data.places import bytes_total
from gptlab.data.reading import PrepareProgress
from gptlab.data.row_file import Header, RowFileWriter
from gptlab.data.splitting import HEAD_DOCUMENTS, Shares, Split
from gptlab.errors import DataError
from gptlab.text.dialogue import Message

REPORT_SECONDS = 0.25
COUNT_SECONDS = 10.0
"""How long overlapping dialogues are counted on after the first, for the error's message."""


class Dialogue(NamedTuple):
    """A dialogue, where it comes from, where it goes, and what it is known by."""

    part: Part[DialogueSource]
    split: Split
    messages: list[Message]
    digest: bytes


@dataclass
class DialoguePreparation:
    """Reads all parts and writes the rows of `splits`. `run` is called once; `finish` and `table` follow.

    bad_rows: the share of a source that may be bad; overlap: what happens to a training dialogue that also stands in
    validation or test
    """

    parts: Sequence[Part[DialogueSource]]
    splits: Sequence[Split]
    encoder: DialogueEncoder
    shares: Shares
    bad_rows: float
    overlap: Literal["error", "drop"]
    on_progress: Callable[[PrepareProgress], None] | None = None

    def __post_init__(self) -> None:
        self._tallies: dict[tuple[str, Split, Split], Tally] = {}
        self._held: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._writers: dict[Split, RowFileWriter] = {}
        self._reported_at = 0.0

    def run(self, folder: Path) -> None:
        """Writes all rows into `folder`. DataError where a source cannot be read or too much of it is bad, the template
        refuses a dialogue, or training overlaps what is held out."""
        tokenizer = self.encoder.tokenizer
        for split in self.splits:
            self._writers[split] = RowFileWriter(folder, split, tokenizer.vocab_size, tokenizer.eos_id)
        dialogues = self._dialogues()
        for dialogue in dialogues:
            tally = self.tally(dialogue.part, dialogue.split)
            if dialogue.split != "train":
                self._held.add(dialogue.digest)
            elif dialogue.digest in self._held:
                if self.overlap == "error":
                    raise self._overlap(dialogue, dialogues)
                tally.overlapping += 1
                continue
            elif dialogue.digest in self._seen:
                tally.duplicates += 1
                continue
            else:
                self._seen.add(dialogue.digest)
            self._write(dialogue, tally)

    def finish(self) -> dict[Split, Header]:
        """Ends the files; what is to be said of each."""
        return {
            split: writer.finish(part.name for part in self.parts if self.tally(part, split).rows)
            for split, writer in self._writers.items()
        }

    def close(self) -> None:
        """Closes the files, whether they are whole or not."""
        for writer in self._writers.values():
            writer.close()

    def table(self) -> list[DialogueCounts]:
        """What each source gave to its split, and to others where it is divided."""
        table = []
        for part in self.parts:
            for split in self.splits:
                own, tally = split == part.split, self.tally(part, split)
                if own or tally != Tally():
                    table.append(tally.counts(part.name, split, part.source.bad if own else None))
        return table

    def tally(self, part: Part[DialogueSource], split: Split) -> Tally:
        """What a part gave to a split so far."""
        return self._tallies.setdefault((part.name, part.split, split), Tally())

    def report(self, now: Part[DialogueSource]) -> None:
        """Calls `on_progress`, if there is one."""
        self._reported_at = time.monotonic()
        if self.on_progress is None:
            return
        read = sum(part.source.bytes_read for part in self.parts)
        writers = self._writers.values()
        dialogues = sum(tally.dialogues for tally in self._tallies.values())
        tokens = sum(writer.tokens for writer in writers)
        self.on_progress(PrepareProgress(now.name, read, self._bytes_total, dialogues, tokens))

    def _dialogues(self) -> Iterator[Dialogue]:
        """Every dialogue of every part, in an order that never changes."""
        sent = self._sent()
        for part in sorted(self.parts, key=lambda part: part.split == "train"):
            for messages in part.source.dialogues():
                key = _digest(messages, self.shares.seed)
                split = part.split if part.split != "train" else sent.get(key) or self.shares.side(key)
                yield Dialogue(part, split, messages, key)
                if time.monotonic() - self._reported_at > REPORT_SECONDS:
                    self.report(part)
            part.source.check(self.bad_rows)
        self.report(part)

    def _sent(self) -> Mapping[bytes, Split]:
        """Dialogues that go where the hash would not send them: of the first of each training source one to each split
        that is a share of it, where the hash sends none, so that a small source is not left without validation."""
        sent: dict[bytes, Split] = {}
        for part in self.parts if self.shares.held else ():
            if part.split != "train":
                continue
            first = islice(DialogueSource(part.source.settings).dialogues(), HEAD_DOCUMENTS)
            digests = {_digest(messages, self.shares.seed) for messages in first}
            for split in self.shares.held:
                sides = {key: sent.get(key) or self.shares.side(key) for key in digests}
                training = sorted(key for key, side in sides.items() if side == "train")
                if split not in sides.values() and len(training) > 1:
                    sent[training[0]] = split
        return sent

    def _write(self, dialogue: Dialogue, tally: Tally) -> None:
        equals = dialogue.part.source.format in EQUALS
        messages = dialogue.messages
        if messages[-1].role != "assistant" and not (equals and self.encoder.history):
            messages = messages[:-1]
            tally.unanswered += 1
        writer, kept = self._writers[dialogue.split], None
        for row in self._rows(dialogue, messages, equals):
            tally.lengths.append(row.length)
            if row.too_long:
                tally.too_long += 1
                continue
            writer.append(row.ids, row.learned, self.encoder.learned_texts(row))
            tally.rows += 1
            tally.tokens += len(row.ids)
            tally.learned += int(row.learned.sum())
            tally.cut += row.cut
            kept = row.messages
        if kept:
            tally.dialogues += 1
            writer.keep(kept, dialogue.digest)

    def _rows(self, dialogue: Dialogue, messages: Sequence[Message], equals: bool) -> Iterator[Row]:
        try:
            yield from self.encoder.rows(messages, equals=equals)
        except DataError as error:  # the template refuses it
            begins = messages[0].content.strip()[:60]
            raise DataError(f"the source {dialogue.part.name!r}: a dialogue that begins {begins!r}: {error}") from error

    def _overlap(self, first: Dialogue, rest: Iterator[Dialogue]) -> DataError:
        deadline, count, whole = time.monotonic() + COUNT_SECONDS, 1, True
        for each in rest:
            count += each.split == "train" and each.digest in self._held
            if time.monotonic() > deadline:
                whole = False
                break
        return DataError(
            f"{'' if whole else 'at least '}{count:,} training dialogue(s) also stand in validation or test; one, of "
            f"the source {first.part.name!r}, starts {first.messages[0].content.strip()[:60]!r}. What is scored must "
            'not have been trained on: set data.overlap = "drop" to drop them from training.'
        )

    @cached_property
    def _bytes_total(self) -> int | None:
        return bytes_total(part.source for part in self.parts)


def _digest(messages: Sequence[Message], seed: int) -> bytes:
    """What a dialogue is known by, whichever form it was published in."""
    return digest("\x1e".join(f"{message.role}\x1f{message.content}" for message in messages).encode(), seed)
