from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlab.cli import main
from gptlab.evaluation.samples import complete
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling
from gptlab.kernels import native
from gptlab.model.classifier import REWARD, as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.checkpoint import TrainingState
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with its tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer.train(["Once upon a time there was a lab, and in the lab there was a model."] * 3, 300)
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16, tie_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
    save_model(model, folder, eos_id=tokenizer.eos_id)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `gptlab generate FOLDER …` in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, model: str = str(folder)) -> Outcome:
        with pytest.raises(SystemExit) as exit:
            main(["generate", model, *arguments])
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def expected(folder: Path, prompts: list[str], sampling: Sampling, **options: int) -> list[str]:
    opened = open_model(str(folder), device="cpu")
    return [c.text for c in complete(opened.model, opened.require_tokenizer(), prompts, sampling, **options)]


def test_one_prompt_prints_the_text_alone(call: Call, folder: Path) -> None:
    (text,) = expected(folder, ["Once upon"], Sampling(greedy=True), max_new_tokens=8)
    assert call("Once upon", "--greedy", "--max-new-tokens", "8") == (0, f"Once upon{text}\n", "")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_without_a_compiler_a_faster_precision_says_once_that_it_is_slower(call: Call, precision: str) -> None:
    with native.torch_only("no C++ compiler"):
        code, out, err = call("Once", "upon", "--precision", precision, "--max-new-tokens", "3", "--json")
    assert code == 0
    assert len(json.loads(out)["completions"]) == 2
    slower = f"gptlab: no C++ compiler; torch writes with {precision} weights, more slowly\n"
    assert err == ("" if precision == "float32" else slower)


def test_options_reach_the_sampler(call: Call, folder: Path) -> None:
    sampling = Sampling(temperature=1.5, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    texts = expected(folder, ["a", "the lab"], sampling, max_new_tokens=9, seed=7, samples=2)
    code, out, _ = call(
        "a", "the lab", "--temperature", "1.5", "--top-k", "30", "--top-p", "0.9", "--min-p", "0.01",
        "--repetition-penalty", "1.2", "--max-new-tokens", "9", "--seed", "7", "--samples", "2", "--json",
    )  # fmt: skip
    assert code == 0
    completions = json.loads(out)["completions"]
    assert [c["text"] for c in completions] == texts
    assert [c["prompt"] for c in completions] == ["a", "a", "the lab", "the lab"]
    assert all(set(c) == {"prompt", "text", "tokens", "stopped"} for c in completions)


def test_without_options_it_samples_as_recipes_do(call: Call, folder: Path) -> None:
    texts = expected(folder, ["a"], Sampling(temperature=0.8, top_k=40), max_new_tokens=100)
    assert json.loads(call("a", "--json")[1])["completions"][0]["text"] == texts[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_precision(call: Call, folder: Path, precision: str) -> None:
    opened = open_model(str(folder), device="cpu")
    (written,) = complete(
        Decoder(opened.model, precision), opened.require_tokenizer(), ["Once"], Sampling(greedy=True), max_new_tokens=20
    )
    assert call("Once", "--greedy", "--max-new-tokens", "20", "--precision", precision)[1] == f"Once{written.text}\n"


def test_several_texts_are_blocks(call: Call, folder: Path) -> None:
    texts = expected(folder, ["a\tb", "[bold]"], Sampling(top_k=5), max_new_tokens=4, samples=2)
    _, out, _ = call("a\tb", "[bold]", "--top-k", "5", "--max-new-tokens", "4", "--samples", "2")
    titles = [f"--- prompt {p}, sample {s} ---" for p in (1, 2) for s in (1, 2)]
    prompts = ["a\tb"] * 2 + ["[bold]"] * 2
    assert out == "".join(f"{title}\n{p}{text}\n" for title, p, text in zip(titles, prompts, texts, strict=True))


def test_compare(call: Call, folder: Path) -> None:
    _, out, _ = call("a", "--compare", "--max-new-tokens", "4")
    (greedy,) = expected(folder, ["a"], Sampling(greedy=True), max_new_tokens=4)
    assert out.startswith(f"--- prompt 1, greedy ---\na{greedy}\n--- prompt 1, top-k 50 ---\n")
    _, out, _ = call("a", "b", "--compare", "--json", "--max-new-tokens", "4")
    completions = json.loads(out)["completions"]
    assert [(c["sampler"], c["prompt"]) for c in completions] == [
        (sampler, prompt) for sampler in ("greedy", "top-k 50", "top-p 0.9") for prompt in "ab"
    ]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich takes stdout and stderr for a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("terminal")
def test_terminal_shows_a_bold_prompt_and_the_rate(call: Call, folder: Path) -> None:
    code, out, err = call("Once", "--max-new-tokens", "5")
    assert code == 0
    assert out.startswith("\x1b[1mOnce\x1b[0m")
    assert "a base model" in err
    assert "5 tokens in" in err
    assert "a second" in err


@pytest.mark.usefixtures("terminal")
def test_terminal_compares_side_by_side_within_80_columns(call: Call) -> None:
    _, out, _ = call("Once", "--compare", "--max-new-tokens", "60")
    header = next(line for line in out.splitlines() if "greedy" in line)
    assert header.index("greedy") < header.index("top-k 50") < header.index("top-p 0.9")
    plain = [line for line in out.splitlines() if "\x1b" not in line]
    assert len(plain) > 3
    assert max(map(len, plain)) <= 80


@pytest.mark.usefixtures("terminal")
def test_terminal_gets_no_control_characters_from_a_model(call: Call) -> None:
    _, out, _ = call("\x1b]0;title\x07", "--max-new-tokens", "5")
    assert "\x1b]0;" not in out
    assert "\x07" not in out


def test_stdin_has_a_prompt_a_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é one\r\n\ntwo".encode())))
    _, out, _ = call("-", "--json", "--max-new-tokens", "2")
    assert [c["prompt"] for c in json.loads(out)["completions"]] == ["é one", "two"]


@pytest.mark.parametrize(("data", "wanted"), [(b"\n \n", "no prompt on standard input"), (b"\xff\xfea", "not UTF-8")])
def test_stdin_that_cannot_be_used(call: Call, monkeypatch: pytest.MonkeyPatch, data: bytes, wanted: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, err = call("-")
    assert (code, out) == (2, "")
    assert wanted in err


def test_full_context_is_said_on_stderr(call: Call) -> None:
    _, _, err = call("a" * 200, "--json", "--max-new-tokens", "1")
    assert err == "gptlab: the context of 32 tokens was full once: the end of the text was kept and read again\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["a", "--greedy", "--temperature", "1.0"], "--greedy with --temperature"),
        (["a", "--greedy", "--top-p", "0.5"], "--greedy with --top-p"),
        (["a", "--greedy", "--samples", "2"], "greedy writes the same text"),
        (["a", "--compare", "--top-k", "5"], "--compare with --top-k"),
        (["a", "--compare", "--greedy"], "--compare with --greedy"),
        (["a", "--compare", "--samples", "2"], "--compare with --samples"),
        (["a", "--temperature", "0"], "use greedy"),
        (["a", "--top-p", "2"], "top_p = 2.0"),
        (["a", "--top-k", "-3"], "top_k = -3"),
        (["a", "--samples", "0"], "--samples"),
        (["a", "--max-new-tokens", "-1"], "--max-new-tokens"),
        (["a", "--seed", "-1"], "--seed"),
        (["a", "--checkpoint", "first"], "wanted best, last or the number of a step"),
        (["a", "--checkpoint", "best"], "is no run"),
        (["a", "--device", "abacus"], "abacus"),
        (["a", "--precision", "int4"], "precision 'int4': wanted float32, bfloat16, int8"),
        (["\udcff"], "not UTF-8"),
        ([], "PROMPT"),
    ],
)
def test_bad_input_is_named(call: Call, arguments: list[str], wanted: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert wanted in err


def test_unknown_model(call: Call) -> None:
    code, out, err = call("a", model="no/such/model")
    assert (code, out) == (2, "")
    assert "no/such/model" in err


def test_a_reward_model_says_what_asks_it(call: Call, folder: Path, tmp_path: Path) -> None:
    opened = open_model(str(folder), device="cpu")
    save_model(as_classifier(opened.model, REWARD), tmp_path / "judge")
    opened.require_tokenizer().save(tmp_path / "judge")
    code, out, err = call("a", model=str(tmp_path / "judge"))
    assert (code, out) == (2, "")
    assert "is a reward model and writes no text" in err
    assert f"--reward {tmp_path / 'judge'}" in err


def test_model_without_tokenizer(call: Call, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    save_model(open_model(str(folder)).model, bare)
    code, out, err = call("a", model=str(bare))
    assert (code, out) == (2, "")
    assert "no tokenizer" in err


def test_a_run_by_name_and_its_checkpoints(call: Call, folder: Path, tmp_path: Path) -> None:
    """The best checkpoint is what a run writes with; another is had by its step, or as the last."""
    opened = open_model(str(folder), device="cpu")
    tokenizer = opened.require_tokenizer()
    run = Run.create(tmp_path / "elsewhere" / "mine", {"name": "mine"}, {})
    for step in (1, 2):
        with torch.no_grad():
            opened.model.wpe.weight.neg_()
        run.save_checkpoint(step, opened.model, tokenizer, TrainingState(step, {}, {}, {}), keep=2, best=step == 1)

    def text(*options: str) -> str:
        code, out, err = call("Once", "--greedy", "--runs", "elsewhere", *options, model="mine")
        assert (code, err) == (0, "")
        return out

    (original,) = expected(folder, ["Once"], Sampling(greedy=True), max_new_tokens=12)
    options = ("--max-new-tokens", "12")
    assert text(*options, "--checkpoint", "last") == text(*options, "--checkpoint", "2") == f"Once{original}\n"
    assert text(*options) == text(*options, "--checkpoint", "best") == text(*options, "--checkpoint", "1")
    assert text(*options) != text(*options, "--checkpoint", "2")
    code, _, err = call("Once", "--runs", "elsewhere", "--checkpoint", "7", model="mine")
    assert code == 2
    assert "checkpoint 7" in err
