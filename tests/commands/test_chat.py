from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gptlab.cli import main
from gptlab.evaluation.answers import answer
from gptlab.evaluation.conversation import Chat, Conversation, Parameters
from gptlab.evaluation.samples import SampleSettings
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling
from gptlab.model.classifier import REWARD, as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import save_model
from gptlab.run.checkpoint import TrainingState
from gptlab.run.open import open_model
from gptlab.run.run import Run
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]

SHORT = ("--max-new-tokens", "8")


def save(folder: Path, *, template: str | None, seed: int = 0, endless: bool = False) -> Path:
    """A tiny random model with its tokenizer, as a Hugging Face folder; one that is endless never ends an answer."""
    tokenizer = Tokenizer.train(["Hello, who are you? I am a model, and you are the user."] * 3, 320)
    torch.manual_seed(seed)
    model = GPT(GPTShape(tokenizer.vocab_size, context=128, n_layer=1, n_head=2, n_embd=16, tie_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6)
        if endless:
            model.ln_f.bias[0] = 50
            model.lm_head.weight[:, 0] = 0
            model.lm_head.weight[tokenizer.eos_id, 0] = -50
    save_model(model, folder, eos_id=tokenizer.eos_id)
    tokenizer.save(folder)
    if template:
        Template.named(template, tokenizer.eos).save(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tuned", template="hh")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "base", template=None, seed=1)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `gptlab chat …` in an empty directory with these lines on standard input: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(lines: str | bytes, *arguments: str | Path) -> Outcome:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as exit:
            main(["chat", *map(str, arguments)])
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def chat_with(*folders: Path, system: str = "", sampling: Sampling | None = None, seed: int = 0) -> Chat:
    """The same chat by the library."""
    opened = [open_model(folder, device="cpu") for folder in folders]
    return Chat(
        [
            Conversation(Decoder(each.model), each.require_tokenizer(), each.template, name=each.name, system=system)
            for each in opened
        ],
        Parameters(sampling or SampleSettings().sampling, max_new_tokens=8, seed=seed),
    )


def test_each_line_is_a_question(call: Call, tuned: Path) -> None:
    chat = chat_with(tuned)
    replies = [chat.ask(question)[0].text for question in ("Hello", "and you?")]
    assert call("Hello\r\n\n  and you?  \n", tuned, *SHORT) == (0, "".join(f"{text}\n" for text in replies), "")


def test_the_question_is_asked_by_the_models_template(call: Call, tuned: Path) -> None:
    opened = open_model(tuned, device="cpu")
    (expected,) = answer(
        opened.model, opened.require_tokenizer(), opened.template, [[Message("user", "Hello")]],
        Sampling(greedy=True), max_new_tokens=8,
    )  # fmt: skip
    assert call("Hello", tuned, "--greedy", *SHORT)[1] == f"{expected.text.strip()}\n"


def test_options_reach_the_sampler(call: Call, base: Path) -> None:
    sampling = Sampling(temperature=1.5, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    (reply,) = chat_with(base, system="be kind", sampling=sampling, seed=7).ask("Hello")
    _, out, _ = call(
        "Hello", base, *SHORT, "--temperature", "1.5", "--top-k", "30", "--top-p", "0.9", "--min-p", "0.01",
        "--repetition-penalty", "1.2", "--seed", "7", "--system", "be kind",
    )  # fmt: skip
    assert out == f"{reply.text}\n"


def test_a_base_model_is_said_to_be_one(call: Call, base: Path) -> None:
    code, _, err = call("Hello", base, *SHORT)
    assert code == 0
    assert err == (
        f"gptlab: {base}: has no chat template, so the conversation is plain text to it, which it writes on from\n"
    )


def test_two_models_answer_under_their_names(call: Call, tuned: Path, base: Path) -> None:
    chat = chat_with(tuned, base)
    replies = [chat.ask(question) for question in ("Hello", "and you?")]
    _, out, _ = call("Hello\nand you?", tuned, base, *SHORT)
    assert out == "".join(f"--- {tuned} ---\n{one.text}\n--- {base} ---\n{other.text}\n" for one, other in replies)


def test_json(call: Call, tuned: Path, base: Path) -> None:
    chat = chat_with(tuned, base)
    replies = [chat.ask(question) for question in ("Hello", "and you?")]
    code, out, _ = call("Hello\nand you?", tuned, base, "--json", *SHORT)
    assert code == 0
    assert json.loads(out) == {
        "turns": [
            {
                "question": question,
                "answers": [
                    {"model": str(model), "text": r.text, "stopped": r.stopped, "turns_dropped": 0, "reread": 0}
                    for model, r in zip((tuned, base), both, strict=True)
                ],
            }
            for question, both in zip(("Hello", "and you?"), replies, strict=True)
        ]
    }


def texts(out: str) -> list[str]:
    return [turn["answers"][0]["text"] for turn in json.loads(out)["turns"]]


def test_undo_and_reset(call: Call, tuned: Path) -> None:
    """Greedy, so that an answer is a function of what is read."""
    lines = ["Hello", "who?", "/undo", "who?", "/reset", "Hello", "/quit", "never asked"]
    hello, who, again, new = texts(call("\n".join(lines), tuned, "--greedy", "--json", *SHORT)[1])
    assert (who, hello) == (again, new)
    chat = chat_with(tuned, sampling=Sampling(greedy=True))
    assert [chat.ask("Hello")[0].text, chat.ask("who?")[0].text] == [hello, who]


def test_system(call: Call, base: Path) -> None:
    lines = ["/system be kind", "Hello", "/reset", "/system", "Hello"]
    kind, plain = texts(call("\n".join(lines), base, "--greedy", "--json", *SHORT)[1])
    assert kind == chat_with(base, system="be kind", sampling=Sampling(greedy=True)).ask("Hello")[0].text
    assert plain == chat_with(base, sampling=Sampling(greedy=True)).ask("Hello")[0].text
    assert kind != plain


def test_params(call: Call, tuned: Path) -> None:
    _, out, err = call("/params greedy=true max_new_tokens=3\nHello\n/params", tuned)
    chat = chat_with(tuned, sampling=Sampling(greedy=True))
    chat.parameters = chat.parameters.changed("max_new_tokens=3")
    assert out == f"{chat.ask('Hello')[0].text}\n"
    assert err == f"{chat.parameters}\n" * 2


def test_save_and_help(call: Call, tuned: Path, tmp_path: Path) -> None:
    code, out, err = call("/help\nHello\n/save talk.jsonl", tuned, *SHORT)
    assert code == 0
    record = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))
    assert record["messages"] == [
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": out.rstrip("\n")},
    ]  # fmt: skip
    for command in ("/reset", "/undo", "/save FILE", "/system TEXT", "/params", "/quit"):
        assert command in err


def test_what_no_longer_fits_is_said_when_it_changes(call: Call, tuned: Path) -> None:
    question = "Hello, who are you? " * 4
    code, out, err = call(f"{question}\n" * 4, tuned, "--json", *SHORT)
    dropped = [turn["answers"][0]["turns_dropped"] for turn in json.loads(out)["turns"]]
    assert code == dropped[0] == 0
    assert dropped == sorted(dropped) != [0] * 4
    assert re.findall(r"no longer reads the first (\d+) turns", err) == [str(n) for n in sorted({*dropped} - {0})]


@pytest.mark.parametrize(("question", "max_new_tokens"), [("Hello", 300), ("x" * 300, 1)])
def test_a_full_context_is_said(call: Call, tuned: Path, question: str, max_new_tokens: int) -> None:
    _, out, err = call(question, tuned, "--json", "--max-new-tokens", str(max_new_tokens))
    assert json.loads(out)["turns"][0]["answers"][0]["reread"] >= 1
    assert err == f"gptlab: {tuned}: its context was full; the end of the text was kept and read again\n"


def test_a_slash_after_a_space_is_a_question(call: Call, tuned: Path) -> None:
    (turn,) = json.loads(call(" /etc", tuned, "--json", *SHORT)[1])["turns"]
    assert turn["question"] == "/etc"


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("/rest", "there is no command /rest (did you mean 'reset'?); /help lists them"),
        ("/qit", "did you mean 'quit'?"),
        ("/undo", "no question to take back"),
        ("/save", "wants a file"),
        ("/save talk.jsonl", "nothing to save yet"),
        ("/params temperature=-1", "temperature = -1.0"),
        ("/params heat=1", "'heat=1': wanted NAME=VALUE"),
        ("/system be kind\nHello", "no system messages"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_mistake_in_a_pipe_ends_the_chat(call: Call, tuned: Path, lines: str | bytes, wanted: str) -> None:
    code, out, err = call(lines, tuned, *SHORT)
    assert (code, out.strip()) == (2, "")
    assert wanted in err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--greedy", "--temperature", "0.5"], "temperature = 0.5 beside greedy"),
        (["--top-p", "2"], "top_p = 2.0"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--checkpoint", "first"], "wanted best, last or the number of a step"),
        (["--checkpoint", "best"], "is no run"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "int4"], "precision 'int4'"),
        (["no/such/model"], "no/such/model"),
    ],
)
def test_bad_options_are_named(call: Call, tuned: Path, arguments: list[str], wanted: str) -> None:
    code, out, err = call("Hello", tuned, *arguments)
    assert (code, out) == (2, "")
    assert wanted in err


def test_a_checkpoint_beside_the_best(call: Call, tuned: Path, tmp_path: Path) -> None:
    """--checkpoint is MODEL's; OTHER, here the same run, answers by its best."""
    opened = open_model(tuned, device="cpu")
    run = Run.create(tmp_path / "elsewhere" / "mine", {"name": "mine"}, {})
    for step in (1, 2):
        with torch.no_grad():
            opened.model.wpe.weight.neg_()
        run.save_checkpoint(
            step, opened.model, opened.require_tokenizer(), TrainingState(step, {}, {}, {}),
            keep=2, best=step == 1, template=opened.template,
        )  # fmt: skip
    expected = [chat_with(run.checkpoint(step)).ask("Hello")[0].text for step in (2, 1)]
    _, out, _ = call("Hello", "mine", "mine", "--checkpoint", "2", "--runs", "elsewhere", "--json", *SHORT)
    assert [answer["text"] for answer in json.loads(out)["turns"][0]["answers"]] == expected
    assert expected[0] != expected[1]


def test_a_reward_model_says_what_asks_it(call: Call, tuned: Path, tmp_path: Path) -> None:
    save_model(as_classifier(open_model(tuned, device="cpu").model, REWARD), tmp_path / "judge")
    code, out, err = call("Hello", tmp_path / "judge")
    assert (code, out) == (2, "")
    assert "is a reward model and writes no text" in err
    assert f"--reward {tmp_path / 'judge'}" in err


def test_a_model_without_a_tokenizer(call: Call, tuned: Path, tmp_path: Path) -> None:
    save_model(open_model(tuned, device="cpu").model, tmp_path / "bare")
    code, _, err = call("Hello", tmp_path / "bare")
    assert code == 2
    assert "no tokenizer" in err


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich takes stdout and stderr for a terminal of 120 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("wide")
def test_a_wide_terminal_shows_two_models_in_columns(call: Call, tuned: Path, base: Path) -> None:
    _, out, _ = call("Hello", tuned, base, "--max-new-tokens", "40")
    last = out[out.rindex("┏") :]
    rows = [line for line in last.splitlines() if line.startswith("│")]
    assert all(line.count("│") == 3 for line in rows)
    one, other = chat_with(tuned, base).conversations
    columns = ["".join(line.split("│")[n].strip() for line in rows) for n in (1, 2)]
    for conversation, column in zip((one, other), columns, strict=True):
        parameters = Parameters(SampleSettings().sampling, max_new_tokens=40)
        text = conversation.ask("Hello", parameters, lambda text: None).text
        visible = [re.sub(r"[^a-zA-Z]", "", each) for each in (column, text)]
        assert visible[0] == visible[1] != ""


@pytest.mark.usefixtures("wide")
def test_a_terminal_gets_no_control_characters_from_a_model(call: Call, base: Path) -> None:
    _, out, _ = call("Hello", base, "--temperature", "5", "--top-k", "0", "--max-new-tokens", "400")
    written = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", written)


class Terminal:
    """`gptlab chat` on a terminal of its own."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        import pty

        self.master, slave = pty.openpty()
        code = "from gptlab.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *map(str, arguments)], cwd=cwd, stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True, env={**os.environ, "TERM": "dumb"},
            # A shell that runs the tests in the background ignores Ctrl-C, and what it starts would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        """Until what is shown after the last such wait matches."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < until, f"waited for {pattern!r}, there is {self.shown!r}"
            self.read(0.5)
        self.shown = self.shown[found.end() :]

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            self.shown += os.read(self.master, 4096).decode(errors="replace")

    def interrupt(self) -> None:
        """Ctrl-C, when what was shown before has come to rest: readline overlooks one that comes as it reads a key."""
        time.sleep(1)
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    model = save(tmp_path / "endless", template="hh", endless=True)
    terminal = Terminal(model, "--max-new-tokens", "1000000", cwd=tmp_path)
    yield terminal
    terminal.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-C at the prompt begins the line anew, in an answer it ends the answer, which is kept; mistakes are said and
    the chat goes on; Ctrl-D leaves."""
    terminal.wait_for("> ")
    terminal.type("/undo\n")
    terminal.wait_for(r"no question to take back\r?\n> ")
    terminal.type("not to be sent")
    terminal.wait_for("not to be sent")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for(r"Hello\r?\n[\s\S]{200}")  # it is being written
    terminal.interrupt()
    terminal.wait_for(r"was stopped; what it wrote is kept\r?\n> ")
    terminal.type("/params greedy=true max_new_tokens=3\n")
    terminal.wait_for(r"greedy=true [^\n]*\n> ")
    terminal.type("and you?\n")
    terminal.wait_for(r"and you\?\r?\n[\s\S]*\n> ")
    terminal.type("/save talk.jsonl\n")
    terminal.wait_for(r"talk.jsonl\r?\n> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in messages[::2]] == ["Hello", "and you?"]
    assert len(messages[1]["content"]) > 50
