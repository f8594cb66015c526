"""Many readers of event streams in one process: ``python -m benchmarks.listeners < plan.json``.

A process of its own, so that its work is not the server's. Says ``open`` once every stream has
begun, reads until all have ended, and prints the `Heard` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

# "event: ...\ndata: ...\nid: milliseconds-number": what Redis' clock said, on this machine.
_EVENT = re.compile(rb"event: (\S+)\n(?:data: [^\n]*\n)?(?:id: (\d+)-\d+\n)?")
_OPENING_AT_ONCE = 50


@dataclass(frozen=True)
class Plan:
    """Whom to listen to.

    Attributes:
        host, port: of the server.
        headers: sent with every request.
        paths: of the streams, one each.
    """

    host: str
    port: int
    headers: dict[str, str]
    paths: list[str]


@dataclass
class Heard:
    """What came of it.

    Attributes:
        statuses: answers by status.
        events: by name.
        latencies_ms: of ``job.progress``, from the store's note of it to its arrival here.
        per_stream: progress events of every stream.
        opening_seconds: until every stream had begun.
        processor_seconds: of this process.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    per_stream: list[int] = field(default_factory=list)
    opening_seconds: float = 0.0
    processor_seconds: float = 0.0


class _Listener(asyncio.Protocol):
    """One stream."""

    def __init__(self, request: bytes, heard: Heard, events: Counter[str]) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self.progress = 0
        self._request, self._heard, self._events = request, heard, events
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time() * 1000
        if not self.begun.done():
            status = data[9:12].decode()
            self._heard.statuses[status] = self._heard.statuses.get(status, 0) + 1
            self.begun.set_result(None)
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            match = _EVENT.search(block + b"\n")
            if match is None:
                continue
            name = match[1].decode()
            self._events[name] += 1
            if name == "job.progress":
                self.progress += 1
                self._heard.latencies_ms.append(now - int(match[2]))
            elif name in ("end", "dropped") and self._transport is not None:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        for each in (self.begun, self.over):
            if not each.done():
                each.set_result(None)


async def run(plan: Plan) -> Heard:
    """Listen to everything until it ends."""
    heard, events = Heard(), Counter[str]()
    headers = {"Host": f"{plan.host}:{plan.port}", **plan.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    turn = asyncio.Semaphore(_OPENING_AT_ONCE)
    loop = asyncio.get_running_loop()

    async def begin(path: str) -> _Listener:
        request = f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()
        async with turn:
            _, listener = await loop.create_connection(
                lambda: _Listener(request, heard, events), plan.host, plan.port
            )
            await listener.begun
        return listener

    began = time.perf_counter()
    listeners = await asyncio.gather(*(begin(path) for path in plan.paths))
    heard.opening_seconds = time.perf_counter() - began
    print("open", flush=True)
    await asyncio.gather(*(each.over for each in listeners))
    heard.events = dict(events)
    heard.per_stream = [each.progress for each in listeners]
    used = resource.getrusage(resource.RUSAGE_SELF)
    heard.processor_seconds = used.ru_utime + used.ru_stime
    return heard


def main() -> int:
    """Read a plan from standard input, follow it, print what was heard."""
    values: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(asdict(asyncio.run(run(Plan(**values))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
