"""The scores of a finished run on pairs, and what DPO made of the model that it started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.batch import ValuedRows
from gptlab.data.splitting import Split
from gptlab.errors import GptlabError
from gptlab.evaluation.comparison import compare_models
from gptlab.evaluation.other_text import OTHER_TEXT, other_text
from gptlab.evaluation.preference_scores import answer_log_probs, pair_rewards, preference_scores
from gptlab.evaluation.samples import SampleSettings
from gptlab.evaluation.scores import Scorer
from gptlab.model.folder import Model
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.run.open import OpenModel
from gptlab.training.fit import memory_errors
from gptlab.training.judge import Judge
from gptlab.training.loop import Engine
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress

JUDGED_PROMPTS = 128
"""So many held-out prompts are answered by the policy and by what it started from."""

Score = Callable[[Path, Split], dict[str, Any]]
"""The scores of a checkpoint on a split."""


def pair_scores(
    engine: Engine, data: Prepared, validated: Mapping[int, Mapping[str, Any]], load: Callable[[Path], Model],
    progress: Progress,
) -> Score:  # fmt: skip
    """How a checkpoint is scored: the objective's means (of validation, at the steps at which the run has it, those
    that are `validated`), and `preference_scores` of the rewards that it gives or, under DPO, implies."""
    scorer = Scorer(engine.objective, engine.device, engine.precision, engine.micro_batch_size)

    def score(checkpoint: Path, split: Split) -> dict[str, Any]:
        with progress.busy(f"scoring {split} by step {checkpoint.name}") as tell:

            def on_batch(done: int, total: int) -> None:
                tell(f"{done:,}/{total:,} pairs")

            model = load(checkpoint)
            means = validated.get(int(checkpoint.name)) if split == "validation" else None
            if means is None:
                means = scorer.rows(model, data.splits[split], on_batch=on_batch)
            rewards = _rewards(engine, model, data, split, on_batch)
        return {**means, **preference_scores(rewards, data.pairs()[split].lengths())}

    return score


def _rewards(
    engine: Engine, model: Model, data: Prepared, split: Split, on_batch: Callable[[int, int], None]
) -> np.ndarray:
    """Of the chosen and the rejected answers, (pairs, 2)."""
    rows, aligned = data.splits[split], isinstance(engine.objective, DPOObjective)
    found = (answer_log_probs if aligned else pair_rewards)(
        model, rows, device=engine.device, precision=engine.precision, micro_batch_size=engine.micro_batch_size,
        on_batch=on_batch,
    )  # fmt: skip
    if not isinstance(engine.objective, DPOObjective):
        return found
    reference = rows.values["reference"].numpy() if isinstance(rows, ValuedRows) else None
    return implicit_rewards(engine.objective.settings, found, reference, data.pairs()[split].lengths())


def implicit_rewards(
    settings: DPOSettings, log_probs: np.ndarray, reference: np.ndarray | None, answer_tokens: np.ndarray
) -> np.ndarray:
    """The rewards that a policy stands for, as `DPOObjective` has them; everything is (pairs, 2). `reference`: its
    log-probabilities, but for simpo."""
    rewards: np.ndarray = settings.beta * (log_probs / answer_tokens if reference is None else log_probs - reference)
    return rewards


@dataclass(frozen=True)
class Comparing:
    """What a policy is compared with, and how.

    start:   its name; make_start: makes it
    samples: how both answer
    judge:   has the reward model that both are scored by
    """

    start: str
    make_start: Callable[[], Model]
    samples: SampleSettings
    judge: Judge | None
    seed: int

    def with_start(
        self, engine: Engine, data: Prepared, policy: Model, name: str, progress: Progress
    ) -> dict[str, Any]:
        """`compare_models` of the policy called `name` and its start, on held-out prompts; {} where that cannot be (the
        start is not there any more, the memory is not enough for both), which is said: what was trained is finished."""
        try:
            with memory_errors():
                return self._compared(engine, data, policy, name, progress)
        except GptlabError as error:
            engine.say(
                f"not compared with its start: {error}. gptlab evaluate {name} --against {self.start} does it later"
            )
            return {}

    def _compared(self, engine: Engine, data: Prepared, policy: Model, name: str, progress: Progress) -> dict[str, Any]:
        with progress.busy(f"comparing with {self.start}") as tell:
            begun = self.make_start().to(engine.device)
            after, before = (
                OpenModel(model.eval(), data.tokenizer, data.template, Path(called), called)
                for model, called in ((policy, name), (begun, self.start))
            )
            prompts = [messages for messages, _ in data.pairs()["validation"].prompts(JUDGED_PROMPTS)]
            return compare_models(
                after, before, prompts, sampling=self.samples.sampling, max_new_tokens=self.samples.max_new_tokens,
                seed=self.seed, reward=self.judge.reward if self.judge else None,
                reward_name=self.samples.reward or "", other=other_text(data.tokenizer, data.rows.context),
                other_name=OTHER_TEXT, device=engine.device, precision=engine.precision, tell=tell,
            )  # fmt: skip
