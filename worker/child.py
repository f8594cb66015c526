"""The parent's end of the child that encodes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from worker import messages

PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "TZ",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "TRITON_CACHE_DIR",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NIF_KERNEL",
)
"""Variables that the child is given. Everything else, secrets above all, stays with the parent."""

_LAST_WORDS = 4000
_KILL_SECONDS = 10.0


def environment(threads: int, cache: Path | None = None) -> dict[str, str]:
    """Return the child's environment: a few variables of ours, and how many threads to use.

    Args:
        threads: 0 leaves the choice to torch.
        cache: takes the place of the user's cache folder.
    """
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if threads:
        passed["OMP_NUM_THREADS"] = str(threads)
    if cache is not None:
        passed["XDG_CACHE_HOME"] = str(cache)
    return passed | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        # The usual check would make a context on the GPU, and hold memory there while idle.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


class Encoder(Protocol):
    """What an attempt needs of whatever encodes its picture."""

    @property
    def ended(self) -> bool: ...
    def begin(self, task: messages.Task) -> None: ...
    def order(self, order: messages.Order) -> None: ...
    def listen(self, timeout_seconds: float) -> Iterator[dict[str, Any]]: ...
    def wait(self) -> int: ...
    def last_words(self) -> str: ...
    def close(self) -> None: ...


class EncodeChild:
    """A child process: started, given one task or a group of them, listened to, ended.

    Start it from a thread that lives as long as it: the kernel ends the child with that thread.

    Attributes:
        device: what the child says it computes on, None before it is ready.
    """

    def __init__(self, *, threads: int = 0, cache: Path | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.encode_child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(threads, cache),
            # Ctrl-C at a terminal is for the worker, which lets the child save its state.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._buffer = b""
        self._ended = False
        self.device: str | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def begin(self, task: messages.Task) -> None:
        """Hand over the task; a child that died meanwhile shows it when listened to."""
        self._write(task.to_line())

    def begin_group(self, tasks: Sequence[messages.Task]) -> None:
        """Hand over tasks to be done together; see `worker.group`."""
        self._write(messages.group_line(tasks))

    def order(self, order: messages.Order, member: int | None = None) -> None:
        """Ask something of the child, about a member of its group if it has one."""
        about = {} if member is None else {"member": member}
        self._write(messages.line({"order": order, **about}))

    def _write(self, text: bytes) -> None:
        # A child that ended is found out by its end of output, with more to tell than this.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(text)
            self._stdin.flush()

    def listen(self, timeout_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield what the child said, waiting for it at most so long; `ended` tells of the end."""
        if not self._ended and self._selector.select(timeout_seconds):
            while chunk := self._stdout.read(1 << 16):
                self._buffer += chunk
                if len(self._buffer) > messages.LONGEST_LINE:
                    self.kill()  # no message is so long: it is not the child speaking any more
                    break
            if chunk == b"":
                self._ended = True
        *lines, self._buffer = self._buffer.split(b"\n")
        for text in lines:
            try:
                message = json.loads(text)
            except ValueError:
                message = None
            if not isinstance(message, dict) or not isinstance(message.get("event"), str):
                self.kill()
                return
            if message["event"] == "ready":
                self.device = str(message.get("device"))
            else:
                yield message

    @property
    def ended(self) -> bool:
        """Whether the child closed its output and everything it said was read."""
        return self._ended

    def wait(self) -> int:
        """Wait for the end of a child that closed its output; return its exit status."""
        try:
            return self._process.wait(timeout=_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End the child and whatever it started, at once."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill the child if need be and free everything."""
        self.kill()
        self._selector.close()
        self._stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._errors.close()

    def last_words(self) -> str:
        """Return the end of what the child wrote to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_WORDS))
        return self._errors.read().decode("utf-8", "replace").strip()


def describe_end(status: int) -> str:
    """Return what an exit status means, for people."""
    if status >= 0:
        return f"the encoder ended with status {status} and no result"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hints = {
        "SIGKILL": ", perhaps because memory ran out",
        "SIGXFSZ": ": a file became larger than NIF_CHILD_FILE_BYTES",
    }
    return f"the encoder was ended by {name}{hints.get(name, '')}"
