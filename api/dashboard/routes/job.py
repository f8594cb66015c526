"""``/dashboard/jobs/{id}``: everything about one job, as it happens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import HTMLResponse, JSONResponse

from api.context import Context, Shared
from api.dashboard import acts, story
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page
from api.dashboard.visitor import Reader, Visitor, Writer
from api.routes.jobs import JobId, find, known_id
from jobs import Event, JobRecord, State

router = APIRouter(route_class=PageRoute)

_DELIVERIES = 50

After = Annotated[str, Query(max_length=42, pattern=r"^(\d{1,20}-\d{1,20})?$")]


def events_of(shared: Context, job_id: str, after: str = "") -> list[Event]:
    """Return all events that are kept of a job, or those after one."""
    most = shared.settings.events_per_job + 200  # the stream is cut in whole nodes
    return shared.service.events.read_job(job_id, after=after or None, limit=most)


def _position(shared: Context, record: JobRecord) -> int | None:
    return shared.service.store.position(record.id) if record.state is State.QUEUED else None


@router.get("/jobs/{job_id}")
def job(request: Request, shared: Shared, visitor: Reader, job_id: JobId) -> HTMLResponse:
    """Show a job."""
    record = find(shared, visitor.caller, job_id)
    events = events_of(shared, record.id)
    spans = story.spans_of(record, events, datetime.now(UTC))
    lines = story.lines_of(events)
    service = shared.service
    deliveries = service.deliveries.page(job_id=record.id, limit=_DELIVERIES).deliveries
    endpoints = service.endpoints.list(record.tenant) if deliveries else ()
    return page(
        request,
        visitor,
        "job.html",
        section="jobs",
        job=record,
        position=_position(shared, record),
        taken=story.path_of(record, events),
        spans=spans,
        totals=story.phase_totals(spans),
        lines=lines,
        budget=story.budget_of(record.spec),
        cut=bool(events) and events[0].type != "job.queued",
        deliveries=deliveries,
        urls={each.id: each.url for each in endpoints},
        here=f"{HOME}/jobs/{record.id}",
        retention_days=shared.settings.retention_days,
    )


@router.get("/jobs/{job_id}/curve")
def curve(shared: Shared, visitor: Reader, job_id: JobId, after: After = "") -> JSONResponse:
    """Return what the curves are drawn from: progress and previews after an event."""
    record = find(shared, visitor.caller, job_id)
    events = events_of(shared, record.id, after)
    previews = [
        {"number": event.data.get("number"), "at": event.at.timestamp()}
        | {name: event.data.get(name) for name in ("iteration", "iterations", "psnr_db")}
        for event in events
        if event.type == "job.preview" and event.data.get("number") is not None
    ]
    spec = record.spec
    return JSONResponse(
        {
            "state": record.state,
            "attempt": record.attempt,
            "started": record.attempts[0].started_at.timestamp() if record.attempts else None,
            "pixels": spec.width * spec.height if spec.width and spec.height else None,
            "budget": story.budget_of(spec),
            "last": events[-1].id if events else after,
            "points": story.points_of(events),
            "previews": previews,
            "result": _measured(record),
        }
    )


def _measured(record: JobRecord) -> dict[str, Any] | None:
    if record.result is None or record.report is None:
        return None
    return {"bytes": record.result.size} | {
        name: record.report.get(name) for name in ("bpp", "psnr_db", "ms_ssim", "seconds")
    }


@router.get("/jobs/{job_id}/events")
async def follow(
    request: Request,
    shared: Shared,
    visitor: Reader,
    job_id: JobId,
    after: After = "",
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=42)] = None,
) -> Response:
    """Send the job's events as they happen, as the API does; a cookie is the key here."""
    wanted = known_id(job_id)
    request.state.stream = True
    since = last_event_id or after or None
    return await shared.streams.follow_job(visitor.caller, wanted, after=since, types=None)


_SAID = {
    "cancel": "Cancelled, or asked to stop.",
    "finish": "Asked to finish: the best so far will be coded within moments.",
    "retry": "Queued again.",
}


def _steered(
    request: Request, shared: Context, visitor: Visitor, job_id: str, action: str
) -> Response:
    record = find(shared, visitor.caller, job_id)
    service = shared.service
    moves: dict[str, Callable[..., JobRecord]] = {
        "cancel": service.cancel,
        "finish": service.finish,
        "retry": service.retry,
    }
    moves[action](visitor.sees, record.id)
    acts.note(shared, visitor, f"job.{action}", record.id)
    return go(request, visitor, f"{HOME}/jobs/{record.id}", _SAID[action])


def _asked_back(
    request: Request, visitor: Visitor, record: JobRecord, act: str, text: str
) -> HTMLResponse:
    """Ask whether a job is really to be cancelled or deleted."""
    return page(
        request,
        visitor,
        "confirm.html",
        section="jobs",
        title=f"{act.capitalize()} this job?",
        text=text,
        act=f"{HOME}/jobs/{record.id}/{act}",
        fields=[],
        button=f"{act.capitalize()} the job",
        danger=True,
        back=f"{HOME}/jobs/{record.id}",
        records=[record],
        more=0,
    )


@router.post("/jobs/{job_id}/cancel")
def cancel(
    request: Request, shared: Shared, visitor: Writer, form: Posted, job_id: JobId
) -> Response:
    """Cancel a job, after asking back."""
    if not form.confirmed:
        record = find(shared, visitor.caller, job_id)
        text = "What it has learned so far is lost. To keep that, let it finish now instead."
        return _asked_back(request, visitor, record, "cancel", text)
    return _steered(request, shared, visitor, job_id, "cancel")


@router.post("/jobs/{job_id}/finish")
def finish(
    request: Request, shared: Shared, visitor: Writer, form: Posted, job_id: JobId
) -> Response:
    """Let a running job keep the best so far."""
    return _steered(request, shared, visitor, job_id, "finish")


@router.post("/jobs/{job_id}/retry")
def retry(
    request: Request, shared: Shared, visitor: Writer, form: Posted, job_id: JobId
) -> Response:
    """Queue a job again."""
    return _steered(request, shared, visitor, job_id, "retry")


@router.post("/jobs/{job_id}/delete")
def delete(
    request: Request, shared: Shared, visitor: Writer, form: Posted, job_id: JobId
) -> Response:
    """Delete everything of a job, after asking back."""
    record = find(shared, visitor.caller, job_id)
    if not form.confirmed:
        text = "Its picture, its result and its history are removed for good."
        return _asked_back(request, visitor, record, "delete", text)
    shared.service.delete(visitor.sees, record.id)
    acts.note(shared, visitor, "job.delete", record.id, record.spec.filename or "")
    return go(request, visitor, f"{HOME}/jobs", "The job is deleted.")
