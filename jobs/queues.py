"""Queues as people see them: how deep, how old, paused or not."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.database import Database
from jobs.record import DEFAULT_QUEUE, PRIORITIES

# The place in a queue is (9 - priority) times this, plus milliseconds; see lua/common.lua.
_PRIORITY_STEP = 10**13


@dataclass(frozen=True)
class QueueStats:
    """One queue now.

    Attributes:
        depth: jobs that wait.
        oldest_age_seconds: how long ago the oldest of them was queued by a person; None if empty.
        paused: whether claims are refused.
        running: jobs that are being worked on.
    """

    name: str
    depth: int
    oldest_age_seconds: float | None
    paused: bool
    running: int


class Queues:
    """Looks at queues, and pauses them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stats(self, queue: str = DEFAULT_QUEUE) -> QueueStats:
        """Return the numbers of one queue; of one that never had a job they are zero."""
        key = self._database.key
        with self._database.pipeline() as pipeline:
            pipeline.zcard(key("queue", queue))
            pipeline.scard(key("running", queue))
            pipeline.sismember(key("paused"), queue)
            pipeline.time()
            for priority in PRIORITIES:
                lowest = (9 - priority) * _PRIORITY_STEP
                pipeline.zrange(
                    key("queue", queue),
                    lowest,
                    lowest + _PRIORITY_STEP - 1,
                    byscore=True,
                    offset=0,
                    num=1,
                    withscores=True,
                )
            depth, running, paused, (seconds, microseconds), *heads = pipeline.execute()
        queued = [int(score) % _PRIORITY_STEP for head in heads for _, score in head]
        now = int(seconds) * 1000 + int(microseconds) // 1000
        age = max(0, now - min(queued)) / 1000 if queued else None
        return QueueStats(queue, int(depth), age, bool(paused), int(running))

    def depth(self, queue: str = DEFAULT_QUEUE) -> int:
        """Return how many jobs wait in a queue."""
        return int(self._database.call("zcard", self._database.key("queue", queue)))

    def all(self) -> list[QueueStats]:
        """Return the numbers of every queue that ever had a job, the default one included."""
        names = {DEFAULT_QUEUE} | set(self._database.call("smembers", self._database.key("queues")))
        return [self.stats(name) for name in sorted(names)]

    def pause(self, queue: str) -> None:
        """Refuse claims from now on. Running jobs go on, new ones are accepted and wait."""
        self._database.call("sadd", self._database.key("paused"), queue)

    def resume(self, queue: str) -> None:
        """Allow claims again. Wake-ups that were used up meanwhile are sent by the reaper."""
        self._database.call("srem", self._database.key("paused"), queue)
