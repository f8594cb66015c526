"""Who works here: heartbeats, what each is doing, and asking one to drain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobs.database import Database
from jobs.errors import NotFound
from jobs.record import from_milliseconds, to_milliseconds
from jobs.settings import Settings
from jobs.store import finite

# A worker that is not heard of for so long is forgotten, so that the list does not grow for ever.
_FORGET_MS = 24 * 3_600_000

CALIBRATION = "calibration"
"""The fact that says how fast a worker's machine encodes (`nifcore.calibration`)."""


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker tells about itself with every heartbeat.

    Attributes:
        id: from `jobs.ids.new_worker_id`.
        device: ``cpu``, ``cuda:0``, ...
        queues: that it listens to.
        job_id, attempt: what it is working on, or None.
        started_at: of the worker.
        facts: anything else worth showing: device name, memory, kernel, versions.
    """

    id: str
    host: str
    pid: int
    device: str
    queues: tuple[str, ...]
    started_at: datetime
    job_id: str | None = None
    attempt: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerStatus:
    """A worker as the service knows it; ``alive`` if it was heard of within a lease."""

    info: WorkerInfo
    seen_at: datetime
    alive: bool
    draining: bool


class Workers:
    """The registry of workers."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._lease_ms = round(settings.lease_seconds * 1000)

    def beat(self, info: WorkerInfo) -> bool:
        """Note that the worker is alive, and return whether it shall drain.

        To drain is to finish what it does and take no more; should it ask nevertheless, its claims
        are refused.
        """
        key = self._database.key
        now = self._database.now_milliseconds()
        text = json.dumps(
            {
                "id": info.id,
                "host": info.host,
                "pid": info.pid,
                "device": info.device,
                "queues": list(info.queues),
                "started": to_milliseconds(info.started_at),
                "job_id": info.job_id,
                "attempt": info.attempt,
                "facts": finite(info.facts),
            }
        )
        with self._database.pipeline() as pipeline:
            pipeline.hset(key("worker"), info.id, text)
            pipeline.zadd(key("workers"), {info.id: now})
            pipeline.sismember(key("draining"), info.id)
            return bool(pipeline.execute()[2])

    def gone(self, worker_id: str) -> None:
        """Forget a worker that ended in order; one that is unknown already is fine."""
        key = self._database.key
        with self._database.pipeline() as pipeline:
            pipeline.hdel(key("worker"), worker_id)
            pipeline.zrem(key("workers"), worker_id)
            pipeline.srem(key("draining"), worker_id)
            pipeline.execute()

    def list(self) -> tuple[WorkerStatus, ...]:
        """Return every worker heard of within a day, by id."""
        key = self._database.key
        with self._database.pipeline() as pipeline:
            pipeline.hgetall(key("worker"))
            pipeline.zrange(key("workers"), 0, -1, withscores=True)
            pipeline.smembers(key("draining"))
            texts, seen, draining = pipeline.execute()
        now = self._database.now_milliseconds()
        times = {worker: int(score) for worker, score in seen}
        return tuple(
            self._status(json.loads(texts[worker]), times[worker], now, worker in draining)
            for worker in sorted(texts.keys() & times.keys())
        )

    def get(self, worker_id: str) -> WorkerStatus:
        """Return one worker.

        Raises:
            NotFound.
        """
        for status in self.list():
            if status.info.id == worker_id:
                return status
        raise NotFound("worker", worker_id)

    def drain(self, worker_id: str) -> WorkerStatus:
        """Ask a worker to finish what it does and take no more.

        Raises:
            NotFound.
        """
        self.get(worker_id)
        self._database.call("sadd", self._database.key("draining"), worker_id)
        return self.get(worker_id)

    def resume(self, worker_id: str) -> WorkerStatus:
        """Take back a `drain`.

        Raises:
            NotFound.
        """
        self.get(worker_id)
        self._database.call("srem", self._database.key("draining"), worker_id)
        return self.get(worker_id)

    def forget_old(self) -> int:
        """Forget workers not heard of for a day and return how many those were."""
        oldest = self._database.now_milliseconds() - _FORGET_MS
        key = self._database.key("workers")
        old = self._database.call("zrangebyscore", key, "-inf", oldest)
        for worker in old:
            self.gone(worker)
        return len(old)

    def _status(
        self, values: Mapping[str, Any], seen: int, now: int, draining: bool
    ) -> WorkerStatus:
        info = WorkerInfo(
            id=values["id"],
            host=values["host"],
            pid=values["pid"],
            device=values["device"],
            queues=tuple(values["queues"]),
            started_at=from_milliseconds(values["started"]),
            job_id=values["job_id"],
            attempt=values["attempt"],
            facts=values["facts"],
        )
        alive = now - seen <= self._lease_ms
        return WorkerStatus(info, from_milliseconds(seen), alive, draining)
