"""The light worker: small things that are done again and again, each on a thread of its own.

It needs no broker: the rounds look at Redis themselves, and any number of light workers may run.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from jobs import logs, open_service
from jobs.errors import Unavailable
from jobs.history import EVERY_SECONDS
from jobs.ids import new_worker_id
from jobs.service import JobService
from jobs.settings import Settings
from jobs.workers import WorkerInfo
from worker.presence import facts
from worker.wakeups import CeleryWakeups
from worker.webhook_sender import Sender

log = logs.get_logger(__name__)


@dataclass(frozen=True)
class Round:
    """Something to do every few seconds.

    Attributes:
        name: for the log.
        every_seconds: from the end of one to the beginning of the next.
        work: does it once; may raise, the next one comes all the same.
    """

    name: str
    every_seconds: float
    work: Callable[[], None]


def rounds(service: JobService, settings: Settings) -> list[Round]:
    """Return everything that a light worker does, but for sending webhooks."""
    worker = new_worker_id(socket.gethostname())
    started_at = datetime.now(UTC)

    def beat() -> None:
        service.workers.beat(
            WorkerInfo(
                id=worker,
                host=socket.gethostname(),
                pid=os.getpid(),
                device="",
                queues=(),
                job_id=None,
                attempt=None,
                started_at=started_at,
                facts=facts(None) | {"role": "light"},
            )
        )

    def reap() -> None:
        done = {name: count for name, count in asdict(service.reaper.run_once()).items() if count}
        if done:
            log.info("reaped", **done)

    return [
        Round("beat", settings.heartbeat_seconds, beat),
        Round("reap", settings.reaper_seconds, reap),
        Round("sample", EVERY_SECONDS, lambda: _sample(service)),
    ]


def _sample(service: JobService) -> None:
    service.history.take()


def go_round(each: Round, stop: threading.Event) -> None:
    """Do a round until told to stop; no failure ends it."""
    while not stop.is_set():
        try:
            each.work()
        except Unavailable as error:
            log.warning("round put off", round=each.name, reason=str(error))
        except Exception:
            # A fault in one round must not end the others, nor itself for good.
            log.exception("round failed", round=each.name)
        stop.wait(each.every_seconds)


def run(settings: Settings) -> None:
    """Be a light worker until SIGTERM or SIGINT."""
    logs.configure(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with open_service(settings, wakeups=CeleryWakeups(settings)) as service:
        sender = Sender(service, settings)
        # A round that lasts: it ends only when told to, or by a fault, after which it begins anew.
        webhooks = Round("webhooks", 1.0, lambda: sender.run(stop))
        threads = [
            threading.Thread(target=go_round, args=(each, stop), name=each.name)
            for each in [*rounds(service, settings), webhooks]
        ]
        for thread in threads:
            thread.start()
        log.info("light worker ready", rounds=[thread.name for thread in threads])
        stop.wait()
        for thread in threads:
            thread.join()
