"""How long a running encode will still take: what the machine's calibration says, at its pace.

The calibration knows how the parts of an encode relate (an iteration of quantising costs more than
one of fitting, and coding and measuring come after both); how fast things go just now is seen from
the iterations that were done. The more of them, the more the pace counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from nifcore.calibration import Durations

_TRUST_SECONDS = 2.0
"""A calibration of this machine counts as much as so many seconds of watching it."""
_LEAST_ITERATIONS = 3
"""Without a calibration, nothing is said before so many iterations."""


class Eta:
    """Watches an encode and tells the seconds left of it, or of its present round.

    Args:
        durations: of the parts, as a calibration predicts them.
        calibrated: whether that is one of this machine; only the ratios are used if not.
    """

    def __init__(self, durations: Durations, *, calibrated: bool) -> None:
        self._durations = durations
        self._trust = _TRUST_SECONDS if calibrated else 0.0
        self._from: tuple[float, float] | None = None  # the clock, and predicted seconds by then
        self._latest = (0.0, 0.0)  # seconds seen and predicted since
        self._iterations = 0
        self._closing: float | None = None

    def begin(self, now: float, done: Sequence[int]) -> None:
        """Iterations begin; ``done`` of the tiles that were begun were done before."""
        if self._from is None:
            self._from = (now, self._predicted(done))
            self._iterations = sum(done)

    def fitting(self, now: float, done: Sequence[int], left: int | None = None) -> float | None:
        """Return the seconds left, or None while unknown.

        Args:
            now: of a steady clock.
            done: iterations that are done of every tile that was begun.
            left: iterations to go where they finish early, all together.
        """
        plan = self._durations
        self.begin(now, done)
        assert self._from is not None
        since, before = self._from
        predicted = self._predicted(done)
        self._latest = (now - since, predicted - before)
        pace = self._pace()
        if pace is None or (not self._trust and sum(done) - self._iterations < _LEAST_ITERATIONS):
            return None
        rest = plan.tiles - predicted
        if left is not None:
            rest = left * plan.quantise * (1.0 - plan.together)
        return pace * (rest + plan.close)

    def closing(self, now: float) -> float | None:
        """Return the seconds left once all iterations are done."""
        pace = self._pace()
        if pace is None:
            return None
        if self._closing is None:
            self._closing = now
        return max(0.0, pace * self._durations.close - (now - self._closing))

    def _predicted(self, done: Sequence[int]) -> float:
        alone = sum(self._durations.iterations(count) for count in done)
        return alone * (1.0 - self._durations.together)

    def _pace(self) -> float | None:
        """Return seconds per predicted second."""
        seen, predicted = (self._trust + each for each in self._latest)
        return seen / predicted if predicted > 0.0 else None
