"""Running the real program, in a process of its own or in this one, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import typer.testing

from nifcore.cli.app import app

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "nifcore"]
PATIENCE = 60.0
"""Seconds after which a program that should have ended, or said something, has failed."""


@dataclass(frozen=True)
class Finished:
    """How a run of the program ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.text.splitlines()]


def environment(folder: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment without any settings but ``extra``."""
    plain = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    plain |= {"HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Where the size of files is limited, compiled modules would be cut off as well.
    plain |= {"PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    return plain | (extra or {})


def nif(
    *arguments: object,
    folder: Path,
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    before: Callable[[], None] | None = None,
) -> Finished:
    """Run ``nif`` in a process of its own, in ``folder``, with its output piped."""
    run = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=folder,
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(folder, env),
        timeout=PATIENCE,
        preexec_fn=before,
    )
    return Finished(run.returncode, run.stdout or b"", run.stderr.decode())


def nif_here(*arguments: object) -> Finished:
    """Run ``nif`` within this process, where torch is loaded already."""
    result = typer.testing.CliRunner().invoke(app, [str(each) for each in arguments])
    return Finished(result.exit_code, result.stdout_bytes, result.stderr)


class Terminal:
    """The program with a terminal as stdin and stderr, and stdout piped."""

    def __init__(
        self, arguments: Sequence[object], folder: Path, env: dict[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

        def control_the_terminal() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            cwd=folder,
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            env=environment(folder, {"TERM": "xterm-256color"} | (env or {})),
            start_new_session=True,
            preexec_fn=control_the_terminal,
        )
        os.close(slave)
        self.seen = ""
        self._deadline = time.monotonic() + PATIENCE

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._master)

    def wait_for(self, pattern: str) -> None:
        """Read what the program draws until ``pattern`` is in the part not yet looked at."""
        start = len(self.seen)
        while not re.search(pattern, self.seen[start:], re.DOTALL):
            assert self._read(), f"ended without {pattern!r}: {self.seen[-500:]!r}"

    def type(self, text: str) -> None:
        """Press keys; ``\\x03`` is Ctrl-C."""
        os.write(self._master, text.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal, as ``kill`` does."""
        self._process.send_signal(number)

    def finish(self) -> Finished:
        """Wait for the end."""
        while self._read():
            pass
        assert self._process.stdout is not None
        stdout = self._process.stdout.read()
        return Finished(self._process.wait(PATIENCE), stdout, self.seen)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], self._deadline - time.monotonic())
        assert ready, f"waited {PATIENCE} s; last seen: {self.seen[-500:]!r}"
        try:
            data = os.read(self._master, 4096)
        except OSError:
            # Linux says so when the other end is closed.
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def start(arguments: Sequence[object], folder: Path) -> subprocess.Popen[bytes]:
    """Start the program with its output piped, and return at once."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(folder),
    )


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> Finished:
    """Send a signal and wait for the end."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Finished(process.returncode, stdout, stderr.decode())
