"""How fast text becomes tokens on disk: `python benchmarks/text.py [--data PATH] [--out results.json]`.

Measures MB of text a second, the median of interleaved repeats, on two cores with GPT-2's vocabulary:

    prepare      the whole of prepare_corpus: read, split into documents, digest, encode, count, write, checksum
    tiktoken     tiktoken alone, encode_ordinary_batch with two threads, over half of the documents, in memory
    tokenizers   Hugging Face's tokenizers alone, encode_batch_fast with two threads, over a sixteenth of them

`--data` is a source's path (text, or JSON lines with a column `text`), by default Python's own documentation; it is
repeated, each time with other words at its start so that nothing is a duplicate, up to 64 MB in a temporary folder.
`--tokenizer` is a folder with GPT-2's vocabulary; without it one of 32,000 tokens is trained on the text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

    from gptlab.text.tokenizer import Tokenizer

CORES = 2
MEGABYTES = 64
REPEATS = 5


@dataclass(frozen=True)
class Job:
    """Something to measure, on every n-th document (`every`): a slow one has a rate as well after fewer."""

    run: Callable[[list[str], int], object]
    every: int = 1


class Reading(NamedTuple):
    """Processor time tells what a machine that was busy with other things would have done alone: two cores give
    2,000 milliseconds a second."""

    megabytes_per_second: float
    cpu_milliseconds_per_megabyte: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="file, glob or folder of text; default: the documentation Python carries")
    parser.add_argument("--tokenizer", type=Path, help="folder with GPT-2's vocabulary; default: one trained here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "text.json")
    arguments = parser.parse_args()
    use_two_cores()
    result = measure(arguments.data, arguments.tokenizer)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def use_two_cores() -> None:
    """Leaves this process and the libraries' threads two cores; before tokenizers is imported, which reads it once."""
    os.environ["RAYON_NUM_THREADS"] = str(CORES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def measure(data: str | None, vocabulary: Path | None) -> dict[str, object]:
    import tokenizers

    load_before = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    from gptlab.data.sources import Source, SourceSettings
    from gptlab.text.tokenizer import Tokenizer

    given = SourceSettings(path=data) if data else SourceSettings(embedded="python-docs")
    documents = repeated(list(Source(given).documents()))
    tokenizer = Tokenizer.read(vocabulary) if vocabulary else Tokenizer.train(documents[: len(documents) // 10], 32_000)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer.save(work)
        reference = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))
        raw = raw_tiktoken(reference)
        path = work / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        jobs = {
            "prepare": Job(lambda texts, repeat: prepare(path, tokenizer, work / f"cache{repeat}")),
            "tiktoken": Job(lambda texts, repeat: raw.encode_ordinary_batch(texts, num_threads=CORES), every=2),
            "tokenizers": Job(lambda texts, repeat: reference.encode_batch_fast(texts), every=16),
        }
        readings = interleaved(jobs, documents)
    return {
        "what": f"text to tokens on {CORES} cores, medians of interleaved repeats",
        "megabytes_per_second": {
            name: round(statistics.median(r.megabytes_per_second for r in each), 1) for name, each in readings.items()
        },
        "cpu_milliseconds_per_megabyte": {
            name: round(statistics.median(r.cpu_milliseconds_per_megabyte for r in each), 1)
            for name, each in readings.items()
        },
        "repeats": {name: [round(r.megabytes_per_second, 1) for r in each] for name, each in readings.items()},
        "text": {
            "megabytes": round(sum(len(t.encode()) for t in documents) / 1e6, 1),
            "documents": len(documents),
            "vocab_size": tokenizer.vocab_size,
        },
        "machine": {
            "processor": processor(),
            "cores": CORES,
            "system": platform.platform(),
            "load_before": load_before,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("gptlab", "tiktoken", "tokenizers", "numpy")},
        },
    }


def repeated(documents: list[str]) -> list[str]:
    """The documents again and again, each numbered so that none is a duplicate, until there is enough."""
    size = sum(len(text.encode()) for text in documents)
    copies = max(1, -(-MEGABYTES * 10**6 // size))
    return [f"{copy} {number}\n{text}" for copy in range(copies) for number, text in enumerate(documents)]


def raw_tiktoken(reference: tokenizers.Tokenizer) -> tiktoken.Encoding:
    """The same vocabulary in tiktoken, with the pattern that tiktoken itself ships for GPT-2."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    from gptlab.text.vocabulary import BYTE_OF_CHARACTER

    ranks = {
        bytes(BYTE_OF_CHARACTER[c] for c in token): number
        for token, number in reference.get_vocab().items()
        if all(c in BYTE_OF_CHARACTER for c in token) and not token.startswith("<|")
    }
    return tiktoken.Encoding("raw", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def prepare(path: Path, tokenizer: Tokenizer, cache: Path) -> None:
    from gptlab.data.corpus import CorpusSettings, prepare_corpus
    from gptlab.settings import build

    tree = {"sources": [{"path": str(path)}], "validation": {"share": 0.05}}
    prepare_corpus(build(CorpusSettings, tree, "benchmark"), tokenizer, cache=cache)


def interleaved(jobs: Mapping[str, Job], documents: list[str]) -> dict[str, list[Reading]]:
    """What each job takes in each repeat; the jobs take turns, so that a disturbance meets all alike."""
    readings: dict[str, list[Reading]] = {name: [] for name in jobs}
    for repeat in range(REPEATS + 1):
        for name, job in jobs.items():
            part = documents[:: job.every]
            megabytes = sum(len(text.encode()) for text in part) / 1e6
            start, cpu = time.perf_counter(), time.process_time()
            job.run(part, repeat)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            if repeat:  # the first only builds the engines and brings files into the page cache
                readings[name].append(Reading(megabytes / seconds, 1000 * cpu / megabytes))
    return readings


def processor() -> str:
    """The processor's name, as Linux says it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
