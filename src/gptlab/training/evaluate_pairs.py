"""A model's scores on pairs of answers: a reward model's rewards, or how likely a language model finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gptlab.data.batch import Rows
from gptlab.data.preference_rows import PreferenceRows
from gptlab.errors import GptlabError
from gptlab.evaluation.preference_scores import answer_log_probs, pair_rewards, pairs_at_once, preference_scores
from gptlab.objectives.dpo import DPOSettings
from gptlab.run.open import OpenModel
from gptlab.run.run import Run
from gptlab.training.other_model import find_other_model
from gptlab.training.pair_ending import implicit_rewards
from gptlab.training.recipe import load_recipe
from gptlab.training.reference import load_reference
from gptlab.training.scored_data import Scoring, own_recipe
from gptlab.training.start import Vocabulary


def reward_model_scores(scoring: Scoring, rows: PreferenceRows, words: str) -> dict[str, Any]:
    """`preference_scores` of a reward model's rewards."""
    rewards = _read(pair_rewards, scoring, scoring.opened, rows.with_targets("last"), words)
    return preference_scores(rewards, rows.lengths())


def likelihood_scores(scoring: Scoring, rows: PreferenceRows, words: str) -> dict[str, Any]:
    """What a language model thinks of pairs.

    pairs, chosen_tokens, rejected_tokens: how many, and the mean lengths of the answers
    likelier, likelier_per_token: the share whose chosen answer has the higher log-probability, in all and a token,
        each with `_low` and `_high`, its 95 % interval
    chosen_log_prob, rejected_log_prob: nats a token
    reference: the name of the model that it is compared with, else of the reference of the DPO run that it lies in;
        then, and for a model of simpo, also "beta" (the run's, else DPO's usual one) and `preference_scores` of the
        rewards that DPO implies (`implicit_rewards`)
    """
    rows = rows.with_targets("answers")
    log_probs = _read(answer_log_probs, scoring, scoring.opened, rows, words)
    return {**_likelihoods(log_probs, rows.lengths()), **_implied_scores(scoring, rows, words, log_probs)}


def _likelihoods(log_probs: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    chosen, rejected = (log_probs.sum(axis=0, dtype=np.float64) / lengths.sum(axis=0)).tolist()
    chosen_tokens, rejected_tokens = lengths.mean(axis=0).tolist()
    return {
        "pairs": len(lengths),
        **_likelier("likelier", log_probs, lengths),
        **_likelier("likelier_per_token", log_probs / lengths, lengths),
        "chosen_log_prob": chosen,
        "rejected_log_prob": rejected,
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
    }


def _likelier(name: str, log_probs: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    found = preference_scores(log_probs, lengths)
    return {f"{name}{end}": found[f"accuracy{end}"] for end in ("", "_low", "_high")}


def _implied_scores(scoring: Scoring, rows: PreferenceRows, words: str, log_probs: np.ndarray) -> dict[str, Any]:
    """Of the rewards that DPO implies; {} where there is no reference and one is needed."""
    settings, reference = _dpo_settings(scoring.opened), scoring.start
    if reference is None and settings and settings.needs_reference:
        reference = _own_reference(scoring)
    settings = settings or DPOSettings()
    if reference is None and settings.needs_reference:
        return {}
    named, before = {}, None
    if reference is not None and settings.needs_reference:
        named = {"reference": reference.name}
        before = _read(answer_log_probs, scoring, reference, rows, f"{words} by {reference.name}")
    rewards = implicit_rewards(settings, log_probs, before, rows.lengths())
    return {**named, "beta": settings.beta, **preference_scores(rewards, rows.lengths())}


def _own_reference(scoring: Scoring) -> OpenModel | None:
    """The reference of the DPO run that a model lies in; None where it is not there any more, which is said."""
    opened, file = scoring.opened, own_recipe(scoring.opened)
    assert file is not None
    recipe, run = load_recipe(file), Run.open(file.parent)
    vocabulary = Vocabulary(opened.require_tokenizer().vocab_size, run.origin["start"].get("first_added"))
    try:
        other = find_other_model(recipe, run, scoring.runs)
        assert other is not None
        model = load_reference(recipe, other, vocabulary, scoring.runs)
    except GptlabError:
        scoring.progress.say(
            f"{recipe.start}, from which {opened.name} was tuned, is not there any more with the weights that it had: "
            "without the rewards that DPO implies. --against MODEL names another reference"
        )
        return None
    return replace(opened, model=model.to(scoring.device), folder=other.folder, name=other.name)


def _dpo_settings(opened: OpenModel) -> DPOSettings | None:
    """Those of the DPO run that a model lies in."""
    file = own_recipe(opened)
    objective = load_recipe(file).objective if file else None
    return objective if isinstance(objective, DPOSettings) else None


def _read(read: Callable[..., np.ndarray], scoring: Scoring, by: OpenModel, rows: Rows, words: str) -> np.ndarray:
    """What `answer_log_probs` or `pair_rewards` find of every pair, (pairs, 2)."""
    with scoring.progress.busy(f"scoring {words}") as tell:
        return read(
            by.model, rows, device=scoring.device, precision=scoring.precision,
            micro_batch_size=pairs_at_once(rows),
            on_batch=lambda done, total: tell(f"{done:,}/{total:,} pairs"),
        )  # fmt: skip
