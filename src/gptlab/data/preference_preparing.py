"""Preferences → the rows of each split, on disk: two for each pair, the chosen side and then the rejected one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gptlab.data.divided import Part
from gptlab.data.preference_counts import PreferenceCounts, Tally
from gptlab.data.preference_encoding import encode_answers
from gptlab.data.preference_sources import FoundPair, PreferenceSource
from gptlab.data.row_file import RowFileWriter
from gptlab.data.row_preparing import Item, Known, RowPreparation, digest_of
from gptlab.data.splitting import Split
from gptlab.text.dialogue import Message


@dataclass(kw_only=True)
class PreferencePreparation(RowPreparation[PreferenceSource, FoundPair, Tally, PreferenceCounts]):
    """Of pairs, each known by its prompt, so that no prompt that is held out is trained on, whatever the answers. A
    share is divided by what a prompt begins with, for a dialogue is often published at several depths (of HH-RLHF's
    test pairs 5 % have a prompt from which another one goes on, mostly with the chosen answer)."""

    kind: ClassVar[str] = "pairs"
    overlap_words: ClassVar[str] = "pair(s) have a prompt that also stands"

    context: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._asked: dict[Split, set[bytes]] = {split: set() for split in self.splits}
        self._end = self.template.end_id(self.tokenizer)

    def choices(self) -> list[Any]:
        return []

    def records(self, source: PreferenceSource) -> Iterator[FoundPair]:
        return source.pairs()

    def known(self, record: FoundPair) -> Known:
        prompt, chosen, rejected = record.pair
        answers = [Message("assistant", chosen), Message("assistant", rejected)]
        begins = next(place for place, turn in enumerate(prompt, start=1) if turn.role == "user")
        return Known(*(digest_of(turns, self.shares.seed) for turns in (prompt[:begins], prompt, [*prompt, *answers])))

    def beginning(self, record: FoundPair) -> str:
        return record.pair.prompt[0].content

    def new_tally(self) -> Tally:
        return Tally()

    def counts(
        self, tally: Tally, part: Part[PreferenceSource], split: Split, source: PreferenceSource | None
    ) -> PreferenceCounts:
        return tally.counts(part.name, split, source)

    def write(self, item: Item[PreferenceSource, FoundPair], tally: Tally, writer: RowFileWriter) -> bool:
        prompt, *answers = item.record.pair
        encoded = encode_answers(prompt, answers, self.template, self.tokenizer, self.context)
        chosen, rejected = encoded.ids
        if np.array_equal(chosen, rejected):
            tally.add_cut_equal(item.record.place)
            return False
        for ids, answer in zip(encoded.ids, answers, strict=True):
            whole = ids[-1] == self._end
            text = answer if whole else self.tokenizer.decode(ids[encoded.start :])
            writer.append(ids, np.arange(len(ids)) >= encoded.start, [text])
        tally.add(encoded)
        asked = self._asked[item.split]
        if item.known.key not in asked:  # a model would be judged by the same prompt twice
            asked.add(item.known.key)
            writer.keep([*prompt, Message("assistant", answers[0])], item.known.key)
        return True
