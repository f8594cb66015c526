"""How tests listen to event streams: a parser of their own, one connection a stream."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

STILL_HERE = "still here"


@dataclass
class Block:
    """What stands between two empty lines of a stream, by the HTML standard's rules."""

    event: str = "message"
    data: str | None = None
    id: str | None = None
    retry: int | None = None
    comments: list[str] = field(default_factory=list)

    @property
    def values(self) -> Any:
        assert self.data is not None
        return json.loads(self.data)


class Listener:
    """An open stream. Reads only when asked to; `receive_buffer` makes it a slow reader."""

    def __init__(
        self,
        url: str,
        path: str,
        key: str,
        *,
        last_event_id: str | None = None,
        receive_buffer: int = 0,
        timeout: float = 60.0,
    ) -> None:
        parts = urlsplit(url)
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(timeout)
        self._socket.connect((parts.hostname, parts.port))
        lines = [f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", f"Authorization: Bearer {key}"]
        if last_event_id is not None:
            lines.append(f"Last-Event-ID: {last_event_id}")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        self._rest = b""

    def body(self) -> bytes:
        """Return the body of an answer that tells its length."""
        return self._file.read(int(self.headers.get("content-length", "0")))

    def blocks(self, *, signs: bool = False) -> Iterator[Block]:
        """Yield what comes until the stream ends; signs of life between it only if asked to.

        How many of those come depends on how long the machine takes.
        """
        assert self.status == 200, self.body()
        assert self.headers["content-type"].startswith("text/event-stream")
        text = b""
        while True:
            head = self._file.readline().strip()
            size = int(head or b"0", 16)
            text += self._file.read(size)
            self._file.readline()
            *whole, text = text.split(b"\n\n")
            for each in whole:
                block = _block(each.decode())
                if signs or block.comments != [STILL_HERE]:
                    yield block
            if not size:
                assert not text
                return

    def until(self, name: str) -> list[Block]:
        """Return the blocks up to the first event of a name."""
        found = []
        for block in self.blocks():
            found.append(block)
            if block.event == name:
                return found
        raise AssertionError(f"the stream ended without {name}: {found}")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _block(text: str) -> Block:
    block = Block()
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            block.comments.append(value)
        elif name == "data":
            block.data = value if block.data is None else f"{block.data}\n{value}"
        elif name == "event":
            block.event = value
        elif name == "id":
            block.id = value
        elif name == "retry":
            block.retry = int(value)
    return block
