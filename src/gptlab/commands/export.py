"""`gptlab export`: a trained model for others, checked before it says done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from gptlab.export.export import Format


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    format: Annotated[str, typer.Option(metavar="huggingface|gguf", help="gguf: for llama.cpp.")] = "huggingface",
    merge: Annotated[bool, typer.Option("--merge", help="A LoRA adapter and its base as one model.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Put it on the hub too; private if new.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Of a run; best if there is.")
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Writes a folder that transformers (of an adapter, PEFT) or llama.cpp loads, with a model card.

    It is read again and compared with the model before it gets its name.
    """
    from rich.console import Console

    from gptlab.export.export import export_model
    from gptlab.run.open import parse_checkpoint

    err = Console(stderr=True, highlight=False, markup=False)
    with err.status("exporting") as status:
        done = export_model(
            model, to, format=cast("Format", format), merge=merge, push=push, runs=runs, 
            checkpoint=parse_checkpoint(checkpoint), say=status.update,
        )  # fmt: skip
    if as_json:
        tree = {"folder": str(done.folder), "files": done.files, "checks": done.checks, "address": done.address}
        print(json.dumps({"exported": tree}))
        return
    for check in done.checks:
        print(f"checked   {check}")
    print(f"exported  {done.folder}")
    if done.address:
        print(f"pushed    {done.address}")
