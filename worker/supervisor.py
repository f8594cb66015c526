"""Everything on one machine: starts the service's processes and keeps them running.

::

    supervisor ─┬─ Redis           found or started; its files in the data folder
                ├─ encode-1 ...    python -m worker encode
                ├─ light           python -m worker light
                └─ api             uvicorn api.app:create_app

They are the same programs that a larger installation starts one by one; only the URLs differ. Each
is a process of its own, is started again when it ends, and ends with the supervisor, also when that
is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from jobs import open_service, with_parent
from jobs.errors import Invalid, JobsError, Unavailable
from jobs.redis_server import RedisServer
from jobs.service import JobService
from jobs.settings import Settings, load_settings
from jobs.wakeups import NoWakeups

HEALTHY_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
REDIS_PAUSE_SECONDS = 2.0
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Part:
    """One process to keep running.

    Attributes:
        name: before each line of its log.
        argv: its command.
        environment: variables of its own, added to those of all.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables by which a child reads equal settings."""
    found = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            found[f"NIF_{name.upper()}"] = str(value)
    return found


def parts_of(settings: Settings, *, api: bool = True) -> list[Part]:
    """Return the processes of a service on one machine, Redis aside."""
    python = sys.executable
    gpus = _gpus() if settings.device in ("auto", "cuda") else 0
    parts = []
    for index in range(settings.workers):
        own = {}
        if settings.workers > 1 and gpus:
            own["CUDA_VISIBLE_DEVICES"] = str(index % gpus)
        elif settings.workers > 1 and not settings.child_threads:
            own["NIF_CHILD_THREADS"] = str(max(1, (os.cpu_count() or 1) // settings.workers))
        parts.append(Part(f"encode-{index + 1}", [python, "-m", "worker", "encode"], own))
    parts.append(Part("light", [python, "-m", "worker", "light"], {}))
    if api:
        serve_api = [python, "-m", "uvicorn", "--factory", "api.app:create_app"]
        serve_api += ["--host", settings.api_host, "--port", str(settings.api_port)]
        serve_api += ["--log-level", settings.log_level, "--no-access-log"]
        # Before the supervisor loses patience: a client that takes nothing must not hold it up.
        serve_api += ["--timeout-graceful-shutdown", str(math.ceil(settings.stop_seconds / 2))]
        parts.append(Part("api", serve_api, {}))
    return parts


def _gpus() -> int:
    """Return how many NVIDIA GPUs the driver shows (Linux), without asking CUDA."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


class Child:
    """A part that runs, or will again soon."""

    def __init__(self, part: Part, environment: Mapping[str, str], output: IO[str]) -> None:
        self.part = part
        self._environment = {**environment, **part.environment}
        self._output = output
        self._process: subprocess.Popen[str] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def pid(self) -> int | None:
        """Process id, None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def look(self) -> None:
        """Start the process if it is time to, and plan the next start if it ended.

        To be called from a thread that lives as long as the children: they end with it.
        """
        now = time.monotonic()
        process = self._process
        if process is None:
            if now >= self._start_at:
                self._start()
            return
        if process.poll() is None:
            return
        if now - self._started_at > HEALTHY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self.say(f"ended with status {process.returncode}, starts again in {self._pause:g} s")
        self._process = None
        self._start_at = now + self._pause
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause)

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._process = process = subprocess.Popen(
            with_parent.command(self.part.argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        threading.Thread(target=self._pass_on, args=(process.stdout,), daemon=True).start()

    def _pass_on(self, lines: IO[str]) -> None:
        with lines:
            for text in lines:
                self.say(text.rstrip("\n"))

    def say(self, text: str) -> None:
        """Write one line of the log, with the part's name before it."""
        self._output.write(f"[{self.part.name}] {text}\n")
        self._output.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process and everything it started, at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Supervisor:
    """Runs the parts until told to stop.

    Args:
        settings: of the service; ``redis_url`` None starts a Redis.
        api: whether to run the API here too.
        output: where the parts' logs go.
    """

    def __init__(
        self, settings: Settings, *, api: bool = True, output: IO[str] | None = None
    ) -> None:
        self._output = sys.stderr if output is None else output
        self._api = api
        self._stop = threading.Event()
        data_dir = settings.data_dir.resolve()
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        changes: dict[str, object] = {"data_dir": data_dir}
        if api and settings.api_port == 0:
            changes["api_port"] = _free_port(settings.api_host)
        port = changes.get("api_port", settings.api_port)
        if settings.public_url == type(settings).model_fields["public_url"].default:
            host = settings.api_host if settings.api_host not in ("0.0.0.0", "::") else "127.0.0.1"
            changes["public_url"] = f"http://{host}:{port}"
        self.settings = settings.model_copy(update=changes)
        self.children: list[Child] = []
        self._redis_again_at = 0.0

    def stop(self) -> None:
        """Have `run` end; safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Start everything, say when it is ready, keep it running, and end it in good order.

        Raises:
            StoreUnavailable: there is no Redis and none could be started.
        """
        began = time.monotonic()
        with RedisServer.find_or_start(self.settings) as redis:
            self.settings = self.settings.model_copy(update={"redis_url": redis.url})
            if redis.notice:
                self._say(redis.notice)
            with open_service(self.settings, wakeups=NoWakeups()) as service:
                key = first_admin_key(service, self.settings) if self._api else None
                environment = self._environment()
                self.children = [
                    Child(part, environment, self._output)
                    for part in parts_of(self.settings, api=self._api)
                ]
                told = False
                try:
                    while not self._stop.wait(LOOK_SECONDS):
                        self._keep_alive(redis)
                        for child in self.children:
                            child.look()
                        if not told and self.ready(service):
                            told = True
                            self._announce(redis, key, time.monotonic() - began)
                finally:
                    self._end()

    def _keep_alive(self, redis: RedisServer) -> None:
        if redis.alive() or time.monotonic() < self._redis_again_at:
            return
        self._say("Redis ended, starting it again")
        try:
            redis.restart()
        except Unavailable as error:
            self._say(f"{error}; trying again")
            self._redis_again_at = time.monotonic() + REDIS_PAUSE_SECONDS

    def ready(self, service: JobService) -> bool:
        """Whether every encode worker has reported and the API says that it is ready."""
        if any(child.pid is None for child in self.children):
            return False
        pids = {child.pid for child in self.children if child.part.name.startswith("encode")}
        try:
            there = {status.info.pid for status in service.workers.list() if status.alive}
        except JobsError:
            return False
        return pids <= there and (not self._api or _answers(f"{self._address}/readyz"))

    @property
    def _address(self) -> str:
        host = self.settings.api_host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        return f"http://{host}:{self.settings.api_port}"

    def _environment(self) -> dict[str, str]:
        root = str(Path(__file__).parents[1])
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        return {
            **os.environ,
            **environment_of(self.settings),
            "PYTHONPATH": os.pathsep.join([root, *others]),
            "PYTHONUNBUFFERED": "1",
        }

    def _announce(self, redis: RedisServer, key: str | None, seconds: float) -> None:
        lines = [f"ready after {seconds:.1f} s"]
        if self._api:
            lines += [
                f"API        {self.settings.public_url}/v1 (docs: {self.settings.public_url}/docs)"
            ]
        lines += [
            f"data       {self.settings.data_dir}",
            f"Redis      {redis.kind}, {'durable' if redis.durable else 'NOT DURABLE'}",
            f"workers    {self.settings.workers} ({self.settings.device})",
        ]
        if key is not None:
            lines += [
                f"admin key  {key}",
                "           (kept only as a hash: this is the one time it is shown)",
            ]
        print("\n".join(lines), flush=True)

    def _say(self, text: str) -> None:
        self._output.write(f"[supervisor] {text}\n")
        self._output.flush()

    def _end(self) -> None:
        """Have all parts end: by asking, then by force."""
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.settings.stop_seconds + 5.0
        while any(child.pid for child in self.children) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 2)
        for child in self.children:
            child.kill()


def first_admin_key(service: JobService, settings: Settings) -> str | None:
    """Make the first administrator's key and return it, or None if there is one already.

    A key given as ``NIF_ADMIN_KEY`` is registered and not repeated.
    """
    if settings.admin_key is not None:
        plaintext = settings.admin_key.get_secret_value()
        service.keys.ensure_admin(plaintext)
        return None
    return service.keys.create_admin()


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve(settings: Settings | None = None, *, api: bool = True) -> int:
    """Run the service on this machine until SIGTERM or Ctrl-C, and return the exit status.

    Args:
        settings: of the service; those of the environment if None.
        api: whether to run the API here too.

    Standard output gets the address and, the first time, the administrator's key; the logs of all
    parts go to standard error. A second Ctrl-C kills the parts at once.
    """
    try:
        supervisor = Supervisor(load_settings() if settings is None else settings, api=api)
    except Invalid as error:
        print(f"settings: {error}", file=sys.stderr)
        return 2

    def on_signal(number: int, _: object) -> None:
        supervisor.stop()
        for child in supervisor.children if number in asked else ():
            child.signal(signal.SIGKILL)
        asked.add(number)

    asked: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        supervisor.run()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """``python -m worker.supervisor``."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.supervisor", description="The whole service on this machine."
    )
    parser.add_argument(
        "--without-api", action="store_true", help="workers only, for a Redis that others serve"
    )
    arguments = parser.parse_args()
    sys.exit(serve(api=not arguments.without_api))


if __name__ == "__main__":
    main()
