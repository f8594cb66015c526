"""Object stores to test against: moto's server, and OpenStack Swift behind its S3 door."""

from __future__ import annotations

import getpass
import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs import BlobExists, BlobNotFound, FileBlobs, UrlRefused, with_parent

SWIFT_CONFIGURATION = Path(__file__).parent / "swift"
ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
_STARTUP_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    url: str
    access_key: str
    secret_key: str


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await(url: str, children: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                return  # it answers
            dead = [child.args for child in children if child.poll() is not None]
            if dead or time.monotonic() > deadline:
                words = "\n".join(path.read_text()[-2000:] for path in log.glob("*.log"))
                raise RuntimeError(f"{url} does not answer; ended: {dead}\n{words}") from error
        time.sleep(0.05)


@contextmanager
def children(argvs: dict[str, list[str]], url: str, folder: Path) -> Iterator[None]:
    """Run processes until the block ends; wait until ``url`` answers before it begins."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, argv in argvs.items():
            with (folder / f"{name}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        with_parent.command(argv), stdout=log, stderr=subprocess.STDOUT
                    )
                )
        _await(url, started, folder)
        yield
    finally:
        for child in started:
            child.terminate()
        for child in started:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """Run moto's server: it keeps everything in memory and accepts any credentials."""
    (port,) = free_ports(1)
    script = (
        "from moto.server import main; import logging; "
        "logging.getLogger('werkzeug').setLevel('ERROR'); "
        f"main(['-H', '127.0.0.1', '-p', '{port}'])"
    )
    url = f"http://127.0.0.1:{port}"
    with children({"moto": [sys.executable, "-c", script]}, url, folder):
        yield S3Server(url, "any", "thing")


def missing_for_swift(folder: Path) -> str | None:
    """Return why Swift cannot run here, or None."""
    if importlib.util.find_spec("swift") is None:
        return "OpenStack Swift is not installed (pip install swift)"
    probe = folder / "xattr-probe"
    probe.write_bytes(b"")
    try:
        os.setxattr(probe, "user.swift.probe", b"1")
    except OSError as error:
        return f"Swift needs a temporary folder with extended attributes: {error}"
    return None


@contextmanager
def swift_server(folder: Path) -> Iterator[S3Server]:
    """Run Swift's four servers, from the committed configuration, with one disk and one copy."""
    programs = Path(sys.executable).parent
    kinds = ("account", "container", "object")
    ports = dict(zip(("proxy", *kinds), free_ports(4), strict=True))
    etc = folder / "etc"
    etc.mkdir()
    (folder / "devices" / "d1").mkdir(parents=True)
    values = {"@FOLDER@": str(folder), "@USER@": getpass.getuser()}
    values |= {f"@{name.upper()}_PORT@": str(port) for name, port in ports.items()}
    for source in SWIFT_CONFIGURATION.glob("*.conf"):
        text = source.read_text("utf-8")
        for name, value in values.items():
            text = text.replace(name, value)
        (etc / source.name).write_text(text, "utf-8")
    ring = (
        "import sys\n"
        "from swift.common.ring import RingBuilder\n"
        "builder = RingBuilder(4, 1, 0)\n"
        "builder.add_dev({'id': 0, 'region': 1, 'zone': 1, 'ip': '127.0.0.1', 'weight': 1.0,\n"
        "    'port': int(sys.argv[2]), 'device': 'd1', 'replication_ip': '127.0.0.1',\n"
        "    'replication_port': int(sys.argv[2]), 'meta': ''})\n"
        "builder.rebalance(seed='1')\n"
        "builder.get_ring().save(sys.argv[1])\n"
    )
    for kind in kinds:
        subprocess.run(
            [sys.executable, "-c", ring, str(etc / f"{kind}.ring.gz"), str(ports[kind])],
            check=True,
            capture_output=True,
        )
    argvs = {
        kind: [sys.executable, str(programs / f"swift-{kind}-server"), f"{etc}/{kind}-server.conf"]
        for kind in (*kinds, "proxy")
    }
    with ExitStack() as stack:
        # the proxy last: one that finds a server absent shuns it for a minute
        for kind, argv in argvs.items():
            url = f"http://127.0.0.1:{ports[kind]}"
            stack.enter_context(children({kind: argv}, url, folder))
        yield S3Server(url, ACCESS_KEY, SECRET_KEY)


@contextmanager
def link_server(blobs: FileBlobs, port: int) -> Iterator[None]:
    """Answer the links of a `FileBlobs`, as the API does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                grant = blobs.verify(self.path.rpartition("/")[2], method)
                if method == "PUT":
                    if len(body) != grant.size:
                        raise UrlRefused("size")
                    blobs.put(grant.key, body, media_type=str(grant.media_type))
                    data, kind = b"", "text/plain"
                else:
                    data = blobs.get(grant.key)
                    kind = grant.media_type or blobs.head(grant.key).media_type
                status = 200
            except UrlRefused:
                status, data, kind = 403, b"", "text/plain"
            except BlobNotFound:
                status, data, kind = 404, b"", "text/plain"
            except BlobExists:
                status, data, kind = 409, b"", "text/plain"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if status == 200 and method == "GET" and grant.filename:
                self.send_header("Content-Disposition", f'attachment; filename="{grant.filename}"')
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
