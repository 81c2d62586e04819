"""What a reward model says of a model's answers while it is trained: a figure at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import ModelError, RecipeError
from gptlab.evaluation.answers import Answer, answer
from gptlab.evaluation.dialogue_scores import dialogue_scores
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import RewardModel, open_reward, reward_scores
from gptlab.evaluation.samples import SampleSettings
from gptlab.model.folder import Model
from gptlab.text.dialogue import Message
from gptlab.training.prepare import Prepared


def score_answers(reward: RewardModel, answers: Sequence[Answer]) -> dict[str, Any]:
    """`reward_scores` of answers to single questions."""
    found = reward.score([[Message("user", each.prompt), each.message] for each in answers])
    return reward_scores(found, [each.prompt for each in answers], [each.text for each in answers])


@dataclass(frozen=True)
class Judge:
    """Answers to the forty prompts that ship, in one batch, drawn as `[samples]` says, the same draws each time."""

    reward: RewardModel
    samples: SampleSettings
    data: Prepared
    seed: int

    @classmethod
    def of(cls, samples: SampleSettings, data: Prepared, seed: int, device: str, runs: Path) -> Judge | None:
        """The judge that `samples.reward` asks for. RecipeError where there are no dialogues to be judged, ModelError
        where the reward model is not there."""
        if samples.reward is None:
            return None
        if data.template is None:
            raise RecipeError("samples.reward: judges answers, and this run learns plain text: it wants dialogues")
        try:
            reward = open_reward(samples.reward, device, runs)
        except ModelError as error:
            raise ModelError(
                f"the reward model (samples.reward) is not there: {error}. Train it first, name another, or leave it "
                "out"
            ) from error
        return cls(reward, samples, data, seed)

    def scores(self, model: Model) -> dict[str, Any]:
        """`reward_scores` and `dialogue_scores` of the answers, and how many they are ("answers")."""
        answers = self.answers(model)
        scores = score_answers(self.reward, answers)
        return {**scores, **dialogue_scores(answers), "answers": len(answers), "truncated": self.reward.truncated}

    def answers(self, model: Model) -> list[Answer]:
        """An answer to each prompt."""
        return answer(
            model, self.data.tokenizer, self.data.template, [[Message("user", p.text)] for p in topic_prompts()],
            self.samples.sampling, max_new_tokens=self.samples.max_new_tokens, seed=self.seed,
        )  # fmt: skip
