"""How long it takes until something happens, in seconds: --help, the first training step; imports beside them.

The first step is that of `gptlab train mini-gpt training.max_steps=1` on about a megabyte of words, from the start of
the command to the step's line in metrics.jsonl:

    nothing cached     the first of all: the C++ kernels are built, the text is prepared
    text not prepared  the kernels are there
    text prepared      as from the second run on
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import Case, Variant, parser, run
from models import own_folder, write_vocabulary
from worker import Work

TEXT_WORDS = 170_000
PATIENCE_SECONDS = 300


def gptlab() -> str:
    """The console script that belongs to this Python."""
    found = shutil.which("gptlab", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise FileNotFoundError("the command gptlab is not installed: pip install -e .")
    return found


def command(words: list[str]) -> Work:
    """A command from its start to its end."""

    def step() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    return Work(step, facts=largest_child)


def first_step(begin: str, text: str, vocabulary: str) -> Work:
    """The command until its first step's line; `begin` is "nothing cached" and so on. Then it is killed."""
    folder = own_folder()
    kept, number = folder / "cache", 0
    words = [
        gptlab(), "train", "mini-gpt", "training.max_steps=1", f"tokenizer.from={vocabulary}",
        "--device", "cpu", "--data", text,
    ]  # fmt: skip

    def step() -> float:
        nonlocal number
        number += 1
        runs, cache = folder / f"runs{number}", kept if begin == "text prepared" else folder / f"cache{number}"
        if begin == "text not prepared" and (kept / "kernels").exists():
            shutil.copytree(kept / "kernels", cache / "kernels")
        metrics = runs / "mini-gpt" / "metrics.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            [*words, "--runs", str(runs)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "GPTLAB_CACHE": str(cache)}, text=True,
        )  # fmt: skip
        try:
            while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
                if process.poll() is not None or time.perf_counter() - start > PATIENCE_SECONDS:
                    raise RuntimeError(f"no first step: {process.communicate()[1] if process.poll() else 'too slow'}")
                time.sleep(0.002)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.communicate()
        if not kept.exists():
            shutil.copytree(cache, kept)  # the kernels of the first, for those that begin with them
        return seconds

    return Work(step, facts=largest_child)


def largest_child() -> dict[str, float]:
    """The peak memory of the largest process that was started."""
    try:
        import resource
    except ImportError:  # not there on Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6}


def write_text(path: Path) -> None:
    """Words of random letters, the same each time."""
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(2, 8))) for _ in range(5000)]
    lines = (" ".join(letters.choices(words, k=12)) for _ in range(TEXT_WORDS // 12))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def helps(quick: bool) -> list[Variant]:
    from gptlab.cli import VERBS

    verbs = ["train"] if quick else list(VERBS)
    return [
        Variant("gptlab --help", command, {"words": [gptlab(), "--help"]}),
        *(Variant(f"gptlab {verb} --help", command, {"words": [gptlab(), verb, "--help"]}) for verb in verbs),
    ]


def imports() -> list[Variant]:
    transformers = "from transformers import GPT2LMHeadModel"
    return [
        Variant("import torch", command, {"words": [sys.executable, "-c", "import torch"]}),
        Variant(transformers, command, {"words": [sys.executable, "-c", transformers]}, needs=("transformers",)),
    ]


def main() -> None:
    options = parser(__doc__).parse_args()
    folder = own_folder()
    write_text(folder / "words.txt")
    write_vocabulary(folder / "vocabulary")
    size = {"text": str(folder / "words.txt"), "vocabulary": str(folder / "vocabulary")}
    begins = ["text prepared"] if options.quick else ["nothing cached", "text not prepared", "text prepared"]
    cases = [
        Case("help", "s", helps(options.quick), ("gptlab --help",)),
        Case("imports of peers", "s", imports(), ("import torch",)),
        Case(
            "first training step of mini-gpt", "s",
            [Variant(f"gptlab train, {begin}", first_step, size | {"begin": begin}) for begin in begins],
            ("*text prepared",), rounds=5,
        ),
    ]  # fmt: skip
    run(cases, options, "seconds from a command to what it is given for")


if __name__ == "__main__":
    main()
