"""Record, journal and wake-ups in the right order: what the API and the reaper call.

Accepting a job: input and spec are durable, then the record is made, then a worker is woken. If the
record cannot be made, the spec is taken back, and whatever may have come through to Redis
nevertheless is withdrawn by the first one who looks for the spec. Until then nobody answers for
it: see `jobs.standing`.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from jobs.access import Access
from jobs.audit import AuditLog
from jobs.blobs import Blobs
from jobs.counters import Counters
from jobs.database import Database, connect
from jobs.deliveries import Deliveries
from jobs.endpoints import Endpoints
from jobs.errors import (
    BlobDamaged,
    BlobDenied,
    BlobExists,
    BlobNotFound,
    IdTaken,
    Invalid,
    NotFound,
    StoreUnavailable,
    Unavailable,
    WrongState,
)
from jobs.events import EventLog
from jobs.fanout import Fanout
from jobs.history import History
from jobs.idempotency import Idempotency, Replay
from jobs.journal import Journal
from jobs.keys import KeyRing
from jobs.outbox import Outbox
from jobs.previews import Previews
from jobs.queues import Queues
from jobs.quotas import Quotas
from jobs.reaper import Reaper
from jobs.record import BlobRef, JobDraft, JobRecord
from jobs.search import JobSearch
from jobs.settings import Settings
from jobs.standing import (
    Standing,
    may_be_taken_back,
    standing,
    take_back_seconds,
    was_taken_back,
)
from jobs.storage import open_blobs
from jobs.store import Created, JobFilter, JobPage, JobStore
from jobs.uploads import Upload, Uploads
from jobs.wakeups import Wakeups
from jobs.workers import Workers

log = logging.getLogger(__name__)

# How long to wait for a submission under way that has a job which another request asks for.
_PATIENCE_SECONDS = (0.05, 0.1, 0.2, 0.0)


@dataclass(frozen=True)
class Submission:
    """The answer to a draft.

    Attributes:
        record: the job that stands for it.
        created: it is a new one.
        deduplicated: it is an earlier one that does the same work.
        replayed: it is the one that this very request made before.
    """

    record: JobRecord
    created: bool
    deduplicated: bool
    replayed: bool


class JobService:
    """All of the package, put together. Use `open_service`."""

    def __init__(
        self, database: Database, blobs: Blobs, wakeups: Wakeups, settings: Settings
    ) -> None:
        self.settings = settings
        self.database = database
        self.blobs = blobs
        self.wakeups = wakeups
        self.store = JobStore(database)
        self.journal = Journal(blobs)
        self.events = EventLog(database)
        self.previews = Previews(database)
        self.outbox = Outbox(database)
        self.endpoints = Endpoints(database, blobs, settings)
        self.deliveries = Deliveries(database, settings)
        self.fanout = Fanout(database, self.store, self.endpoints, settings)
        self.queues = Queues(database)
        self.workers = Workers(database, settings)
        self.keys = KeyRing(database, blobs)
        self.access = Access(database)
        self.quotas = Quotas(database)
        self.uploads = Uploads(database, blobs, settings)
        self.idempotency = Idempotency(database)
        self.search = JobSearch(database, self.store)
        self.history = History(database)
        self.audit = AuditLog(database)
        self.reaper = Reaper(self)

    # The life of a job

    def submit(self, draft: JobDraft, *, max_active: int | None = None) -> Submission:
        """Accept a draft whose picture is stored already, and wake a worker.

        When it returns, the job is durable. When it raises, there is no job, and the picture, the
        spec and the idempotency key are given back. Only when that took so long that another
        request may have answered for the job already, it is left to itself.

        Args:
            draft: the job; its input's key is from `Journal.input_key`.
            max_active: most queued and running jobs of the tenant; None for the setting.

        Raises:
            IdTaken, IdempotencyInFlight, IdempotencyMismatch, QuotaExceeded, Unavailable.
        """
        limit = self.settings.active_jobs if max_active is None else max_active
        ours, known = draft, False
        began = time.monotonic()
        try:
            try:
                self.journal.write_spec(draft)
            except BlobExists:
                known = True
                draft = self._known_draft(draft)
                # With our own input it is our own, written by a request whose reply was lost.
                known = draft.spec.input.key != ours.spec.input.key
                if known:
                    self._check_submitter(draft)
            created = self.store.create(
                draft,
                submission=secrets.token_hex(8),
                max_active=limit,
                queue_limit=self.settings.queue_limit,
            )
            record = created.record
            if created.outcome != "created":
                record = self.confirmed(record)
            elif was_taken_back(self.journal, record):
                self.withdraw(record)
                raise StoreUnavailable(f"{record.id} was withdrawn", 1.0)
        except Exception as error:
            late = time.monotonic() - began > take_back_seconds(self.settings)
            log.info("draft %s %s: %s", ours.id, "left" if late else "taken back", error)
            kept = ours.spec.input if late and not known else None
            self._take_back(ours, kept=kept, spec_too=not known and not late)
            raise
        self._take_back(ours, kept=record.spec.input, spec_too=record.id != ours.id and not known)
        if created.outcome == "created":
            self._publish(record)
        return _submission(created, record)

    def replay(self, tenant: str, replay: Replay, fingerprint: str) -> JobRecord:
        """Return the job that an idempotency key made before.

        Raises:
            IdempotencyMismatch: from another body.
            NotFound: it was deleted meanwhile.
        """
        self.idempotency.check(replay, fingerprint)
        return self.confirmed(self.get(tenant, replay.job_id))

    def confirmed(self, record: JobRecord) -> JobRecord:
        """Return a job's record for others than its submitter to answer with.

        Raises:
            StoreUnavailable: its submission failed half-way, or is not over; the same request
                again makes the job, or finds it.
            BlobsUnavailable.
        """
        for pause in _PATIENCE_SECONDS:
            match self.standing(record):
                case Standing.LASTING:
                    return record
                case Standing.FAILED:
                    self.withdraw(record)
                    raise StoreUnavailable(f"{record.id} was withdrawn", 1.0)
            time.sleep(pause)
            found = self.store.get_many([record.id])[0]
            if found is None:
                raise StoreUnavailable(f"{record.id} was withdrawn", 1.0)
            record = found
        raise StoreUnavailable(f"{record.id} is still being submitted", 1.0)

    def get(self, tenant: str | None, job_id: str) -> JobRecord:
        """Return a job of a tenant, or anybody's for None.

        Raises:
            NotFound: also if it is another tenant's.
        """
        record = self.store.get(job_id)
        if tenant is not None and record.tenant != tenant:
            raise NotFound("job", job_id)
        return record

    def list(self, wanted: JobFilter, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return jobs, newest first; see `JobStore.page`."""
        return self.store.page(wanted, limit=limit, cursor=cursor)

    def cancel(self, tenant: str | None, job_id: str) -> JobRecord:
        """Cancel a queued job at once, ask a running one to stop; a cancelled one stays so.

        Raises:
            NotFound, WrongState.
        """
        self.get(tenant, job_id)
        record = self.store.cancel(job_id)
        self.write_changes(job_id)
        return record

    def finish(self, tenant: str | None, job_id: str) -> JobRecord:
        """Ask a running job to keep the best so far and end.

        Raises:
            NotFound, WrongState.
        """
        self.get(tenant, job_id)
        return self.store.finish_now(job_id)

    def retry(self, tenant: str | None, job_id: str, *, max_active: int | None = None) -> JobRecord:
        """Queue a failed or cancelled job again.

        Raises:
            NotFound, WrongState, QuotaExceeded.
        """
        self.get(tenant, job_id)
        limit = self.settings.active_jobs if max_active is None else max_active
        record = self.store.retry(job_id, max_active=limit)
        self.write_changes(job_id)
        self._publish(record)
        return record

    def delete(self, tenant: str | None, job_id: str) -> None:
        """Remove a job that is not running, with its journal.

        Raises:
            NotFound.
            WrongState: it is running; cancel it first.
            BlobsUnavailable: it is hidden already, the reaper removes the rest later.
        """
        record = self.get(tenant, job_id)
        self.store.begin_delete(job_id)
        self.clear(record.tenant, job_id)

    # Other things that take more than one part

    def adopt_upload(self, upload: Upload, job_id: str) -> BlobRef:
        """Copy what a client uploaded to where the job's input belongs, and check it.

        Raises:
            BlobNotFound: nothing was sent.
            BlobDamaged: it has not the declared size or SHA-256.
        """
        if self.blobs.head(upload.key).size != upload.size:
            raise BlobDamaged(upload.key, f"{upload.size} bytes were declared")
        info = self.blobs.copy(upload.key, self.journal.input_key(upload.tenant, job_id))
        try:
            found = info.sha256
            if found is None:
                content = hashlib.sha256()
                for piece in self.blobs.stream(info.key):
                    content.update(piece)
                found = content.hexdigest()
            if info.size != upload.size or (upload.sha256 is not None and upload.sha256 != found):
                raise BlobDamaged(upload.key, "its SHA-256 is not the declared one")
        except BaseException:
            self.blobs.delete(info.key)
            raise
        return BlobRef(info.key, info.size, found, upload.media_type)

    def counters(self) -> dict[str, float]:
        """Return every counter; see `jobs.counters`."""
        return Counters(self.database).read()

    def check(self) -> dict[str, str]:
        """Return for each part ``ok``, or why it is not."""
        findings = {}
        for part, check in (("store", self.database.check), ("blobs", self.blobs.check)):
            try:
                check()
                findings[part] = "ok"
            except Unavailable as error:
                findings[part] = error.reason
        return findings

    def close(self) -> None:
        """Close connections."""
        self.database.close()
        self.blobs.close()

    async def close_async(self) -> None:
        """Close what asynchronous calls opened; `close` the rest after it."""
        await self.database.close_async()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # For the reaper

    def write_changes(self, job_id: str) -> bool:
        """Bring the journal up to the record's last change, if it does not have it yet.

        A journal that does not answer is no error: the reaper repeats this.
        """
        key = self.database.key("unjournalled")
        score = self.database.call("zscore", key, job_id)
        if score is None:
            return False
        try:
            self.journal.write_change(self.store.get(job_id))
        except Unavailable as error:
            log.warning("change of %s not journalled yet: %s", job_id, error)
            return False
        except NotFound:
            log.debug("%s was deleted meanwhile", job_id)
        self.database.run("settle", job_id, f"{score:.0f}")
        return True

    def clear(self, tenant: str, job_id: str) -> None:
        """Remove what is left of a job that `JobStore.begin_delete` hid."""
        self.journal.delete_job(tenant, job_id)
        self.store.purge(job_id)

    def standing(self, record: JobRecord) -> Standing:
        """Tell whether a job will stay; see `jobs.standing`."""
        return standing(self.journal, self.settings, record)

    def withdraw(self, record: JobRecord) -> None:
        """Remove a job whose submission failed half-way: the client was told that it did."""
        with suppress(NotFound, WrongState):
            self.store.begin_delete(record.id, withdraw=True)
            self.clear(record.tenant, record.id)

    # Parts

    def _known_draft(self, draft: JobDraft) -> JobDraft:
        """Return the draft that the journal has under the same tenant and id.

        Raises:
            IdTaken: it is for something else.
        """
        try:
            known = self.journal.read_spec(draft.tenant, draft.id)
        except BlobNotFound as error:
            # Withdrawn between two looks.
            raise StoreUnavailable(f"{draft.id} is being withdrawn", 1.0) from error
        if known.body_digest() != draft.body_digest():
            raise IdTaken(draft.id)
        return replace(known, idempotency=draft.idempotency)

    def _check_submitter(self, draft: JobDraft) -> None:
        """Refuse to take a spec up that its writer may still take back.

        Raises:
            StoreUnavailable: the same request again, a little later, makes or finds the job.
        """
        # Where there is a record, it tells more than the age of the spec.
        if not self.store.exists(draft.id) and may_be_taken_back(
            self.journal, self.settings, draft.tenant, draft.id
        ):
            raise StoreUnavailable(f"{draft.id} is still being submitted", 1.0)

    def _take_back(self, draft: JobDraft, *, kept: BlobRef | None, spec_too: bool) -> None:
        """Remove what a draft has stored and no job refers to, as far as it can be reached.

        What cannot be reached now is garbage without a spec, which reconcile removes.
        """
        with suppress(Unavailable, BlobDenied):
            if spec_too:
                self.journal.remove_spec(draft.tenant, draft.id)
            if kept is None or kept.key != draft.spec.input.key:
                self.journal.remove_input(draft)
        if draft.idempotency is not None:
            # A key that is bound to a job stays.
            with suppress(Unavailable):
                self.idempotency.abandon(draft.idempotency)

    def _publish(self, record: JobRecord) -> None:
        try:
            self.wakeups.publish(record.id, priority=record.priority, queue=record.queue)
        except Exception as error:
            # Whatever the broker's client raises: the job is safe, the reaper publishes it.
            log.warning("wake-up of %s not sent yet: %s", record.id, error)
            with suppress(StoreUnavailable):
                self.store.mark_accepted(record.id)
            return
        try:
            self.store.mark_published(record.id)
        except StoreUnavailable as error:
            log.warning("wake-up of %s sent but not noted: %s", record.id, error)


def _submission(created: Created, record: JobRecord) -> Submission:
    return Submission(
        record=record,
        created=created.outcome == "created",
        deduplicated=created.outcome == "deduplicated",
        replayed=created.outcome == "replayed",
    )


def open_service(settings: Settings, *, wakeups: Wakeups) -> JobService:
    """Return the service on the Redis and the blob store of the settings.

    Raises:
        Invalid: no Redis is named; `jobs.redis_server.RedisServer` finds or starts one.
    """
    if settings.redis_url is None:
        raise Invalid("open_service needs NIF_REDIS_URL or redis_url from RedisServer.url")
    client = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
    return JobService(Database(client, settings), open_blobs(settings), wakeups, settings)
