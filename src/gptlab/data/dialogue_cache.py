"""Where prepared dialogues are kept, and found again."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from gptlab.data.dialogue_counts import DialogueCounts
from gptlab.data.dialogue_preparing import DialoguePreparation
from gptlab.data.locking import only_one
from gptlab.data.row_counts import check_rows
from gptlab.data.row_file import Header, RowFile
from gptlab.data.splitting import Split
from gptlab.data.token_writer import sync
from gptlab.errors import DataError, GptlabError
from gptlab.hub import cache_folder

VERSION = 1
"""Of what stands in a folder; another one is prepared anew."""
COUNTS = "counts.json"


@dataclass(frozen=True)
class Prepared:
    """What stands in a folder of the cache."""

    folder: Path
    files: dict[Split, RowFile]
    table: list[DialogueCounts]


def prepared(preparation: DialoguePreparation, cache: Path | None = None) -> Prepared:
    """The rows that a preparation makes: opened where they are there, else made; another process that wants the same
    waits. `cache`: a folder in place of the usual one.

    DataError as `DialoguePreparation.run`, and where a source or a share gives no row; GptlabError where the cache
    cannot be written.
    """
    folder = (cache or cache_folder()) / "dialogues" / _fingerprint(preparation)
    with suppress(DataError):
        return _open(folder, preparation)
    try:
        with only_one(folder, lambda: preparation.report(preparation.parts[0])):
            with suppress(DataError):
                return _open(folder, preparation)
            _make(folder, preparation)
    except OSError as error:
        raise GptlabError(
            f"{error.filename or folder}: cannot be written: {error.strerror}. Make room, or set GPTLAB_CACHE to a "
            "folder on another disk."
        ) from error
    return _open(folder, preparation)


def _fingerprint(preparation: DialoguePreparation) -> str:
    """16 hex digits of all that the rows depend on."""
    encoder, shares = preparation.encoder, preparation.shares
    parts = [[part.name, part.split, part.source.fingerprint()] for part in preparation.parts]
    what = [
        VERSION, parts, preparation.splits, asdict(shares), preparation.bad_rows, preparation.overlap,
        encoder.learn, encoder.history, encoder.context,
        encoder.template.source, encoder.template.eos, encoder.tokenizer.fingerprint,
    ]  # fmt: skip
    return blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def _make(folder: Path, preparation: DialoguePreparation) -> None:
    """Makes `folder`: under another name until it is whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        preparation.run(partial)
        table = preparation.table()
        check_rows(table, preparation.shares.held, "dialogues")
        headers = preparation.finish()
    except GptlabError:
        shutil.rmtree(partial)
        raise
    finally:
        preparation.close()
    counts = {
        "splits": {split: asdict(header) for split, header in headers.items()},
        "table": [asdict(row) for row in table],
    }
    with (partial / COUNTS).open("wb") as file:
        file.write(json.dumps(counts, indent=1, ensure_ascii=False).encode())
        sync(file)
    shutil.rmtree(folder, ignore_errors=True)  # it is damaged, else it would have been opened
    os.replace(partial, folder)


def _open(folder: Path, preparation: DialoguePreparation) -> Prepared:
    """What is in `folder`; DataError where there is nothing, or it is damaged."""
    try:
        counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        headers = {split: Header(**counts["splits"][split]) for split in preparation.splits}
        table = [DialogueCounts(**row) for row in counts["table"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / COUNTS}: cannot be read: {error}") from error
    return Prepared(folder, {split: RowFile(folder, split, header) for split, header in headers.items()}, table)
