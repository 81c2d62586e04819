"""`gptlab chat`: a conversation with one model, or with two at once; on a terminal, or line by line from a pipe."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptlab.errors import UserError, nearest
from gptlab.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.console import Console

    from gptlab.evaluation.conversation import Chat, Conversation, Reply
    from gptlab.kernels.decode import Precision
    from gptlab.run.open import Which

    OnText = Callable[[int, str], None]

WIDE = 100
"""Columns from which on a terminal shows two models beside each other."""

HELP = """\
/reset         forget the conversation; a system message stays
/undo          take back the last question and its answer
/save FILE     write the conversation to a new file, one that data.kind = "dialogues" reads
/system TEXT   give a system message; without TEXT take it away
/params        show how answers are written; /params temperature=0.7 top_k=0 changes it
/quit          leave, as Ctrl-D does; Ctrl-C stops an answer and keeps what there is of it
All other lines are questions; one that is to begin with / gets a space before it."""


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="A second model, which is asked the same.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="A system message, before the first question.")] = "",
    greedy: Annotated[bool, typer.Option("--greedy", help="The most probable token each time.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Below 1: nearer to greedy; above: wilder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens of probability P.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens at least P times as probable as the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: against what was said already.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens an answer.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and questions get the same answers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout at the end, no more.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Of MODEL, a run; best if there is.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or int8.")] = "float32",
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Talk with a model, or with two side by side. /help there says what can be done.

    Without any sampling option: --temperature 0.8 --top-k 40. In a pipe each line is a question.
    """
    from rich.console import Console

    from gptlab.evaluation.conversation import Chat, Parameters
    from gptlab.evaluation.samples import SampleSettings
    from gptlab.generation.sampling import Sampling
    from gptlab.kernels.decode import check_precision
    from gptlab.run.open import parse_checkpoint

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given |= {"repetition_penalty": repetition_penalty}
    given = {name: value for name, value in given.items() if value is not None}
    sampling = Sampling(greedy, **cast("Any", given)) if greedy or given else SampleSettings().sampling
    weights, which = check_precision(precision), parse_checkpoint(checkpoint)  # before anything is loaded

    err = Console(stderr=True, highlight=False, markup=False)
    models = [(model, which)] if other is None else [(model, which), (other, None)]
    conversations = [_open(name, of, system, device, weights, runs, err) for name, of in models]
    session = _Session(Chat(conversations, Parameters(sampling, max_new_tokens, seed)), quiet=as_json)
    if session.at_terminal:
        err.print("/help says what can be done, Ctrl-D leaves", style="dim")
    session.run()
    if as_json:
        print(json.dumps({"turns": session.turns}))


def _open(
    name: str, which: Which, system: str, device: str, precision: Precision, runs: Path, err: Console
) -> Conversation:
    from gptlab.evaluation.conversation import Conversation
    from gptlab.generation.decoder import Decoder
    from gptlab.run.open import open_model

    with err.status(f"opening {name}"):
        opened = open_model(name, device=device, runs=runs, checkpoint=which, task="language")
        tokenizer = opened.require_tokenizer()
        decoder = Decoder(opened.model, precision)
    if decoder.reason and precision != "float32":
        _note(f"{decoder.reason}; torch writes with {precision} weights, more slowly")
    if opened.template_fault:
        _note(opened.template_fault)
    if opened.template is None:
        _note(
            f"{opened.folder}: has no chat template, so the conversation is plain text to it, which it writes on from"
        )
    elif err.is_terminal:
        err.print(f"{opened.folder}: template {opened.template.name}", style="dim")
    return Conversation(decoder, tokenizer, opened.template, name=name, system=system)


class _Session:
    """Reads questions and commands, and prints answers; at a terminal, or, for a program, with no word but the notes.

    turns: what was asked and answered, as --json shows it
    """

    def __init__(self, chat: Chat, *, quiet: bool) -> None:
        from rich.console import Console

        self.chat, self.quiet = chat, quiet
        self.names = [conversation.name for conversation in chat.conversations]
        self.out = Console(highlight=False, markup=False)
        self.at_terminal = sys.stdin.isatty() and not quiet
        self.turns: list[dict[str, Any]] = []
        self.dropped = [0] * len(self.names)
        self.commands = {
            "help": self.help, "reset": self.reset, "undo": self.undo,
            "save": self.save, "system": self.system, "params": self.params,
        }  # fmt: skip

    def run(self) -> None:
        """Until /quit or the end of the input. Where nobody is there to correct it, a mistake is raised."""
        for line in _terminal_lines() if self.at_terminal else _piped_lines():
            try:
                if line.strip() == "/quit":
                    return
                self.take(line)
            except UserError as error:
                if not self.at_terminal:
                    raise
                _note(str(error))
            except KeyboardInterrupt:  # an answer was just finished
                if not self.at_terminal:
                    raise

    def take(self, line: str) -> None:
        """A command, or a question."""
        if line.startswith("/"):
            name, _, argument = line[1:].partition(" ")
            if name not in self.commands:
                near = nearest(name, [*self.commands, "quit"])
                raise UserError(f"there is no command /{name}{near}; /help lists them")
            self.commands[name](argument.strip())
        elif line.strip():
            self.ask(line.strip())

    def ask(self, question: str) -> None:
        with self._screen() as tell:
            replies = self.chat.ask(question, tell, keep_stopped=self.at_terminal)
        answers = [{"model": name, **asdict(reply)} for name, reply in zip(self.names, replies, strict=True)]
        self.turns.append({"question": question, "answers": answers})
        self._print_notes(replies)

    def help(self, _: str) -> None:
        print(HELP, file=sys.stderr)

    def reset(self, _: str) -> None:
        self.chat.reset()

    def undo(self, _: str) -> None:
        if not self.chat.undo():
            raise UserError("there is no question to take back")

    def save(self, file: str) -> None:
        if not file:
            raise UserError("/save wants a file to write to")
        self.chat.save(Path(file))

    def system(self, text: str) -> None:
        self.chat.set_system(text)

    def params(self, changes: str) -> None:
        self.chat.parameters = self.chat.parameters.changed(*changes.split())
        print(self.chat.parameters, file=sys.stderr)

    def _screen(self) -> AbstractContextManager[OnText]:
        if self.quiet:
            return nullcontext(lambda number, text: None)
        beside = len(self.names) > 1 and self.out.is_terminal and self.out.width >= WIDE
        return (_side_by_side if beside else _one_after_the_other)(self.names, self.out)

    def _print_notes(self, replies: list[Reply]) -> None:
        for number, (name, reply) in enumerate(zip(self.names, replies, strict=True)):
            if not reply.text:
                _note(f"{name} wrote nothing; the question is not kept")
            elif reply.stopped == "interrupted":
                _note(f"{name} was stopped; what it wrote is kept")
            if reply.turns_dropped > self.dropped[number]:
                _note(f"{name} no longer reads the first {reply.turns_dropped} turns: its context is full")
            if reply.reread:
                _note(f"{name}: its context was full; the end of the text was kept and read again")
            self.dropped[number] = reply.turns_dropped


@contextmanager
def _one_after_the_other(names: list[str], out: Console) -> Iterator[OnText]:
    """For `on_text`: prints answers as they are written; of several models each under the model's name."""
    at = -1

    def begin(number: int) -> None:
        nonlocal at
        while at < number:
            at += 1
            if at:
                print()
            if len(names) > 1:
                out.print(f"--- {names[at]} ---", style="dim")

    def tell(number: int, text: str) -> None:
        begin(number)
        print(printable(text) if out.is_terminal else text, end="", flush=True)

    try:
        yield tell
    finally:
        begin(len(names) - 1)
        print(flush=True)


@contextmanager
def _side_by_side(names: list[str], out: Console) -> Iterator[OnText]:
    """For `on_text`: shows answers in columns as they are written."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    table, cells = Table(expand=True), [Text() for _ in names]
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*cells)

    def tell(number: int, text: str) -> None:
        cells[number].append(printable(text))

    with Live(table, console=out):
        yield tell


def _terminal_lines() -> Iterator[str]:
    """What is typed until Ctrl-D; Ctrl-C begins the line anew."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # input() then has a history and can be edited
    while True:
        try:
            yield _checked(input("> "))
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield _checked(line.decode("utf-8-sig", errors="surrogateescape").rstrip("\r\n"))


def _checked(line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError:  # Python keeps bytes that are no UTF-8 as halves of surrogate pairs
        raise UserError(f"the question {line!r} is not UTF-8 text") from None
    return line


def _note(text: str) -> None:
    print(f"gptlab: {text}", file=sys.stderr, flush=True)
