"""verb → function; the only place that parses arguments, prints errors and exits.

A verb's module is imported when it is called, so that `gptlab --help` and every verb's `--help` answer at once.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import typer

from gptlab.environment import BEFORE_TORCH
from gptlab.errors import GptlabError, Interrupted, UserError, nearest

VERBS = {
    "quickstart": "The whole life of a small GPT on text that every Python carries, offline, in minutes.",
    "recipes": "The recipes that ship: list, show, copy.",
    "prepare": "Text → tokens on disk; what each source gave; one row shown.",
    "train": "Train a recipe; the same command continues an unfinished run.",
    "evaluate": "Scores on held-out text, dialogues or labels; BLiMP, LAMBADA, HellaSwag.",
    "generate": "Write on from a prompt.",
    "classify": "The class of a text, with probabilities.",
    "chat": "Talk with a model, or with two side by side.",
    "export": "A folder for transformers, PEFT or llama.cpp; the hub.",
    "study": "Compare: the runs of a study that are missing, and its report.",
    "report": "A run's report as one HTML page, Markdown and plots.",
    "runs": "The runs there are; what two of them differ in.",
}
"""Each verb is the function of its name in commands/NAME.py; the words are its line in `gptlab --help`."""


SUMMARY = "gptlab: the whole life of a GPT-2-class language model on the machine you have."

VARIADIC = ("--data",)
"""Options that take every word up to the next option or section.key=value, so that a shell's *.txt works."""


def main(arguments: list[str] | None = None) -> None:
    """The console script. Exits 0, or with the code of the error: 2 the user's mistake, 1 a failure, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal's encoding has not
    try:
        _run(arguments)
    except GptlabError as error:
        print(f"gptlab: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # what the system refuses is no fault of the program
        place = f"{error.filename}: " if error.filename else ""
        print(f"gptlab: {place}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def _run(arguments: list[str]) -> None:
    """Runs the called verb as an application of its own: in a group typer would load far more for a `--help`."""
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if verb is not None and verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}{nearest(verb, list(VERBS))}; see gptlab --help")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=SUMMARY)
    if verb is not None:
        app.command()(_stoppable(getattr(importlib.import_module(f"gptlab.commands.{verb}"), verb)))
        app(spread(arguments[1:]), prog_name=f"gptlab {verb}")
    for name, words in VERBS.items():
        app.command(name, help=words)(_unread)
    app.callback(invoke_without_command=True)(_root)
    app(arguments or ["--help"], prog_name="gptlab")


def _stoppable(function: Callable[..., None]) -> Callable[..., None]:
    """The verb with a word at Ctrl-C: typer would end it silently."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on from what is saved") from None

    return run


def spread(arguments: list[str]) -> list[str]:
    """`--data a b c key=value` → `--data a --data b --data c key=value`: click repeats, people list."""
    result: list[str] = []
    option: str | None = None
    for word in arguments:
        if word in VARIADIC:
            option = word
        elif option and not word.startswith("-") and not re.match(r"[a-z_][a-z0-9_.]*=", word):
            result += [option, word]
        else:
            option = None
            result.append(word)
    return result


def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from gptlab import __version__

        print(f"gptlab {__version__}")
        raise typer.Exit


def _unread() -> None:
    """Stands for a verb that was not called."""
