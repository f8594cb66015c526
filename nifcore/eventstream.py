"""Server-Sent Events as they come over the wire, and where to go on after a broken connection."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nifcore.errors import RemoteError

_LONGEST_LINE = 1 << 20
_OWN = ("end", "dropped")


@dataclass(frozen=True)
class RemoteEvent:
    """Something that happened to a job (``docs/api.md`` lists the types).

    Attributes:
        type: such as ``job.progress``; ``job.snapshot`` carries the whole job.
        id: give it as ``after`` to read on; None for a snapshot.
        values: everything the service said of it.
    """

    type: str
    id: str | None
    values: Mapping[str, Any] = field(repr=False)

    @property
    def data(self) -> Mapping[str, Any]:
        """What came with it: progress, report, reason; empty for a snapshot."""
        found: Mapping[str, Any] = self.values.get("data", {})
        return found


class EventParser:
    """Reads one stream after the other of the same job or tenant.

    Attributes:
        last_id: of the last event, or where a stream said that it begins.
        retry_seconds: how long the service asks to wait before coming back.
        ended: the service said that nothing follows.
        dropped: the service said that it was read too slowly.
    """

    def __init__(self, after: str | None = None) -> None:
        self.last_id = after
        self.retry_seconds = 1.0
        self.ended = self.dropped = False
        self._rest = b""
        self._type = "message"
        self._data: list[str] = []
        self._id: str | None = None

    def begin(self) -> None:
        """Forget what was left unfinished: another connection begins."""
        self._rest, self.dropped = b"", False
        self._clear()

    def feed(self, data: bytes) -> Iterator[RemoteEvent]:
        """Yield the events that are complete with this part of a stream.

        Raises:
            RemoteError: it is no stream of this service.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise RemoteError(f"a line of the event stream has more than {_LONGEST_LINE} bytes")
        for line in lines:
            event = self._line(line.rstrip(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> RemoteEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id":
                self._id = value
            case "retry" if value.isascii() and value.isdecimal():
                self.retry_seconds = min(30.0, int(value) / 1000)
        return None

    def _dispatch(self) -> RemoteEvent | None:
        kind, data, identifier = self._type, "\n".join(self._data), self._id
        self._clear()
        if identifier is not None:
            self.last_id = identifier
        if not data:
            return None
        if kind in _OWN:
            self.ended = self.ended or kind == "end"
            self.dropped = self.dropped or kind == "dropped"
            return None
        try:
            values = json.loads(data)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise RemoteError(f"the event {kind[:40]!r} has no JSON object but {data[:60]!r}")
        return RemoteEvent(kind, identifier, values)

    def _clear(self) -> None:
        self._type, self._data, self._id = "message", [], None
