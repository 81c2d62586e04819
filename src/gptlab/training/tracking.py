"""`[tracking]`: services that follow a run beside its own folder, fed from the lines of its metrics.

The run directory stays the one place that has everything: a service that fails is left alone, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from gptlab.errors import UserError
from gptlab.run.run import Run
from gptlab.settings import Section
from gptlab.training.tracking_services import MLflow, Service, TensorBoard, Trackio, Wandb, numbers_of

SERVICES: dict[str, Callable[[str, Run, int], Service]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip
"""By the name of the module that each needs."""

EXTRAS = ("tensorboard",)
"""Those that are an extra of gptlab; the others are installed by their own name."""


class TrackingSettings(Section):
    """`[tracking]`: the `services` that follow a run, none by default. `project`: the name under which Weights & Biases
    and Trackio gather runs, and MLflow's experiment."""

    services: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field((), strict=False)
    project: str = Field("gptlab", min_length=1)


def check_services(settings: TrackingSettings) -> None:
    """UserError, with the pip command, where a service is not installed. Nothing is imported."""
    for name in settings.services:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name, such as wandb's own
            package = f"'gptlab[{name}]'" if name in EXTRAS else name
            raise UserError(f"tracking.services = {name} needs: pip install {package}")


class Tracker:
    """The services that follow one session of a run; none unless they are added. Used with `with`, which ends them.

    say:  told once of a service that fails; it is left alone from then on
    run:  whose state says how the session ended
    sent: (event, step) of the lines that an earlier session sent, some of them after the step that this one begins at.
          They come again and are sent again only to services that replace them
    """

    def __init__(
        self, run: Run | None = None, say: Callable[[str], None] = lambda text: None,
        sent: AbstractSet[tuple[str, int]] = frozenset(),
    ) -> None:  # fmt: skip
        self._run, self._say, self._sent = run, say, sent
        self._services: dict[str, Service] = {}

    def add(self, name: str, make: Callable[[], Service]) -> None:
        """One more service, made here so that its failure is no failure of the run."""
        with self._without_harm(name):
            self._services[name] = make()

    def log(self, record: Mapping[str, Any]) -> None:
        """Passes on a line of the metrics, if it makes points of curves."""
        numbers = numbers_of(record)
        if not numbers:
            return
        again = (record["event"], record["step"]) in self._sent
        for name, service in list(self._services.items()):
            if service.replaces or not again:
                with self._without_harm(name):
                    service.log(record["step"], numbers)

    def end(self, status: str) -> None:
        """No more lines come; `status` as in state.json, or "failed"."""
        for name, service in list(self._services.items()):
            with self._without_harm(name):
                service.end(status)
        self._services.clear()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *raised: object) -> None:
        status = self._run.state.get("status", "running") if self._run else "running"
        self.end("failed" if status == "running" else status)

    @contextmanager
    def _without_harm(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # another's code, often over a network: anything may come
            self._services.pop(name, None)
            self._say(
                f"tracking: {name} failed and is left out from here on; the run goes on, and its metrics.jsonl has "
                f"every line ({type(error).__name__}: {error})"
            )


def open_trackers(
    settings: TrackingSettings, run: Run, first_step: int, say: Callable[[str], None] = lambda text: None
) -> Tracker:
    """The services of a session that begins after `first_step` steps. Opened before the run's lines are cut there."""
    if not settings.services:
        return Tracker()
    tracker = Tracker(run, say, {(line["event"], line["step"]) for line in run.metrics()})
    for name in dict.fromkeys(settings.services):
        tracker.add(name, partial(SERVICES[name], settings.project, run, first_step))
    return tracker
