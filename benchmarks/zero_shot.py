"""One model's zero-shot scores by this lab and by lm-evaluation-harness, of the same items, and how they differ.

    pip install lm_eval accelerate
    gptlab export RUN --to FOLDER
    python benchmarks/zero_shot.py FOLDER --blimp BLiMP.zip --lambada lambada_test.jsonl --hellaswag hellaswag_val.jsonl

The harness runs its own tasks; in place of the data sets on the hub they are given the same records in local files, so
that no network is needed. Both read the model in float32. Beside the scores stand the differences of the
log-probabilities, and the seconds of each: of ours from text to scores, of the harness with the loading of its files.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from output import HERE, machine, print_columns, write

if TYPE_CHECKING:
    from gptlab.data.choices import Kind
    from gptlab.data.tables import Record


class Task(NamedTuple):
    """A task of the harness: its file, the split and the columns that it reads, its metrics by our names."""

    file: str
    split: str
    columns: tuple[str, ...]
    metrics: dict[str, str]


TASKS: dict[Kind, Task] = {
    "blimp": Task("blimp/_template_yaml", "train", ("sentence_good", "sentence_bad"), {"accuracy": "acc"}),
    "lambada": Task(
        "lambada/lambada_openai.yaml", "test", ("text",), {"accuracy": "acc", "perplexity": "perplexity"}
    ),
    "hellaswag": Task(
        "hellaswag/hellaswag.yaml", "validation", ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        {"accuracy": "acc", "accuracy_normalised": "acc_norm"},
    ),
}  # fmt: skip


class Found(NamedTuple):
    """Scores, the log-probability of every continuation, and the seconds that both took."""

    scores: dict[str, float]
    log_probs: list[float]
    seconds: float


class Ours:
    """This lab."""

    def __init__(self, folder: str, device: str) -> None:
        from gptlab.device import pick_precision
        from gptlab.run.open import open_model

        self.opened = open_model(folder, device=device)
        self.device = next(self.opened.model.parameters()).device
        self.precision = pick_precision("float32", self.device)

    def score(self, kind: Kind, place: str, limit: int) -> Found:
        from gptlab.data.choices import read_choices
        from gptlab.evaluation.choice import SCORES, evenly
        from gptlab.evaluation.continuations import log_likelihoods

        start = time.perf_counter()
        items = evenly(read_choices(kind, place), limit)
        found = log_likelihoods(
            self.opened.model, self.opened.require_tokenizer(), items, device=self.device, precision=self.precision,
            greedy=kind == "lambada",
        )  # fmt: skip
        scores = SCORES[kind](items, found)
        return Found(scores, found.log_probs.tolist(), time.perf_counter() - start)


class Harness:
    """lm-evaluation-harness; its data sets are written into `work`."""

    def __init__(self, folder: str, device: str, batch_size: int, work: Path) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it would name every row that it cuts
        self.model = HFLM(pretrained=folder, device=device, dtype="float32", batch_size=batch_size)
        self.work = work

    def score(self, kind: Kind, records: Sequence[Record]) -> Found:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        name = write_task(self.work, kind, records)
        manager = TaskManager(include_path=str(self.work), include_defaults=False)
        start = time.perf_counter()
        result = simple_evaluate(self.model, tasks=[name], task_manager=manager, bootstrap_iters=0)
        seconds = time.perf_counter() - start
        scores = {ours: result["results"][name][f"{theirs},none"] for ours, theirs in TASKS[kind].metrics.items()}
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        log_probs = [float(answer[0][0]) for sample in samples for answer in sample["resps"]]
        return Found(scores, log_probs, seconds)


def write_task(work: Path, kind: Kind, records: Sequence[Record]) -> str:
    """The harness' own task, but for where its data are; its name. (JSON is YAML.)"""
    import lm_eval

    task = TASKS[kind]
    data = work / f"{kind}.jsonl"
    lines = [json.dumps({column: record.values[column] for column in task.columns}) for record in records]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / task.file),
        "task": f"local_{kind}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task.split: str(data)}},
        "training_split": None,
    }
    (work / f"{kind}.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return f"local_{kind}"


def published(kind: Kind, place: str, limit: int) -> list[Record]:
    """The records of the same items as they are published, neither joined nor cleaned."""
    from gptlab.data.choice_records import records_at
    from gptlab.data.choices import text_tasks
    from gptlab.evaluation.choice import evenly

    text = text_tasks if kind == "hellaswag" else None
    return evenly(list(records_at(place, TASKS[kind].columns, split=TASKS[kind].split, text=text)), limit)


def compare(ours: Found, theirs: Found) -> dict[str, Any]:
    apart = [abs(a - b) for a, b in zip(ours.log_probs, theirs.log_probs, strict=True)]
    return {
        "scores": {
            name: {"ours": ours.scores[name], "harness": score, "difference": ours.scores[name] - score}
            for name, score in theirs.scores.items()
        },
        "continuations": len(apart),
        "log_prob_difference": {"largest": max(apart), "mean": sum(apart) / len(apart)},
        "seconds": {"ours": ours.seconds, "harness": theirs.seconds},
    }


def show(kind: str, found: dict[str, Any]) -> None:
    rows = [
        [name, f"{each['ours']:.6g}", f"{each['harness']:.6g}", f"{each['difference']:+.2g}"]
        for name, each in found["scores"].items()
    ]
    apart, seconds = found["log_prob_difference"], found["seconds"]
    print(f"\n{kind}, {found['continuations']:,} continuations")
    print_columns([["", "ours", "harness", "difference"], *rows])
    print(f"log-probabilities differ by at most {apart['largest']:.2g}, on average by {apart['mean']:.2g} nats")
    print(f"seconds: {seconds['ours']:.0f} and {seconds['harness']:.0f}", flush=True)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", metavar="FOLDER", help="a model in Hugging Face's format, with its tokenizer")
    for kind in TASKS:
        made.add_argument(f"--{kind}", metavar="PATH", help=f"where the published data of {kind} are")
    made.add_argument("--limit", type=int, default=0, help="only so many items, evenly chosen (default: all)")
    made.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    made.add_argument("--batch-size", type=int, default=16, help="the harness' (default: 16)")
    made.add_argument("--out", default=str(HERE / "results" / "zero_shot.json"), help="where the JSON goes")
    made.set_defaults(quick=False)
    options = made.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result = {
        "what": "zero-shot scores by this lab and by lm-evaluation-harness, of the same items in float32",
        **machine(None), "model": options.model, "limit": options.limit, "tests": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = work
        ours = Ours(options.model, options.device)
        harness = Harness(options.model, options.device, options.batch_size, Path(work))
        for kind in TASKS:
            if place := getattr(options, kind):
                theirs = harness.score(kind, published(kind, place, options.limit))
                result["tests"][kind] = compare(ours.score(kind, place, options.limit), theirs)
                show(kind, result["tests"][kind])
                write(result, options)


if __name__ == "__main__":
    main()
