"""A client of the compression service, in two kinds: :class:`Client` and :class:`AsyncClient`.

    with Client("http://127.0.0.1:8000", "nif_...") as service:
        job = service.submit("photo.png", effort=5)
        job = service.wait(job.id, progress=lambda job: print(job.progress))
        service.download(job.id, "photo.nif")

Both build their requests and read their answers with the same functions; they differ only in how
they wait. Requests that may be repeated are, after broken connections and when the service asks to
come back later; submissions carry an Idempotency-Key so that they may be.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import os
import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeAlias
from urllib.parse import quote

import httpx2

from nifcore.errors import InputError, RemoteError
from nifcore.eventstream import EventParser, RemoteEvent
from nifcore.output import write_atomically

Picture: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes]

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_SECONDS = 60.0
_TRIES = 5
_LONGEST_PAUSE_SECONDS = 30.0
# While a job waits; one that runs may end at any moment, which is not to be noticed late.
_POLL_SECONDS = (0.2, 2.0)
_POLL_SECONDS_RUNNING = 0.5
_AGAIN = frozenset({429, 502, 503, 504})
# A service without event streams, or without one for us: it is polled.
_NO_STREAM = frozenset({"not_found", "method_not_allowed", "too_many_streams", "streams_full"})
_NO_PROGRESS: Mapping[str, Any] = {
    **dict.fromkeys(("step", "steps", "tiles"), 1),
    **dict.fromkeys(("iteration", "iterations", "tile", "seconds"), 0),
    **dict.fromkeys(("loss", "psnr_db", "bpp", "eta_seconds", "message")),
}


class Refused(RemoteError):
    """The service answered with a problem.

    Attributes:
        status: of HTTP.
        code: stable name of the problem; ``docs/api.md`` lists them.
        detail: what went wrong, for people.
        request_id: to quote when asking the operator, or None.
        problem: the whole problem object.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", "no detail"))
        self.request_id = problem.get("request_id")
        self.problem = dict(problem)
        super().__init__(f"{self.detail} ({status} {self.code})")


class Unreachable(RemoteError):
    """The service could not be reached, or the connection broke."""


class WaitTimeout(RemoteError):
    """The job did not end in the given time; it goes on."""


@dataclass(frozen=True)
class RemoteJob:
    """A job as the service describes it.

    Attributes:
        id: of the job.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        values: everything the service said (see ``docs/api.md``).
    """

    id: str
    state: str
    values: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def progress(self) -> Mapping[str, Any] | None:
        """Phase, iterations, PSNR, bpp and time left of a running job."""
        found: Mapping[str, Any] | None = self.values.get("progress")
        return found

    @property
    def result(self) -> Mapping[str, Any] | None:
        """Size, SHA-256, bpp and PSNR of a finished file."""
        found: Mapping[str, Any] | None = self.values.get("result")
        return found

    @property
    def failure(self) -> Mapping[str, Any] | None:
        """Code and message of what went wrong."""
        found: Mapping[str, Any] | None = self.values.get("failure")
        return found

    @property
    def filename(self) -> str | None:
        """What the picture was called."""
        found: str | None = self.values.get("input", {}).get("filename")
        return found


@dataclass(frozen=True)
class _Call:
    """One request, and whether it may be repeated."""

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = True


def _submission(picture: Picture, filename: str | None, fields: Mapping[str, Any]) -> _Call:
    data, name = _content(picture)
    return _Call(
        "POST",
        "/v1/jobs",
        {
            "files": {"file": (filename or name, data)},
            "data": {name: _text(value) for name, value in fields.items() if value is not None},
            "headers": {"Idempotency-Key": str(uuid.uuid4())},
        },
    )


def _content(picture: Picture) -> tuple[bytes, str]:
    """Return the bytes of a picture, and a name for them."""
    if isinstance(picture, bytes):
        return picture, "picture"
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        try:
            return path.read_bytes(), path.name
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return picture.read(), Path(str(getattr(picture, "name", "picture"))).name


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        import json

        return json.dumps(dict(value))
    return str(value)


def _job_path(job_id: str, part: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}{part}"


def _listing(cursor: str | None, filters: Mapping[str, Any]) -> _Call:
    asked = {name: value for name, value in filters.items() if value is not None}
    return _Call("GET", "/v1/jobs", {"params": asked | ({"cursor": cursor} if cursor else {})})


def _view(options: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: value for name, value in options.items() if value is not None}
    if not isinstance(asked.get("region", ""), str):
        asked["region"] = ",".join(str(each) for each in asked["region"])
    return asked


def _job(answer: httpx2.Response) -> RemoteJob:
    values = _json(answer)
    try:
        return RemoteJob(values["id"], values["state"], values)
    except KeyError as error:
        raise RemoteError(f"{answer.url}: the answer is no job: it has no {error}") from None


def _json(answer: httpx2.Response) -> dict[str, Any]:
    try:
        values = answer.json()
    except ValueError:
        values = None
    if not isinstance(values, dict):
        kind = answer.headers.get("content-type", "no type")
        raise RemoteError(f"{answer.url} answered {answer.status_code} with {kind}, not with JSON")
    return values


def _checked(answer: httpx2.Response) -> httpx2.Response:
    """Return the answer unless it is a failure.

    Raises:
        Refused: it is a problem.
        RemoteError: it is another failure.
    """
    if answer.is_error:
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            raise Refused(answer.status_code, _json(answer))
        raise RemoteError(f"{answer.url} answered {answer.status_code} {answer.reason_phrase}")
    return answer


def _verified(answer: httpx2.Response) -> bytes:
    """Return a download whose SHA-256, where it was told, is right."""
    told = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", answer.headers.get("repr-digest", ""))
    if told is not None:
        digest = hashlib.sha256(answer.content).digest()
        if base64.b64encode(digest).decode() != told[1]:
            raise RemoteError(f"{answer.url}: the file was damaged on its way")
    return answer.content


def _pause(attempt: int, answer: httpx2.Response | None) -> float | None:
    """Return seconds to wait before trying again, None to give up."""
    if attempt >= _TRIES:
        return None
    if answer is None:
        # From 0.25 s, doubling, with jitter so that many clients do not come back together.
        return float(min(_LONGEST_PAUSE_SECONDS, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
    in_flight = answer.status_code == 409 and b'"idempotency_in_flight"' in answer.content
    if answer.status_code not in _AGAIN and not in_flight:
        return None
    asked = answer.headers.get("retry-after", "")
    seconds = float(asked) if asked.isdecimal() else 1.0
    return seconds if seconds <= _LONGEST_PAUSE_SECONDS else None


def _unreachable(url: str, error: httpx2.HTTPError) -> Unreachable:
    return Unreachable(f"{url} cannot be reached: {str(error) or type(error).__name__}")


def _http_options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise RemoteError(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RemoteError(f"{url!r} is not a http:// or https:// URL")
    headers = {"User-Agent": "nif-client"}
    if key:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise RemoteError("the API key has characters that no key has")
        headers["Authorization"] = f"Bearer {key}"
    # Redirects are not followed: the key goes to nobody else.
    return {"base_url": url, "headers": headers, "timeout": timeout, "follow_redirects": False}


class _Watch:
    """The wait for one job: until when, and where it is polled, how often."""

    def __init__(self, job_id: str, timeout: float | None) -> None:
        self._job_id = job_id
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._tag: str | None = None
        self._pause = _POLL_SECONDS[0]
        self._state = ""

    def call(self) -> _Call:
        headers = {} if self._tag is None else {"If-None-Match": self._tag}
        return _Call("GET", _job_path(self._job_id), {"headers": headers})

    def look(self, answer: httpx2.Response) -> RemoteJob | None:
        """Return the job if it changed."""
        if answer.status_code == 304:
            return None
        self._tag = answer.headers.get("etag")
        job = _job(answer)
        self._state = job.state
        return job

    def left(self) -> float:
        """Return how long the job may still take.

        Raises:
            WaitTimeout: the time is up.
        """
        if self._deadline is None:
            return math.inf
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"{self._job_id} did not end in the given time; it goes on")
        return left

    def patience(self, usual: httpx2.Timeout) -> httpx2.Timeout:
        """Return how long a stream may be silent: no longer than there is time."""
        silence = min(usual.read or math.inf, self.left())
        read = None if math.isinf(silence) else silence
        return httpx2.Timeout(usual.connect, read=read)

    def pause(self, changed: bool) -> float:
        """Return seconds until the next look: soon while things change, later while not.

        Raises:
            WaitTimeout: the time is up.
        """
        low, high = _POLL_SECONDS
        if self._state == "running":
            high = _POLL_SECONDS_RUNNING
        self._pause = low if changed else min(high, self._pause * 1.5)
        return min(self._pause, self.left())


class _Following:
    """The event stream of one job: where to go on, and when to give up.

    Args:
        job_id: of the job.
        after: id of the last event that was seen, or None.
    """

    def __init__(self, job_id: str, after: str | None) -> None:
        self._path = _job_path(job_id, "/events")
        self._parser = EventParser(after)
        self._attempt = 0

    def request(self) -> dict[str, Any]:
        """Return what to ask for, as the HTTP client takes it."""
        self._parser.begin()
        headers = {"Accept": "text/event-stream"}
        if self._parser.last_id is not None:
            headers["Last-Event-ID"] = self._parser.last_id
        return {"method": "GET", "url": self._path, "headers": headers}

    def hear(self, data: bytes) -> Iterator[RemoteEvent]:
        """Yield the events of a part of the stream."""
        self._attempt = 0
        yield from self._parser.feed(data)

    def over(self, answer: httpx2.Response) -> bool:
        """Whether nothing follows: the service said so, here or in the stream."""
        return self._parser.ended or answer.status_code == 204

    def pause(self, answer: httpx2.Response | None, failure: Unreachable | None) -> float:
        """Return seconds to wait before the stream is asked for again.

        Raises:
            Unreachable: it broke too often without a word.
            Refused, RemoteError: the service does not want to.
        """
        if answer is not None and answer.is_error:
            self._attempt += 1
            code = _code(answer)
            if code in _NO_STREAM:
                raise Refused(answer.status_code, {"code": code, "detail": "no event stream"})
            pause = _pause(self._attempt, answer)
            if pause is None:
                _checked(answer)
            return pause or 0.0
        if failure is not None:
            self._attempt += 1
            pause = _pause(self._attempt, None)
            if pause is None:
                raise failure
            return pause
        return 0.0 if self._parser.dropped else self._parser.retry_seconds


def _code(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("code"))
    except (ValueError, AttributeError):
        return "not_found" if answer.status_code == 404 else ""


def _told(job: RemoteJob | None, event: RemoteEvent) -> RemoteJob | None:
    """Return the job after an event, or None if the event does not tell enough to know it."""
    if event.type == "job.snapshot":
        return RemoteJob(event.values["id"], event.values["state"], event.values)
    if job is None or event.type != "job.progress":
        return None
    values = {**job.values, "state": "running", "progress": {**_NO_PROGRESS, **event.data}}
    return RemoteJob(job.id, "running", values)


class Client:
    """Speaks to the service, and blocks while it does. Thread-safe; used as a context or closed.

    Args:
        url: where the service is.
        key: API key, ``nif_...``.
        timeout: seconds that the service may be silent.

    Every method raises :class:`Refused` when the service refuses, :class:`Unreachable` when it
    cannot be reached.
    """

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, *, timeout: float = _TIMEOUT_SECONDS
    ) -> None:
        self._url = url
        self._http = httpx2.Client(**_http_options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, picture: Picture, *, filename: str | None = None, **fields: Any) -> RemoteJob:
        """Submit a picture (a path, bytes or a binary file) and return its job.

        ``fields`` are those of ``POST /v1/jobs``: effort, preset, quality, psnr, bpp, max_bytes,
        seed, keep_icc, priority, metadata, webhook, deduplicate.
        """
        return _job(self._send(_submission(picture, filename, fields)))

    def get(self, job_id: str) -> RemoteJob:
        """Return a job as it is now."""
        return _job(self._send(_Call("GET", _job_path(job_id))))

    def wait(
        self,
        job_id: str,
        *,
        progress: Callable[[RemoteJob], None] | None = None,
        timeout: float | None = None,
    ) -> RemoteJob:
        """Return the job once it has ended, in whatever way.

        Args:
            job_id: of the job.
            progress: called with the job whenever something changed.
            timeout: seconds to wait at most.

        Raises:
            WaitTimeout: it did not end in time.
        """
        watch = _Watch(job_id, timeout)
        try:
            for now in self._followed(job_id, watch):
                if progress is not None:
                    progress(now)
                if now.ended:
                    return now
        except Refused as refused:
            if refused.code not in _NO_STREAM:
                raise
        while True:
            job = watch.look(self._send(watch.call()))
            if job is not None:
                if progress is not None:
                    progress(job)
                if job.ended:
                    return job
            time.sleep(watch.pause(job is not None))

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[RemoteEvent]:
        """Yield what happens to a job until it has ended; broken connections are taken up again.

        Args:
            job_id: of the job.
            after: id of the last event that was seen, ``"0-0"`` for all that are kept. Without it
                the first event is a ``job.snapshot``.
        """
        yield from self._events(_Following(job_id, after), None)

    def _events(self, following: _Following, watch: _Watch | None) -> Iterator[RemoteEvent]:
        while True:
            answer, failure = None, None
            silence = self._http.timeout if watch is None else watch.patience(self._http.timeout)
            try:
                with self._http.stream(**following.request(), timeout=silence) as answer:
                    if answer.is_error:
                        answer.read()
                    elif answer.status_code == 200:
                        for data in answer.iter_bytes():
                            yield from following.hear(data)
                            if watch is not None:
                                watch.left()
            except httpx2.HTTPError as error:
                answer, failure = None, _unreachable(self._url, error)
                if watch is not None:
                    watch.left()
            if answer is not None and following.over(answer):
                return
            pause = following.pause(answer, failure)
            time.sleep(pause if watch is None else min(pause, watch.left()))

    def _followed(self, job_id: str, watch: _Watch) -> Iterator[RemoteJob]:
        job: RemoteJob | None = None
        for event in self._events(_Following(job_id, None), watch):
            told = _told(job, event)
            job = self.get(job_id) if told is None else told
            yield job
        yield self.get(job_id)

    def result(self, job_id: str) -> bytes:
        """Return the finished file, its SHA-256 verified."""
        return _verified(self._send(_Call("GET", _job_path(job_id, "/result"))))

    def download(self, job_id: str, path: str | os.PathLike[str]) -> int:
        """Write the finished file, whole or not at all, and return its size in bytes."""
        data = self.result(job_id)
        write_atomically(path, data)
        return len(data)

    def image(self, job_id: str, **view: Any) -> bytes:
        """Return the result as a picture; ``view`` is format, width, height, region."""
        call = _Call("GET", _job_path(job_id, "/image"), {"params": _view(view)})
        return self._send(call).content

    def report(self, job_id: str) -> dict[str, Any]:
        """Return what was measured on the decoded result."""
        found: dict[str, Any] = _json(self._send(_Call("GET", _job_path(job_id, "/report"))))[
            "report"
        ]
        return found

    def cancel(self, job_id: str) -> RemoteJob:
        """Cancel a job."""
        return _job(self._send(_Call("POST", _job_path(job_id, "/cancel"))))

    def finish(self, job_id: str) -> RemoteJob:
        """Let a running job keep the best so far."""
        return _job(self._send(_Call("POST", _job_path(job_id, "/finish"))))

    def retry(self, job_id: str) -> RemoteJob:
        """Queue a failed or cancelled job again."""
        return _job(self._send(_Call("POST", _job_path(job_id, "/retry"), repeatable=False)))

    def delete(self, job_id: str) -> None:
        """Delete everything of a job."""
        self._send(_Call("DELETE", _job_path(job_id), repeatable=False))

    def jobs(self, *, most: int | None = None, **filters: Any) -> Iterator[RemoteJob]:
        """Yield jobs, newest first; ``filters`` are those of ``GET /v1/jobs``."""
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            page = _json(self._send(_listing(cursor, {"limit": _page(left), **filters})))
            for values in page["items"]:
                yield RemoteJob(values["id"], values["state"], values)
            left = None if left is None else left - len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def estimate(self, width: int, height: int, **fields: Any) -> dict[str, Any]:
        """Return seconds, bytes and bpp that a picture of that size would take."""
        asked = {"width": width, "height": height, **fields}
        return _json(self._send(_Call("POST", "/v1/estimate", {"json": asked})))

    def _send(self, call: _Call) -> httpx2.Response:
        attempt = 0
        while True:
            answer, failure = None, None
            try:
                answer = self._http.request(call.method, call.path, **call.options)
            except httpx2.HTTPError as error:
                failure = _unreachable(self._url, error)
            if answer is not None and not answer.is_error:
                return answer
            attempt += 1
            pause = _pause(attempt, answer) if call.repeatable else None
            if pause is None:
                if answer is None:
                    assert failure is not None
                    raise failure
                return _checked(answer)
            time.sleep(pause)


class AsyncClient:
    """Speaks to the service without blocking; the methods are those of :class:`Client`."""

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, *, timeout: float = _TIMEOUT_SECONDS
    ) -> None:
        self._url = url
        self._http = httpx2.AsyncClient(**_http_options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self, picture: Picture, *, filename: str | None = None, **fields: Any
    ) -> RemoteJob:
        """See :meth:`Client.submit`."""
        call = await asyncio.to_thread(_submission, picture, filename, fields)
        return _job(await self._send(call))

    async def get(self, job_id: str) -> RemoteJob:
        """See :meth:`Client.get`."""
        return _job(await self._send(_Call("GET", _job_path(job_id))))

    async def wait(
        self,
        job_id: str,
        *,
        progress: Callable[[RemoteJob], None] | None = None,
        timeout: float | None = None,
    ) -> RemoteJob:
        """See :meth:`Client.wait`."""
        watch = _Watch(job_id, timeout)
        try:
            async with asyncio.timeout(timeout), aclosing(self._followed(job_id)) as jobs:
                async for now in jobs:
                    if progress is not None:
                        progress(now)
                    if now.ended:
                        return now
        except TimeoutError:
            watch.left()
        except Refused as refused:
            if refused.code not in _NO_STREAM:
                raise
        while True:
            job = watch.look(await self._send(watch.call()))
            if job is not None:
                if progress is not None:
                    progress(job)
                if job.ended:
                    return job
            await asyncio.sleep(watch.pause(job is not None))

    async def events(
        self, job_id: str, *, after: str | None = None
    ) -> AsyncGenerator[RemoteEvent, None]:
        """See :meth:`Client.events`."""
        following = _Following(job_id, after)
        while True:
            answer, failure = None, None
            try:
                async with self._http.stream(**following.request()) as answer:
                    if answer.is_error:
                        await answer.aread()
                    elif answer.status_code == 200:
                        async for data in answer.aiter_bytes():
                            for event in following.hear(data):
                                yield event
            except httpx2.HTTPError as error:
                answer, failure = None, _unreachable(self._url, error)
            if answer is not None and following.over(answer):
                return
            await asyncio.sleep(following.pause(answer, failure))

    async def _followed(self, job_id: str) -> AsyncGenerator[RemoteJob, None]:
        job: RemoteJob | None = None
        async with aclosing(self.events(job_id)) as events:
            async for event in events:
                told = _told(job, event)
                job = await self.get(job_id) if told is None else told
                yield job
        yield await self.get(job_id)

    async def result(self, job_id: str) -> bytes:
        """See :meth:`Client.result`."""
        return _verified(await self._send(_Call("GET", _job_path(job_id, "/result"))))

    async def download(self, job_id: str, path: str | os.PathLike[str]) -> int:
        """See :meth:`Client.download`."""
        data = await self.result(job_id)
        await asyncio.to_thread(write_atomically, path, data)
        return len(data)

    async def image(self, job_id: str, **view: Any) -> bytes:
        """See :meth:`Client.image`."""
        call = _Call("GET", _job_path(job_id, "/image"), {"params": _view(view)})
        return (await self._send(call)).content

    async def report(self, job_id: str) -> dict[str, Any]:
        """See :meth:`Client.report`."""
        answer = await self._send(_Call("GET", _job_path(job_id, "/report")))
        found: dict[str, Any] = _json(answer)["report"]
        return found

    async def cancel(self, job_id: str) -> RemoteJob:
        """See :meth:`Client.cancel`."""
        return _job(await self._send(_Call("POST", _job_path(job_id, "/cancel"))))

    async def finish(self, job_id: str) -> RemoteJob:
        """See :meth:`Client.finish`."""
        return _job(await self._send(_Call("POST", _job_path(job_id, "/finish"))))

    async def retry(self, job_id: str) -> RemoteJob:
        """See :meth:`Client.retry`."""
        call = _Call("POST", _job_path(job_id, "/retry"), repeatable=False)
        return _job(await self._send(call))

    async def delete(self, job_id: str) -> None:
        """See :meth:`Client.delete`."""
        await self._send(_Call("DELETE", _job_path(job_id), repeatable=False))

    async def jobs(self, *, most: int | None = None, **filters: Any) -> AsyncIterator[RemoteJob]:
        """See :meth:`Client.jobs`."""
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            page = _json(await self._send(_listing(cursor, {"limit": _page(left), **filters})))
            for values in page["items"]:
                yield RemoteJob(values["id"], values["state"], values)
            left = None if left is None else left - len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def estimate(self, width: int, height: int, **fields: Any) -> dict[str, Any]:
        """See :meth:`Client.estimate`."""
        asked = {"width": width, "height": height, **fields}
        return _json(await self._send(_Call("POST", "/v1/estimate", {"json": asked})))

    async def _send(self, call: _Call) -> httpx2.Response:
        attempt = 0
        while True:
            answer, failure = None, None
            try:
                answer = await self._http.request(call.method, call.path, **call.options)
            except httpx2.HTTPError as error:
                failure = _unreachable(self._url, error)
            if answer is not None and not answer.is_error:
                return answer
            attempt += 1
            pause = _pause(attempt, answer) if call.repeatable else None
            if pause is None:
                if answer is None:
                    assert failure is not None
                    raise failure
                return _checked(answer)
            await asyncio.sleep(pause)


def _page(left: int | None) -> int:
    return 100 if left is None else min(100, left)
