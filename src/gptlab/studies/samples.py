"""What the arms write, side by side."""

from __future__ import annotations

from typing import Any

from gptlab.studies.results import Results, RunResult
from gptlab.studies.statistics import ranking

SHOWN_ARMS, SHOWN_PROMPTS = 12, 6


def side_by_side(results: Results) -> dict[str, Any] | None:
    """The last texts of the runs with one seed, that with which most arms have some; None where there are none.

    seed, prompts: [{prompt, texts: [{arm, step, text}]}], the arms in ranking order
    """
    arms = [score.arm for score in ranking(results)][:SHOWN_ARMS]
    written = {
        result.item: last for arm in arms for result in results.arms[arm] if result.begun and (last := _last(result))
    }
    if not written:
        return None
    seeds = [item.seed for item in written]
    seed = max(dict.fromkeys(seeds), key=seeds.count)
    by_arm = {item.arm: texts for item, texts in written.items() if item.seed == seed}
    prompts = list(dict.fromkeys(prompt for texts in by_arm.values() for prompt in texts))[:SHOWN_PROMPTS]
    beside = {
        prompt: [{"arm": arm, **texts[prompt]} for arm, texts in by_arm.items() if prompt in texts]
        for prompt in prompts
    }
    return {"seed": seed, "prompts": [{"prompt": prompt, "texts": texts} for prompt, texts in beside.items()]}


def _last(result: RunResult) -> dict[str, dict[str, Any]]:
    """Prompt → the text that was written last."""
    return {
        sample["prompt"]: {"step": sample["step"], "text": sample["text"]} for sample in result.run.samples()
    }  # fmt: skip
