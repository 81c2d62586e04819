"""A run directory: recipe, origin, state, metrics, samples, checkpoints, report. docs/formats.md describes it.

Only this module knows the names in it, down to checkpoints/N. One process trains a run at a time (`Run.lock`);
any number may read it meanwhile.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from gptlab.errors import CheckpointError, RunError, RunHeld, nearest
from gptlab.model.folder import Model
from gptlab.run import checkpoint as checkpoints
from gptlab.run.checkpoint import Base, TrainingState
from gptlab.run.files import append_records, from_json, read_records, read_tree, to_json, write_bytes, write_text
from gptlab.settings import Tree, read_toml, to_toml
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

RECIPE, ORIGIN, STATE, EVALUATION = "recipe.toml", "origin.json", "state.json", "evaluation.json"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
STUDY = "study.toml"
"""What makes a folder of runs a study."""
CHECKPOINTS, BASE, BEST, LAST, LOCK = "checkpoints", "base", "best", "last", ".lock"
SMALL_FILES = (ORIGIN, STATE, METRICS, SAMPLES, EVALUATION, BEST, LAST, RECIPE)
"""What a mirror has besides the checkpoints. The recipe comes last: it is what makes a folder a run."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ReportFiles:
    """Where a run's report is written."""

    html: Path
    markdown: Path
    plots: Path


class Run:
    """One run directory. Made by `Run.create`, `Run.open` or `Run.restore`.

    mirror: a folder, on a mounted drive say, in which NAME/ is kept as a copy of the run. Where the mirror
            fails, `warn` is told and the run goes on; the next save tries again.
    """

    def __init__(self, folder: Path, *, mirror: Path | None = None, warn: Say = warnings.warn) -> None:
        self.folder = folder
        self._mirror, self._warn, self._mirror_fault = mirror, warn, ""

    @classmethod
    def create(
        cls, folder: Path, recipe: Tree, origin: Tree, *, mirror: Path | None = None, warn: Say = warnings.warn
    ) -> Run:
        """A new run; RunError where the folder, or the mirror, already holds a run of this name."""
        for place in (folder, *([mirror / folder.name] if mirror else [])):
            if (place / RECIPE).exists():
                raise RunError(f"{place}: there is a run already; continue it, or choose another name")
        _make_folders(folder)
        run = cls(folder, mirror=mirror, warn=warn)
        write_text(folder / ORIGIN, to_json(origin, indent=2) + "\n")
        run.write_recipe(recipe)
        return run

    @classmethod
    def open(cls, folder: Path, *, mirror: Path | None = None, warn: Say = warnings.warn) -> Run:
        """An existing run; RunError where `folder` is none, with the nearest name beside it."""
        if (folder / RECIPE).is_file():
            return cls(folder, mirror=mirror, warn=warn)
        what = f"has no {RECIPE}, so it is no run" if folder.exists() else "there is no such run"
        names = run_names(folder.parent)
        beside = f"; {folder.parent} has {', '.join(names) or 'no runs'}"
        raise RunError(f"{folder}: {what}{nearest(folder.name, names)}{beside}")

    @classmethod
    def restore(cls, folder: Path, mirror: Path, *, warn: Say = warnings.warn) -> Run | None:
        """Brings a run whose folder is gone back from its mirror; None where there is nothing to bring back.

        Damaged checkpoints in the mirror are passed over and told to `warn`. A kill meanwhile does no harm: it
        starts again. CheckpointError where the disk is too small.
        """
        source = cls(mirror / folder.name)
        if (folder / RECIPE).exists() or not (source.folder / RECIPE).is_file():
            return None
        _make_folders(folder)
        for step in reversed(source.steps()):
            try:
                checkpoints.verify_folder(source._at(step))
            except CheckpointError as error:
                warn(f"not restored: {error}")
                continue
            checkpoints.copy_folder(source._at(step), folder / CHECKPOINTS / source._at(step).name)
        _copy_small_files(source.folder, folder)
        return cls(folder, mirror=mirror, warn=warn)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def base_folder(self) -> Path:
        """Where a LoRA run's base model is: a link, or a folder of its own."""
        return self.folder / BASE

    @property
    def report_files(self) -> ReportFiles:
        return ReportFiles(self.folder / "report.html", self.folder / "report.md", self.folder / "plots")

    # Small files

    @functools.cached_property
    def recipe(self) -> Tree:
        """The recipe with every field resolved."""
        return read_toml(self.folder / RECIPE)

    @property
    def origin(self) -> Tree:
        """Command, versions, device, data."""
        return read_tree(self.folder / ORIGIN)

    @property
    def state(self) -> Tree:
        """Status, step, decisions, best; {} before the first is written."""
        return read_tree(self.folder / STATE)

    @property
    def evaluation(self) -> Tree:
        """The finished model's scores; {} before they are written."""
        return read_tree(self.folder / EVALUATION)

    def write_recipe(self, recipe: Tree) -> None:
        """Replaces the recipe (a run that continues may be longer, or log more often)."""
        write_text(self.folder / RECIPE, to_toml(recipe))
        self.__dict__.pop("recipe", None)
        self._update_mirror(with_checkpoints=False)

    def write_state(self, state: Tree) -> None:
        """Replaces the state, atomically."""
        write_text(self.folder / STATE, to_json(state, indent=2) + "\n")
        self._update_mirror(with_checkpoints=False)

    def write_evaluation(self, scores: Tree) -> None:
        """Replaces the scores, atomically."""
        write_text(self.folder / EVALUATION, to_json(scores, indent=2) + "\n")
        self._update_mirror(with_checkpoints=False)

    # Lines

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl. A number that is not finite is written as "NaN", "Infinity" or so."""
        append_records(self.folder / METRICS, [record])

    def log_samples(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line a sample to samples.jsonl."""
        append_records(self.folder / SAMPLES, records)

    def metrics(self, event: str | None = None) -> list[Tree]:
        """The records of metrics.jsonl (of one event), numbers that are not finite as floats again."""
        records = read_records(self.folder / METRICS, parse=from_json)
        return [record for record in records if event in (None, record.get("event"))]

    def samples(self) -> list[Tree]:
        """The records of samples.jsonl."""
        return list(read_records(self.folder / SAMPLES))

    def cut(self, step: int) -> None:
        """Removes what was logged after `step`, from which the run continues; also a last line cut by a kill."""
        for file in (self.folder / METRICS, self.folder / SAMPLES):
            if file.exists():
                kept = (record for record in read_records(file) if record.get("step", 0) <= step)
                write_text(file, "".join(f"{to_json(record)}\n" for record in kept))

    # Checkpoints

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending; none of them is verified."""
        folder = self.folder / CHECKPOINTS
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(entry.name) for entry in found if entry.name.isdecimal())

    def save_checkpoint(
        self,
        step: int,
        model: Model,
        tokenizer: Tokenizer,
        state: TrainingState,
        *,
        keep: int,
        best: bool,
        template: Template | None = None,
        base: Base | None = None,
    ) -> Path:
        """Writes checkpoints/STEP and makes it `last`, and the best if it is; `base` is that of an adapted model.

        Of the older ones the newest stay, so that there are `keep` that training can continue from, and the
        best one, which then keeps no optimizer state. CheckpointError where the disk does not take it.
        """
        folder = self._at(step)
        checkpoints.save_checkpoint(folder, model, tokenizer, state, template=template, base=base)
        for pointer in (BEST, LAST) if best else (LAST,):
            write_text(self.folder / pointer, folder.name + "\n")
        self._prune(step, keep)
        self._update_mirror(with_checkpoints=True)
        return folder

    def checkpoint(self, which: Literal["best", "last"] | int | None = None) -> Path:
        """The verified folder of a checkpoint: the best, the last, one by its step; None: the best, else the last.

        RunError where it is not there, CheckpointError where it is damaged, with those that there are.
        """
        step = which if isinstance(which, int) else self._pointed(which or BEST)
        if which is None and step not in self.steps():
            step = self._pointed(LAST)
        if step is None or step not in self.steps():
            wanted = f"no checkpoint {which!r}" if which is not None else "no checkpoint yet"
            raise RunError(f"run {self.folder}: has {wanted}; {self._listed()}")
        try:
            checkpoints.verify_folder(self._at(step))
        except CheckpointError as error:
            raise CheckpointError(
                f"run {self.folder}: checkpoint {step} is damaged: {error}; {self._listed(step)}"
            ) from error
        return self._at(step)

    def newest_valid(self, say: Say) -> Path | None:
        """The newest checkpoint that training can continue from; None where there is none.

        What a killed save has left is cleared away, so the caller holds the lock. Each checkpoint that is passed
        over is told to `say`, with why.
        """
        checkpoints.repair_folders(self.folder / CHECKPOINTS)
        for step in reversed(self.steps()):
            try:
                if checkpoints.has_state(self._at(step)):
                    checkpoints.verify_folder(self._at(step))
                    return self._at(step)
                say(f"checkpoint {step} is passed over: it keeps no optimizer state")
            except CheckpointError as error:
                say(f"checkpoint {step} is passed over: {error}")
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the run is trained. RunHeld where another process holds it; a kill lets it go."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunHeld(f"run {self.folder}: is being trained by another process") from None
        try:
            yield
        finally:
            lock.release()

    def _at(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"{step:06d}"

    def _pointed(self, pointer: str) -> int | None:
        try:
            return int((self.folder / pointer).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _listed(self, without: int | None = None) -> str:
        steps = [str(step) for step in self.steps() if step != without]
        if steps:
            return f"there is {', '.join(steps)}"
        return "there is none" if without is None else "there is no other"

    def _prune(self, newest: int, keep: int) -> None:
        for step in [step for step in self.steps() if step < newest][::-1][max(keep, 1) - 1 :]:
            if step == self._pointed(BEST):
                checkpoints.drop_optimizer(self._at(step))
            else:
                checkpoints.remove_folder(self._at(step))
        for step in self.steps():
            if step > newest and not _is_valid(self._at(step)):
                checkpoints.remove_folder(self._at(step))  # damaged: the run went back behind it

    # Mirror

    def _update_mirror(self, *, with_checkpoints: bool) -> None:
        if self._mirror is None:
            return
        try:
            if not self._mirror.is_dir():
                raise CheckpointError(f"{self._mirror} is not there (is the drive mounted?)")
            self._copy_to(Run(self._mirror / self.name), with_checkpoints)
            self._mirror_fault = ""
        except (OSError, RunError, CheckpointError) as error:
            if str(error) != self._mirror_fault:  # said once, not at every save
                self._warn(f"the mirror could not be brought up to date, the run goes on without: {error}")
            self._mirror_fault = str(error)

    def _copy_to(self, copy: Run, with_checkpoints: bool) -> None:
        """The newest checkpoint first; older ones there are removed only after all that is here has arrived."""
        _make_folders(copy.folder)
        steps = self.steps() if with_checkpoints else []
        for step in reversed(steps):
            checkpoints.copy_folder(self._at(step), copy._at(step))
        _copy_small_files(self.folder, copy.folder)
        for step in copy.steps():
            if steps and step not in steps and step < steps[-1]:
                checkpoints.remove_folder(copy._at(step))


def run_names(parent: Path) -> list[str]:
    """The names of the runs in a folder."""
    return sorted(file.parent.name for file in parent.glob(f"*/{RECIPE}"))


def run_folder(name: str, runs: Path) -> Path | None:
    """Where the run of this name is: in `runs`, or, where that is a study's folder, beside the study; None: nowhere."""
    places = (runs, runs.parent) if (runs / STUDY).is_file() else (runs,)
    return next((place / name for place in places if (place / name / RECIPE).is_file()), None)


def _make_folders(folder: Path) -> None:
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error


def _copy_small_files(source: Path, target: Path) -> None:
    for name in SMALL_FILES:
        if (source / name).exists():
            write_bytes(target / name, (source / name).read_bytes())


def _is_valid(folder: Path) -> bool:
    try:
        checkpoints.verify_folder(folder)
    except CheckpointError:
        return False
    return True
