"""Blobs in S3, or in any server that speaks its protocol and checks signatures of version 4."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote

import boto3
import botocore.exceptions
from botocore.config import Config

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
    BlobDenied,
    BlobExists,
    BlobNotFound,
    BlobsUnavailable,
    Invalid,
    RangeUnsatisfiable,
)
from jobs.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 8 * 1024 * 1024
_IN_MEMORY = 8 * 1024 * 1024
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_EXISTS = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_DENIED = {
    "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden",
    "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
}  # fmt: skip


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Turn errors of boto3 into ours."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _MISSING:
            raise BlobNotFound(key) from error
        if code in _EXISTS:
            raise BlobExists(key) from error
        if code in _DENIED:
            raise BlobDenied(key, code) from error
        if code in ("416", "InvalidRange"):
            raise RangeUnsatisfiable(key, -1) from error
        if status >= 500 or code in ("SlowDown", "NoSuchBucket", "RequestTimeout", "503", "429"):
            raise BlobsUnavailable(str(error)) from error
        raise
    except (botocore.exceptions.BotoCoreError, OSError) as error:
        raise BlobsUnavailable(str(error) or type(error).__name__) from error


class S3Blobs:
    """Blobs in one bucket.

    Args:
        client: for requests.
        bucket: which exists already.
        prefix: put before every key; empty or ending in a slash.
        public: client that signs links, if those who use them reach the server elsewhere.
        part_bytes: larger blobs are sent in parts of so many bytes, 5 MiB at least.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        *,
        prefix: str = "",
        public: S3Client | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._client = client
        self._public = public or client
        self._bucket = bucket
        self._prefix = prefix
        self._part_bytes = part_bytes

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the store in the bucket of the settings."""
        assert settings.s3_bucket is not None
        client = make_client(settings, settings.s3_endpoint)
        public = None
        if settings.s3_public_endpoint is not None:
            public = make_client(settings, settings.s3_public_endpoint)
        return cls(client, settings.s3_bucket, prefix=settings.s3_prefix, public=public)

    def put(self, key: str, data: Data, *, media_type: str = DEFAULT_MEDIA_TYPE) -> BlobInfo:
        """See `Blobs.put`.

        A key that is taken is seen before and, by servers that know ``If-None-Match``, while it is
        written. Of writers at the very same time more than one may succeed where the server is
        not strict about it: keys are made so that this cannot happen, or does not matter.
        """
        name = self._name(key)
        check_media_type(media_type)
        if self.exists(key):
            raise BlobExists(key)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
            content, size = hashlib.sha256(), 0
            for piece in chunks_of(data):
                content.update(piece)
                size += len(piece)
                spool.write(piece)
            spool.seek(0)
            metadata = {"sha256": content.hexdigest()}
            if size > self._part_bytes:
                self._put_parts(key, name, spool, media_type, metadata)
            else:
                with _translated(key):
                    self._client.put_object(
                        Bucket=self._bucket,
                        Key=name,
                        Body=spool.read(),
                        ContentType=media_type,
                        Metadata=metadata,
                        IfNoneMatch="*",
                    )
        return self.head(key)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See `Blobs.get`."""
        return b"".join(self.stream(key, start=start, end=end))

    def stream(
        self, key: str, *, start: int = 0, end: int | None = None, chunk: int = CHUNK
    ) -> Iterator[bytes]:
        """See `Blobs.stream`."""
        asked: dict[str, str] = {}
        if start or end is not None:
            first, stop = check_range(key, self.head(key).size, start, end)
            if first == stop:
                return iter(())  # HTTP has no empty range
            asked["Range"] = f"bytes={first}-{stop - 1}"
        with _translated(key):
            reply = self._client.get_object(
                Bucket=self._bucket,
                Key=self._name(key),
                **asked,  # type: ignore[arg-type]
            )
        return self._pieces(reply["Body"], key, chunk)

    def head(self, key: str) -> BlobInfo:
        """See `Blobs.head`."""
        with _translated(key):
            reply = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        return BlobInfo(
            key=key,
            size=reply["ContentLength"],
            etag=reply["ETag"].strip('"'),
            media_type=reply.get("ContentType", DEFAULT_MEDIA_TYPE),
            modified=reply["LastModified"],
            sha256=reply.get("Metadata", {}).get("sha256"),
        )

    def exists(self, key: str) -> bool:
        """See `Blobs.exists`."""
        try:
            self.head(key)
        except BlobNotFound:
            return False
        return True

    def copy(self, source: str, target: str) -> BlobInfo:
        """See `Blobs.copy`. The server copies; the bytes do not come here."""
        if self.exists(target):
            raise BlobExists(target)
        with _translated(source):
            # Also what is too large for one request is copied, in parts.
            self._client.copy(
                {"Bucket": self._bucket, "Key": self._name(source)},
                self._bucket,
                self._name(target),
            )
        return self.head(target)

    def delete(self, key: str) -> None:
        """See `Blobs.delete`."""
        try:
            with _translated(key):
                self._client.delete_object(Bucket=self._bucket, Key=self._name(key))
        except BlobNotFound:
            return

    def delete_prefix(self, prefix: str) -> int:
        """See `Blobs.delete_prefix`."""
        deleted, after = 0, None
        while True:
            page = self.list(prefix, after=after)
            for info in page.items:
                self.delete(info.key)
            deleted += len(page.items)
            if page.next is None:
                return deleted
            after = page.next

    def list(self, prefix: str, *, limit: int = MAX_PAGE, after: str | None = None) -> BlobPage:
        """See `Blobs.list`."""
        check_prefix(prefix)
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"limit must be 1 to {MAX_PAGE}; got {limit}")
        with _translated(prefix):
            reply = self._client.list_objects_v2(
                Bucket=self._bucket,
                Prefix=self._prefix + prefix,
                MaxKeys=limit,
                StartAfter=self._prefix + after if after else "",
            )
        items = tuple(
            BlobInfo(
                key=row["Key"].removeprefix(self._prefix),
                size=row["Size"],
                etag=row["ETag"].strip('"'),
                media_type=DEFAULT_MEDIA_TYPE,
                modified=row["LastModified"],
                sha256=None,
            )
            for row in reply.get("Contents", ())
        )
        return BlobPage(items, items[-1].key if items and reply["IsTruncated"] else None)

    def presign_get(
        self,
        key: str,
        *,
        ttl_seconds: int,
        filename: str | None = None,
        media_type: str | None = None,
    ) -> str:
        """See `Blobs.presign_get`."""
        if ttl_seconds <= 0:
            raise Invalid(f"a link must be good for some time; got {ttl_seconds} s")
        asked = {"Bucket": self._bucket, "Key": self._name(key)}
        if filename is not None:
            asked["ResponseContentDisposition"] = attachment(filename)
        if media_type is not None:
            asked["ResponseContentType"] = check_media_type(media_type)
        with _translated(key):
            return self._public.generate_presigned_url("get_object", asked, ttl_seconds)

    def presign_put(
        self, key: str, *, ttl_seconds: int, size: int, media_type: str
    ) -> PresignedPut:
        """See `Blobs.presign_put`. The length is part of what is signed."""
        if ttl_seconds <= 0:
            raise Invalid(f"a link must be good for some time; got {ttl_seconds} s")
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._name(key),
            "ContentLength": size,
            "ContentType": check_media_type(media_type),
        }
        expires = datetime.now(UTC) + timedelta(seconds=ttl_seconds)
        with _translated(key):
            url = self._public.generate_presigned_url("put_object", asked, ttl_seconds)
        return PresignedPut(url, {"Content-Type": media_type, "Content-Length": str(size)}, expires)

    def check(self) -> None:
        """See `Blobs.check`."""
        try:
            with _translated(self._bucket):
                self._client.head_bucket(Bucket=self._bucket)
        except (BlobNotFound, BlobDenied) as error:
            raise BlobsUnavailable(f"bucket {self._bucket}: {error}") from error

    def close(self) -> None:
        """See `Blobs.close`."""
        self._client.close()
        self._public.close()

    # Parts

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _put_parts(
        self, key: str, name: str, file: BinaryIO | Any, media_type: str, metadata: dict[str, str]
    ) -> None:
        where: dict[str, Any] = {"Bucket": self._bucket, "Key": name}
        with _translated(key):
            upload = self._client.create_multipart_upload(
                **where, ContentType=media_type, Metadata=metadata
            )["UploadId"]
            try:
                parts: list[Any] = []
                while piece := file.read(self._part_bytes):
                    number = len(parts) + 1
                    reply = self._client.upload_part(
                        **where, UploadId=upload, PartNumber=number, Body=piece
                    )
                    parts.append({"ETag": reply["ETag"], "PartNumber": number})
                self._client.complete_multipart_upload(
                    **where,
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                )
            except BaseException:
                self._client.abort_multipart_upload(**where, UploadId=upload)
                raise

    @staticmethod
    def _pieces(body: Any, key: str, chunk: int) -> Iterator[bytes]:
        try:
            with _translated(key):
                yield from body.iter_chunks(chunk)
        finally:
            body.close()


def attachment(filename: str) -> str:
    """Return the Content-Disposition that has browsers save a file under a name (RFC 6266)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def make_client(settings: Settings, endpoint: str | None) -> S3Client:
    """Return a client for an endpoint; without one, for AWS."""
    secret = settings.s3_secret_key
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            # Buckets as parts of the path: servers other than AWS seldom have a domain for each.
            s3={"addressing_style": "auto" if endpoint is None else "path"},
            connect_timeout=min(5.0, settings.s3_timeout_seconds),
            read_timeout=settings.s3_timeout_seconds,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=32,
            # The newer trailing checksums are unknown to many servers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
