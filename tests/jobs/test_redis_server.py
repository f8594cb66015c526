"""Finding and starting a Redis, and that it keeps what it acknowledged."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import (
    JobDraft,
    JobFilter,
    JobService,
    JobStore,
    Lease,
    Progress,
    RedisServer,
    State,
    StoreUnavailable,
    load_settings,
)
from jobs.database import Database, connect
from jobs.redis_server import bundled_program, system_program

REAL = ("system", "bundled")


def real_server(folder: Path) -> RedisServer:
    if system_program() is None and bundled_program() is None:
        pytest.skip("no Redis server program is installed here")
    return RedisServer.find_or_start(load_settings(data_dir=folder), kinds=REAL)


def test_the_server_is_private_durable_and_never_drops_keys(tmp_path: Path) -> None:
    with real_server(tmp_path) as server:
        assert server.durable
        assert server.notice is None
        assert server.alive()
        client = connect(server.url)
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
        for name, value in wanted.items():
            assert client.config_get(name) == {name: value}
        client.close()
        socket = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert not server.alive()
    assert server.pid is None


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with real_server(tmp_path) as server:
        client = connect(server.url)
        for number in range(200):
            client.rpush("list", number)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.restart()
        assert client.lrange("list", 0, -1) == [str(number) for number in range(200)]
        client.close()


def test_every_job_that_was_acknowledged_survives_a_kill_in_the_middle(
    tmp_path: Path, draft: Callable[..., JobDraft]
) -> None:
    with real_server(tmp_path) as server:
        settings = load_settings(redis_url=server.url, data_dir=tmp_path)
        database = Database(connect(server.url, timeout_seconds=1), settings)
        store = JobStore(database)
        claimed: list[Lease] = []
        stop = threading.Event()

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                made = draft(number, deduplicate=False)
                try:
                    store.create(made, submission=made.id)
                    claimed.append(store.claim(made.id, worker="w").lease)
                except StoreUnavailable:
                    return

        for _ in range(3):
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            known = len(claimed)
            while len(claimed) < known + 20:
                assert any(thread.is_alive() for thread in threads)
                time.sleep(0.001)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
            stop.clear()
            server.restart()
            for lease in claimed:
                record = store.get(lease.job_id)
                assert (record.state, record.attempt) == (State.RUNNING, 1)
                store.renew(lease)
        database.close()


def test_a_full_redis_is_unavailable_and_breaks_nothing(
    service: JobService, draft: Callable[..., JobDraft]
) -> None:
    client, store = service.database.client, service.store
    made = draft(1)
    store.create(made, submission="s")
    running = store.claim(made.id, worker="w").lease
    before = store.get(made.id)
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            store.create(draft(2), submission="t")
        assert store.progress(running, Progress("fit")) is None
        assert store.get(made.id) == before
        assert store.counts()[State.QUEUED] == 0
        assert len(store.page(JobFilter(None)).records) == 1
    finally:
        client.config_set("maxmemory", "0")
    store.create(draft(2), submission="t")
    assert store.progress(running, Progress("fit")) is not None


def test_two_servers_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.redis_server._LOCK_SECONDS", 0.1)
    with real_server(tmp_path) as first:
        client = connect(first.url)
        client.set("a", "1")
        written = (tmp_path / "redis" / "redis.conf").stat().st_mtime_ns
        with pytest.raises(StoreUnavailable, match="another service uses"):
            real_server(tmp_path)
        assert (tmp_path / "redis" / "redis.conf").stat().st_mtime_ns == written
        assert client.get("a") == "1"
        first.restart()  # its own lock is no hindrance
        client.close()
    with real_server(tmp_path) as second:
        client = connect(second.url)
        assert client.get("a") == "1"
        client.close()


def test_a_folder_is_locked_as_long_as_its_server_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started the server may be gone first."""
    monkeypatch.setattr("jobs.redis_server._LOCK_SECONDS", 0.1)
    orphan = real_server(tmp_path)
    lock, orphan._lock = orphan._lock, None
    assert lock is not None
    os.close(lock)  # as the kernel does when the process dies
    try:
        with pytest.raises(StoreUnavailable, match="another service uses"):
            real_server(tmp_path)
    finally:
        orphan.close()
    with real_server(tmp_path) as next_one:
        assert next_one.alive()


def test_a_long_path_gets_a_shorter_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("er" * 30)
    with real_server(folder) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert len(str(socket)) < 100
        client = connect(server.url)
        assert client.ping()
        client.close()
    assert not socket.parent.exists()


def test_a_given_url_is_taken_and_left_running(redis_server: RedisServer) -> None:
    settings = load_settings(redis_url=redis_server.url)
    with RedisServer.find_or_start(settings) as server:
        assert server.kind == "given"
        assert server.url == redis_server.url
        assert server.pid is None
    client = connect(redis_server.url)
    assert client.ping()
    client.close()


def test_a_given_url_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.redis_server._STARTUP_SECONDS", 0.2)
    settings = load_settings(redis_url=f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        RedisServer.find_or_start(settings)


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    server = RedisServer(
        "system", f"unix://{tmp_path}/x.sock", ["/bin/sh", "-c", "echo no memory; exit 1"], tmp_path
    )
    with pytest.raises(StoreUnavailable, match="no memory"):
        server.start()


def test_the_fake_says_loudly_that_it_is_not_durable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("fakeredis")
    caplog.set_level(logging.WARNING)
    with RedisServer.find_or_start(load_settings(data_dir=tmp_path), kinds=("fake",)) as server:
        assert not server.durable
        assert server.notice is not None
        assert "NOT DURABLE" in caplog.text
        one, two = connect(server.url), connect(server.url)
        one.set("a", "1")
        assert two.get("a") == "1"
        one.close()
        two.close()


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no Redis"):
        RedisServer.find_or_start(load_settings(data_dir=tmp_path), kinds=("given",))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    if system_program() is None and bundled_program() is None:
        pytest.skip("no Redis server program is installed here")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from jobs import RedisServer, load_settings\n"
        "settings = load_settings(data_dir=Path(sys.argv[1]))\n"
        "server = RedisServer.find_or_start(settings, kinds=('system', 'bundled'))\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        redis_pid = int(parent.stdout.readline())
        os.kill(redis_pid, 0)  # it is there
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(redis_pid, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{redis_pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return  # ended; nobody has collected it yet
        time.sleep(0.05)
    pytest.fail("Redis outlived its parent")
