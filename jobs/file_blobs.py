"""Blobs in files of a folder: durable before ``put`` returns, and never seen half-written.

One file per blob, named by its key. After the content comes a trailer: a JSON object with media
type and SHA-256, its length in four bytes (little-endian), and eight bytes of magic. A blob is
written under a name of its own, synced, and linked to its place; linking fails where a file is
already, so that of several writers exactly one succeeds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self

from jobs.blobs import (
    CHUNK,
    DEFAULT_MEDIA_TYPE,
    MAX_PAGE,
    BlobInfo,
    BlobPage,
    Data,
    PresignedPut,
    check_key,
    check_media_type,
    check_prefix,
    check_range,
    chunks_of,
)
from jobs.errors import (
    BlobDamaged,
    BlobExists,
    BlobNotFound,
    BlobsUnavailable,
    Invalid,
    UrlRefused,
)
from jobs.settings import Settings

_MAGIC = b"NIFBLOB1"
_TAIL = struct.Struct("<I8s")
_MAX_META = 4096
# A temporary file that is older belongs to a writer that died.
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Grant:
    """What a presigned URL allows.

    Attributes:
        key: the blob.
        method: ``GET`` or ``PUT``.
        expires_at: until when.
        size: of the body, for ``PUT``.
        media_type: of the body (``PUT``), or to answer with instead of the stored one (``GET``).
        filename: under which browsers save it, or None.
    """

    key: str
    method: str
    expires_at: datetime
    size: int | None = None
    media_type: str | None = None
    filename: str | None = None


@contextmanager
def _disk() -> Iterator[None]:
    """Turn errors of the file system into `BlobsUnavailable`."""
    try:
        yield
    except OSError as error:
        raise BlobsUnavailable(str(error)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileBlobs:
    """Blobs below a folder.

    Args:
        root: the folder; made if it is not there.
        secret: signs the presigned URLs, at least 16 bytes.
        base_url: what they begin with; the API answers there.
    """

    def __init__(self, root: Path, *, secret: bytes, base_url: str) -> None:
        if len(secret) < 16:
            raise Invalid(f"the secret of links needs at least 16 bytes; got {len(secret)}")
        self._objects = root / "objects"
        self._temporary = root / "tmp"
        self._secret = secret
        self._base_url = base_url.rstrip("/")
        with _disk():
            self._objects.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._temporary.mkdir(exist_ok=True, mode=0o700)
            _sync_folder(root)
        self._sweep()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the store in the data folder; its secret is made there if none is set."""
        root = settings.data_dir / "blobs"
        if settings.url_secret is not None:
            secret = settings.url_secret.get_secret_value().encode()
        else:
            secret = _kept_secret(root / "url-secret")
        return cls(root, secret=secret, base_url=f"{settings.public_url.rstrip('/')}/v1/blobs")

    def put(self, key: str, data: Data, *, media_type: str = DEFAULT_MEDIA_TYPE) -> BlobInfo:
        """See `Blobs.put`."""
        target = self._path(key)
        check_media_type(media_type)
        if target.exists():
            raise BlobExists(key)
        temporary = self._temporary / f"{os.getpid()}-{secrets.token_hex(8)}"
        content, size = hashlib.sha256(), 0
        try:
            with _disk():
                file = temporary.open("xb")
            with file:
                # Errors of whoever produces the data are theirs: only writing is ours.
                for piece in chunks_of(data):
                    content.update(piece)
                    size += len(piece)
                    with _disk():
                        file.write(piece)
                meta = {"media_type": media_type, "sha256": content.hexdigest()}
                text = json.dumps(meta).encode()
                with _disk():
                    file.write(text + _TAIL.pack(len(text), _MAGIC))
                    file.flush()
                    os.fsync(file.fileno())
            self._link(temporary, target, key)
        finally:
            with suppress(OSError):  # a leftover is swept later
                temporary.unlink(missing_ok=True)
        return self.head(key)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See `Blobs.get`."""
        return b"".join(self.stream(key, start=start, end=end))

    def stream(
        self, key: str, *, start: int = 0, end: int | None = None, chunk: int = CHUNK
    ) -> Iterator[bytes]:
        """See `Blobs.stream`."""
        file, info = self._open(key)
        try:
            first, stop = check_range(key, info.size, start, end)
        except BaseException:
            file.close()
            raise
        return self._pieces(file, key, first, stop, chunk)

    def head(self, key: str) -> BlobInfo:
        """See `Blobs.head`."""
        file, info = self._open(key)
        file.close()
        return info

    def exists(self, key: str) -> bool:
        """See `Blobs.exists`."""
        with _disk():
            return self._path(key).is_file()

    def copy(self, source: str, target: str) -> BlobInfo:
        """See `Blobs.copy`. Both names share one file: blobs are never changed."""
        info = self.head(source)
        path = self._path(target)
        try:
            self._link(self._path(source), path, target)
        except BlobsUnavailable:
            if not self.exists(source):
                raise BlobNotFound(source) from None
            # A file system without links, or with no more of them for this file.
            return self.put(target, self.stream(source), media_type=info.media_type)
        return self.head(target)

    def delete(self, key: str) -> None:
        """See `Blobs.delete`."""
        path = self._path(key)
        with _disk():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            with suppress(FileNotFoundError):  # another deletion emptied and removed it
                _sync_folder(path.parent)
        for folder in path.parents:
            if folder == self._objects:
                break
            try:
                folder.rmdir()
            except OSError:
                break  # not empty, or gone already

    def delete_prefix(self, prefix: str) -> int:
        """See `Blobs.delete_prefix`."""
        deleted = 0
        while True:
            page = self.list(prefix)
            for info in page.items:
                self.delete(info.key)
            deleted += len(page.items)
            if page.next is None:
                return deleted

    def list(self, prefix: str, *, limit: int = MAX_PAGE, after: str | None = None) -> BlobPage:
        """See `Blobs.list`."""
        check_prefix(prefix)
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"limit must be 1 to {MAX_PAGE}; got {limit}")
        found: list[BlobInfo] = []
        for key in self._keys("", prefix, after or ""):
            if len(found) == limit:
                return BlobPage(tuple(found), found[-1].key)
            with suppress(BlobNotFound):  # deleted since the folder was read
                found.append(self.head(key))
        return BlobPage(tuple(found), None)

    def presign_get(
        self,
        key: str,
        *,
        ttl_seconds: int,
        filename: str | None = None,
        media_type: str | None = None,
    ) -> str:
        """See `Blobs.presign_get`."""
        return self._url(
            {"k": check_key(key), "m": "GET", "f": filename, "t": media_type}, ttl_seconds
        )[0]

    def presign_put(
        self, key: str, *, ttl_seconds: int, size: int, media_type: str
    ) -> PresignedPut:
        """See `Blobs.presign_put`."""
        grant = {"k": check_key(key), "m": "PUT", "s": size, "t": check_media_type(media_type)}
        url, expires = self._url(grant, ttl_seconds)
        return PresignedPut(url, {"Content-Type": media_type}, expires)

    def verify(self, token: str, method: str) -> Grant:
        """Return what a presigned URL's last part allows.

        Raises:
            UrlRefused: ``tampered``, ``expired``, or for another ``method``.
        """
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._sign(body).encode(), signature.encode()):
            raise UrlRefused("tampered")
        try:
            values = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (binascii.Error, ValueError) as error:
            raise UrlRefused("tampered") from error
        expires_at = datetime.fromtimestamp(values["e"], UTC)
        if expires_at <= datetime.now(UTC):
            raise UrlRefused("expired")
        if values["m"] != method:
            raise UrlRefused("method")
        return Grant(
            key=values["k"],
            method=method,
            expires_at=expires_at,
            size=values.get("s"),
            media_type=values.get("t"),
            filename=values.get("f"),
        )

    def check(self) -> None:
        """See `Blobs.check`."""
        with _disk():
            probe = self._temporary / f"check-{os.getpid()}-{secrets.token_hex(4)}"
            probe.write_bytes(b"")
            probe.unlink()

    def close(self) -> None:
        """See `Blobs.close`; there is nothing to close."""

    # Parts

    def _path(self, key: str) -> Path:
        # Whole parts only, none of them "." or "..": the path stays below the folder. The last
        # part is marked, so that "a" and "a/b" can both be keys.
        folder, _, name = check_key(key).rpartition("/")
        return self._objects / folder / f"{name}@"

    def _link(self, source: Path, target: Path, key: str) -> None:
        """Give ``source`` the name ``target`` as well, durably.

        Raises:
            BlobExists: the name is taken.
        """
        with _disk():
            for attempt in range(10):
                try:
                    made = self._make_folders(target.parent)
                    os.link(source, target)
                except FileExistsError:
                    raise BlobExists(key) from None
                except FileNotFoundError:
                    # A deletion removed the folder that had just been empty.
                    if attempt == 9 or not source.exists():
                        raise
                    continue
                for folder in {target.parent, *made}:
                    with suppress(FileNotFoundError):  # deleted right after
                        _sync_folder(folder)
                return

    def _make_folders(self, folder: Path) -> tuple[Path, ...]:
        """Make a folder and return the parents that got a new entry by it."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            each.mkdir(exist_ok=True, mode=0o700)
        return tuple(each.parent for each in missing)

    def _open(self, key: str) -> tuple[BinaryIO, BlobInfo]:
        path = self._path(key)
        with _disk():
            try:
                file = path.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise BlobNotFound(key) from None
        try:
            with _disk():
                status = os.fstat(file.fileno())
                if status.st_size < _TAIL.size:
                    raise BlobDamaged(key, "no trailer")
                file.seek(-_TAIL.size, os.SEEK_END)
                length, magic = _TAIL.unpack(file.read(_TAIL.size))
                size = status.st_size - _TAIL.size - length
                if magic != _MAGIC or length > _MAX_META or size < 0:
                    raise BlobDamaged(key, "no trailer")
                file.seek(size)
                meta = json.loads(file.read(length))
                file.seek(0)
        except BaseException:
            file.close()
            raise
        info = BlobInfo(
            key=key,
            size=size,
            etag=meta["sha256"][:32],
            media_type=meta["media_type"],
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
            sha256=meta["sha256"],
        )
        return file, info

    @staticmethod
    def _pieces(file: BinaryIO, key: str, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        with file:
            file.seek(start)
            while start < stop:
                with _disk():
                    piece = file.read(min(chunk, stop - start))
                if not piece:
                    raise BlobDamaged(key, "shorter than its trailer says")
                start += len(piece)
                yield piece

    def _keys(self, folder: str, prefix: str, after: str) -> Iterator[str]:
        """Yield keys below ``folder`` ("" or "a/b/") in their order, within prefix, past after."""
        names = []
        with _disk(), suppress(FileNotFoundError), os.scandir(self._objects / folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    names.append(f"{folder}{entry.name}/")
                elif entry.name.endswith("@"):
                    names.append(folder + entry.name[:-1])
        for name in sorted(names):
            if name.endswith("/"):
                inside = name.startswith(prefix) or prefix.startswith(name)
                if inside and (name > after or after.startswith(name)):
                    yield from self._keys(name, prefix, after)
            elif name.startswith(prefix) and name > after:
                yield name

    def _url(self, grant: dict[str, Any], ttl_seconds: int) -> tuple[str, datetime]:
        if ttl_seconds <= 0:
            raise Invalid(f"a link must be good for some time; got {ttl_seconds} s")
        expires = datetime.now(UTC) + timedelta(seconds=ttl_seconds)
        values = {name: value for name, value in grant.items() if value is not None}
        text = json.dumps(values | {"e": expires.timestamp()}, separators=(",", ":"))
        body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return f"{self._base_url}/{body}.{self._sign(body)}", expires

    def _sign(self, body: str) -> str:
        mac = hmac.new(self._secret, b"nif blob url 1\0" + body.encode(), "sha256").digest()
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")

    def _sweep(self) -> None:
        """Remove what writers that died have left."""
        with _disk():
            for path in self._temporary.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                        path.unlink()


def _kept_secret(path: Path) -> bytes:
    """Return the secret kept in a file, made by whoever comes first."""
    with _disk():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            fresh = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
        return path.read_bytes()
