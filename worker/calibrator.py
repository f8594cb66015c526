"""Measures how fast this worker's machine encodes, once, while there is no job at work.

The clock must not run beside a job: it would tell of the job's share too, and slow it down. So the
measuring process is started when the worker has been idle for a moment, is ended at once when a job
comes, and starts anew afterwards. What it finds is kept in the data folder, for this version and
machine, so that the next start need not measure again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs import with_parent
from jobs.logs import get_logger
from jobs.settings import Settings
from nifcore.calibration import Calibration
from nifcore.errors import InputError
from worker.child import environment

log = get_logger(__name__)

IDLE_SECONDS = 3.0
"""Idle for so long, a worker measures: its child has loaded torch by then."""
LOOK_SECONDS = 0.1
"""A job waits at most so long for a measurement to end."""
PATIENCE_SECONDS = 300.0


class Calibrator:
    """Finds the calibration on a thread of its own.

    Args:
        settings: device, threads, and the data folder with the cache.
        found: told of the calibration, as JSON has it.
        idle_seconds: how long the worker must have been idle.
    """

    def __init__(
        self,
        settings: Settings,
        found: Callable[[Mapping[str, Any]], None],
        *,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._settings, self._found, self._idle_seconds = settings, found, idle_seconds
        self._change = threading.Condition()
        self._busy = False
        self._over = False
        # The kernel ends the process with the thread that started it, which therefore waits for it.
        self._thread = threading.Thread(target=self._run, name="calibrator", daemon=True)

    def start(self) -> None:
        """Begin to wait for a quiet moment."""
        self._thread.start()

    def busy(self) -> None:
        """A job is at work: end a measurement and begin none."""
        self._tell(busy=True)

    def idle(self) -> None:
        """No job is at work."""
        self._tell(busy=False)

    def close(self) -> None:
        """End it all."""
        with self._change:
            self._over = True
            self._change.notify_all()
        self._thread.join(timeout=IDLE_SECONDS)

    def _tell(self, *, busy: bool) -> None:
        with self._change:
            self._busy = busy
            self._change.notify_all()

    def _run(self) -> None:
        while self._quiet():
            text = self._measure()
            if text is None:
                continue
            try:
                self._found(Calibration.from_dict(json.loads(text)).to_dict())
            except (ValueError, InputError) as error:
                log.warning("no calibration", reason=str(error) or text[:200])
            return

    def _quiet(self) -> bool:
        """Wait until the worker has been idle for long enough; False when it is all over."""
        with self._change:
            while not self._over:
                if self._busy:
                    self._change.wait()
                elif not self._change.wait_for(
                    lambda: self._busy or self._over, timeout=self._idle_seconds
                ):
                    return True
        return False

    def _measure(self) -> str | None:
        """Return what the measuring process printed, or None if it was ended for a job."""
        process = subprocess.Popen(
            with_parent.command([sys.executable, "-P", "-m", "nifcore", *self._arguments()]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(self._settings.child_threads, cache_folder(self._settings)),
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                said, complaint = process.communicate(timeout=LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                late = time.monotonic() > deadline
                if self._busy or self._over or late:
                    _end(process)
                    if not late:
                        return None
        if process.returncode != 0:
            log.warning("calibration failed", status=process.returncode, detail=complaint[-400:])
        return said

    def _arguments(self) -> list[str]:
        return ["bench", "calibrate", "--reuse", "--json", "--device", self._settings.device]


def cache_folder(settings: Settings) -> Path:
    """Return the folder that takes the place of the user's cache for processes of the worker."""
    return settings.data_dir / "cache"


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
