"""How long a run is: in steps from the start, or in minutes, turned into steps by the clock and then kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_DECISION = 10
"""Steps after which a length in minutes is first turned into steps."""

WARM_UP = 2
"""Steps that do not count for the pace: the first loads libraries and compiles."""

EARLY = 0.9
"""A run that reaches its last step before this part of its time decides anew."""

LATER_DECISIONS = (0.25, 0.5, 0.75, 0.9)
"""The parts of the time after which it is turned into steps anew."""


@dataclass
class Length:
    """`total` steps; None while a length in minutes has not been decided.

    `decisions` holds (step, total) pairs. They are written into the run's state as they are made, and replayed
    when the run continues: a recorded step decides the same again, whatever the clock says then.
    """

    total: int | None
    seconds: float | None = None
    decisions: list[tuple[int, int]] = field(default_factory=list)
    _last: tuple[int, float] = (0, 0.0)
    """Step and seconds of the last decision that this process made."""

    @classmethod
    def fixed(cls, steps: int) -> Length:
        return cls(steps)

    @classmethod
    def timed(cls, seconds: float, decisions: Sequence[Sequence[int]] = ()) -> Length:
        return cls(None, seconds, [(step, total) for step, total in decisions])

    def rewind(self, step: int) -> None:
        """The state after `step` steps: the last decision made until then is in force."""
        if self.seconds is not None:
            self.total = next((total for at, total in reversed(self.decisions) if at <= step), None)

    def decide(self, step: int, elapsed: float) -> bool:
        """After `step` steps and `elapsed` seconds: whether the total was decided now (anew, or replayed)."""
        if self.seconds is None:
            return False
        if step == WARM_UP and not self.decisions:
            self._last = (step, elapsed)
        recorded = next((total for at, total in self.decisions if at == step), None)
        if recorded is None:
            if not self._due(step, elapsed) or any(at > step for at, _ in self.decisions):
                return False
            since_step, since = self._last if self._last[0] < step else (0, 0.0)
            pace = (elapsed - since) / (step - since_step)  # of late, because machines get slower and faster
            recorded = step + max(0, round((self.seconds - elapsed) / pace))
            self.decisions.append((step, recorded))
            self._last = (step, elapsed)
        self.total = recorded
        return True

    def _due(self, step: int, elapsed: float) -> bool:
        assert self.seconds is not None
        if self.total is None:
            return step >= FIRST_DECISION or elapsed > self.seconds / 10
        if step >= self.total and elapsed < EARLY * self.seconds:
            return True  # steps have become much quicker than they were
        made = len(self.decisions) - 1
        return made < len(LATER_DECISIONS) and elapsed >= LATER_DECISIONS[made] * self.seconds
