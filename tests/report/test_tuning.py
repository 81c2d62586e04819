"""The report of a run that tunes a model on dialogues: before and after, adapters, rewards, answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.report.facts import gather
from gptlab.run.run import Run

MakeRun = Callable[..., Path]
Written = Callable[[Path], tuple[Any, str]]

RECIPE = """name = "tuned"
start = "gpt2-medium"
[model]
kind = "gpt"
context = 1024
[data]
kind = "dialogues"
template = "hh"
learn = "answers"
pack = false
history = 0
[validation]
best_by = "validation_sampled"
[samples]
prompts = ["Why is the sky blue?"]
temperature = 0.7
max_new_tokens = 80
"""
LORA = """[lora]
rank = 4
alpha = 16.0
dropout = 0.05
targets = ["attn.c_attn", "mlp.c_fc"]
also_train = ["layer_norms"]
rslora = false
"""
TRAIN = {
    "name": "hh", "split": "train", "dialogues": 298, "rows": 298, "tokens": 44_480, "learned": 18_112, "cut": 73,
    "too_long": 0, "unanswered": 105, "duplicates": 2, "overlapping": 0,
    "bad": {"no answer": 7, "an empty message": 1},
    "bad_at": {"no answer": ["line 17", "line 90"], "an empty message": ["line 5"]},
    "percentiles": [170, 379, 683, 1307],
}  # fmt: skip
VALIDATION = {
    **TRAIN, "split": "validation", "cut": 0, "unanswered": 0, "duplicates": 0, "bad": {}, "bad_at": {},
    "percentiles": [202, 364, 581, 581],
}  # fmt: skip
COUNTS = {"adapters": 1_572_864, "layer_norms": 100_352, "biases": 0, "trainable": 1_673_216, "all": 356_496_384}
ORIGIN: dict[str, Any] = {
    "command": "gptlab train hh-lora",
    "device": "CPU, Test 7",
    "parameters": 356_496_384,
    "start": {"name": "gpt2-medium", "folder": "/cache/gpt2-medium", "vocab_size": 50_257, "fingerprint": "71e9c54f"},
    "data": {"table": [TRAIN, VALIDATION], "tokenizer": {"vocab_size": 50_259}, "template": "chatml"},
}


def scores(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(loss), "tokens": 3891, "unigram_perplexity": 812.4}


EVALUATION = {
    "context": 1024,
    "stride": 1024,
    "start": {"step": 0, "validation": scores(2.9)},
    "best": {"step": 20, "validation": scores(2.5), "test": scores(2.6)},
    "last": {"step": 30, "validation": scores(2.55)},
}


def reward(step: int, mean: float) -> dict[str, Any]:
    return {
        "event": "reward", "step": step, "mean": mean, "low": mean - 0.4, "high": mean + 0.3,
        "best": {"prompt": "What causes the tides?", "answer": f" The Moon, of step {step}.", "score": mean + 3},
        "worst": {"prompt": "Who printed first?", "answer": " I do. " * 4, "score": mean - 2.5},
        "distinct_1": 0.31, "distinct_2": 0.72, "repetition": 0.041, "answer_tokens": 48.25,
        "answer_tokens_median": 44.5, "ended": 0.775,
    }  # fmt: skip


REWARDS = [reward(0, -2.05), reward(10, -1.0), reward(20, -0.88), reward(30, -1.18)]
STEPS: list[dict[str, Any]] = [
    {"event": "step", "step": n, "loss": 3.0, "tokens": 120 * n, "tokens_per_second": 1000.0, "seconds": 0.2 * n,
     "epoch": n / 100, "memory_bytes": 8_067_500_000}
    for n in range(1, 31)
]  # fmt: skip


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def tuned(make_run: MakeRun) -> MakeRun:
    """tuned(**files) → a finished run, fully tuned on dialogues, without rewards; `files` as make_run takes them."""

    def make(**changes: str | None) -> Path:
        files: dict[str, str | None] = {
            "recipe": RECIPE,
            "origin": json.dumps(ORIGIN),
            "state": json.dumps({"status": "finished", "step": 30, "best": {"step": 20}, "elapsed_seconds": 9.0}),
            "evaluation": json.dumps(EVALUATION),
            "metrics": jsonl(*STEPS),
            "samples": jsonl({"step": 30, "prompt": "Why is the sky blue?", "text": " Air.", "stopped": "eos"}),
        }
        return make_run("tuned", **{**files, **changes})

    return make


def plain(markdown: str) -> str:
    """Markdown as it reads."""
    return re.sub(r"\\(?=[*#|<>\[\]])", "", markdown.replace("\u00a0", " "))


def test_a_tuned_run_is_told_from_start_to_best(tuned: MakeRun, written: Written) -> None:
    page, markdown = written(tuned())
    for told in (
        "tuned is a GPT of 356 million parameters (a context of 1,024 tokens), tuned from gpt2-medium on dialogues.",
        "It learns the answers; turns are written by the template chatml.",
        "It was trained for 30 steps, in which it learned from 3,600 answer tokens (0.30 epochs), in 9.0 s on CPU,",
        "Its loss per answer token on the validation set fell from 2.900 at the start to 2.500, a perplexity",
        "of 18.17 to 12.18, at step 20",
        "at step 20; on the test set, which played no part in that choice, the perplexity is 13.46.",
        "start, step 0", "best, step 20", "last, step 30", "perplexity per answer token", "2.9000",
        "Start is the model before it was tuned. Best is the checkpoint with the lowest loss on the validation set.",
        "all weights", "tokens added", "the answers, with what closes each", "a whole dialogue",
        "answer tokens learned from", "answer tokens per second", "8.1 GB",
    ):  # fmt: skip
        assert told in page.text
        assert told in plain(markdown)
    assert "2.900 → 2.500" in page.text
    assert "stride" not in page.text, "a dialogue is a row of its own"
    assert "Rewards" not in page.text
    assert "unigram model 812.40 knows" not in page.text, "a tuned model is held against its start"
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.text + markdown)


def test_an_adapter_is_told_with_its_counts(tuned: MakeRun, written: Written) -> None:
    page, markdown = written(tuned(recipe=RECIPE + LORA, origin=json.dumps({**ORIGIN, "trainable": COUNTS})))
    for told in (
        "tuned from gpt2-medium on dialogues by LoRA of rank 4, which trains 1.67 million of them (0.47 %).",
        "1,673,216 of 356,496,384 (0.47 %): adapters 1,572,864, layer norms 100,352",
        "attn.c_attn, mlp.c_fc", "0.05",
    ):  # fmt: skip
        assert told in page.text
        assert told in plain(markdown)
    assert page.text.count("1,572,864") == 1, "origin's copy is not listed again"


def test_an_adapter_whose_parameters_nobody_counted_is_told_without(tuned: MakeRun, written: Written) -> None:
    page, _ = written(tuned(recipe=RECIPE + LORA.replace("rslora = false", "rslora = true")))
    assert "on dialogues by LoRA of rank 4. It learns" in page.text
    assert "alpha / √rank" in page.text
    assert "parameters trained" not in page.text


def test_sources_of_dialogues_are_told_in_words(tuned: MakeRun, written: Written) -> None:
    page, markdown = written(tuned())
    left_out = (
        "73 cut; 105 unanswered; 2 duplicates; 7 bad: no answer (line 17, line 90, …); 1 bad: an empty message (line 5)"
    )
    for told in ("170 / 379 / 683 / 1,307", "202 / 364 / 581 / 581", left_out, "18,112", "Unanswered: last turns that"):
        assert told in page.text
        assert told in plain(markdown)
    data = page.text.partition("Unanswered:")[0].rpartition("Data")[2]
    assert not re.search(r"[{}\[\]]", data)
    assert "dialogues" not in data, "as many as rows"


def test_rows_that_are_no_whole_dialogues_are_counted_apart(tuned: MakeRun, written: Written) -> None:
    origin = {**ORIGIN, "data": {**ORIGIN["data"], "table": [{**TRAIN, "rows": 901}]}}
    page, _ = written(tuned(recipe=RECIPE.replace("history = 0", "history = 3"), origin=json.dumps(origin)))
    assert "dialogues rows tokens learned" in page.text
    assert "an answer with at most 3 turns before it" in page.text


def test_joined_dialogues_learned_whole_are_scored_as_text_is(tuned: MakeRun, written: Written) -> None:
    recipe = RECIPE.replace('"answers"', '"all"').replace("pack = false", "pack = true")
    page, _ = written(tuned(recipe=recipe))
    assert "Its loss per token on the validation set fell" in page.text
    assert "Every token is scored once, in windows of the context named, a stride apart." in page.text
    assert "a window of all dialogues, joined" in page.text
    assert "answer token" not in page.text


def test_a_loss_that_rose_is_not_said_to_have_fallen(tuned: MakeRun, written: Written) -> None:
    evaluation = {**EVALUATION, "best": {"step": 20, "validation": scores(3.1)}}
    assert "rose from 2.900 at the start to 3.100" in written(tuned(evaluation=json.dumps(evaluation)))[0].text


def test_rewards_are_told_from_first_to_last(tuned: MakeRun, written: Written) -> None:
    recipe = RECIPE.replace("validation_sampled", "reward") + 'reward = "acme/judge"\n'
    folder = tuned(recipe=recipe, metrics=jsonl(*STEPS, *REWARDS))
    page, markdown = written(folder)
    for told in (
        "A reward model gave its answers -0.880 in the mean (95 %: -1.280 to -0.580) at step 20, after -2.050 at",
        "Best is the checkpoint with the highest mean reward of its answers.",
        "A reward model, acme/judge, scores the model's answers",
        "-1.580 to -0.880", "0.310, 0.720", "48.2, 44.5", "78 %",
        "The best and the worst answer of step 20", "The Moon, of step 20.", "2.12", "-3.38", "Who printed first?",
    ):  # fmt: skip
        assert told in page.text.replace("\u00a0", " ")
        assert told in plain(markdown)
    assert "-2.050 → -0.880" in page.text
    section = markdown.partition("## Rewards")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    assert rows == ["| model", "| ---", "| start, step 0", "| best, step 20", "| last, step 30"]
    assert "![Mean reward of the answers, with its 95 % interval](plots/reward.png)" in markdown
    assert (folder / "plots" / "reward.png").is_file()
    assert markdown.count("plots/reward.png") == 1
    assert sum((each.get("aria-label") or "").startswith("Mean reward") for _, each in page.tags) == 1
    assert [tag for tag, _ in page.tags if tag == "mark"] == ["mark"], "the worst answer is a loop"
    assert "Marked: a stretch that stands three times" in page.text


def test_rewards_that_best_does_not_follow_have_their_highest_beside(tuned: MakeRun) -> None:
    state = json.dumps({"status": "running", "step": 30, "best": {"step": 10, "loss": 2.5}})
    facts = gather(Run.open(tuned(state=state, metrics=jsonl(*STEPS, *REWARDS))))
    assert [(row["name"], row["step"]) for row in facts["rewards"]["rows"]] == [
        ("start", 0), ("best", 10), ("highest", 20), ("last", 30),
    ]  # fmt: skip
    assert facts["rewards"]["shown"]["step"] == 10


def test_the_start_alone_has_a_report(tuned: MakeRun, written: Written) -> None:
    """Before the first step; after a kill there the start is evaluated again, and its lines stand there twice."""
    start = {"event": "validation", "step": 0, "loss": 2.9, "perplexity": 18.17}
    page, markdown = written(
        tuned(evaluation=None, state=None, samples=None, metrics=jsonl(start, REWARDS[0], start, REWARDS[0]))
    )
    assert "A reward model gave its answers -2.050 in the mean (95 %: -2.450 to -1.750) at the start." in page.text
    assert markdown.count("| start, step 0 |") == 2, "once in the scores, once in the rewards"
    assert "Its loss" not in page.text


def test_the_start_of_a_run_that_is_still_going_is_not_its_best(tuned: MakeRun, written: Written) -> None:
    lines = [
        {"event": "validation", "step": step, "loss": loss, "perplexity": math.exp(loss)}
        for step, loss in ((0, 2.0), (10, 2.4), (20, 2.3), (30, 2.5))
    ]
    folder = tuned(evaluation=None, metrics=jsonl(*STEPS, *lines))
    found = [(row["model"], row["step"]) for row in gather(Run.open(folder))["scores"]]
    assert found == [("start", 0), ("best", 20), ("last", 30)]
    assert "rose from 2.000 at the start to 2.300" in written(folder)[0].text


def test_a_start_is_compared_on_the_same_set_alone(tuned: MakeRun, written: Written) -> None:
    """While a run goes on, its best was seen on a sample, its start on the whole set."""
    lines = [{"event": "validation", "step": 0, "loss": 2.9, "perplexity": 18.17}] + [
        {"event": "validation_sampled", "step": step, "loss": 2.0, "perplexity": 7.39} for step in (10, 20)
    ]
    page, _ = written(tuned(evaluation=None, metrics=jsonl(*STEPS, *lines)))
    assert "Its best perplexity per answer token on a sample of the validation set was 7.39, at step 20." in page.text
    assert "at the start" not in page.text
    assert "start, step 0 validation" in page.text


def test_answers_stand_below_their_question(tuned: MakeRun, written: Written) -> None:
    page, markdown = written(tuned())
    assert "Question Why is the sky blue? answer, step 30 Air." in page.text
    assert "### Question: `Why is the sky blue?`\n\nAnswer at step 30:\n\n```text\n Air.\n```" in markdown


def test_a_steps_seconds_are_without_what_comes_between_steps(tuned: MakeRun, written: Written) -> None:
    page, markdown = written(tuned())
    assert "| seconds a step | 0.1200 |" in markdown  # 120 tokens at 1,000 a second
    assert "| with validating, sampling, saving | 0.3000 |" in markdown  # 9 s of 30 steps
    assert "seconds a step 0.1200" in page.text


def test_an_old_line_without_a_rate_says_nothing_of_a_step(tuned: MakeRun) -> None:
    lines = [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in STEPS]
    assert gather(Run.open(tuned(metrics=jsonl(*lines))))["cost"]["step_seconds"] is None


def test_an_alarm_stays(tuned: MakeRun, written: Written) -> None:
    alarm = "validation has not improved for 5 evaluations; the best, step 20, is kept"
    page, markdown = written(tuned(metrics=jsonl(*STEPS, {"event": "note", "step": 30, "text": alarm})))
    assert f"Step 30: {alarm}" in page.text
    assert f"- Step 30: {alarm}" in markdown


def test_what_a_model_or_a_data_set_says_cannot_act_in_the_page(tuned: MakeRun, written: Written) -> None:
    evil = "</td><script>alert(1)</script> {{ 111 * 111 }} | <b>"
    said = {"prompt": evil, "answer": evil, "score": 1.0}
    table = [{**TRAIN, "name": evil, "bad": {evil: 1}, "bad_at": {evil: [evil]}}]
    origin = {**ORIGIN, "start": {"name": evil}, "data": {"table": table, "template": evil}}
    page, markdown = written(
        tuned(
            recipe=f"{RECIPE}reward = {json.dumps(evil)}\n" + LORA.replace("attn.c_attn", "<script>"),
            origin=json.dumps(origin),
            metrics=jsonl(*STEPS, {**reward(10, 0.5), "best": said, "worst": said}),
        )
    )
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "12321" not in page.text + markdown
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"```.*?\n```", "", markdown, flags=re.DOTALL))
    assert not re.search(r"(?<!\\)<", outside)
