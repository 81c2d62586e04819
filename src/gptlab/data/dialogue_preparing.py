"""Dialogues → the rows of each split, on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from gptlab.data.conversations import EQUALS
from gptlab.data.dialogue_counts import DialogueCounts, Tally
from gptlab.data.dialogue_encoding import DialogueEncoder, Learn
from gptlab.data.dialogue_sources import DialogueSource
from gptlab.data.divided import Part
from gptlab.data.row_file import RowFileWriter
from gptlab.data.row_preparing import Item, Known, RowPreparation, digest_of
from gptlab.data.splitting import Split
from gptlab.text.dialogue import Message


@dataclass(kw_only=True)
class DialoguePreparation(RowPreparation[DialogueSource, list[Message], Tally, DialogueCounts]):
    """Of dialogues, each known by who said what in it. `learn`, `history`: DialogueEncoder's."""

    kind: ClassVar[str] = "dialogues"
    overlap_words: ClassVar[str] = "dialogue(s) also stand"

    learn: Learn
    history: int

    @cached_property
    def encoder(self) -> DialogueEncoder:
        return DialogueEncoder(self.template, self.tokenizer, self.learn, self.history, self.context)

    def choices(self) -> list[Any]:
        return [self.learn, self.history]

    def records(self, source: DialogueSource) -> Iterator[list[Message]]:
        return source.dialogues()

    def known(self, record: list[Message]) -> Known:
        key = digest_of(record, self.shares.seed)
        return Known(key, key, key)

    def beginning(self, record: list[Message]) -> str:
        return record[0].content

    def new_tally(self) -> Tally:
        return Tally()

    def counts(
        self, tally: Tally, part: Part[DialogueSource], split: Split, source: DialogueSource | None
    ) -> DialogueCounts:
        return tally.counts(part.name, split, source.bad if source else None)

    def write(self, item: Item[DialogueSource, list[Message]], tally: Tally, writer: RowFileWriter) -> bool:
        equals = item.part.source.format in EQUALS
        messages = item.record
        if messages[-1].role != "assistant" and not (equals and self.history):
            messages = messages[:-1]
            tally.unanswered += 1
        kept = None
        for row in self.encoder.rows(messages, equals=equals):
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
            writer.keep(kept, item.known.key)
        return kept is not None
