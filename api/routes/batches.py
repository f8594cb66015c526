"""``/v1/batches``: many pictures in one request, each accepted or refused on its own."""

from __future__ import annotations

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

import jobs
from api import fields, settings, submission, uploads, views
from api.auth import Writer
from api.caller import Caller
from api.context import Context, Shared
from api.documents import job_form, with_body
from api.problems import COMMON, Problem, documented, id_of, invalid, problem_of
from api.submission import Wish

log = structlog.get_logger("api")

router = APIRouter(prefix="/v1/batches", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    response_model=None,
    summary="Submit many pictures",
    responses=documented(
        *COMMON,
        "malformed_request",
        "upload_too_slow",
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
        also={202: {"model": views.BatchView, "description": "At least one was accepted."}},
    ),
    openapi_extra=with_body(job_form(many=True)),
)
async def submit(request: Request, shared: Shared, caller: Writer) -> JSONResponse:
    """Encode many pictures with the same parameters.

    Every file of the form, all named `file`, becomes a job of its own or a problem of its own.
    If all are refused, the answer is the problem of the first. `GET /v1/jobs?batch=` follows
    them.
    """
    limits = shared.settings
    form = await uploads.read_form(
        request,
        limits,
        max_files=limits.max_files_per_batch,
        max_bytes=limits.max_upload_bytes * settings.BATCH_FACTOR,
    )
    with form:
        asked = fields.from_form(form.fields)
        if not form.files:
            raise invalid("form", "file", "at least one file is needed")
        for file in form.files:
            if file.name != "file":
                raise invalid("form", file.name[:80], "files must come in the field 'file'")
        batch = jobs.new_batch_id()
        items = []
        first: Problem | None = None
        for index, file in enumerate(form.files):
            job, problem = await run_sync(_accept, shared, caller, asked, batch, file)
            first = first or problem
            items.append(
                views.BatchItem(
                    index=index,
                    filename=file.filename,
                    job=job,
                    problem=None if problem is None else problem.body(id_of(request)),
                )
            )
    accepted = sum(item.job is not None for item in items)
    if not accepted:
        assert first is not None
        raise first
    view = views.BatchView(
        id=batch, accepted=accepted, refused=len(items) - accepted, items=tuple(items)
    )
    where = {"Location": f"/v1/jobs?batch={batch}"}
    return JSONResponse(view.model_dump(mode="json"), status_code=202, headers=where)


def _accept(
    shared: Context, caller: Caller, asked: fields.JobFields, batch: str, file: uploads.File
) -> tuple[views.SubmittedView | None, Problem | None]:
    wish = Wish(job_id=jobs.new_job_id(), chosen=False, fields=asked, batch=batch)
    try:
        accepted = submission.from_file(shared, caller, wish, file)
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            # The files before it are accepted: their jobs must be named in the answer.
            log.exception("file of a batch failed", batch=batch, job=wish.job_id)
            problem = Problem("internal", "a mistake of the service; quote the request's id")
        return None, problem
    return submission.submitted_view(shared, accepted), None
