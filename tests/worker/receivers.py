"""Real receivers of webhooks, on this machine."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Received:
    """One request: its headers by lower-case name, its body, and when it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """Return the payload if the library's own verifier accepts it."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """A receiver that remembers what came and answers as it is told.

    Attributes:
        url: where it listens.
        received: every request that came whole.
        answer: given a request, writes the answer; 204 unless a test sets another.
        most_at_once: greatest number of requests that were open at the same time.
    """

    url: str
    port: int
    received: list[Received] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler, Received], None] | None = None
    most_at_once: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self) -> list[str]:
        return [each.id for each in self.received]

    def note(self, by: int) -> None:
        with self._lock:
            self._open += by
            self.most_at_once = max(self.most_at_once, self._open)


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, Received], None]:
    """Return an answer with nothing but a status and headers."""

    def write(handler: BaseHTTPRequestHandler, received: Received) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return write


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver on a free port of the loopback address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            receiver.note(1)
            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received = Received(self.path, headers, body, time.monotonic())
                receiver.received.append(received)
                (receiver.answer or status(204))(self, received)
            except OSError:
                self.close_connection = True  # the sender did not wait for all of it
            finally:
                receiver.note(-1)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a handshake that the sender broke off

    server = Server(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    receiver = Receiver(f"{'http' if tls is None else 'https'}://127.0.0.1:{port}", port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def talking(speak: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """Run something that is no HTTP server: ``speak`` has each connection after its first bytes."""
    seen: list[bytes] = []
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    seen.append(connection.recv(65536))
                    speak(connection)
                except OSError:
                    continue  # the sender had enough

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        stop.set()
        thread.join()
        listener.close()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for a host; return the contexts of a server that has it and of a client
    that trusts nothing else."""
    key, found = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(found)),
        ],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(found, key)
    return server, ssl.create_default_context(cafile=str(found))
