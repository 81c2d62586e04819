"""Whether a student learns more from a teacher than alone: report D's table, over seeds.

    python benchmarks/distillation.py --teacher runs/cola-lora --data cola [--seeds 5]

The student of the recipe cola-distillation (an embedding of 768, two layers of a tanh RNN of 768) is trained with the
teacher (variant `files`) and alone (`files-alone`), with the same seeds, on CoLA's own files in the folder `--data`.
Accuracy and Matthews' correlation on validation, by the checkpoint of the best accuracy (as report D chooses) and by
the last one, which no look at validation has chosen: the mean over the seeds with its deviation, beside the majority
class and the teacher; and the paired difference over the seeds, with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from output import machine, print_columns, write

if TYPE_CHECKING:
    from gptlab.run.run import Run

VARIANTS = {"alone": "files-alone", "distilled": "files"}
SCORES = ("accuracy", "matthews")
CHECKPOINTS = ("best", "last")


def train(variant: str, seed: int, options: argparse.Namespace) -> Run:
    """A student of this seed; a run that is there already is only read."""
    import gptlab

    changes = [f"seed={seed}", "validation.best_by=accuracy", *options.changes]
    if variant == "files":
        changes.append(f"objective.teacher={options.teacher}")
    return gptlab.train(
        "cola-distillation", *changes, variant=variant, name=f"{variant}-{seed}", runs=options.runs,
    )  # fmt: skip


def scores_of(run: Run) -> dict[str, dict[str, float]]:
    """The validation scores of a run's best and last checkpoints."""
    found = run.evaluation
    return {which: found.get(which, found["best"])["validation"] for which in CHECKPOINTS}


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and deviation over the seeds of each score, and the paired differences distilled − alone."""
    from gptlab.evaluation.classification_scores import seeds_difference

    def values(name: str, which: str, score: str) -> list[float]:
        return [each[which][score] for each in runs[name]]

    return {
        which: {
            score: {
                name: {"mean": statistics.mean(of), "deviation": statistics.stdev(of), "values": of}
                for name in runs
                if (of := values(name, which, score))
            }
            | {"difference": seeds_difference(values("distilled", which, score), values("alone", which, score))}
            for score in SCORES
        }
        for which in CHECKPOINTS
    }


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--teacher", required=True, help="a classifier of CoLA: the run that cola-lora made")
    made.add_argument("--data", required=True, type=Path, help="the folder with CoLA's own three files")
    made.add_argument("--runs", default="runs", help="where the students' runs are (default: runs)")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--out", help="where the JSON goes (default: results/distillation.json beside this file)")
    made.add_argument("changes", nargs="*", help="section.key=value, for the students")
    options = made.parse_args()
    if options.seeds < 2:
        made.error("--seeds: a difference over seeds wants two at least")
    options.quick = False
    options.teacher, options.runs = str(Path(options.teacher).absolute()), str(Path(options.runs).absolute())
    options.out = options.out and str(Path(options.out).absolute())

    import gptlab

    os.chdir(options.data)  # the variants name CoLA's files as they lie there
    result = machine(None)
    runs = {
        name: [scores_of(train(variant, seed, options)) for seed in range(1, options.seeds + 1)]
        for name, variant in VARIANTS.items()
    }
    teacher = gptlab.evaluate(options.teacher).metrics
    result |= {"seeds": options.seeds, "teacher": {score: teacher[score] for score in SCORES}, **summarise(runs)}
    result["majority"] = {"accuracy": teacher["majority_accuracy"], "matthews": 0.0}
    for which in CHECKPOINTS:
        rows = [[f"{which} checkpoint", *SCORES]]
        rows += [["majority", *(f"{result['majority'][score]:.4f}" for score in SCORES)]]
        for name in VARIANTS:
            of = [result[which][score][name] for score in SCORES]
            rows.append([name, *(f"{each['mean']:.4f} ± {each['deviation']:.4f}" for each in of)])
        rows += [["teacher", *(f"{result['teacher'][score]:.4f}" for score in SCORES)]]
        of = [result[which][score]["difference"] for score in SCORES]
        differences = (f"{d['difference']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}), p {d['p']:.3f}" for d in of)
        rows.append(["distilled − alone", *differences])
        print_columns(rows)
        print()
    write(result, options)


if __name__ == "__main__":
    main()
