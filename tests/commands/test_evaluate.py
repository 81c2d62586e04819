"""`gptlab evaluate`: what is printed is what was found, and predictions are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlab.cli import main
from gptlab.model.classifier import REWARD, GPTClassifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.text.tokenizer import Tokenizer

Call = Callable[..., tuple[int, str, str]]

LABELS = ("good", "bad")
TEXTS = [(f"A film, number {n}{'!' * (n % 3)}", LABELS[n % 3 == 0]) for n in range(30)]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `gptlab evaluate MODEL --on labels:texts.csv …` where there are a classifier, two language models and a
    reward model."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train([text for text, _ in TEXTS], 280)
    torch.manual_seed(0)
    shape = GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16)
    models = {"classifier": GPTClassifier(shape, LABELS), "gpt": GPT(shape), "start": GPT(shape)}
    for name, model in {**models, "judge": GPTClassifier(shape, REWARD)}.items():
        with torch.no_grad():
            model.wte.weight.normal_(0, 0.6)
        save_model(model, Path(name), eos_id=tokenizer.eos_id)
        tokenizer.save(Path(name))
    with Path("texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *TEXTS])
    Path("plain.txt").write_text("\n".join(text for text, _ in TEXTS))
    pairs = [
        {"prompt": "Of what?", "chosen": text, "rejected": "A film" + "!" * n} for n, (text, _) in enumerate(TEXTS)
    ]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))

    def run(*arguments: str, model: str = "classifier", on: str = "labels:texts.csv") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["evaluate", model, "--on", on, "--precision", "float32", *arguments])
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def metrics(call: Call, *arguments: str, **of: str) -> dict:
    code, out, err = call("--json", *arguments, **of)
    assert (code, err) == (0, "")
    return json.loads(out)["metrics"]


def test_accuracy_stands_beside_its_interval_and_the_baseline(call: Call) -> None:
    found = metrics(call)
    assert (found["texts"], found["majority"], found["majority_accuracy"]) == (30, "good", pytest.approx(2 / 3))
    code, out, _ = call()
    assert code == 0
    lines = dict(line.strip().split("  ", 1) for line in out.splitlines()[1:8])
    for name in ("accuracy", "matthews", "f1"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert lines[name].strip() == f"{found[name]:.4f}  95 %: {low:.4f} to {high:.4f}"
    assert lines["texts"].strip() == "30"
    assert lines["majority"].strip() == "good"


def test_classes_and_confusion_are_tables(call: Call) -> None:
    found = metrics(call)
    table = [line.split() for line in call()[1].splitlines()]
    for label in LABELS:
        each = found["per_class"][label]
        assert [label, *(f"{each[name]:.4f}" for name in ("precision", "recall", "f1")), str(each["texts"])] in table
    at = table.index(["true", "\\", "predicted", *LABELS])
    assert table[at + 1 : at + 3] == [
        [label, *map(str, row)] for label, row in zip(LABELS, found["confusion"], strict=True)
    ]


def test_predictions_agree_with_the_scores(call: Call) -> None:
    code, out, _ = call("--predictions", "predictions.csv")
    assert code == 0
    assert out.endswith("predictions in predictions.csv\n")
    with Path("predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["text"], row["label"]) for row in rows] == TEXTS
    assert sum(row["right"] == "true" for row in rows) / 30 == pytest.approx(metrics(call)["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "model", "on", "wanted"),
    [
        (["--predictions", "predictions.doc"], "classifier", "labels:texts.csv", "written as .csv"),
        (["--predictions", "predictions.csv"], "gpt", "corpus:plain.txt", "is a language model"),
        (["--predictions", "/proc/predictions.csv"], "not-looked-for", "labels:texts.csv", "/proc/predictions.csv: "),
    ],
)
def test_predictions_that_cannot_be(call: Call, arguments: list[str], model: str, on: str, wanted: str) -> None:
    code, out, err = call(*arguments, model=model, on=on)
    assert (code, out) == (2, "")
    assert wanted in err
    assert not list(Path().glob("predictions*"))


def test_a_text_is_printed_as_before(call: Call) -> None:
    code, out, _ = call(model="gpt", on="corpus:plain.txt")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == ["loss", "perplexity", "tokens", "perplexity_per_word", "bits_per_byte", "context"]


def test_a_reward_models_scores_and_how_well_they_are_calibrated(call: Call) -> None:
    found = metrics(call, model="judge", on="preferences:pairs.jsonl")
    code, out, _ = call(model="judge", on="preferences:pairs.jsonl")
    assert code == 0
    lines = dict(line.strip().split("  ", 1) for line in out.splitlines()[1:9])
    for name in ("accuracy", "margin"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert lines[name].strip() == f"{found[name]:.4f}  95 %: {low:.4f} to {high:.4f}"
    assert f"calibration, error {found['calibration']['error']:.4f}" in out
    table = [line.split() for line in out.splitlines()]
    for each in found["calibration"]["bins"]:
        edges = [f"{each['low']:.2f}", "to", f"{each['high']:.2f}"]
        assert [*edges, str(each["pairs"]), *(f"{each[name]:.4f}" for name in ("confidence", "accuracy"))] in table


def test_two_models_stand_before_and_after_with_their_answers_beside_each_other(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlab.evaluation.other_text.OTHER_BYTES", 2**12)  # the first document is enough
    arguments = ("--against", "start", "--reward", "judge", "--answers", "4")
    found = metrics(call, *arguments, model="gpt", on="preferences:pairs.jsonl")["against"]
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(*arguments, model="gpt", on="preferences:pairs.jsonl")
    assert code == 0
    assert "against start, 1 prompts\n" in out  # all of these pairs have one prompt
    rows = {line[: line.index("  ", 2)].strip(): line.split() for line in out.splitlines() if line.startswith("  ")}
    reward = found["reward"]
    assert f"{reward['difference']:+.4f} ({reward['low']:+.4f} to {reward['high']:+.4f})" in out
    assert f"{found['ties']} ties" in out
    assert rows["KL, nats a token"][-1] == f"{found['kl']:.4f}"
    assert rows["perplexity, python-docs"][2:4] == [
        f"{found['other_text']['perplexity'][when]:.4f}" for when in ("before", "after")
    ]
    assert [line.split() for line in out.splitlines()].count(["prompt", "before", "after"]) == 1
    assert found["answers"][0]["prompt"] in out.rpartition("after")[2]
