"""Tables: one column of a .jsonl, .csv, .tsv or .parquet file, or of a data set on the hub, as a stream of texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptlab.data.readers import Progress, file_errors, read_blocks
from gptlab.errors import DataError, GptlabError, nearest
from gptlab.hub import hub_errors

Texts = Iterator[str | None]
"""The texts of a column in order; None where a record has null there."""


def read_table(path: Path, format: str, column: str, progress: Progress) -> Texts:
    """The texts in `column` of the table at `path`.

    DataError, with the line where there is one: no such column, a value that is no text, a record that cannot be read.
    """
    return READERS[format](path, column, progress)


def _read_jsonl(path: Path, column: str, progress: Progress) -> Texts:
    for block in read_blocks(path, progress):
        for number, line in enumerate(block.text.split("\n"), start=block.line):
            if line and not line.isspace():
                yield _text_of_json(line, column, f"{path}, line {number}")


def _text_of_json(line: str, column: str, where: str) -> str | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: is a {type(record).__name__}, not an object with columns")
    text = _text_of_record(record, column, where)
    if text is not None and "\\u" in line:  # only an escape can write half a surrogate pair, which no encoding has
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: column {column!r} holds half a surrogate pair, which is no text") from error
    return text


def _text_of_record(record: dict[str, Any], column: str, where: str) -> str | None:
    if column not in record:
        raise _no_column(where, column, list(record))
    text = record[column]
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: column {column!r} holds {str(text)[:40]!r} ({type(text).__name__}), not text")
    return text


def _read_csv(path: Path, column: str, progress: Progress) -> Texts:
    return _read_separated(path, column, progress, strict=True)


def _read_tsv(path: Path, column: str, progress: Progress) -> Texts:
    """Tab-separated values have no quoting (IANA, text/tab-separated-values): a quotation mark is text."""
    return _read_separated(path, column, progress, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_separated(path: Path, column: str, progress: Progress, **dialect: Any) -> Texts:
    csv.field_size_limit(2**31 - 1)  # a document is often longer than csv's 128 kB; C long has 32 bits on Windows
    lines = (line for block in read_blocks(path, progress) for line in io.StringIO(block.text, newline="\n"))
    rows = csv.reader(lines, **dialect)
    try:
        header = next(rows, [])
        if column not in header:
            raise _no_column(f"{path}, line 1 (the header)", column, header)
        index = header.index(column)
        for row in rows:
            if len(row) == len(header):
                yield row[index]
            elif row:
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} fields where the header has {len(header)}")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def _read_parquet(path: Path, column: str, progress: Progress) -> Texts:
    import pyarrow
    import pyarrow.parquet

    try:
        with file_errors(path), pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            _check_parquet_column(path, column, file.schema_arrow)
            size, rows = path.stat().st_size, 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                rows += batch.num_rows
                progress(size * rows // file.metadata.num_rows)
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _check_parquet_column(path: Path, column: str, schema: Any) -> None:
    from pyarrow import types

    if column not in schema.names:
        raise _no_column(str(path), column, schema.names)
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{path}: column {column!r} holds {kind}, not text")


READERS: dict[str, Callable[[Path, str, Progress], Texts]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def read_hub(repo: str, config: str | None, split: str, revision: str, column: str) -> Texts:
    """The texts in `column` of a data set on the hub, streamed: nothing of it is kept on disk.

    DataError where it has no such configuration, split or column; GptlabError where the hub cannot be reached.
    """
    with hub_errors(repo, "dataset"):
        from datasets import load_dataset

        try:
            records: Iterable[dict[str, Any]] = load_dataset(
                repo, config, split=split, revision=revision, streaming=True
            )
        except ValueError as error:
            raise DataError(f"the data set {repo} on the hub: {error}") from error
        for number, record in enumerate(records, start=1):
            yield _text_of_record(record, column, f"{repo} on the hub, record {number}")


def _no_column(where: str, column: str, columns: Sequence[str]) -> GptlabError:
    there = ", ".join(map(repr, columns)) or "none"
    return DataError(f"{where}: there is no column {column!r}{nearest(column, list(columns))}; there is {there}")
