"""How long a running encode will still take: what the machine's calibration says, at its pace.

The calibration knows how the parts of an encode relate (an iteration of quantising costs more than
one of fitting, and coding and measuring come after both); how fast things go just now is seen from
the iterations that were done. The more of them, the more the pace counts.
"""

from __future__ import annotations

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
        self._from: tuple[float, int] | None = None
        self._earlier = (0.0, 0.0)  # seconds seen and predicted, of tiles that are done
        self._latest = (0.0, 0.0)
        self._closing: float | None = None

    def begin_tile(self) -> None:
        """The iterations of another tile begin."""
        seen, predicted = self._earlier
        self._earlier = (seen + self._latest[0], predicted + self._latest[1])
        self._from, self._latest = None, (0.0, 0.0)

    def fitting(self, now: float, tile: int, done: int, left: int) -> float | None:
        """Return the seconds left, or None while unknown.

        Args:
            now: of a steady clock.
            tile: at work, from 0.
            done: iterations of it that are done.
            left: iterations of it to go; less than planned where it is to finish early.
        """
        plan = self._durations
        if self._from is None:
            self._from = (now, done)
        since, first = self._from
        self._latest = (now - since, plan.iterations(done) - plan.iterations(first))
        pace = self._pace()
        if pace is None or (not self._trust and done - first < _LEAST_ITERATIONS and not tile):
            return None
        planned = plan.workload.iterations - done
        of_tile = plan.tile - plan.iterations(done)
        if left < planned:
            of_tile = left * plan.quantise
        others = plan.workload.tiles - tile - 1
        return pace * (of_tile + others * plan.tile + plan.close)

    def closing(self, now: float) -> float | None:
        """Return the seconds left once all iterations are done."""
        pace = self._pace()
        if pace is None:
            return None
        if self._closing is None:
            self._closing = now
        return max(0.0, pace * self._durations.close - (now - self._closing))

    def _pace(self) -> float | None:
        """Return seconds per predicted second."""
        seen = self._trust + self._earlier[0] + self._latest[0]
        predicted = self._trust + self._earlier[1] + self._latest[1]
        return seen / predicted if predicted > 0.0 else None
