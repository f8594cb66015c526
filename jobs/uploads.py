"""Direct uploads: a client sends a large picture to the blob store and names it in a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from jobs.blobs import Blobs, PresignedPut, check_media_type
from jobs.database import Database
from jobs.errors import Invalid, NotFound, WrongState
from jobs.ids import check_tenant, new_upload_id
from jobs.record import from_milliseconds
from jobs.settings import Settings

# A body that was on its way when its link expired is let arrive before the sweep.
_GRACE_MS = 120_000


@dataclass(frozen=True)
class Upload:
    """What a client said it would send; ``used_by`` is the job that took it."""

    id: str
    tenant: str
    key: str
    size: int
    media_type: str
    sha256: str | None
    filename: str | None
    created_at: datetime
    expires_at: datetime
    used_by: str | None


class Uploads:
    """Announced uploads. Each is good for one job and for a short time."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._ttl = settings.upload_ttl_seconds

    def create(
        self,
        tenant: str,
        *,
        size: int,
        media_type: str,
        sha256: str | None = None,
        filename: str | None = None,
    ) -> tuple[Upload, PresignedPut]:
        """Announce an upload and return the request that sends it.

        Args:
            tenant: whose.
            size: of the body, in bytes; exactly that many are accepted.
            media_type: of the body.
            sha256: of the body, if the client knows it: it is checked before a job is made.
            filename: for display.

        Raises:
            Invalid: a size below 1, or no SHA-256.
        """
        check_tenant(tenant)
        check_media_type(media_type)
        if size < 1:
            raise Invalid(f"an upload has at least one byte; got {size}")
        if sha256 is not None and (
            len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")
        ):
            raise Invalid(f"SHA-256 must be 64 hexadecimal digits; got {sha256[:80]!r}")
        upload_id = new_upload_id()
        key = f"{tenant}/uploads/{upload_id}"
        now = self._database.now_milliseconds()
        expires = now + self._ttl * 1000
        fields = {
            "id": upload_id,
            "tenant": tenant,
            "key": key,
            "size": str(size),
            "media_type": media_type,
            "sha256": (sha256 or "").lower(),
            "filename": filename or "",
            "created": str(now),
            "expires": str(expires),
            "used_by": "",
        }
        put = self._blobs.presign_put(key, ttl_seconds=self._ttl, size=size, media_type=media_type)
        with self._database.pipeline() as pipeline:
            pipeline.hset(self._hash(upload_id), mapping=fields)
            pipeline.zadd(self._database.key("uploads"), {upload_id: expires})
            pipeline.execute()
        return _upload(fields), put

    def get(self, tenant: str, upload_id: str) -> Upload:
        """Return an upload.

        Raises:
            NotFound: unknown, another tenant's, or expired before a job took it.
        """
        fields = self._database.call("hgetall", self._hash(upload_id))
        if not fields or fields["tenant"] != tenant:
            raise NotFound("upload", upload_id)
        upload = _upload(fields)
        if upload.used_by is None and upload.expires_at <= self._database.now():
            raise NotFound("upload", upload_id)
        return upload

    def take(self, tenant: str, upload_id: str, job_id: str) -> Upload:
        """Give the upload to a job; giving it to the same one again is fine.

        Raises:
            NotFound: as `get`.
            WrongState: another job has it.
        """
        match self._database.run("take_upload", upload_id, tenant, job_id):
            case ["missing"]:
                raise NotFound("upload", upload_id)
            case ["used", other]:
                raise WrongState(upload_id, f"used by {other}", "use")
        return self.get(tenant, upload_id)

    def give_back(self, upload: Upload, job_id: str) -> None:
        """Undo a `take` of a job that was not accepted after all."""
        if self.get(upload.tenant, upload.id).used_by == job_id:
            self._database.call("hset", self._hash(upload.id), "used_by", "")

    def drop(self, tenant: str, upload_id: str) -> None:
        """Remove an upload and what was sent.

        Raises:
            NotFound.
        """
        self._remove(self.get(tenant, upload_id).id)

    def sweep(self, *, limit: int = 100) -> int:
        """Remove uploads that are past their time, used or not, and return how many.

        A job has its own copy.
        """
        latest = self._database.now_milliseconds() - _GRACE_MS
        key = self._database.key("uploads")
        old = self._database.call("zrangebyscore", key, "-inf", latest, 0, limit)
        for upload_id in old:
            self._remove(upload_id)
        return len(old)

    def _remove(self, upload_id: str) -> None:
        key = self._database.call("hget", self._hash(upload_id), "key")
        if key:
            self._blobs.delete(key)
        with self._database.pipeline() as pipeline:
            pipeline.delete(self._hash(upload_id))
            pipeline.zrem(self._database.key("uploads"), upload_id)
            pipeline.execute()

    def _hash(self, upload_id: str) -> str:
        return self._database.key("upload", upload_id)


def _upload(fields: Mapping[str, str]) -> Upload:
    return Upload(
        id=fields["id"],
        tenant=fields["tenant"],
        key=fields["key"],
        size=int(fields["size"]),
        media_type=fields["media_type"],
        sha256=fields["sha256"] or None,
        filename=fields["filename"] or None,
        created_at=from_milliseconds(int(fields["created"])),
        expires_at=from_milliseconds(int(fields["expires"])),
        used_by=fields["used_by"] or None,
    )
