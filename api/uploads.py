"""Request bodies, read with a watch in one hand and a counter in the other.

Every byte is counted before it is kept, every pause is timed, and nothing larger than a few hundred
KiB stays in memory: files wait in unnamed temporary files, hashed while they are written.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Self

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from api import settings as fixed
from api.problems import Problem
from jobs import Settings

_FORM_OVERHEAD = 64 * 1024
"""Boundaries and part headers, beside what the parts carry."""
_MAX_NAME = 255


class File:
    """A received file: counted, hashed, and kept where it costs no memory.

    Attributes:
        name: name of the form field.
        filename: what the client called it, without any folder; None if it did not.
        size: bytes.
        file: its content, open for reading.
    """

    def __init__(self, name: str, filename: str | None) -> None:
        self.name = name
        self.filename = filename
        self.size = 0
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(fixed.SPOOL_BYTES)  # noqa: SIM115
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self.size += len(data)
        self._hash.update(data)
        self.file.write(data)

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written, in hexadecimal."""
        return self._hash.hexdigest()

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, fewer at the end."""
        self.file.seek(offset)
        return self.file.read(count)

    def close(self) -> None:
        """Forget the content."""
        self.file.close()


@dataclass
class Form:
    """A received form. Used as a context, which forgets the files at its end."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in self.files:
            each.close()


def media_type(request: Request) -> str:
    """Return the request's media type without parameters, in lower case."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _too_large(limit: int) -> Problem:
    # The rest of the body is not read, so the connection cannot be used again.
    return Problem(
        "body_too_large",
        f"more than {limit} bytes; that many are accepted",
        headers={"Connection": "close"},
        limit=limit,
    )


async def chunks(request: Request, settings: Settings, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raises:
        Problem: ``body_too_large`` after ``limit`` bytes (at once where so many are declared),
            ``upload_too_slow``, or ``malformed_request`` if the client hung up.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    pause = settings.upload_timeout_seconds
    received = 0
    started = time.monotonic()
    stream = request.stream().__aiter__()
    while True:
        try:
            # Not wait_for, which makes a task of every chunk.
            async with asyncio.timeout(pause):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(f"nothing came for {pause:g} seconds") from None
        except ClientDisconnect:
            raise Problem(
                "malformed_request", f"the body ended after {received} bytes, before its end"
            ) from None
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        elapsed = time.monotonic() - started
        if elapsed > pause and received < elapsed * settings.min_upload_bytes_per_second:
            raise _too_slow(f"{received} bytes came in {elapsed:.0f} seconds")
        if chunk:
            yield chunk


def _too_slow(what: str) -> Problem:
    return Problem("upload_too_slow", what, headers={"Connection": "close"})


async def read_bytes(request: Request, settings: Settings, limit: int) -> bytes:
    """Return a small body whole."""
    return b"".join([chunk async for chunk in chunks(request, settings, limit)])


async def read_file(request: Request, settings: Settings, limit: int) -> File:
    """Return the body as a file."""
    file = File("body", None)
    try:
        async for chunk in chunks(request, settings, limit):
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    return file


class _Parts:
    """The callbacks of the multipart parser: parts become fields and files, within limits."""

    def __init__(self, max_files: int, max_file_bytes: int) -> None:
        self.form = Form()
        self.ended = False
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._fields = 0
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._name = ""
        self._file: File | None = None
        self._text = bytearray()

    def on_part_begin(self) -> None:
        self._headers = {}
        self._file = None
        self._text = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if name is None:
            raise Problem("malformed_request", "a part of the form has no name")
        self._name = _text(name, "a field's name")
        filename = options.get(b"filename")
        if filename is not None:
            if len(self.form.files) >= self._max_files:
                raise Problem(
                    "too_many_files",
                    f"{self._max_files} files are accepted in one request",
                    headers={"Connection": "close"},
                    limit=self._max_files,
                )
            self._file = File(self._name, _plain_name(_text(filename, "a file's name")))
            self.form.files.append(self._file)
            return
        self._fields += 1
        if self._fields > fixed.MAX_FIELDS:
            raise Problem(
                "too_many_files",
                f"{fixed.MAX_FIELDS} fields are accepted in one request",
                headers={"Connection": "close"},
                limit=fixed.MAX_FIELDS,
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            if self._file.size + end - start > self._max_file_bytes:
                raise _too_large(self._max_file_bytes)
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > fixed.MAX_FIELD_BYTES:
            raise _too_large(fixed.MAX_FIELD_BYTES)

    def on_part_end(self) -> None:
        if self._file is not None:
            return
        if self._name in self.form.fields:
            raise Problem("malformed_request", f"the field {self._name[:80]!r} comes twice")
        self.form.fields[self._name] = _text(bytes(self._text), f"the field {self._name[:80]!r}")

    def on_end(self) -> None:
        self.ended = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Problem("malformed_request", f"{what} is not UTF-8") from None


def _plain_name(filename: str) -> str | None:
    """Return the last part of a file name without control characters, None if nothing is left."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:_MAX_NAME].strip() or None


async def read_form(
    request: Request, settings: Settings, *, max_files: int, max_bytes: int | None = None
) -> Form:
    """Read a multipart form; files are spooled and hashed, limits are kept while reading.

    Args:
        request: its ``Content-Type`` must be ``multipart/form-data``.
        settings: limits and timeouts.
        max_files: so many files are accepted.
        max_bytes: of the whole body; by default what one file may have.

    Raises:
        Problem: ``unsupported_media_type``, ``malformed_request``, ``body_too_large``,
            ``too_many_files`` or ``upload_too_slow``.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Problem("unsupported_media_type", "multipart/form-data with a boundary is accepted")
    parts = _Parts(max_files, settings.max_upload_bytes)
    try:
        # The limits on part headers are the parser's own: 8 lines of 4 KiB.
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_end": parts.on_end,
            },
        )
        limit = (max_bytes or settings.max_upload_bytes) + _FORM_OVERHEAD
        async for chunk in chunks(request, settings, limit):
            parser.write(chunk)
        parser.finalize()
        if not parts.ended:
            raise Problem("malformed_request", "the form ends before its last boundary")
    except BaseException as error:
        with parts.form:
            if isinstance(error, MultipartParseError):
                raise Problem(
                    "malformed_request", f"the body is no multipart form: {error}"
                ) from error
            raise
    return parts.form
