"""Where bytes are kept: the protocol, and what its implementations share.

Keys are written once. They are ``/``-separated parts of letters, digits, ``.``, ``_`` and ``-``;
the first part is the tenant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from jobs.errors import Invalid, RangeUnsatisfiable

CHUNK = 1024 * 1024
DEFAULT_MEDIA_TYPE = "application/octet-stream"
MAX_PAGE = 1000

_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]{1,128}"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}/[A-Za-z0-9!#$&^_.+-]{1,80}")
_MAX_KEY = 512

Data = bytes | BinaryIO | Iterable[bytes]


@dataclass(frozen=True)
class BlobInfo:
    """What is known about a blob without reading it.

    Attributes:
        size: in bytes.
        etag: changes with the content; without quotation marks.
        sha256: of the content, for blobs that this service wrote; None for direct uploads.
    """

    key: str
    size: int
    etag: str
    media_type: str
    modified: datetime
    sha256: str | None


@dataclass(frozen=True)
class BlobPage:
    """Some blobs in the order of their keys, and the ``after`` of the next page, or None."""

    items: tuple[BlobInfo, ...]
    next: str | None


@dataclass(frozen=True)
class PresignedPut:
    """A request that a client may make without further credentials."""

    url: str
    headers: Mapping[str, str]
    expires_at: datetime
    method: str = "PUT"


class Blobs(Protocol):
    """A blob store. Every method raises `BlobsUnavailable` if it does not answer."""

    def put(self, key: str, data: Data, *, media_type: str = DEFAULT_MEDIA_TYPE) -> BlobInfo:
        """Store ``data``, durably and all at once.

        Raises:
            BlobExists: the key is taken; nothing was changed.
        """

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from ``start`` up to, not including, ``end``.

        Raises:
            BlobNotFound, RangeUnsatisfiable.
        """

    def stream(
        self, key: str, *, start: int = 0, end: int | None = None, chunk: int = CHUNK
    ) -> Iterator[bytes]:
        """Return the bytes of `get` in chunks; errors are raised by this call already."""

    def head(self, key: str) -> BlobInfo:
        """Return what is known about a blob.

        Raises:
            BlobNotFound.
        """

    def exists(self, key: str) -> bool:
        """Tell whether something is stored under the key."""

    def copy(self, source: str, target: str) -> BlobInfo:
        """Store the content of ``source`` under ``target`` too.

        Raises:
            BlobNotFound, BlobExists.
        """

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is fine."""

    def delete_prefix(self, prefix: str) -> int:
        """Remove every blob whose key begins so, and return how many those were."""

    def list(self, prefix: str, *, limit: int = MAX_PAGE, after: str | None = None) -> BlobPage:
        """Return blobs whose keys begin with ``prefix`` and come after ``after``, by key.

        The media type and SHA-256 are not looked up: ``head`` has them.
        """

    def presign_get(
        self,
        key: str,
        *,
        ttl_seconds: int,
        filename: str | None = None,
        media_type: str | None = None,
    ) -> str:
        """Return a URL that anybody can download the blob from for a while.

        Args:
            key: the blob; it is not checked that it exists.
            ttl_seconds: how long the URL is good for.
            filename: under which browsers save it.
            media_type: to answer with instead of the stored one.
        """

    def presign_put(
        self, key: str, *, ttl_seconds: int, size: int, media_type: str
    ) -> PresignedPut:
        """Return a request with which anybody can store exactly ``size`` bytes for a while."""

    def check(self) -> None:
        """Raise `BlobsUnavailable` unless blobs could be read and written now."""

    def close(self) -> None:
        """Let go of connections."""


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        Invalid: it is not made of the accepted parts.
    """
    if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
        raise Invalid(f"not a blob key: {key[:80]!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return the beginning of a key: empty, or whole parts and a slash, or cut anywhere after.

    Raises:
        Invalid: no key begins so.
    """
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_media_type(text: str) -> str:
    """Return a media type without parameters.

    Raises:
        Invalid: it is not of the form ``type/subtype``.
    """
    if not _MEDIA_TYPE.fullmatch(text):
        raise Invalid(f"media type must look like image/png; got {text[:80]!r}")
    return text


def check_range(key: str, size: int, start: int, end: int | None) -> tuple[int, int]:
    """Return the first byte and the one after the last, within the blob.

    Raises:
        Invalid: negative, or the end is before the start.
        RangeUnsatisfiable: the start is not within the blob (an empty blob has a start of 0).
    """
    if start < 0 or (end is not None and end < start):
        raise Invalid(f"range must be 0 <= start <= end; got {start} to {end}")
    if start > size or (start == size and size > 0):
        raise RangeUnsatisfiable(key, size)
    return start, size if end is None else min(end, size)


def chunks_of(data: Data, chunk: int = CHUNK) -> Iterator[bytes]:
    """Return the bytes of anything that `Blobs.put` accepts, in pieces."""
    if isinstance(data, bytes | bytearray | memoryview):
        view = memoryview(data)
        for start in range(0, len(view), chunk):
            yield bytes(view[start : start + chunk])
    elif hasattr(data, "read"):
        while piece := data.read(chunk):
            yield piece
    else:
        yield from data
