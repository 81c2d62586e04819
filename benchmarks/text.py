"""How fast text becomes tokens on disk, MB of text a second, on two cores with GPT-2's vocabulary.

    ours prepare  the whole of prepare_corpus: read, split into documents, digest, encode, count, write, checksum
    tiktoken      tiktoken alone, encode_ordinary_batch with two threads, over half of the documents, in memory
    tokenizers    Hugging Face's tokenizers alone, encode_batch_fast with two threads, over a sixteenth of them

`--data` is a source's path (text, or JSON lines with a column `text`), by default Python's own documentation; it is
repeated, each time with other words at its start so that nothing is a duplicate, up to 64 MB in a temporary folder.
`--tokenizer` is a folder with GPT-2's vocabulary; without it one of 32,000 tokens is trained on the text. Processor
time is given beside the rate: what a machine that was busy with other things would have done alone (two cores give
2,000 milliseconds a second).
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Case, Variant, ours, parser, run
from models import own_folder
from output import print_columns, write
from worker import Work

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

CORES = 2


def prepare(path: Path, vocabulary: Path) -> Work:
    from gptlab.data.corpus import CorpusSettings, prepare_corpus
    from gptlab.settings import build
    from gptlab.text.tokenizer import Tokenizer

    tree = {"sources": [{"path": str(path)}], "validation": {"share": 0.05}}
    settings, tokenizer, folder = build(CorpusSettings, tree, "benchmark"), Tokenizer.read(vocabulary), own_folder()
    repeats = 0

    def step() -> None:
        nonlocal repeats
        repeats += 1
        prepare_corpus(settings, tokenizer, cache=folder / str(repeats))

    return Work(step, megabytes(read_documents(path)))


def by_tiktoken(path: Path, vocabulary: Path, threads: int) -> Work:
    documents = read_documents(path)[::2]
    encoding = raw_tiktoken(vocabulary)

    def step() -> None:
        encoding.encode_ordinary_batch(documents, num_threads=threads)

    return Work(step, megabytes(documents))


def by_tokenizers(path: Path, vocabulary: Path) -> Work:
    """It has as many threads as RAYON_NUM_THREADS says."""
    documents = read_documents(path)[::16]
    tokenizer = reference(vocabulary)

    def step() -> None:
        tokenizer.encode_batch_fast(documents)

    return Work(step, megabytes(documents))


def reference(vocabulary: Path) -> tokenizers.Tokenizer:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))


def raw_tiktoken(vocabulary: Path) -> tiktoken.Encoding:
    """The same vocabulary in tiktoken, with the pattern that tiktoken itself ships for GPT-2."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    from gptlab.text.vocabulary import BYTE_OF_CHARACTER

    ranks = {
        bytes(BYTE_OF_CHARACTER[c] for c in token): number
        for token, number in reference(vocabulary).get_vocab().items()
        if all(c in BYTE_OF_CHARACTER for c in token) and not token.startswith("<|")
    }
    return tiktoken.Encoding("raw", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def read_documents(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def megabytes(documents: list[str]) -> float:
    return sum(len(text.encode()) for text in documents) / 1e6


def write_text(path: Path, vocabulary: Path, data: str | None, tokenizer: Path | None, quick: bool) -> dict[str, Any]:
    """The documents again and again, each numbered so that none is a duplicate, until there is enough; the
    vocabulary beside them. Returns what they are."""
    from gptlab.data.sources import Source, SourceSettings
    from gptlab.text.tokenizer import Tokenizer

    given = SourceSettings(path=data) if data else SourceSettings(embedded="python-docs")
    documents = list(Source(given).documents())
    if quick:
        documents = documents[:16]
    copies = max(1, round((1 if quick else 64) / megabytes(documents) + 0.5))
    texts = [f"{copy} {number}\n{text}" for copy in range(copies) for number, text in enumerate(documents)]
    found = (
        Tokenizer.read(tokenizer) if tokenizer else Tokenizer.train(texts[: len(texts) // 10], 512 if quick else 32_000)
    )
    found.save(vocabulary)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {"megabytes": megabytes(texts), "documents": len(texts), "vocab_size": found.vocab_size}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", help="file, glob or folder of text; default: the documentation Python carries")
    made.add_argument("--tokenizer", type=Path, help="folder with GPT-2's vocabulary; default: one trained here")
    made.set_defaults(threads=CORES)
    options = made.parse_args()
    folder = own_folder()
    place = {"path": folder / "text.jsonl", "vocabulary": folder / "vocabulary"}
    text = write_text(**place, data=options.data, tokenizer=options.tokenizer, quick=options.quick)
    variants = [
        ours("prepare", prepare, place),
        Variant("tiktoken", by_tiktoken, place | {"threads": options.threads}),
        Variant("tokenizers", by_tokenizers, place),
    ]
    case = Case("text", "MB/s", variants, ("tiktoken", "tokenizers"), rounds=5)
    result = run([case], options, f"text to tokens on {options.threads} cores") | {"text": text}
    each = result["cases"].get("text", {"variants": {}})["variants"]
    for found in each.values():
        found["cpu_milliseconds_per_megabyte"] = (
            1000 * statistics.median(found["cpu_seconds"]) / found["amount_a_round"]
        )
    print("\nprocessor time, ms a MB")
    print_columns([[name, f"{found['cpu_milliseconds_per_megabyte']:.1f}"] for name, found in each.items()])
    write(result, options)


if __name__ == "__main__":
    main()
