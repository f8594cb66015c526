"""The whole service for the time of a context: the demo and the measurements run against it.

It is ``python -m api.serve``, as ``make serve`` starts it, in a process of its own with a data
folder, a port and an administrator's key of its own.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from jobs import with_parent
from jobs.keys import new_plaintext

HOST = "127.0.0.1"
START_SECONDS = 60.0
_ANNOUNCEMENT = "ready after"
_SHOWN_LINES = 15


class NotStarted(Exception):
    """The service ended, or did not become ready; the message has the end of its log."""


class EmbeddedService:
    """The service as a child process, which ends with this one. Used as a context.

    Args:
        data_dir: its data folder; whatever is there is used.
        log: file that its parts' logs go to, written anew.
        settings: further ``NIF_*`` variables, by full name.
        start_seconds: how long it may take to become ready.

    Attributes:
        url: where its API is.
        key: an administrator's API key.
        status: exit status of the supervisor once it was stopped, None before.
    """

    def __init__(
        self,
        data_dir: Path,
        log: Path,
        settings: Mapping[str, str] | None = None,
        *,
        start_seconds: float = START_SECONDS,
    ) -> None:
        port = _free_port()
        self.url = f"http://{HOST}:{port}"
        self.key = new_plaintext()
        self._log = log
        self._start_seconds = start_seconds
        # Settings of whoever calls are not meant for it, least of all their Redis.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("NIF_")}
        self._environment = plain | {
            "NIF_DATA_DIR": str(data_dir.resolve()),
            "NIF_API_HOST": HOST,
            "NIF_API_PORT": str(port),
            "NIF_ADMIN_KEY": self.key,
            **(settings or {}),
        }
        self.status: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the processes, and return at once."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                with_parent.command([sys.executable, "-m", "api.serve"]),
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
                # Ctrl-C at a terminal is for whoever uses the service: they stop it when done.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def wait_ready(self) -> None:
        """Wait until the API and every encode worker are ready.

        Raises:
            NotStarted: they are not, in time or at all.
        """
        deadline = time.monotonic() + self._start_seconds
        while True:
            try:
                line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                seconds = self._start_seconds
                raise NotStarted(
                    f"the service was not ready after {seconds:g} s{self.last_words()}"
                ) from None
            if line is None:
                raise NotStarted(f"the service ended before it was ready{self.last_words()}")
            if line.startswith(_ANNOUNCEMENT):
                return

    def stop(self) -> None:
        """End all processes in good order."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        # The supervisor itself knows when to lose patience with its parts.
        self.status = self._process.wait()

    def last_words(self) -> str:
        """Return the end of the log, on lines of its own."""
        lines = self._log.read_text("utf-8", "replace").splitlines()[-_SHOWN_LINES:]
        return "".join(f"\n  {line}" for line in (*lines, f"(all of it: {self._log})"))

    def _listen(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._said.put(line)
        self._said.put(None)

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
