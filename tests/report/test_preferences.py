"""The reports of runs on pairs: a reward model beside what needs no model, DPO beside what it started as."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batch import IGNORE, pad_rows
from gptlab.data.preference_counts import PreferenceCounts
from gptlab.evaluation.preference_scores import preference_scores
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.report.comparison_tables import sentences
from gptlab.report.facts import gather
from gptlab.report.pair_facts import preferences
from gptlab.report.pair_plots import draw_pair_plots
from gptlab.run.run import Run

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]

REWARD_RECIPE = """name = "hh-reward"
start = "runs/hh-sft"
[model]
kind = "gpt"
context = 256
[data]
kind = "preferences"
template = "hh"
[objective]
kind = "reward"
[training]
epochs = 1
[validation]
best_by = "accuracy"
"""
DPO_RECIPE = """name = "hh-dpo"
start = "runs/hh-sft"
[model]
kind = "gpt"
context = 256
[data]
kind = "preferences"
template = "hh"
[objective]
kind = "dpo"
beta = 0.1
loss = "sigmoid"
label_smoothing = 0.0
gamma = 0.5
[training]
epochs = 1
[validation]
best_by = "validation"
[samples]
prompts = ["Why is the sky blue?"]
temperature = 0.7
max_new_tokens = 80
reward = "runs/hh-reward"
"""
TRAIN = PreferenceCounts(
    name="helpful", split="train", pairs=4_000, tokens=1_480_000, chosen_tokens=248_400, rejected_tokens=220_000,
    longer=2_168, as_long=80, prompt_cut=73, answers_cut=2, equal=3,
    equal_at=["line 7", "line 41", "line 90"], cut_equal=1, cut_equal_at=["line 512"], duplicates=6, overlapping=2,
    bad={"no common prompt": 6}, bad_at={"no common prompt": [f"line {n}" for n in (17, 18, 19, 20, 21)]},
    percentiles=[170, 379, 683, 1307],
)  # fmt: skip
VALIDATION = PreferenceCounts(
    name="helpful test", split="validation", pairs=1_000, tokens=371_000, chosen_tokens=62_000, rejected_tokens=55_300,
    longer=552, as_long=0, prompt_cut=0, answers_cut=0, equal=0, equal_at=[], cut_equal=0, cut_equal_at=[],
    duplicates=0, overlapping=0, bad={}, bad_at={}, percentiles=[172, 370, 581, 581],
)  # fmt: skip
ORIGIN: dict[str, Any] = {
    "command": "gptlab train hh-dpo",
    "device": "CPU, Test 7",
    "parameters": 124_000_000,
    "shape": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257},
    "start": {"name": "runs/hh-sft", "folder": "/runs/hh-sft", "vocab_size": 50_257, "fingerprint": "71e9c54f"},
    "data": {
        "table": [asdict(TRAIN), asdict(VALIDATION)],
        "tokenizer": {"vocab_size": 50_257},
        "template": "hh",
        "fingerprints": {"train": "4000:abc"},
    },
}
REFERENCE = {"name": "runs/hh-sft", "folder": "/runs/hh-sft", "fingerprint": "0f1e2d3c"}
STATE = {"status": "finished", "step": 120, "total_steps": 120, "best": {"step": 90}, "elapsed_seconds": 900.0}


def scored(accuracy: float, n: int = 1_000, longer: float = 0.552, **more: float) -> dict[str, Any]:
    """evaluation.json's scores of `n` pairs, of which this share is right, and this share has the longer answer chosen,
    by evaluation/preference_scores.py."""
    sizes = np.abs(np.random.default_rng(0).normal(0, 1.2, n))
    right, wide = round(accuracy * n), round(longer * n)
    margins = np.where(np.arange(n) < right, sizes, -0.8 * sizes)
    lengths = np.where((np.arange(n) < wide)[:, None], [62, 48], [48, 62])
    rewards = np.stack([0.3 + margins / 2, 0.3 - margins / 2], axis=1).astype(np.float32)
    return {"loss": float(np.log1p(np.exp(-margins)).mean()), **preference_scores(rewards, lengths), **more}


DRIFT: dict[str, Any] = {"chosen_log_prob": -2.31, "rejected_log_prob": -2.58, "kl": 0.0412}
AT_START = {
    "loss": math.log(2), "accuracy": 0.5, "margin": 0.0, "chosen_reward": 0.0, "rejected_reward": 0.0,
    "chosen_log_prob": -2.2, "rejected_log_prob": -2.3, "kl": 0.0,
}  # fmt: skip
COMPARISON: dict[str, Any] = {
    "start": "runs/hh-sft", "prompts": 200,
    "reward": {
        "model": "runs/hh-reward", "before": -0.81, "before_low": -1.02, "before_high": -0.60, "after": -0.62,
        "after_low": -0.84, "after_high": -0.41, "difference": 0.19, "low": 0.05, "high": 0.33, "truncated": 0,
    },
    "win_rate": 0.582, "win_rate_low": 0.513, "win_rate_high": 0.649, "ties": 3,
    "answer_tokens": {"before": 61.0, "after": 92.1}, "ended": {"before": 0.78, "after": 0.70},
    "kl": 0.1234,
    "other_text": {"name": "python-docs", "tokens": 12_345, "perplexity": {"before": 45.2, "after": 46.9}},
    "answers": [
        {"prompt": f"Question number {n}?", "before": f"Old answer {n}.", "after": "I do not know. " * (4 * n),
         "reward_before": -0.5 - n, "reward_after": 0.25 + n}
        for n in range(8)
    ],
}  # fmt: skip
REWARD_EVALUATION: dict[str, Any] = {
    "context": 256,
    "objective": "reward",
    "best": {"step": 90, "validation": scored(0.612)},
    "last": {"step": 120, "validation": scored(0.604)},
}
DPO_EVALUATION: dict[str, Any] = {
    "context": 256,
    "objective": "dpo",
    "start": {"step": 0, "validation": AT_START},
    "best": {"step": 90, "validation": scored(0.612, **DRIFT), "test": scored(0.63, n=500, **DRIFT)},
    "last": {"step": 120, "validation": scored(0.604, **DRIFT)},
    "against_start": COMPARISON,
}


def metrics(objective: str, steps: int = 120) -> list[dict[str, Any]]:
    """Steps of 32 pairs, validated after every 30; of DPO also before the first."""
    random, dpo = np.random.default_rng(0), objective == "dpo"
    scale = 0.1 if dpo else 1.0

    def at(step: int, noise: float) -> dict[str, float]:
        gone = scale * step / 120
        values = {
            "loss": math.log(2) - 0.3 * gone, "accuracy": 0.5 + 0.12 * min(1, step / 60), "margin": gone,
            "chosen_reward": -0.4 * gone, "rejected_reward": -1.4 * gone,
        }  # fmt: skip
        if dpo:
            values |= {"chosen_log_prob": -2.2 - gone, "rejected_log_prob": -2.3 - 2.5 * gone, "kl": 0.4 * gone}
        return {key: value + random.normal(0, noise * scale) for key, value in values.items()}

    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "precision": "float32", "micro_batch_size": 8}]
    lines += [{"event": "validation", "step": 0, **AT_START, "tokens": 1000.0, "seconds": 0.0}] if dpo else []
    for step in range(1, steps + 1):
        lines.append({
            "event": "step", "step": step, "epoch": step / 125, **at(step, 0.05), "learning_rate": 1e-5,
            "gradient_norm": 1.0, "tokens": 32 * step, "tokens_per_second": 5.5, "seconds": 6.0 * step,
            "memory_bytes": 1_890_000_000,
        })  # fmt: skip
        if step % 30 == 0:
            lines.append({"event": "validation", "step": step, **at(step, 0), "tokens": 1000.0, "seconds": 6.0 * step})
    return lines


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]\\_~])", "", markdown.replace("\u00a0", " "))


@pytest.fixture
def rewarding(make_run: MakeRun) -> MakeRun:
    """rewarding(**files) → a finished run of a reward model; `files` as make_run takes them."""

    def make(**changes: str | None) -> Path:
        files: dict[str, str | None] = {
            "recipe": REWARD_RECIPE,
            "origin": json.dumps(ORIGIN),
            "state": json.dumps(STATE),
            "evaluation": json.dumps(REWARD_EVALUATION),
            "metrics": jsonl(metrics("reward")),
            "samples": None,
        }
        return make_run("hh-reward", **{**files, **changes})

    return make


@pytest.fixture
def aligned(make_run: MakeRun) -> MakeRun:
    """aligned(name, **files) → a finished run of DPO, compared with its start; `files` as make_run takes them."""

    def make(name: str = "hh-dpo", **changes: str | None) -> Path:
        sample = {"step": 90, "prompt": "Why is the sky blue?", "text": " Air scatters blue.", "stopped": "eos"}
        files: dict[str, str | None] = {
            "recipe": DPO_RECIPE,
            "origin": json.dumps({**ORIGIN, "reference": REFERENCE}),
            "state": json.dumps(STATE),
            "evaluation": json.dumps(DPO_EVALUATION),
            "metrics": jsonl(metrics("dpo")),
            "samples": jsonl([sample]),
        }
        return make_run(name, **{**files, **changes})

    return make


def compared(**changes: Any) -> str:
    """DPO's evaluation.json with another comparison with the start."""
    return json.dumps({**DPO_EVALUATION, "against_start": {**COMPARISON, **changes}})


def evaluated(best: dict[str, Any], **more: Any) -> str:
    """A reward model's evaluation.json with the best model's scores."""
    return json.dumps({"objective": "reward", "best": {"step": 90, "validation": best, **more}})


def told_in_both(page: Any, markdown: str, *told: str) -> None:
    for words in told:
        assert words in page.text.replace("\u00a0", " ")
        assert words in plain(markdown)


def test_a_reward_model_is_told_beside_what_needs_no_model(rewarding: MakeRun, written: Written) -> None:
    page, markdown = written(rewarding())
    best = REWARD_EVALUATION["best"]["validation"]
    told_in_both(
        page, markdown,
        "hh-reward is a GPT of 124 million parameters (12 layers, 12 heads, width 768, a context of 256 tokens), tuned "
        "from runs/hh-sft on pairs of answers. It is a reward model: of two answers to a prompt it is to give the "
        "preferred one the higher reward.",
        "It was trained for 120 steps, in which it learned from 3,840 pairs (0.96 epochs), in 15 min on CPU, Test 7.",
        "At its best, step 90, it prefers the chosen answer in 61.2 % (95 %: 58.1 to 64.2) of the pairs of the "
        "validation set, where guessing is right on 50 % and always preferring the longer answer on 55.2 %; the margin "
        f"is {best['margin']:.3f} (95 %: {best['margin_low']:.3f} to {best['margin_high']:.3f}).",
        "Bradley and Terry 1952", "61.2 % [58.1, 64.2]", "55.2 %", "1,000", f"{best['loss']:.4f}",
        "Best is the checkpoint with the highest accuracy on the validation set.",
        "a little better than on pairs that played no part in the choice",
        f"{100 * best['calibration']['error']:.1f} %", "50–55 %", "calibration error",
        "The best model, step 90, on the validation set. The model holds",
        "pairs per second", "pairs learned from", "8 pairs",
        "a pair: a prompt with its chosen and its rejected answer", "170 / 379 / 683 / 1,307",
        "73 prompts cut; 2 answers cut; 3 with equal answers (line 7, line 41, line 90); 1 made equal by cutting "
        "(line 512); 6 duplicates; 2 whose prompt is also in validation or test; 6 bad: no common prompt (line 17, "
        "line 18, line 19, line 20, line 21, …)",
        "lengths in helpful, train", "lengths in helpful test, validation",
        "the chosen answer is longer in 54.2 % of the pairs, as long in 2.0 %; 62.1 against 55.0 tokens in the mean",
        "the chosen answer is longer in 55.2 % of the pairs; 62.0 against 55.3 tokens in the mean",
    )  # fmt: skip
    assert "validation accuracy 61.2 % guessing 50 %, the longer answer 55.2 %; 95 %: 58.1 to 64.2" in (
        page.text.replace("\u00a0", " ")
    )
    assert "pairs learned from 3,840 0.96 epochs, 4.3 a second" in page.text
    assert "verdict" not in [attributes.get("class") for _, attributes in page.tags]
    assert not re.search(
        r"\bNone\b|\bnan\b|Undefined|perplexity|unigram|Samples|\btexts\b|tokens seen|DPO|\breference\b",
        page.text + markdown,
    )


def test_a_reward_models_figures(rewarding: MakeRun, written: Written) -> None:
    folder = rewarding()
    page, markdown = written(folder)
    drawn = {
        path.stem: re.findall(">([^<>]+)<", path.read_text(encoding="utf-8")) for path in folder.glob("plots/*.svg")
    }
    curves = ["loss", "accuracy", "answer_rewards", "margin", "learning_rate", "gradient_norm", "throughput"]
    assert re.findall(r"\]\(plots/(.*?)\.png\)", markdown) == ["calibration", *curves]
    assert set(drawn) == {"calibration", *curves}
    assert {"loss of a pair", "guessing", "training", "validation, whole", "best"} <= set(drawn["loss"])
    assert {"guessing", "60 %"} <= set(drawn["accuracy"])
    assert {"reward", "chosen, training", "rejected, validation"} <= set(drawn["answer_rewards"])
    bins = REWARD_EVALUATION["best"]["validation"]["calibration"]["bins"]
    assert {"right as often as it is sure", "pairs", *(f"{each['pairs']:,}" for each in bins)} <= set(
        drawn["calibration"]
    )
    assert "pairs per second" in drawn["throughput"]
    assert sum(tag == "svg" for tag, _ in page.tags) == len(drawn)


def test_dpo_is_told_from_its_start_to_its_best(aligned: MakeRun, written: Written) -> None:
    page, markdown = written(aligned())
    best = DPO_EVALUATION["best"]["validation"]
    told_in_both(
        page, markdown,
        "It learns which of two answers is preferred, by DPO (the sigmoid loss, β = 0.1), against the reference "
        "runs/hh-sft.",
        f"Its loss there fell from 0.693 at the start to {best['loss']:.3f}.",
        "On the test set, which played no part in that choice, it is right on 63.0 % (95 %: 58.7 to 67.1), always "
        "preferring the longer answer on 55.2 %.",
        "A reward model, runs/hh-reward, prefers its answer to that of its start on 58.2 % (95 %: 51.3 to 64.9) of 200 "
        "prompts.",
        "Direct preference optimization", "−ln σ(margin) (Rafailov et al. 2023)",
        "β · (ln π(answer) − ln reference(answer))", "0f1e2d3c",
        "start, step 0", "0.6931", "-2.310", "-2.580", "0.0412",
        "At the start, where the two are the same model, the loss is therefore 0.693 and the margin 0.",
        "That of the chosen answers usually falls too",
        "Start is the model before it was tuned. Best is the checkpoint with the lowest loss on the validation set.",
        "Against its start",
        "A reward model prefers its answer to its start's on 58.2 % of 200 prompts (95 %: 51.3 to 64.9; ties, which "
        "count half: 3): by this judge it is better than its start.",
        "DPO lengthens: its answers have 92.1 tokens in the mean, its start's 61.0 (+51 %), and a reward model may",
        "mean reward by runs/hh-reward [95 %]", "-0.810 [-1.020, -0.600]", "-0.620 [-0.840, -0.410]",
        "0.190 [0.050, 0.330]", "78 %", "70 %", "perplexity of other text: python-docs, 12,345 tokens", "45.20",
        "46.90", "+3.8 %", "0.1234", "Answers side by side", "Question number 7?", "Old answer 7.", "reward -7.50",
        "reward 7.25",
    )  # fmt: skip
    assert f"validation loss per pair 0.693 → {best['loss']:.3f} from the start to step 90" in page.text
    assert "win rate against its start 58.2 % 95 %: 51.3 to 64.9; of 200 prompts" in page.text.replace("\u00a0", " ")
    assert "tokens of an answer 61.0 → 92.1 +51 %" in page.text.replace("\u00a0", " ")
    assert "verdict" not in [attributes.get("class") for _, attributes in page.tags]
    assert "Calibration" not in page.text
    assert "Question Why is the sky blue? answer, step 90 Air scatters blue." in page.text
    assert page.text.count("Marked: a stretch") == 1
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|unigram|\btexts\b|tokens seen", page.text + markdown)


def test_dpos_figures(aligned: MakeRun, written: Written) -> None:
    folder = aligned()
    _, markdown = written(folder)
    drawn = {
        path.stem: re.findall(">([^<>]+)<", path.read_text(encoding="utf-8")) for path in folder.glob("plots/*.svg")
    }
    assert re.findall(r"\]\(plots/(.*?)\.png\)", markdown) == [
        "loss", "accuracy", "answer_rewards", "margin", "log_probs", "kl", "learning_rate", "gradient_norm",
        "throughput",
    ]  # fmt: skip
    assert "the reference" in drawn["loss"]
    assert "implicit reward" in drawn["answer_rewards"]
    assert {"ln π a token (nats)", "chosen, validation"} <= set(drawn["log_probs"])
    assert "KL estimate (nats a token)" in drawn["kl"]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            scored(0.52),
            "On the validation set it cannot be told apart from guessing: the interval of its accuracy, 48.9 to 55.1 "
            "%, includes 50 %.",
        ),
        (scored(0.52), "On the validation set it does not beat always preferring the longer answer (55.2 %)."),
        (
            scored(0.45, longer=0.5),
            "On the validation set it is worse than guessing: it prefers the rejected answer in 55.0 % of the pairs.",
        ),
        (
            scored(0.57),
            "On the validation set it may be no better than always preferring the longer answer (55.2 %), which lies "
            "in the interval of its accuracy, 53.9 to 60.0 %.",
        ),
        (
            scored(0.6, longer=0.3),
            "On the validation set it does not beat always preferring the shorter answer (70.0 %).",
        ),
    ],
)
def test_a_model_that_is_no_better_than_a_rule_is_said_to_be(
    rewarding: MakeRun, written: Written, found: dict[str, Any], sentence: str
) -> None:
    page, markdown = written(rewarding(evaluation=evaluated(found)))
    assert sentence in page.text.replace("\u00a0", " ")
    assert f"**{sentence}**" in markdown.replace("\u00a0", " ")


def test_the_test_set_has_the_last_word(rewarding: MakeRun, written: Written) -> None:
    page, _ = written(rewarding(evaluation=evaluated(scored(0.62), test=scored(0.51, n=400))))
    assert "On the test set it cannot be told apart from guessing" in page.text
    assert "On the validation set it" not in page.text
    assert "The best model, step 90, on the test set." in page.text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.44, 0.58, "cannot be told apart from its start, for the interval includes 50 %"),
        (0.40, 0.49, "is worse than its start"),
    ],
)
def test_answers_that_are_no_better_than_the_starts_are_said_to_be(
    aligned: MakeRun, written: Written, low: float, high: float, said: str
) -> None:
    rate = (low + high) / 2
    page, markdown = written(aligned(evaluation=compared(win_rate=rate, win_rate_low=low, win_rate_high=high)))
    verdict = f"By its judge it {said} (win rate {100 * rate:.1f} %, 95 %: {100 * low:.1f} to {100 * high:.1f})."
    assert verdict in page.text.replace("\u00a0", " ")
    assert f"**{verdict}**" in markdown.replace("\u00a0", " ")
    assert f"by this judge it {said}." in page.text.replace("\u00a0", " ")


def test_conversations_that_the_judge_could_not_read_are_counted(aligned: MakeRun, written: Written) -> None:
    page, _ = written(aligned(evaluation=compared(reward={**COMPARISON["reward"], "truncated": 7})))
    assert "7 of the 400 conversations were too long for the reward model" in page.text


def test_a_note_says_what_an_interval_of_one_point_is(aligned: MakeRun, written: Written) -> None:
    """Of 200 victories every resample is one; the next 200 prompts may well have a defeat."""
    page, _ = written(aligned(evaluation=compared(win_rate=1.0, win_rate_low=1.0, win_rate_high=1.0)))
    assert "its interval is one point" in page.text
    assert "its interval is one point" not in written(aligned(name="other"))[0].text


def test_answers_that_stay_as_long_are_not_called_longer(aligned: MakeRun, written: Written) -> None:
    page, _ = written(aligned(evaluation=compared(answer_tokens={"before": 60.0, "after": 65.9})))
    assert "DPO lengthens" not in page.text
    assert "+9.8 %" in page.text.replace("\u00a0", " ")


def test_a_comparison_without_a_judge_or_other_text_says_what_it_has(aligned: MakeRun, written: Written) -> None:
    bare = {key: value for key, value in COMPARISON.items() if key not in ("reward", "win_rate", "ties", "other_text")}
    bare["answers"] = [{"prompt": "Why?", "before": "", "after": "So."}]
    bare["answer_tokens"] = {"before": 0.0, "after": 3.0}
    page, markdown = written(aligned(evaluation=json.dumps({**DPO_EVALUATION, "against_start": bare})))
    assert "Question Why? start nothing after DPO So." in page.text
    assert not re.search("win rate|higher reward, a tie being half;|too long for", page.text)
    assert "Question: `Why?`\n\nStart:\n\n```text\n\n```\n\nAfter DPO:\n\n```text\nSo.\n```" in markdown
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Undefined|perplexity", page.text + markdown)


@pytest.mark.parametrize(
    ("settings", "level", "told"),
    [
        (DPOSettings(beta=0.2, label_smoothing=0.1), math.log(2), ("ε, label smoothing 0.1", "ln σ(−margin)")),
        (DPOSettings(beta=0.05, loss="ipo"), 100.0, ("IPO's loss, β = 0.05", "the loss is therefore 100.000")),
        (DPOSettings(beta=2.0, loss="simpo", gamma=1.0), math.log(1 + math.e), ("margin wanted 1", "reference none")),
    ],
)
def test_each_loss_is_held_against_its_own_level(
    aligned: MakeRun, written: Written, settings: DPOSettings, level: float, told: tuple[str, ...]
) -> None:
    """The level is the loss of a policy which prefers nothing: all of its tokens are equally likely."""
    policy = GPT(GPTShape(vocab_size=8, context=4, n_layer=1, n_head=1, n_embd=4))
    for parameter in policy.parameters():
        torch.nn.init.zeros_(parameter)
    pair = pad_rows([([1, 2, 3], [IGNORE, 3, 4]), ([1, 2], [IGNORE, 5])], [0], pairs=True)
    pair = replace(pair, values={"reference": -math.log(8) * torch.tensor([[2.0, 1.0]])})
    assert DPOObjective(settings)(policy, pair)["loss"].item() == pytest.approx(level)

    recipe = re.sub(r"beta = .*gamma = 0.5\n", "", DPO_RECIPE, flags=re.DOTALL)
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.model_dump().items() if key != "kind")
    recipe = recipe.replace('kind = "dpo"\n', f'kind = "dpo"\n{lines}')
    folder = aligned(recipe=recipe)
    assert gather(Run.open(folder))["preferences"]["level"] == pytest.approx(level)
    page, _ = written(folder)
    assert all(words in page.text for words in told)
    assert ("both answers alike" if settings.loss == "simpo" else "the reference") in (
        folder / "plots" / "loss.svg"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_run_that_is_still_going_has_its_baselines_too(
    rewarding: MakeRun, aligned: MakeRun, written: Written, kind: str
) -> None:
    """The metrics do not have what the longer answer gives; what the sources gave does. No interval is known."""
    state = json.dumps({"status": "running", "step": 60, "total_steps": 120, "best": {"step": 60}})
    make = rewarding if kind == "reward" else aligned
    page, markdown = written(make(evaluation=None, state=state, metrics=jsonl(metrics(kind, 60))))
    told_in_both(
        page, markdown,
        "At its best, step 60, it preferred the chosen answer in 62.0 % of the pairs of the validation set, where "
        "guessing is right on 50 % and always preferring the longer answer on 55.2 %; the margin was ",
    )  # fmt: skip
    assert ("Its loss there fell from 0.693 at the start to" in page.text) == (kind == "dpo")
    assert "Calibration" not in page.text
    assert "Against its start" not in page.text
    assert "brackets" not in page.text
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|unigram", page.text + markdown)


def test_a_run_without_its_starts_scores_has_a_report(aligned: MakeRun, written: Written) -> None:
    evaluation = {key: value for key, value in DPO_EVALUATION.items() if key not in ("start", "against_start")}
    page, _ = written(aligned(evaluation=json.dumps(evaluation)))
    assert "at the start to" not in page.text
    assert "Start is the model" not in page.text
    assert "validation loss per pair" not in page.text


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_run_before_its_first_step_has_a_report(
    rewarding: MakeRun, aligned: MakeRun, written: Written, kind: str
) -> None:
    nothing = dict.fromkeys(("origin", "state", "evaluation", "metrics", "samples"))
    page, _ = written((rewarding if kind == "reward" else aligned)(**nothing))
    assert "tuned from runs/hh-sft on pairs of answers." in page.text
    assert not re.search(r"\bNone\b|Undefined|Scores|Curves", page.text)


def test_a_sample_of_the_validation_set_is_called_one(aligned: MakeRun, written: Written) -> None:
    lines = [
        {**line, "event": line["event"].replace("validation", "validation_sampled")} if line["step"] else line
        for line in metrics("dpo")
    ]
    folder = aligned(evaluation=None, metrics=jsonl(lines))
    page, _ = written(folder)
    assert "of the pairs of a sample of the validation set, where guessing" in page.text
    drawn = {
        name: (folder / "plots" / f"{name}.svg").read_text(encoding="utf-8") for name in ("loss", "answer_rewards")
    }
    assert ">validation, a sample<" in drawn["loss"]
    assert ">chosen, validation<" in drawn["answer_rewards"]


def test_answers_judged_in_training_have_their_section(aligned: MakeRun, written: Written) -> None:
    said = {"prompt": "What causes the tides?", "answer": " The Moon.", "score": 1.0}
    judged = [
        {"event": "reward", "step": step, "mean": step / 100, "low": step / 100 - 1, "high": step / 100 + 1,
         "best": said, "worst": said, "distinct_1": 0.3, "distinct_2": 0.7, "repetition": 0.04, "answer_tokens": 48.25,
         "answer_tokens_median": 44.5, "ended": 0.8}
        for step in (0, 90)
    ]  # fmt: skip
    page, markdown = written(aligned(metrics=jsonl([*metrics("dpo"), *judged])))
    assert "mean reward of its answers 0.000 → 0.900 from the start to step 90" in page.text
    assert markdown.count("(plots/reward.png)") == 1


def test_of_few_points_nothing_is_drawn(tmp_path: Path) -> None:
    facts = {
        "preferences": preferences(
            {"data": {"kind": "preferences"}, "objective": {"kind": "dpo", "beta": 0.1}}, {}, {}
        ),
        "best_step": None,
    }
    assert draw_pair_plots([], tmp_path, facts) == {}
    assert draw_pair_plots(metrics("dpo", 1), tmp_path, facts) == {}


def test_other_runs_have_no_preferences() -> None:
    assert preferences({"data": {"kind": "labels"}}, {}, {}) is None
    assert preferences({}, {}, {"against_start": COMPARISON}) is None
    assert sentences({"preferences": None}) == []


def test_what_models_and_data_say_cannot_act_in_the_page(aligned: MakeRun, written: Written) -> None:
    evil = "</td></p><script>alert(1)</script> {{ 111 * 111 }} | <b> ``` $x$"
    answers = [
        {"prompt": evil, "before": f"{evil}\n# No heading", "after": evil, "reward_before": 0, "reward_after": 1}
    ]
    changed = compared(
        answers=answers,
        other_text={**COMPARISON["other_text"], "name": evil},
        reward={**COMPARISON["reward"], "model": evil},
    )
    row = {**asdict(TRAIN), "name": evil, "bad": {evil: 1}, "bad_at": {evil: [evil]}, "equal_at": [evil]}
    origin = {**ORIGIN, "reference": {**REFERENCE, "name": evil}, "data": {"table": [row], "template": evil}}
    page, markdown = written(aligned(evaluation=changed, origin=json.dumps(origin)))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "12321" not in page.text + markdown
    outside, fence = [], ""
    for line in markdown.splitlines():
        ticks = re.match("`{3,}", line)
        if ticks and not fence:
            fence = ticks[0]
        elif line == fence:
            fence = ""
        elif not fence:
            outside.append(re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line))
    assert not fence
    assert "# No heading" not in outside
    assert not re.search(r"(?<!\\)<", "\n".join(outside))
