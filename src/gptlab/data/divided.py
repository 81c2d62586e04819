"""Settings of data that are divided over training, validation and test: what all its forms have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator

from gptlab.data.places import Place, PlaceSettings, SourceList, distinct_names
from gptlab.data.splitting import Shares, Split
from gptlab.settings import Section

S = TypeVar("S", bound=PlaceSettings)
P = TypeVar("P", bound=Place)


class SplitSettings(Section, Generic[S]):
    """`[data.validation]`, `[data.test]`: a share of the training sources, or sources of its own."""

    share: float | None = Field(None, gt=0, lt=1)
    sources: SourceList[S] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.share is None) == (self.sources is None):
            raise ValueError("give either share = 0.05 (taken from the training sources) or sources of its own")
        return self


class DividedSettings(Section, Generic[S]):
    """`[data]`: sources, what of them or beside them is held out, and whether training may hold some of that."""

    sources: SourceList[S]
    validation: SplitSettings[S] = Field(default_factory=lambda: SplitSettings(share=0.05))
    test: SplitSettings[S] | None = None
    overlap: Literal["error", "drop"] = "error"
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Which documents or rows a share holds out; by default the recipe's seed decides. Runs that are compared over
    seeds hold out the same."""

    @model_validator(mode="after")
    def _below_one(self) -> Self:
        if sum(self.shares().values()) >= 1:
            raise ValueError("validation.share and test.share leave nothing to train on: their sum must be below 1")
        return self

    def held_out(self) -> dict[Split, SplitSettings[S]]:
        """Validation, and test where there is one."""
        splits: dict[Split, SplitSettings[S] | None] = {"validation": self.validation, "test": self.test}
        return {split: section for split, section in splits.items() if section is not None}

    def splits(self) -> list[Split]:
        """The splits there are."""
        return ["train", *self.held_out()]

    def shares(self) -> dict[Split, float]:
        """The splits that are a share of the training sources."""
        return {split: section.share for split, section in self.held_out().items() if section.share}

    def keyed_shares(self, seed: int) -> Shares:
        """The shares and the key that decides them: the section's own seed, else `seed`; it matters only where
        something is shared out."""
        key = seed if self.seed is None else self.seed
        return Shares(**self.shares(), seed=key if self.shares() else 0)


class Part(NamedTuple, Generic[P]):
    """A source under a name that no other of its split has. A training source may be divided over the splits."""

    name: str
    source: P
    split: Split


def parts_of(settings: DividedSettings[S], open_source: Callable[[S], P]) -> list[Part[P]]:
    """All sources, those of training first; those of a split that have the same name are numbered."""
    sources: dict[Split, Sequence[S]] = {"train": settings.sources}
    sources |= {split: section.sources or () for split, section in settings.held_out().items()}
    parts = []
    for split, each in sources.items():
        found = [open_source(source) for source in each]
        parts += [Part(name, source, split) for name, source in zip(distinct_names(found), found, strict=True)]
    return parts
