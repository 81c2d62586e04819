"""What a language model answers, scored: alone, or beside the answers of the model that it was tuned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlab.evaluation.answers import Answer, answer
from gptlab.evaluation.comparison import compare_models
from gptlab.evaluation.dialogue_scores import dialogue_scores
from gptlab.evaluation.other_text import OTHER_TEXT, other_text
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import open_reward
from gptlab.evaluation.samples import SampleSettings
from gptlab.run.open import OpenModel
from gptlab.text.dialogue import Message
from gptlab.training.judge import score_answers
from gptlab.training.scored_data import Scoring


def answers_alone(
    scoring: Scoring, prompts: Sequence[Sequence[Message]], samples: SampleSettings, *, reward: str | None, seed: int
) -> tuple[list[Answer], dict[str, Any]]:
    """Answers to the prompts, or where a `reward` model is named to the forty that ship; and their `dialogue_scores`,
    with "reward", "reward_low" and "reward_high"."""
    opened = scoring.opened
    if reward:
        prompts = [[Message("user", prompt.text)] for prompt in topic_prompts()]
    with scoring.progress.busy("writing answers"):
        written = answer(
            opened.model, opened.require_tokenizer(), opened.template, prompts, samples.sampling,
            max_new_tokens=samples.max_new_tokens, seed=seed,
        )  # fmt: skip
    scores: dict[str, Any] = dialogue_scores(written)
    if reward:
        with scoring.progress.busy("judging answers"):
            found = score_answers(open_reward(reward, scoring.device, scoring.runs), written)
        scores |= {"reward": found["mean"], "reward_low": found["low"], "reward_high": found["high"]}
    return written, scores


def answers_compared(
    scoring: Scoring, start: OpenModel, prompts: Sequence[Sequence[Message]], samples: SampleSettings, *,
    reward: str | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """`compare_models` by the prompts, with a reward model's judgement where one is named, and on another text."""
    opened, device = scoring.opened, scoring.device
    with scoring.progress.busy(f"comparing with {start.name}") as tell:
        judge = open_reward(reward, device, scoring.runs) if reward else None
        other = other_text(opened.require_tokenizer(), scoring.context)
        return compare_models(
            opened, start, prompts, sampling=samples.sampling, max_new_tokens=samples.max_new_tokens, seed=seed,
            device=device, precision=scoring.precision, reward=judge, reward_name=reward or "", other=other,
            other_name=OTHER_TEXT, tell=tell,
        )  # fmt: skip
