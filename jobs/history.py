"""How the service was a while ago: samples of its numbers, taken by the light worker.

Counters only grow and queues only have a present; the curves of the dashboard need a past. One
sample is taken every `EVERY_SECONDS`, by whichever light worker comes first, and `KEPT` are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jobs.database import Database
from jobs.queues import Queues
from jobs.record import from_milliseconds

EVERY_SECONDS = 15
KEPT = 24 * 3600 // EVERY_SECONDS
"""A day."""

_PREFIXES = ("transitions{", "jobs_failed{", "bytes_in", "bytes_out", "pixels", "leases_lost")


@dataclass(frozen=True)
class Sample:
    """The service at one moment.

    Attributes:
        at: when.
        depth, running: jobs that waited and that were worked on, over all queues.
        oldest_age_seconds: of the job that waited longest; 0 if none did.
        counters: those of `jobs.counters` whose growth is worth a curve.
    """

    at: datetime
    depth: int
    running: int
    oldest_age_seconds: float
    counters: Mapping[str, float] = field(default_factory=dict)

    def ended(self, state: str) -> float:
        """Return how many times a job had ended in ``state``."""
        return sum(
            value
            for name, value in self.counters.items()
            if name.startswith("transitions{") and name.endswith(f'to="{state}"}}')
        )


class History:
    """Takes samples, and reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key = database.key("history")

    def take(self) -> bool:
        """Take a sample unless one was taken just now; True if it was."""
        turn = self._database.key("history", "turn")
        # A little less than the interval: who comes a moment early must not lose a whole turn.
        patience = EVERY_SECONDS * 900
        with self._database.pipeline() as pipeline:
            pipeline.set(turn, "1", nx=True, px=patience)
            (ours,) = pipeline.execute()
        if not ours:
            return False
        queues = Queues(self._database).all()
        found = self._database.call("hgetall", self._database.key("counters"))
        counters = {name: float(n) for name, n in found.items() if name.startswith(_PREFIXES)}
        values = {
            "depth": sum(each.depth for each in queues),
            "running": sum(each.running for each in queues),
            "oldest_age_seconds": max(each.oldest_age_seconds or 0.0 for each in queues),
            "counters": counters,
        }
        with self._database.pipeline() as pipeline:
            pipeline.xadd(self._key, {"sample": json.dumps(values)}, maxlen=KEPT, approximate=True)
            pipeline.execute()
        return True

    def read(self, seconds: float) -> tuple[Sample, ...]:
        """Return the samples of the last so many seconds, oldest first."""
        since = self._database.now_milliseconds() - round(seconds * 1000)
        with self._database.pipeline() as pipeline:
            pipeline.xrange(self._key, max(0, since), "+")
            (rows,) = pipeline.execute()
        return tuple(
            Sample(at=from_milliseconds(int(identifier.partition("-")[0])), **json.loads(text))
            for identifier, text in ((identifier, row["sample"]) for identifier, row in rows)
        )

    def clear(self) -> None:
        """Forget every sample."""
        self._database.call("delete", self._key)
