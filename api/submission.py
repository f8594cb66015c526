"""Accepting a picture: the one way in for forms, direct uploads and batches.

    sniff -> quotas -> input blob -> spec, record and wake-up (``JobService.submit``) -> 202

Until ``submit`` returns nothing was accepted, and whatever was written is removed again. All of
it blocks and runs in a worker thread.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from starlette.responses import JSONResponse

import jobs
from api import limits, views
from api.caller import Caller
from api.context import Context
from api.fields import JobFields
from api.problems import Problem, invalid, retry_after
from api.sniff import HEAD_BYTES, Sniffed, sniff
from api.uploads import File
from jobs import BlobRef, IdempotencyClaim, JobDraft, JobRecord, JobSpec, Submission, Upload
from nifcore import Limits, __version__

POLL_SECONDS = 1
"""What a client is asked to wait before it looks at a new job."""


@dataclass(frozen=True)
class Wish:
    """A job that a client wants.

    Attributes:
        job_id: chosen by us or by the client.
        chosen: whether the client chose it.
        fields: everything that was said.
        batch: id of its batch, or None.
        idempotency: the claimed key with the request's fingerprint, or None.
    """

    job_id: str
    chosen: bool
    fields: JobFields
    batch: str | None = None
    idempotency: IdempotencyClaim | None = None


def fingerprint(fields: JobFields, source: str) -> str:
    """Return what two requests share that ask for the same.

    Args:
        fields: everything that was said.
        source: SHA-256 of the picture, or the id of the upload.
    """
    text = json.dumps(fields.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(f"{source} {text}".encode()).hexdigest()


def check_webhook(shared: Context, fields: JobFields) -> None:
    """Refuse a webhook that nothing may be sent to.

    Raises:
        Problem: ``invalid_parameter``.
    """
    if fields.webhook is not None:
        try:
            jobs.check_webhook_url(fields.webhook, shared.settings)
        except jobs.Invalid as error:
            raise invalid("body", "webhook", str(error)) from None


def look_at(shared: Context, file: File) -> Sniffed:
    """Refuse what is no picture, or too large a one.

    Raises:
        Problem: see :func:`api.sniff.sniff`.
    """
    settings = shared.settings
    side = Limits().max_side
    return sniff(file.read, file.size, max_pixels=settings.max_pixels, max_side=side)


def from_file(shared: Context, caller: Caller, wish: Wish, file: File) -> Submission:
    """Accept a picture that came with the request."""
    check_webhook(shared, wish.fields)
    sniffed = look_at(shared, file)
    if wish.chosen:
        earlier = _earlier(shared, caller, wish)
        if earlier is not None:
            if earlier.record.spec.input.sha256 != file.sha256:
                raise jobs.IdTaken(wish.job_id)
            return earlier
    limits.check_queue(shared, "encode")
    limits.take_job(shared, caller.key, file.size)
    journal = shared.service.journal
    file.file.seek(0)
    ref = journal.write_input(caller.tenant, wish.job_id, file.file, sniffed.media_type)
    return _submit(shared, caller, wish, ref, sniffed, file.filename)


def from_upload(shared: Context, caller: Caller, wish: Wish, upload_id: str) -> Submission:
    """Accept a picture that was uploaded before.

    Raises:
        Problem: ``upload_incomplete``, ``upload_damaged``, or what :func:`from_file` raises.
    """
    check_webhook(shared, wish.fields)
    service = shared.service
    upload = service.uploads.get(caller.tenant, upload_id)
    if not wish.chosen:
        # One upload makes one job, so its id follows from the upload's, and a request that is
        # repeated after a fault finds what the first one left.
        wish = replace(wish, job_id="job_" + upload_id.removeprefix("upl_"))
    if upload.used_by is not None and upload.used_by != wish.job_id:
        raise Problem("upload_used", f"the upload became {upload.used_by}")
    earlier = _earlier(shared, caller, wish)
    if earlier is not None:
        if upload.used_by is None:
            raise jobs.IdTaken(wish.job_id)
        return earlier
    sniffed = _look_at_upload(shared, upload)
    limits.check_queue(shared, "encode")
    limits.take_job(shared, caller.key, upload.size)
    service.uploads.take(caller.tenant, upload_id, wish.job_id)
    try:
        ref = service.adopt_upload(upload, wish.job_id)
        return _submit(shared, caller, wish, ref, sniffed, upload.filename)
    except Exception:
        # Where that fails too, the id that follows from the upload's still leads here.
        with suppress(jobs.JobsError):
            service.uploads.give_back(upload, wish.job_id)
        raise


def _look_at_upload(shared: Context, upload: Upload) -> Sniffed:
    blobs = shared.service.blobs

    def read(offset: int, count: int) -> bytes:
        if offset >= upload.size:
            return b""
        return blobs.get(upload.key, start=offset, end=min(upload.size, offset + count))

    try:
        info = blobs.head(upload.key)
        if info.size != upload.size:
            raise Problem("upload_damaged", f"{info.size} bytes came, {upload.size} were declared")
        # Nearly every header lies in the first page; it is fetched once.
        page = read(0, max(HEAD_BYTES, 64 * 1024))
        return sniff(
            lambda offset, count: (
                page[offset : offset + count]
                if offset + count <= len(page)
                else read(offset, count)
            ),
            upload.size,
            max_pixels=shared.settings.max_pixels,
            max_side=Limits().max_side,
        )
    except jobs.BlobNotFound:
        raise Problem("upload_incomplete", "no bytes came for this upload") from None


def _earlier(shared: Context, caller: Caller, wish: Wish) -> Submission | None:
    """Return the job that already has the id, if the same was asked of it.

    Raises:
        IdTaken: something else was asked.
        StoreUnavailable: its submission failed half-way, or is not over.
    """
    try:
        record = shared.service.get(caller.tenant, wish.job_id)
    except jobs.NotFound:
        return None
    record = shared.service.confirmed(record)
    fields = wish.fields
    asked = (fields.parameters(), fields.priority, dict(fields.metadata), fields.webhook)
    if asked != (
        record.spec.parameters,
        record.priority,
        dict(record.metadata),
        record.webhook,
    ):
        raise jobs.IdTaken(wish.job_id)
    return Submission(record=record, created=False, deduplicated=False, replayed=True)


def _submit(
    shared: Context,
    caller: Caller,
    wish: Wish,
    ref: BlobRef,
    sniffed: Sniffed,
    filename: str | None,
) -> Submission:
    fields = wish.fields
    draft = JobDraft(
        id=wish.job_id,
        tenant=caller.tenant,
        spec=JobSpec(
            input=ref,
            parameters=fields.parameters(),
            codec=__version__,
            width=sniffed.width,
            height=sniffed.height,
            filename=filename,
        ),
        submitted_at=datetime.now(UTC),
        priority=fields.priority,
        metadata=fields.metadata,
        webhook=fields.webhook,
        batch=wish.batch,
        # A client that names its job wants that job, not an equal one of another name.
        deduplicate=fields.deduplicate and not wish.chosen,
        idempotency=wish.idempotency,
    )
    # If it raises, it has taken back the input too.
    submission = shared.service.submit(draft, max_active=limits.active_jobs(shared, caller.key))
    shared.metrics.uploaded.inc(ref.size if submission.created else 0)
    return submission


def submitted_view(shared: Context, submission: Submission) -> views.SubmittedView:
    """Return the answer to a submission."""
    record = submission.record
    return views.SubmittedView(
        **views.job_values(record, shared.settings, _position(shared, record)),
        created=submission.created,
        deduplicated=submission.deduplicated,
        replayed=submission.replayed,
    )


def _position(shared: Context, record: JobRecord) -> int | None:
    if record.state is not jobs.State.QUEUED:
        return None
    try:
        return shared.service.store.position(record.id, record.queue)
    except jobs.Unavailable:
        return None  # the job is accepted; only its place is not known


def answer(view: views.SubmittedView) -> JSONResponse:
    """Return 202 for a new job and 200 for an earlier one, with its address."""
    headers = {"Location": f"/v1/jobs/{view.id}", **retry_after(POLL_SECONDS)}
    if view.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(
        view.model_dump(mode="json"), status_code=202 if view.created else 200, headers=headers
    )
