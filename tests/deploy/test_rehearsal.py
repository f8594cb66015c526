"""What the containers would run, run as plain processes: commands, variables and health checks.

Redis starts by its script and configuration, the bucket is made by its one-shot command, and the
API and the workers run with the environment of the compose file; only addresses and folders are
replaced. OpenStack Swift stands in for SeaweedFS, since it checks signatures too.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from PIL import Image

from jobs import redis_server, with_parent
from nifcore import is_nif, read_header
from tests.api.running import picture
from tests.deploy.files import ROOT, command_of, compose, health_of, image_environment, interpolated
from tests.deploy.test_compose import filled
from tests.jobs.object_servers import S3Server, free_ports, missing_for_swift, swift_server

__all__ = ["filled"]

PATIENCE_SECONDS = 120.0


@dataclass
class Stand:
    """What stands in for the containers' surroundings.

    Attributes:
        services: of the compose file, variables filled in.
        replaced: what is written otherwise here: addresses, folders, programs.
        path: with Python and the Redis programs.
        folder: where everything is kept.
        redis_port, api_port: where Redis and the API listen here.
        children: the processes, by service.
    """

    services: dict[str, Any]
    replaced: dict[str, str]
    path: str
    folder: Path
    redis_port: int
    api_port: int
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """Return ``text`` with what is otherwise here."""
        places = "|".join(map(re.escape, self.replaced))
        return re.sub(places, lambda found: self.replaced[found[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a container, and nothing of ours but the path."""
        service = self.services[name]
        given = image_environment(service["build"]["target"]) if "build" in service else {}
        given = given | {key: str(value) for key, value in service["environment"].items()}
        (self.folder / name).mkdir(exist_ok=True)
        own = {"HOME": str(self.folder / name), "NIF_DATA_DIR": str(self.folder / name)}
        own |= {"TMPDIR": str(self.folder / name), "PATH": self.path, "PYTHONPATH": str(ROOT)}
        return {key: self.here(value) for key, value in given.items()} | own

    def run(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as in a container, to its end."""
        return subprocess.run(
            [self.here(word) for word in command],
            env=self.environment(name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def log(self, name: str) -> str:
        """Return the end of what a process said."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")[-2000:]

    def well(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check."""
        words = health_of(self.services[name])
        assert words is not None
        if len(words) == 1:
            words = ["sh", "-c", *words]
        return self.run(name, words)


def until(up: Stand, name: str, done: Callable[[], Any]) -> Any:
    """Return what ``done`` returns once that is true; fail with the log of the one in charge."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := done()):
        if time.monotonic() > deadline or up.children[name].poll() is not None:
            pytest.fail(f"{name} did not do it:\n{up.log(name)}")
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("swift")
    missing = missing_for_swift(folder)
    if missing:
        pytest.skip(missing)
    with swift_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def stand(
    storage: S3Server, filled: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Stand:
    programs = redis_server.system_program() or redis_server.bundled_program()
    if programs is None:
        pytest.skip("no Redis server is here")
    folder = tmp_path_factory.mktemp("stand")
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "redis-server").symlink_to(programs)
    redis_port, api_port = free_ports(2)
    mine = {"S3_ACCESS_KEY": storage.access_key, "S3_SECRET_KEY": storage.secret_key}
    mine |= {"NIF_S3_PUBLIC_ENDPOINT": storage.url}
    services = interpolated(compose(), filled | mine)["services"]
    replaced = {
        "redis:6379": f"127.0.0.1:{redis_port}",
        "http://s3:8333": storage.url,
        "127.0.0.1:8000": f"127.0.0.1:{api_port}",
        "8000": str(api_port),
        "0.0.0.0": "127.0.0.1",
        "/etc/nif-redis": str(ROOT / "docker" / "redis"),
        "/opt/nif": str(ROOT / "docker"),
        "/data": str(folder / "redis"),
    }
    path = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return Stand(services, replaced, path, folder, redis_port, api_port)


@pytest.fixture(scope="module")
def up(stand: Stand) -> Iterator[Stand]:
    """Start everything in the order of the compose file."""
    with ExitStack() as stack:

        def start(name: str, *more: str) -> None:
            command = [stand.here(each) for each in [*command_of_any(stand, name), *more]]
            with (stand.folder / f"{name}.log").open("wb") as log:
                child = subprocess.Popen(
                    with_parent.command(command),
                    env=stand.environment(name),
                    cwd=stand.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            stand.children[name] = child
            stack.callback(_end, child)

        port = str(stand.redis_port)
        (stand.folder / "redis").mkdir(exist_ok=True)
        start("redis", "--port", port)
        made = stand.run("bucket", command_of_any(stand, "bucket"))
        assert (made.returncode, made.stderr) == (0, "")
        for name in ("worker-light", "worker-cpu"):
            refused = stand.well(name)
            assert refused.returncode == 1
            assert "was heard of" in refused.stderr or "Connection" in refused.stderr
        for name in ("api", "worker-light", "worker-cpu"):
            start(name)
        yield stand


def command_of_any(stand: Stand, name: str) -> list[str]:
    service = stand.services[name]
    return command_of(service) if "build" in service else list(service["command"])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@pytest.fixture
def client(up: Stand, filled: dict[str, str]) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {filled['NIF_ADMIN_KEY']}"}
    url = f"http://127.0.0.1:{up.api_port}"
    with httpx2.Client(base_url=url, headers=headers, timeout=60.0) as found:
        yield found


@pytest.mark.slow
def test_the_health_checks_come_to_say_yes(up: Stand) -> None:
    for name in ("api", "worker-light", "worker-cpu"):
        until(up, name, lambda name=name: up.well(name).returncode == 0)


@pytest.mark.slow
def test_the_bucket_is_made_once(up: Stand) -> None:
    again = up.run("bucket", command_of_any(up, "bucket"))
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.slow
def test_a_wrong_key_makes_no_bucket(up: Stand) -> None:
    wrong = {**up.services["bucket"]}
    wrong["environment"] = {**wrong["environment"], "NIF_S3_SECRET_KEY": "wrong"}
    refused = replace(up, services={"bucket": wrong})
    done = refused.run("bucket", command_of_any(refused, "bucket"))
    assert done.returncode == 1
    assert "403" in done.stderr


@pytest.mark.slow
def test_redis_wants_the_password(up: Stand) -> None:
    port = up.redis_port
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    password = up.services["redis"]["environment"]["REDIS_PASSWORD"]
    with redis.Redis(port=port, password=password, decode_responses=True) as known:
        assert known.config_get("appendfsync") == {"appendfsync": "always"}
        assert known.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.slow
def test_a_picture_goes_through(client: httpx2.Client, up: Stand) -> None:
    until(up, "api", lambda: _answers(client, "/readyz"))
    sent = client.post(
        "/v1/jobs",
        files={"file": ("a.png", picture(1, 48, 32), "image/png")},
        data={"effort": "1"},
    )
    assert sent.status_code == 202, sent.text
    place = sent.headers["location"]

    def ended() -> Any:
        job = client.get(place).json()
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None

    job = until(up, "worker-cpu", ended)
    assert job["state"] == "succeeded", job
    data = client.get(f"{place}/result", follow_redirects=True).content
    assert is_nif(data)
    assert (read_header(data).width, read_header(data).height) == (48, 32)
    shown = client.get(f"{place}/image", params={"format": "png"})
    assert Image.open(io.BytesIO(shown.content)).size == (48, 32)
    told = client.get("/metrics").text
    assert 'nif_transitions{from="running",to="succeeded"} 1' in told
    blobs = up.folder / "api" / "blobs"
    assert not blobs.exists(), "everything is in the bucket"


def _answers(client: httpx2.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx2.TransportError:
        return False
