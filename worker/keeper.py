"""Keeps a lease while an attempt works: one thread that does all the talking to Redis meanwhile."""

from __future__ import annotations

import contextvars
import threading
import time
from types import TracebackType
from typing import Self

from jobs.errors import StaleLease, StoreUnavailable
from jobs.logs import get_logger
from jobs.previews import Preview, Previews
from jobs.record import Lease, Orders, Progress
from jobs.settings import Settings
from jobs.store import JobStore

PROGRESS_SECONDS = 0.5
"""Progress is written at most so often."""
PROGRESS_SHARE = 1 / 400
"""And every 1/400 of the time that the attempt has taken: an hour makes 1,600 events, so that a
job's stream (NIF_EVENTS_PER_JOB) holds the whole of its curve."""
_RETRY_SECONDS = 1.0

log = get_logger(__name__)


class LeaseKeeper:
    """Renews the lease every few seconds, carries progress, and hears what is wanted of the job.

    Nothing here raises and nothing waits for Redis but the thread itself: an attempt goes on when
    Redis blinks. If the lease is lost in the meantime, ``lost`` says so as soon as Redis is back.

    Args:
        store: where the job's record is.
        previews: where its pictures go.
        lease: the token.
        settings: how often.
    """

    def __init__(
        self, store: JobStore, previews: Previews, lease: Lease, settings: Settings
    ) -> None:
        self._store = store
        self._previews = previews
        self._lease = lease
        self._every = settings.heartbeat_seconds
        self._news = threading.Condition()
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._over = False
        self._orders = Orders()
        self._lost = threading.Event()
        # The log's context (job, tenant, attempt) comes along.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="lease", daemon=True
        )

    @property
    def orders(self) -> Orders:
        """What is wanted of the job, as far as it was heard."""
        return self._orders

    @property
    def lost(self) -> bool:
        """Whether the job is somebody else's now: stop, and write nothing."""
        return self._lost.is_set()

    def report(self, progress: Progress) -> None:
        """Have the record show this; a newer one replaces it if it was not written yet."""
        with self._news:
            self._progress = progress
            self._news.notify()

    def show(self, preview: Preview | None) -> None:
        """Keep a picture of how far the encode is; a newer one replaces it likewise."""
        with self._news:
            self._preview = preview or self._preview
            self._news.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._news:
            self._over = True
            self._news.notify()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        renew_at = began + self._every
        write_at = 0.0
        while not self._lost.is_set():
            with self._news:
                now = time.monotonic()
                news = self._progress is not None or self._preview is not None
                due = min(renew_at, write_at) if news else renew_at
                if due > now and not self._over:
                    self._news.wait(due - now)
                if self._over:
                    return
                now = time.monotonic()
                progress = preview = None
                if now >= write_at:
                    progress, self._progress = self._progress, None
                    preview, self._preview = self._preview, None
            try:
                if now >= renew_at:
                    renew_at = now + min(_RETRY_SECONDS, self._every)
                    self._orders = self._store.renew(self._lease)
                    renew_at = now + self._every
                if preview is not None:
                    self._previews.add(self._lease, preview)
                if progress is not None:
                    write_at = now + max(PROGRESS_SECONDS, PROGRESS_SHARE * (now - began))
                    self._orders = self._store.progress(self._lease, progress) or self._orders
            except StoreUnavailable as error:
                log.warning("lease not renewed, trying again", reason=str(error))
            except StaleLease as error:
                log.warning("lease lost", reason=error.reason)
                self._lost.set()
