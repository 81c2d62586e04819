"""`gptlab generate`: writes on from prompts; streamed, as blocks, side by side, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab.errors import UserError
from gptlab.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.status import Status

    from gptlab.evaluation.samples import TextCompletion
    from gptlab.generation.sampling import Sampling

    OnText = Callable[[int, int, str], None]


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help='Text to write on from. "-": one prompt a line from stdin.')
    ],
    greedy: Annotated[bool, typer.Option("--greedy", help="The most probable token each time.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Below 1: nearer to greedy; above: wilder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens of probability P.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens at least P times as probable as the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: against what was said already.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens a text.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same texts.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1,
    compare: Annotated[bool, typer.Option("--compare", help="Greedy, top-k 50 and top-p 0.9 side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Of a run; best if there is.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or int8.")] = "float32",
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Writes on from a prompt. Without any sampling option: --temperature 0.8 --top-k 40."""
    given = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--min-p": min_p}
    given |= {"--repetition-penalty": repetition_penalty}
    given = {option: value for option, value in given.items() if value is not None}
    samplings = _compared(greedy, given, samples) if compare else {"": _sampling(greedy, given, samples)}
    texts = _read_prompts(prompts)

    from rich.console import Console

    from gptlab.evaluation.samples import complete
    from gptlab.generation.decoder import Decoder
    from gptlab.kernels.decode import check_precision
    from gptlab.run.open import open_model, parse_checkpoint

    which = parse_checkpoint(checkpoint)
    weights = check_precision(precision)  # before anything is loaded
    out, err = Console(highlight=False, markup=False), Console(stderr=True, highlight=False, markup=False)
    with err.status(f"opening {model}"):
        opened = open_model(model, device=device, runs=runs, checkpoint=which, task="language")
        tokenizer = opened.require_tokenizer()
        decoder = Decoder(opened.model, weights)
    if decoder.reason and weights != "float32":  # who asks for a precision asks for speed
        print(f"gptlab: {decoder.reason}; torch writes with {weights} weights, more slowly", file=sys.stderr)
    if err.is_terminal:
        kind = "tuned for dialogue, and gptlab chat talks with it; here" if opened.template else "a base model;"
        err.print(f"{opened.folder}: {kind} it writes on from the text", style="dim")

    def write(sampling: Sampling, on_text: OnText) -> list[TextCompletion]:
        return complete(
            decoder, tokenizer, texts, sampling,
            max_new_tokens=max_new_tokens, seed=seed, samples=samples, on_text=on_text,
        )  # fmt: skip

    started = time.perf_counter()
    if len(texts) == samples == 1 and not (as_json or compare):
        with _stream(texts[0], out) as tell:
            written = {"": write(samplings[""], tell)}
    else:
        with err.status("writing") as status:
            count = _counter(status)
            written = {name: write(sampling, count) for name, sampling in samplings.items()}
    seconds = time.perf_counter() - started

    if as_json:
        print(json.dumps({"completions": [_record(c, name) for name, cs in written.items() for c in cs]}))
    elif compare and out.is_terminal:
        _print_table(written, out)
    elif compare or len(texts) * samples > 1:
        _print_blocks(written, samples, out)
    _print_notes([c for cs in written.values() for c in cs], seconds, opened.model.shape.context, err)


def _sampling(greedy: bool, given: dict[str, Any], samples: int) -> Sampling:
    from gptlab.evaluation.samples import SampleSettings
    from gptlab.generation.sampling import Sampling

    if not greedy and not given:
        return SampleSettings().sampling
    contrary = [option for option in given if option != "--repetition-penalty"]
    if greedy and contrary:
        raise UserError(f"--greedy with {contrary[0]}: greedy draws nothing; leave one of them out")
    if greedy and samples > 1:
        raise UserError(f"--greedy with --samples {samples}: greedy writes the same text every time")
    return Sampling(greedy, **{option[2:].replace("-", "_"): value for option, value in given.items()})


def _compared(greedy: bool, given: dict[str, Any], samples: int) -> dict[str, Sampling]:
    from gptlab.generation.sampling import Sampling

    contrary = ["--greedy"] * greedy + list(given) + ["--samples"] * (samples > 1)
    if contrary:
        raise UserError(f"--compare with {contrary[0]}: it shows greedy, top-k 50 and top-p 0.9, once each")
    return {"greedy": Sampling(greedy=True), "top-k 50": Sampling(top_k=50), "top-p 0.9": Sampling(top_p=0.9)}


def _read_prompts(prompts: list[str]) -> list[str]:
    """The prompts, with the lines of standard input (blank ones left out) where "-" stands."""
    texts = [text for prompt in prompts for text in (_stdin_lines() if prompt == "-" else [prompt])]
    if not texts:
        raise UserError('no prompt on standard input; "-" reads one a line')
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # Python keeps bytes that are no UTF-8 as halves of surrogate pairs
            raise UserError(f"the prompt {text!r} is not UTF-8 text") from None
    return texts


def _stdin_lines() -> list[str]:
    text = sys.stdin.buffer.read().decode("utf-8-sig", errors="surrogateescape")
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _counter(status: Status) -> OnText:
    """For `on_text`: shows how many pieces of text (nearly all of them one token) are written."""
    count = 0

    def tell(prompt: int, sample: int, text: str) -> None:
        nonlocal count
        count += 1
        status.update(f"writing: {count:,} tokens")

    return tell


@contextmanager
def _stream(prompt: str, out: Console) -> Iterator[OnText]:
    """For `on_text`: prints the prompt, then the text as it is written."""

    def tell(prompt: int, sample: int, text: str) -> None:
        sys.stdout.write(printable(text) if out.is_terminal else text)
        sys.stdout.flush()

    _print_text(prompt, "", out, end="")
    try:
        yield tell
    finally:
        print()


def _print_text(prompt: str, text: str, out: Console, end: str = "\n") -> None:
    """A prompt and what was written after it; on a terminal the prompt is bold."""
    if not out.is_terminal:  # rich would expand tabs
        print(prompt + text, end=end, flush=True)
        return
    from rich.text import Text

    out.print(Text.assemble((printable(prompt), "bold"), printable(text)), end=end, soft_wrap=True)


def _print_blocks(written: dict[str, list[TextCompletion]], samples: int, out: Console) -> None:
    """All texts under each other, ordered by prompt, each under a line that says which it is."""
    blocks = [
        (*divmod(n, samples), name, c) for name, completions in written.items() for n, c in enumerate(completions)
    ]
    for prompt, sample, name, completion in sorted(blocks, key=lambda block: block[0]):
        title = f"prompt {prompt + 1}, {name or f'sample {sample + 1}'}"
        out.print(f"--- {title} ---", style="dim")
        _print_text(completion.prompt, completion.text, out)


def _print_table(written: dict[str, list[TextCompletion]], out: Console) -> None:
    """For each prompt the samplers' texts side by side."""
    from rich.table import Table
    from rich.text import Text

    for completions in zip(*written.values(), strict=True):
        table = Table(title=Text(printable(completions[0].prompt), style="bold"), title_justify="left", expand=True)
        for name in written:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*(Text(printable(completion.text)) for completion in completions))
        out.print(table)


def _print_notes(completions: list[TextCompletion], seconds: float, context: int, err: Console) -> None:
    rereads = sum(completion.reread for completion in completions)
    if rereads:
        times = "once" if rereads == 1 else f"{rereads} times"
        note = f"the context of {context:,} tokens was full {times}: the end of the text was kept and read again"
        print(f"gptlab: {note}", file=sys.stderr)
    if err.is_terminal:
        tokens = sum(completion.tokens for completion in completions)
        err.print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} a second", style="dim")


def _record(completion: TextCompletion, sampler: str) -> dict[str, Any]:
    record = {name: getattr(completion, name) for name in ("prompt", "text", "tokens", "stopped")}
    return record | ({"sampler": sampler} if sampler else {})
