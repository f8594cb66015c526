"""Progress on its way from the codec to the record: seldom enough, and never in the way."""

from __future__ import annotations

import threading
import time

from jobs.errors import StaleLease
from jobs.record import Lease, Orders, Progress
from jobs.store import JobStore


class ProgressReporter:
    """Writes the progress of one attempt, at most every so often, and never raises.

    Attributes:
        orders: what was wanted of the job when it was last heard of.
        lost: the job is no longer this attempt's; stop.
    """

    def __init__(self, store: JobStore, lease: Lease, *, min_interval_seconds: float = 0.5) -> None:
        self._store = store
        self._lease = lease
        self._interval = min_interval_seconds
        self._last: float | None = None
        self._lock = threading.Lock()
        self.orders = Orders()
        self.lost = False

    def report(self, progress: Progress) -> bool:
        """Note the progress unless one was noted just now; True if it was written."""
        with self._lock:
            now = time.monotonic()
            early = self._last is not None and now - self._last < self._interval
            if self.lost or early:
                return False
            self._last = now
        try:
            orders = self._store.progress(self._lease, progress)
        except StaleLease:
            self.lost = True
            return False
        if orders is None:
            return False
        self.orders = orders
        return True
