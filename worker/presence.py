"""Tells the service that this worker is there and what it does, and hears what it is told."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jobs.errors import StoreUnavailable
from jobs.logs import get_logger
from jobs.record import Lease
from jobs.service import JobService
from jobs.settings import Settings
from jobs.workers import CALIBRATION, WorkerInfo
from worker.flags import Flags
from worker.load import LoadMeter

log = get_logger(__name__)


class Presence:
    """The worker's heartbeat in the registry, on a thread of its own.

    Args:
        service: registry and queues.
        settings: how often.
        worker: id of this worker.
        queue: what it listens to.
        flags: where draining and paused are noted for the process that takes messages.
    """

    def __init__(
        self, service: JobService, settings: Settings, worker: str, queue: str, flags: Flags
    ) -> None:
        self._service, self._settings = service, settings
        self._worker, self._queue, self._flags = worker, queue, flags
        self._started_at = datetime.now(UTC)
        self._lease: Lease | None = None
        self._together = 0
        self._device = settings.device
        self._pid: int | None = None
        self._calibration: Mapping[str, Any] | None = None
        self._meter = LoadMeter()
        self._changed = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def working_on(self, lease: Lease | None, together: int = 1) -> None:
        """Show this job, and how many are at work with it, or none."""
        self._lease, self._together = lease, together
        self._changed.set()

    def uses(self, device: str, child: int | None) -> None:
        """Show this device, and count this child's memory in."""
        if device != self._device or child != self._pid:
            self._device, self._pid = device, child
            self._changed.set()

    def calibrated(self, calibration: Mapping[str, Any]) -> None:
        """Publish how fast this worker's machine encodes."""
        self._calibration = calibration
        self._changed.set()

    def stop(self) -> None:
        """Take leave of the registry."""
        self._over = True
        self._changed.set()
        self._thread.join(timeout=self._settings.redis_timeout_seconds)

    def _info(self) -> WorkerInfo:
        lease = self._lease
        return WorkerInfo(
            id=self._worker,
            host=socket.gethostname(),
            pid=os.getppid(),
            device=self._device,
            queues=(self._queue,),
            job_id=None if lease is None else lease.job_id,
            attempt=None if lease is None else lease.attempt,
            started_at=self._started_at,
            facts=facts(self._pid) | self._load() | self._company() | self._speed(),
        )

    def _company(self) -> dict[str, Any]:
        return {} if self._lease is None or self._together < 2 else {"together": self._together}

    def _speed(self) -> dict[str, Any]:
        return {} if self._calibration is None else {CALIBRATION: self._calibration}

    def _load(self) -> dict[str, Any]:
        pids = [os.getpid()] if self._pid is None else [os.getpid(), self._pid]
        return self._meter.read(pids, self._device)

    def _run(self) -> None:
        while not self._over:
            try:
                self._flags.draining = self._service.workers.beat(self._info())
                self._flags.paused = self._service.queues.stats(self._queue).paused
            except StoreUnavailable as error:
                log.warning("the registry does not answer", reason=str(error))
            self._changed.wait(self._settings.heartbeat_seconds)
            self._changed.clear()
        try:
            self._service.workers.gone(self._worker)
        except StoreUnavailable as error:
            log.warning("left without a word", reason=str(error))


def facts(child: int | None) -> dict[str, Any]:
    """Return what is worth knowing about the machine and the memory in use, in bytes."""
    found: dict[str, Any] = {"cpus": os.cpu_count(), "memory_bytes": _resident(os.getpid())}
    if child is not None:
        found["child_memory_bytes"] = _resident(child)
    return found


def _resident(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None  # no /proc, or the process just ended
