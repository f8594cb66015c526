"""``/v1/jobs``: submitting, following, steering and removing jobs."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BeforeValidator
from starlette.responses import JSONResponse

import jobs
from api import bodies, fields, limits, submission, uploads, views
from api.auth import Given, Reader, Writer, admit
from api.caller import Caller
from api.context import Context, Shared
from api.documents import job_form, json_body, with_body
from api.downloads import matches
from api.problems import COMMON, Problem, documented, invalid, retry_after
from api.submission import Wish
from jobs import IdempotencyClaim, JobFilter, JobRecord, Scope, State
from nifcore import __version__

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[
    str,
    Path(
        description="Id of the job: `job_...`, or the UUID that the client chose.",
        min_length=1,
        max_length=80,
        examples=["job_01JD9X7Q3W8E5R2T6Y4V0N1M9B"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat a request safely: the same key and body give the same job.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

_SUBMIT_PROBLEMS = (
    *COMMON,
    "malformed_request",
    "upload_not_found",
    "upload_too_slow",
    "id_taken",
    "idempotency_in_flight",
    "idempotency_mismatch",
    "upload_incomplete",
    "upload_used",
    "upload_damaged",
    "body_too_large",
    "too_many_files",
    "unsupported_media_type",
    "unsupported_image",
    "contradictory_parameters",
    "damaged_image",
    "too_many_pixels",
    "quota_exceeded",
    "blobs_unavailable",
    "queue_full",
)
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": views.SubmittedView, "description": "An earlier job answers."},
    202: {
        "model": views.SubmittedView,
        "description": "The job is accepted and will not be lost.",
        "headers": {
            "Location": {"description": "The job's address.", "schema": {"type": "string"}},
            "Retry-After": {"description": "When to look.", "schema": {"type": "integer"}},
        },
    },
}
_BODY = with_body(job_form(many=False), json_body(fields.UploadedJob))


@router.post(
    "",
    status_code=202,
    response_model=None,
    summary="Submit a picture",
    responses=documented(*_SUBMIT_PROBLEMS, also=_ACCEPTED),
    openapi_extra=_BODY,
)
async def submit(
    request: Request, shared: Shared, caller: Writer, key: IdempotencyKey = None
) -> JSONResponse:
    """Encode a picture: send it in a form, or name an upload in JSON.

    The answer comes when the job is safe, not when it is done. With an `Idempotency-Key` a
    request can be repeated after a broken connection without making a second job.
    """
    if key is None:
        return await _accept(request, shared, caller, jobs.new_job_id(), chosen=False)
    begun = await run_sync(shared.service.idempotency.begin, caller.tenant, key)
    if not isinstance(begun, IdempotencyClaim):
        return await _replay(request, shared, caller, begun)
    try:
        return await _accept(request, shared, caller, jobs.new_job_id(), chosen=False, claim=begun)
    except BaseException:
        # Also when the client hangs up: it may come again at once.
        await run_sync(_abandon, shared, begun)
        raise


@router.put(
    "/{job_id}",
    status_code=202,
    response_model=None,
    summary="Submit a picture under an id of your own",
    responses=documented(*_SUBMIT_PROBLEMS, also=_ACCEPTED),
    openapi_extra=_BODY,
)
async def submit_as(
    request: Request, shared: Shared, caller: Writer, job_id: JobId
) -> JSONResponse:
    """Encode a picture as the job with this id, a UUID: repeating the request is harmless."""
    chosen = _checked_id(job_id)
    return await _accept(request, shared, caller, chosen, chosen=True)


def _checked_id(job_id: str) -> str:
    try:
        return jobs.check_job_id(job_id)
    except jobs.Invalid as error:
        raise invalid("path", "job_id", str(error)) from None


def _abandon(shared: Context, claim: IdempotencyClaim) -> None:
    # If it cannot be given back, it lapses by itself.
    with suppress(jobs.Unavailable):
        shared.service.idempotency.abandon(claim)


async def _accept(
    request: Request,
    shared: Context,
    caller: Caller,
    job_id: str,
    *,
    chosen: bool,
    claim: IdempotencyClaim | None = None,
) -> JSONResponse:
    async with _read(request, shared) as (asked, file):
        source = file.sha256 if isinstance(file, uploads.File) else file
        if claim is not None:
            claim = claim.with_fingerprint(submission.fingerprint(asked, source))
        wish = Wish(job_id=job_id, chosen=chosen, fields=asked, idempotency=claim)

        def accept() -> JSONResponse:
            if isinstance(file, uploads.File):
                accepted = submission.from_file(shared, caller, wish, file)
            else:
                accepted = submission.from_upload(shared, caller, wish, file)
            return submission.answer(submission.submitted_view(shared, accepted))

        return await run_sync(accept)


async def _replay(
    request: Request, shared: Context, caller: Caller, replay: jobs.Replay
) -> JSONResponse:
    async with _read(request, shared) as (asked, file):
        source = file.sha256 if isinstance(file, uploads.File) else file

        def look() -> JSONResponse:
            print_ = submission.fingerprint(asked, source)
            record = shared.service.replay(caller.tenant, replay, print_)
            earlier = jobs.Submission(
                record=record, created=False, deduplicated=False, replayed=True
            )
            return submission.answer(submission.submitted_view(shared, earlier))

        return await run_sync(look)


class _read:  # noqa: N801
    """Reads what a submission carries: its fields, and the file or the id of an upload."""

    def __init__(self, request: Request, shared: Context) -> None:
        self._request = request
        self._shared = shared
        self._form: uploads.Form | None = None

    async def __aenter__(self) -> tuple[fields.JobFields, uploads.File | str]:
        request, limits = self._request, self._shared.settings
        kind = uploads.media_type(request)
        if kind == "application/json":
            asked = await bodies.read_json(request, limits, fields.UploadedJob)
            return asked, asked.upload_id
        if kind != "multipart/form-data":
            raise Problem(
                "unsupported_media_type",
                f"{kind or 'nothing'} is not accepted; send multipart/form-data with a file, or "
                "application/json with an upload_id",
            )
        form = self._form = await uploads.read_form(request, limits, max_files=1)
        try:
            return fields.from_form(form.fields), only_file(form)
        except BaseException:
            form.__exit__(None, None, None)
            raise

    async def __aexit__(self, *error: object) -> None:
        if self._form is not None:
            self._form.__exit__(None, None, None)


def only_file(form: uploads.Form) -> uploads.File:
    """Return the file of a form that has one.

    Raises:
        Problem: there is none, or its field is not named ``file``.
    """
    if not form.files:
        raise invalid("form", "file", "a file is needed")
    if form.files[0].name != "file":
        name = form.files[0].name[:80]
        raise Problem(
            "unknown_parameter",
            f"the file must come in the field 'file', not {name!r}",
            errors=[{"in": "form", "name": name, "message": "no such field"}],
        )
    return form.files[0]


def _as_text(value: Any) -> Any:
    # A bare number would pass as seconds since 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("must be a time like 2026-03-01T12:00:00Z")
    return value


Moment = Annotated[
    datetime | None, BeforeValidator(_as_text), Query(description="RFC 3339, with a time zone.")
]


@router.get(
    "",
    summary="List jobs",
    responses=documented(*COMMON),
)
def list_jobs(
    response: Response,
    request: Request,
    shared: Shared,
    caller: Reader,
    state: Annotated[list[State], Query(description="Only these; may be repeated.")] = [],  # noqa: B006
    batch: Annotated[str | None, Query(max_length=80, description="Only of this batch.")] = None,
    created_after: Moment = None,
    created_before: Moment = None,
    tenant: Annotated[
        str | None,
        Query(max_length=63, description="Administrators: of this tenant, `*` for everybody's."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Jobs on a page.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=512, description="`next_cursor` of the page before.")
    ] = None,
) -> views.JobList:
    """List your jobs, newest first. The cursor stays good while jobs come and go."""
    for name, moment in (("created_after", created_after), ("created_before", created_before)):
        if moment is not None and moment.tzinfo is None:
            raise invalid("query", name, "a time zone is needed, such as Z")
    if tenant is not None and caller.sees is not None and tenant != caller.tenant:
        raise Problem("forbidden", "only administrators see other tenants' jobs")
    wanted = caller.tenant if tenant is None else None if tenant == "*" else tenant
    if wanted is not None:
        jobs.check_tenant(wanted)
    page = shared.service.list(
        JobFilter(
            tenant=wanted,
            states=frozenset(state),
            batch=batch,
            created_after=created_after,
            created_before=created_before,
        ),
        limit=limit,
        cursor=cursor,
    )
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    items = tuple(views.job_view(record, shared.settings) for record in page.records)
    return views.JobList(items=items, next_cursor=page.next_cursor)


@router.get(
    "/{job_id}",
    response_model=views.JobView,
    summary="Follow a job",
    responses=documented(
        *COMMON,
        "job_not_found",
        also={
            304: {"description": "Nothing changed since the ETag in `If-None-Match`."},
        },
    ),
)
async def get_job(
    request: Request,
    shared: Shared,
    given: Given,
    job_id: JobId,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="ETag of what you have.")
    ] = None,
) -> Response:
    """Return a job's state, progress, place in the queue and result."""
    # The request that is made most: one round trip to the store, no thread, and nothing is built
    # for a client that has it already.
    wanted = canonical_id(job_id)
    ending = _tag_ending(shared.settings.retention_days)
    known = _known_mark(if_none_match, ending)
    _, seen = await admit(request, shared, given, Scope.JOBS_READ, job_id=wanted or "", known=known)
    if seen is None:
        raise jobs.NotFound("job", job_id)
    tag = f'"{seen.mark}{ending}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if not seen.state.terminal:
        headers |= retry_after(submission.POLL_SECONDS)
    if seen.record is None or matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    view = views.job_view(seen.record, shared.settings, seen.position)
    body = view.model_dump_json().encode()
    return Response(body, media_type="application/json", headers=headers)


@lru_cache(maxsize=1)
def _tag_ending(retention_days: float) -> str:
    """Return what every ETag of a job ends with: another one when the view itself changes."""
    shape = f"{__version__} {retention_days} {' '.join(views.JobView.model_fields)}"
    return "-" + hashlib.blake2b(shape.encode(), digest_size=4).hexdigest()


def _known_mark(if_none_match: str | None, ending: str) -> str:
    """Return the mark in the one ETag of an ``If-None-Match``, empty if it is another header."""
    text = (if_none_match or "").removeprefix("W/")
    if text.startswith('"') and text.endswith(f'{ending}"'):
        return text[1 : -len(ending) - 1]
    return ""


def find(shared: Context, caller: Caller, job_id: str) -> JobRecord:
    """Return a job that the caller may see.

    Raises:
        NotFound: there is none; an id that nobody can have is no different.
    """
    return shared.service.get(caller.sees, known_id(job_id))


def known_id(job_id: str) -> str:
    """Return the canonical writing of an id.

    Raises:
        NotFound: it is no job id.
    """
    wanted = canonical_id(job_id)
    if wanted is None:
        raise jobs.NotFound("job", job_id)
    return wanted


def canonical_id(job_id: str) -> str | None:
    """Return the canonical writing of an id, None if it is no job id."""
    try:
        return jobs.check_job_id(job_id)
    except jobs.Invalid:
        return None


_STEER = documented(*COMMON, "job_not_found", "wrong_state")
_RETRY = documented(*COMMON, "job_not_found", "wrong_state", "quota_exceeded")


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=_STEER)
def cancel(shared: Shared, caller: Writer, job_id: JobId) -> views.JobView:
    """Cancel a job: at once where it waits, within seconds where it runs."""
    record = shared.service.cancel(caller.sees, known_id(job_id))
    return views.job_view(record, shared.settings)


@router.post("/{job_id}/finish", summary="Finish a job early", responses=_STEER)
def finish(shared: Shared, caller: Writer, job_id: JobId) -> views.JobView:
    """Let a running job stop fitting and keep the best so far."""
    record = shared.service.finish(caller.sees, known_id(job_id))
    return views.job_view(record, shared.settings)


@router.post("/{job_id}/retry", summary="Try a job again", responses=_RETRY)
def retry(shared: Shared, caller: Writer, job_id: JobId) -> views.JobView:
    """Queue a failed or cancelled job again."""
    most = limits.active_jobs(shared, caller.key)
    record = shared.service.retry(caller.sees, known_id(job_id), max_active=most)
    return views.job_view(record, shared.settings)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a job",
    responses=documented(*COMMON, "job_not_found", "wrong_state", "blobs_unavailable"),
)
def delete(shared: Shared, caller: Writer, job_id: JobId) -> None:
    """Delete everything of a job: picture, result, journal. Cancel a running job first."""
    shared.service.delete(caller.sees, known_id(job_id))
