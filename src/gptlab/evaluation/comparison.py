"""A model beside the one that it was tuned from: what both answer to the same prompts, and how far it has drifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from gptlab.data.batch import TextRows
from gptlab.device import Precision
from gptlab.errors import UserError
from gptlab.evaluation.answers import Answer, answer
from gptlab.evaluation.choice import evenly
from gptlab.evaluation.drift import answers_kl, check_same_tokens, text_perplexity
from gptlab.evaluation.reward_scores import RewardModel, mean_interval
from gptlab.generation.sampling import Sampling
from gptlab.run.open import OpenModel
from gptlab.text.dialogue import Message

SHOWN_ANSWERS = 8
"""So many prompts are kept with their answers."""


def compare_models(
    model: OpenModel,
    start: OpenModel,
    prompts: Sequence[Sequence[Message]],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    device: torch.device,
    precision: Precision,
    reward: RewardModel | None = None,
    reward_name: str = "",
    other: TextRows | None = None,
    other_name: str = "",
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What became of the `start` ("before") in the `model` ("after"), both on `device` and in eval mode.

    start, prompts: the start's name, and how many prompts, which end with the user's turn, both have answered, each as
        it is talked to, with the same draws
    reward: "model", and the mean rewards of the answers, "before" and "after", each with `_low` and `_high`, and
        "difference" with "low" and "high": 95 % bootstrap intervals over the prompts, the difference paired;
        "truncated": conversations that were too long for the reward model, and cut
    win_rate: the share of prompts whose new answer has the higher reward, a tie being half, with its interval; "ties"
    answer_tokens, ended: of both, the mean length of the answers, since rewards may only like long ones, and the share
        that ended by themselves
    kl: KL(model ‖ start), nats a token of the model's own answers (`answers_kl`)
    other_text: "name", "tokens", and the "perplexity" of both; its rows are no longer than either context
    answers: at most 8, evenly chosen, each {"prompt", "before", "after"}, with "reward_before" and "reward_after"

    What needs a `reward` model, or the `other` text, is there where that is. `tell` takes a word on how far it is.
    UserError where there is no prompt, or the two do not read the same tokens.
    """
    tell = tell or (lambda text: None)
    if not prompts:
        raise UserError("there are no prompts to compare two models by: give at least one")
    check_same_tokens(model, start)

    both = {"before": start, "after": model}
    written: dict[str, list[Answer]] = {}
    for when, each in both.items():
        tell(f"{len(prompts):,} answers by {each.name}")
        written[when] = answer(
            each.model, each.require_tokenizer(), each.template, prompts, sampling, max_new_tokens=max_new_tokens,
            seed=seed,
        )  # fmt: skip
    found: dict[str, Any] = {"start": start.name, "prompts": len(prompts)}
    rewards = None
    if reward is not None:
        tell(f"rewards by {reward_name}")
        rewards = _rewards(reward, prompts, **written)
        found |= _preference(rewards, reward_name, reward.truncated)
    found["answer_tokens"] = {when: fmean(each.tokens for each in answers) for when, answers in written.items()}
    found["ended"] = {when: fmean(each.stopped == "eos" for each in answers) for when, answers in written.items()}
    found["kl"] = answers_kl(
        model, start, prompts, written["after"], max_new_tokens=max_new_tokens, device=device,
        on_batch=lambda done, total: tell(f"divergence: {done:,}/{total:,} answers"),
    )  # fmt: skip
    if other is not None:
        perplexity = {
            when: text_perplexity(
                each.model, other, device=device, precision=precision,
                on_batch=lambda done, total: tell(f"{other_name}: {done:,}/{total:,} rows"),
            )
            for when, each in both.items()
        }  # fmt: skip
        found["other_text"] = {"name": other_name, "tokens": other.scored, "perplexity": perplexity}
    return {**found, "answers": _shown(**written, rewards=rewards)}


def _rewards(
    reward: RewardModel, prompts: Sequence[Sequence[Message]], before: Sequence[Answer], after: Sequence[Answer]
) -> np.ndarray:
    """(2, prompts): the rewards of the answers before and after."""
    asked = [*prompts, *prompts]
    scores = reward.score([[*turns, each.message] for turns, each in zip(asked, [*before, *after], strict=True)])
    rewards = np.array(scores).reshape(2, len(prompts))
    # A reward may depend on its neighbours in a batch, by a rounding; that is no victory.
    same = [old.message == new.message for old, new in zip(before, after, strict=True)]
    rewards[1, same] = rewards[0, same]
    return rewards


def _preference(rewards: np.ndarray, name: str, truncated: int) -> dict[str, Any]:
    before, after = rewards
    low, high = mean_interval(after - before)
    return {
        "reward": {
            "model": name,
            **_with_interval("before", before),
            **_with_interval("after", after),
            "difference": float((after - before).mean()),
            "low": low,
            "high": high,
            "truncated": truncated,
        },
        **_with_interval("win_rate", (1 + np.sign(after - before)) / 2),
        "ties": int((after == before).sum()),
    }


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    low, high = mean_interval(values)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _shown(before: Sequence[Answer], after: Sequence[Answer], rewards: np.ndarray | None) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for n in evenly(range(len(before)), SHOWN_ANSWERS):
        old, new = before[n], after[n]
        shown.append({"prompt": old.prompt, "before": old.message.content, "after": new.message.content})
        if rewards is not None:
            shown[-1] |= {"reward_before": float(rewards[0, n]), "reward_after": float(rewards[1, n])}
    return shown
