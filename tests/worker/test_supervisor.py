"""The whole service on one machine, as one command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import load_settings, with_parent
from jobs.record import State
from jobs.redis_server import RedisServer
from tests.worker.conftest import ROOT, Bed, descendants, parent_of, wait_for


class Service:
    """A supervisor in a process of its own, without the API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output, self.log = folder / "output", folder / "log"
        environment = {
            **os.environ,
            "NIF_DATA_DIR": str(folder / "data"),
            "NIF_DEVICE": "cpu",
            "NIF_CHILD_THREADS": "1",
            "NIF_HEARTBEAT_SECONDS": "0.5",
            "NIF_LEASE_SECONDS": "2",
            "NIF_REAPER_SECONDS": "0.5",
            "NIF_REDIS_PREFIX": "sup",
        }
        with self.output.open("wb") as output, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                with_parent.command([sys.executable, "-m", "worker.supervisor", "--without-api"]),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: "ready after" in self.output.read_text() or self.process.poll())
        assert self.process.poll() is None, self.log.read_text()

    def pid_of(self, command: str) -> int:
        """Return the process whose command line has these words."""
        for pid in descendants(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command in words and parent_of(pid) == self.process.pid:
                return pid
        raise AssertionError(f"no process of {command}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    below = descendants(made.process.pid)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    wait_for(lambda: all(parent_of(pid) is None for pid in below), seconds=30)


def test_it_works_heals_and_ends_in_order(service: Service) -> None:
    assert re.search(r"ready after \d+\.\d s", service.output.read_text())
    # The socket may lie elsewhere when the folder's path is long: the workers know.
    environment = (
        Path(f"/proc/{service.pid_of('-m worker light')}/environ").read_bytes().split(b"\0")
    )
    url = dict(each.split(b"=", 1) for each in environment if b"=" in each)[b"NIF_REDIS_URL"]
    server = RedisServer.find_or_start(load_settings(redis_url=url.decode()), kinds=("given",))
    bed = Bed(server, service.folder / "data", redis_prefix="sup")
    try:
        job_id = bed.submit_long()
        bed.wait_fitting(job_id)
        os.kill(service.pid_of("-m worker encode"), signal.SIGKILL)
        bed.wait_until(job_id, lambda record: record.attempt == 2)
        bed.wait_fitting(job_id)
        os.kill(service.pid_of("redis-server"), signal.SIGKILL)
        wait_for(lambda: "Redis ended" in service.log.read_text())
        wait_for(lambda: bed.service.check()["store"] == "ok")
        bed.service.finish("acme", job_id)
        assert bed.wait(job_id).state is State.SUCCEEDED
    finally:
        bed.close()
    assert "[encode-1] ended with status -9, starts again in 0.5 s" in service.log.read_text()
    below = descendants(service.process.pid)
    service.process.terminate()
    assert service.process.wait(timeout=60) == 0
    assert all(parent_of(pid) is None for pid in below)


def test_a_killed_supervisor_leaves_nobody_behind(service: Service) -> None:
    below = descendants(service.process.pid)
    assert len(below) >= 4
    service.process.kill()
    service.process.wait()
    wait_for(lambda: all(parent_of(pid) is None for pid in below), seconds=30)
