"""Puts load on an HTTP server and times every answer: ``python -m benchmarks.load < plan.json``.

A process of its own, so that its work is not the server's, with keep-alive connections, and without
an HTTP library: what is not spent here shows what the server can do. Prints the `Tally` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_BOUNDARY = "nif-load-boundary"


@dataclass(frozen=True)
class Plan:
    """What to send.

    Attributes:
        host, port: of the server.
        headers: sent with every request.
        path: of every request.
        connections: each sends one request after the other.
        requests: so many in all; 0 for as many as ``seconds`` allow.
        seconds: no request begins later; 0 for no bound.
        picture: file that is sent as a form, a new picture each time (see `numbered`); empty for
            GET requests.
        fields: of the form.
        first: number of the first picture.
    """

    host: str
    port: int
    headers: dict[str, str]
    path: str
    connections: int = 1
    requests: int = 0
    seconds: float = 0.0
    picture: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    first: int = 0


@dataclass
class Tally:
    """What came of it.

    Attributes:
        seconds: from the first byte sent to the last one received.
        latencies: seconds of every request, from its first byte to the last of its answer.
        statuses: answers by status.
        processor_seconds: of this process.
        first_refusal: body of the first answer of 400 or above, or None.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    processor_seconds: float = 0.0
    first_refusal: str | None = None


def numbered(png: bytes, number: int) -> tuple[bytes | memoryview, ...]:
    """Return a PNG with a text chunk before its end, in pieces: equal pixels, another SHA-256."""
    content = b"tEXt" + b"Comment\0" + str(number).encode()
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    # The last chunk, IEND, always takes twelve bytes.
    return memoryview(png)[:-12], chunk + png[-12:]


Request = tuple[bytes | memoryview, ...]
"""A request in pieces, so that a large picture need not be copied for each."""


def get_request(plan: Plan) -> Request:
    """Return a GET request."""
    return (_head(plan, "GET", {}),)


def post_request(plan: Plan, picture: Request) -> Request:
    """Return a POST request whose form carries the picture."""
    lines = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in plan.fields.items()
    )
    lines += (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = (lines.encode(), *picture, f"\r\n--{_BOUNDARY}--\r\n".encode())
    headers = {
        "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
        "Content-Length": str(sum(len(piece) for piece in body)),
    }
    return (_head(plan, "POST", headers) + body[0], *body[1:])


def _head(plan: Plan, method: str, more: dict[str, str]) -> bytes:
    headers = {"Host": f"{plan.host}:{plan.port}", **plan.headers, **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {plan.path} HTTP/1.1\r\n{lines}\r\n".encode()


class Connection:
    """A kept connection, on the bare socket: asyncio's streams copy what they send."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._received = b""

    async def send(self, request: Request) -> None:
        """Send a request."""
        for piece in request:
            await self._loop.sock_sendall(self._link, piece)

    async def answer(self) -> tuple[int, bytes]:
        """Read an answer that tells its length; return status and body.

        Raises:
            ConnectionError: the server hung up.
            ValueError: the answer does not tell its length.
        """
        while b"\r\n\r\n" not in self._received:
            await self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        head = head.lower() + b"\r\n"
        status = int(head[9:12])
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if not found and status not in (204, 304):
            raise ValueError(f"an answer without a length: {head!r}")
        length = int(rest.partition(b"\r\n")[0]) if found and status != 304 else 0
        while len(self._received) < length:
            await self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return status, body

    async def _receive(self) -> None:
        piece = await self._loop.sock_recv(self._link, 1 << 16)
        if not piece:
            raise ConnectionError("the server hung up")
        self._received += piece


async def _follow(
    plan: Plan, requests: Iterator[Request], tally: Tally, over: Callable[[], bool]
) -> None:
    """Send requests on one connection, each after the answer to the one before."""
    with socket.create_connection((plan.host, plan.port)) as link:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(link)
        for request in requests:
            if over():
                return
            began = time.perf_counter()
            await connection.send(request)
            status, body = await connection.answer()
            tally.latencies.append(time.perf_counter() - began)
            tally.statuses[str(status)] = tally.statuses.get(str(status), 0) + 1
            if status >= 400 and tally.first_refusal is None:
                tally.first_refusal = body[:500].decode("utf-8", "replace")


def _requests(plan: Plan) -> Iterator[Request]:
    png = Path(plan.picture).read_bytes() if plan.picture else b""
    plain = get_request(plan)
    sent = 0
    while not plan.requests or sent < plan.requests:
        # Taken by all connections in turn, so that each picture is sent once.
        sent += 1
        yield post_request(plan, numbered(png, plan.first + sent - 1)) if png else plain


async def run(plan: Plan) -> Tally:
    """Send everything and return what came of it."""
    tally = Tally()
    requests = _requests(plan)
    began = time.perf_counter()
    end = began + plan.seconds if plan.seconds else float("inf")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(plan.connections):
            tasks.create_task(_follow(plan, requests, tally, lambda: time.perf_counter() > end))
    tally.seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    tally.processor_seconds = used.ru_utime + used.ru_stime
    return tally


def main() -> int:
    """Read a plan from standard input, follow it, print the tally."""
    values: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(asdict(asyncio.run(run(Plan(**values))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
