"""The questions that a dialogue model is asked to see how it answers (topics.toml)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class TopicPrompt:
    """A question and what it is about."""

    topic: str
    text: str


def topic_prompts() -> list[TopicPrompt]:
    """Forty questions, ten on each of four topics, always in the same order."""
    topics = tomllib.loads((resources.files(__name__) / "topics.toml").read_text(encoding="utf-8"))
    return [TopicPrompt(topic, text) for topic, texts in topics.items() for text in texts]
