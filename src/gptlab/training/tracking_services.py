"""The services that can follow a run, each in a few lines over its own library, which is imported where it is asked
for.

Where a service keeps its runs, and who may, its own settings say: WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID and so on. TensorBoard's event files lie in the run's folder.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

from gptlab.run.run import Run
from gptlab.settings import flatten

CURVES = {
    "step": "training",
    "validation": "validation",
    "validation_sampled": "validation_sampled",
    "reward": "reward",
}
"""The events that make curves, and the group that a service shows them in."""

FAILED = ("failed", "stopped")
"""How a run ends that went wrong."""


class Service(Protocol):
    """What follows one session of a run. It may raise whatever its library raises."""

    replaces: bool
    """Whether the steps after the one that a session begins at take the place of what an earlier one had logged."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Points of curves: "training/loss" → its value after `step` optimizer steps. Steps do not fall."""
        ...

    def end(self, status: str) -> None:
        """No more come. `status`: that of state.json, or "failed"."""
        ...


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The points in a line of metrics.jsonl, {"training/loss": 3.2, …}; none where its event makes no curves.

    What is no number (the texts and lists of a reward, say) is left out; NaN and infinity stay.
    """
    group = CURVES.get(record["event"])
    if group is None:
        return {}
    return {
        f"{group}/{key}": float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoard:
    """Event files in RUN/tensorboard. What lies after the step that a session begins at is purged, as it is cut from
    metrics.jsonl; where there are no files yet (they are in no mirror), the lines before it are written again."""

    replaces = True

    def __init__(self, project: str, run: Run, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        before = [] if folder.exists() else [line for line in run.metrics() if line["step"] <= first_step]
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)  # purged: this step and those after it
        for line in before:
            self.log(line["step"], numbers_of(line))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for tag, value in numbers.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()  # a kill must not take what metrics.jsonl has already

    def end(self, status: str) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases. Its own files lie in RUN/wandb."""

    replaces = False

    def __init__(self, project: str, run: Run, first_step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=project, name=run.name, id=identity(run), resume="allow", config=run.recipe, allow_val_change=True,
            dir=str(run.folder), reinit="create_new",
            settings=wandb.Settings(console="off"),  # it would take the live bar for output
        )  # fmt: skip

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, status: str) -> None:
        self.run.finish(exit_code=int(status in FAILED))


class MLflow:
    """MLflow; the project is its experiment, the recipe its parameters. A run that continues is found by a tag."""

    replaces = False

    def __init__(self, project: str, run: Run, first_step: int) -> None:
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(project).experiment_id
        tags = {"gptlab.run": identity(run)}
        found = self.client.search_runs([experiment], f"tags.`gptlab.run` = '{identity(run)}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        self.client.log_batch(
            self.run_id, params=[Param(key, str(value)) for key, value in flatten(run.recipe).items()]
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self.client.log_batch(self.run_id, [Metric(key, value, now, step) for key, value in numbers.items()])

    def end(self, status: str) -> None:
        words = "FINISHED" if status == "finished" else "FAILED" if status in FAILED else "KILLED"
        self.client.set_terminated(self.run_id, words)


class Trackio:
    """Trackio, on this machine or in a Space. It knows a run by its name alone, so the name is the run's identity."""

    replaces = False

    def __init__(self, project: str, run: Run, first_step: int) -> None:
        import trackio

        self.run = trackio.init(project, identity(run), config=run.recipe, resume="allow", embed=False)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, status: str) -> None:
        import trackio

        trackio.finish()  # the run's own would leave it the current one, to be finished once more


def identity(run: Run) -> str:
    """The run's name and when it began: the same in every session, another where a run of the name starts over."""
    return f"{run.name}-{zlib.crc32(run.origin['created'].encode()):08x}"
