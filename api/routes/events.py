"""``/v1/jobs/{id}/events``, ``/v1/events`` and ``/v1/jobs/{id}/previews``: jobs as they happen."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

import jobs
from api import views
from api.auth import Reader
from api.caller import Caller
from api.context import Context, Shared
from api.downloads import matches
from api.problems import COMMON, Problem, documented, invalid
from api.routes.jobs import JobId, find, known_id
from api.routes.results import IfNoneMatch
from jobs import EVENT_TYPES, Event
from jobs.events import BEGINNING, place_of
from jobs.previews import MEDIA_TYPE as WEBP

router = APIRouter(prefix="/v1", tags=["events"])


class Form(StrEnum):
    """How events are sent."""

    SSE = "sse"
    JSON = "json"


def _known_type(name: str) -> str:
    if name not in EVENT_TYPES:
        raise PydanticCustomError(
            "event_type", "no such event; there are {names}", {"names": ", ".join(EVENT_TYPES)}
        )
    return name


After = Annotated[
    str | None,
    Query(
        pattern=r"^\d{1,20}-\d{1,20}$",
        description="Id of the last event that was seen, `0-0` for all that are kept. For clients "
        "that cannot send `Last-Event-ID`, which counts more.",
        examples=["1767225600000-0"],
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^\d{1,20}-\d{1,20}$",
        description="Id of the last event that was seen; browsers send it when they come back.",
    ),
]
_TypeName = Annotated[
    str, AfterValidator(_known_type), Field(json_schema_extra={"enum": [*EVENT_TYPES]})
]
Types = Annotated[
    list[_TypeName],
    Query(alias="type", description="Only these; may be repeated."),
]
Format = Annotated[
    Form | None,
    Query(
        description="`sse` for a stream, `json` for a page of what is kept. By default a stream, "
        "unless `Accept` names `application/json` and not `text/event-stream`.",
    ),
]
Number = Annotated[
    int, Path(ge=1, le=2**53, description="As the event tells; 1 is the job's first.")
]
Limit = Annotated[int, Query(ge=1, le=2000, description="Events on a page of JSON.")]

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": views.EventPage,
        "description": "A stream of events, or a page of them.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": "event: job.running\ndata: {...}\nid: 1767225600000-0\n\n",
            }
        },
    },
}
_NOTHING_MORE: dict[int | str, dict[str, Any]] = {
    204: {"description": "The job has ended and nothing follows the event that was named."}
}


@router.get(
    "/jobs/{job_id}/events",
    response_model=None,
    summary="Follow a job as it happens",
    responses=documented(
        *COMMON,
        "job_not_found",
        "too_many_streams",
        "streams_full",
        also=_STREAM | _NOTHING_MORE,
    ),
)
async def job_events(
    request: Request,
    shared: Shared,
    caller: Reader,
    job_id: JobId,
    after: After = None,
    last_event_id: LastEventId = None,
    types: Types = [],  # noqa: B006
    format: Format = None,
    limit: Limit = 500,
) -> Response:
    """Send a job's events until it has ended: state, progress with PSNR and rate, previews."""
    wanted, since = known_id(job_id), _since(after, last_event_id)
    if _as_json(request, format):

        def read() -> JSONResponse:
            record = find(shared, caller, wanted)
            events = shared.service.events
            page = _page(
                lambda place, most: events.read_job(wanted, after=place, limit=most),
                since,
                types,
                limit,
            )
            return _answer(*page, ended=record.state.terminal)

        return await run_sync(read)
    request.state.stream = True
    return await shared.streams.follow_job(caller, wanted, after=since, types=types or None)


@router.get(
    "/events",
    response_model=None,
    summary="Follow all your jobs as they happen",
    responses=documented(*COMMON, "too_many_streams", "streams_full", also=_STREAM),
)
async def tenant_events(
    request: Request,
    shared: Shared,
    caller: Reader,
    after: After = None,
    last_event_id: LastEventId = None,
    types: Types = [],  # noqa: B006
    format: Format = None,
    limit: Limit = 500,
    tenant: Annotated[
        str | None, Query(max_length=63, description="Administrators: of this tenant.")
    ] = None,
) -> Response:
    """Send the events of all your jobs, but for progress and previews, until you leave."""
    whose = _tenant(caller, tenant)
    since = _since(after, last_event_id)
    if _as_json(request, format):
        return await run_sync(_tenant_page, shared, whose, since, types, limit)
    request.state.stream = True
    return await shared.streams.follow_tenant(caller, whose, after=since, types=types or None)


@router.get(
    "/jobs/{job_id}/previews/{number}",
    response_class=Response,
    response_model=None,
    summary="See how a running encode looks",
    responses=documented(
        *COMMON,
        "not_found",
        "job_not_found",
        also={
            200: {
                "description": "A small picture.",
                "content": {WEBP: {"schema": {"type": "string", "format": "binary"}}},
            },
            304: {"description": "You have it: it never changes."},
        },
    ),
)
def preview(
    shared: Shared,
    caller: Reader,
    job_id: JobId,
    number: Number,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a picture that a `job.preview` event announced; it is kept for an hour or so."""
    record = find(shared, caller, job_id)
    tag = f'"{record.id}/{number}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    data = shared.service.previews.get(record.id, number)
    if data is None:
        raise jobs.NotFound("preview", str(number))
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=WEBP, headers=headers)


def _tenant(caller: Caller, asked: str | None) -> str:
    if asked is None:
        return caller.tenant
    if caller.sees is not None and asked != caller.tenant:
        raise Problem("forbidden", "only administrators see other tenants' events")
    return jobs.check_tenant(asked)


def _since(after: str | None, last_event_id: str | None) -> str | None:
    """Return where to read on: a client that comes back still has its first ``after`` in the URL.

    Raises:
        Problem: ``invalid_parameter``.
    """
    for place, name, value in (
        ("header", "Last-Event-ID", last_event_id),
        ("query", "after", after),
    ):
        if value is not None:
            try:
                place_of(value)
            except jobs.Invalid as error:
                raise invalid(place, name, str(error)) from None
            return value
    return None


def _as_json(request: Request, form: Form | None) -> bool:
    if form is not None:
        return form is Form.JSON
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/event-stream" not in accepted


Read = Callable[[str, int], list[Event]]


def _page(
    read: Read, since: str | None, types: list[str], limit: int
) -> tuple[list[Event], str, bool]:
    """Return events, the id to read on after, and whether there may be more."""
    found: list[Event] = []
    place = since or BEGINNING
    while len(found) < limit:
        events = read(place, limit)
        for event in events:
            place = event.id
            if not types or event.type in types:
                found.append(event)
                if len(found) == limit:
                    break
        if len(events) < limit:
            return found, place, len(found) == limit and place != events[-1].id
    return found, place, True


def _answer(events: list[Event], place: str, more: bool, *, ended: bool) -> JSONResponse:
    page = views.EventPage(
        items=tuple(views.event_view(event) for event in events),
        last_id=place,
        more=more,
        ended=ended,
    )
    return JSONResponse(page.model_dump(mode="json"))


def _tenant_page(
    shared: Context, tenant: str, since: str | None, types: list[str], limit: int
) -> JSONResponse:
    events = shared.service.events
    page = _page(
        lambda place, most: events.read_tenant(tenant, after=place, limit=most),
        since,
        types,
        limit,
    )
    return _answer(*page, ended=False)
