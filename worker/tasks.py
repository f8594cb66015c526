"""What Celery runs, and what it is told to do around it."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Celery, bootsteps, signals  # type: ignore[import-untyped]

from jobs import logs
from jobs.settings import Settings
from worker import lifeline
from worker.app import ENCODE_TASK
from worker.bench import Bench
from worker.flags import Flags

LOOK_SECONDS = 0.25
_FLAGS = "nif_flags"
_QUEUE = "nif_queue"


def install(app: Celery, settings: Settings, *, worker: str, queue: str) -> None:
    """Make ``app`` an encode worker: its task, and the handlers of its two processes.

    The parent process takes messages and starts nothing else; the process that it forks has the
    connections, claims and watches the child that encodes. Neither ever loads torch.
    """
    flags = Flags()
    parent = os.getpid()
    bench: list[Bench] = []

    @app.task(name=ENCODE_TASK)  # type: ignore[untyped-decorator]
    def encode(job_id: str) -> None:
        bench[0].work(job_id)

    def set_up_logging(**_: Any) -> None:
        logs.configure(settings.log_level)

    def begin_process(**_: Any) -> None:
        lifeline.die_with_parent(parent)
        # Ctrl-C at a terminal reaches every process: the parent alone decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        bench.append(Bench(settings, worker, queue, flags))

    def end_process(**_: Any) -> None:
        if bench:
            bench.pop().close()

    def shutting_down(**_: Any) -> None:
        flags.stopping = True

    # Receivers are kept by the signals themselves: as weak references they would be gone at once.
    signals.setup_logging.connect(set_up_logging, weak=False)
    signals.worker_process_init.connect(begin_process, weak=False)
    signals.worker_process_shutdown.connect(end_process, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    app.conf[_FLAGS], app.conf[_QUEUE] = flags, queue
    app.steps["consumer"].add(Holding)


class Holding(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes no messages while the worker drains or its queue is paused.

    A claim would be refused anyway; this leaves the wake-ups to the workers that want them.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._flags: Flags = consumer.app.conf[_FLAGS]
        self._queue: str = consumer.app.conf[_QUEUE]
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Look at the flags from now on."""
        self._timer = consumer.timer.call_repeatedly(LOOK_SECONDS, self._look, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, consumer: Any) -> None:
        if self._flags.stopping:
            return
        consuming = consumer.task_consumer.consuming_from(self._queue)
        if self._flags.holding and consuming:
            consumer.cancel_task_queue(self._queue)
        elif not self._flags.holding and not consuming:
            consumer.add_task_queue(self._queue)
