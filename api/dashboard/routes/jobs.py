"""``/dashboard/jobs``: finding jobs, moving many of them, and sending pictures."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse, RedirectResponse

import jobs
from api import fields, submission, uploads
from api.context import Shared
from api.dashboard import acts
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page, safe_path, wants_json
from api.dashboard.visitor import CSRF_FIELD, CSRF_HEADER, Reader, Writer, check_csrf
from api.problems import Problem, invalid
from api.routes.jobs import only_file
from api.submission import Wish
from jobs import JobFilter, Parameters, State

router = APIRouter(route_class=PageRoute)

PER_PAGE = 50

Text = Annotated[str, Query(max_length=200)]
Place = Annotated[str, Query(max_length=512)]


def wanted_state(text: str) -> State | None:
    """Read a state, none for an empty text.

    Raises:
        Problem: ``invalid_parameter``.
    """
    if not text:
        return None
    try:
        return State(text)
    except ValueError:
        raise invalid("query", "state", f"one of {', '.join(State)} is accepted") from None


def where(**values: str) -> str:
    """Return the address of the list with these filters."""
    given = {name: value for name, value in values.items() if value}
    return f"{HOME}/jobs?{urlencode(given)}" if given else f"{HOME}/jobs"


@router.get("/jobs")
def list_jobs(
    request: Request,
    shared: Shared,
    visitor: Reader,
    state: Text = "",
    q: Text = "",
    cursor: Place = "",
) -> Response:
    """List jobs, newest first, or those that have a text somewhere."""
    service = shared.service
    only, text = wanted_state(state), q.strip()
    looked_at = None
    if text:
        exact = _by_id(shared, visitor.sees, text)
        if exact is not None and "hx-request" not in request.headers:
            return RedirectResponse(f"{HOME}/jobs/{exact}", status_code=303)
        found = service.search.find(
            text, tenant=visitor.sees, state=only, limit=PER_PAGE, cursor=cursor or None
        )
        records, following, looked_at = found.records, found.next_cursor, found.looked_at
    else:
        states = frozenset() if only is None else frozenset({only})
        wanted = JobFilter(tenant=visitor.sees, states=states)
        listed = service.list(wanted, limit=PER_PAGE, cursor=cursor or None)
        records, following = listed.records, listed.next_cursor
    return page(
        request,
        visitor,
        "jobs.html",
        section="jobs",
        counts=service.store.counts(visitor.sees),
        records=records,
        state=only,
        q=text,
        cursor=cursor,
        looked_at=looked_at,
        first=where(state=state, q=text),
        following=following and where(state=state, q=text, cursor=following),
        where=where,
        public_url=shared.settings.public_url,
    )


def _by_id(shared: Shared, tenant: str | None, text: str) -> str | None:
    """Return the canonical id if ``text`` is one of a job that may be seen."""
    try:
        return shared.service.get(tenant, jobs.check_job_id(text)).id
    except (jobs.Invalid, jobs.NotFound):
        return None


@router.post("/jobs/bulk")
def bulk(request: Request, shared: Shared, visitor: Writer, form: Posted) -> Response:
    """Cancel or retry the chosen jobs, or all of a state, after asking back."""
    action = form.one("action")
    if action not in ("cancel", "retry"):
        raise invalid("form", "action", "cancel or retry is accepted")
    back = safe_path(form.one("back", f"{HOME}/jobs"))
    ids = form.many("id")
    everything = wanted_state(form.one("all"))
    if everything is not None:
        # The newest first; what is beyond the most at once takes another press.
        wanted = JobFilter(tenant=visitor.sees, states=frozenset({everything}))
        ids = tuple(
            record.id for record in shared.service.list(wanted, limit=acts.MOST_AT_ONCE).records
        )
    if not ids:
        return go(request, visitor, back, "No job was chosen.", kind="bad")
    if not form.confirmed:
        found = shared.service.store.get_many(ids)
        mine = [each for each in found if each and visitor.sees in (None, each.tenant)]
        return page(
            request,
            visitor,
            "confirm.html",
            section="jobs",
            title=f"{action.capitalize()} {len(mine)} {'job' if len(mine) == 1 else 'jobs'}?",
            text={
                "cancel": "Waiting jobs end at once, running ones within seconds. What they have "
                "learned so far is lost.",
                "retry": "Failed and cancelled jobs are queued again, without their strikes. "
                "Others are left as they are.",
            }[action],
            act=f"{HOME}/jobs/bulk",
            fields=[("action", action), ("back", back), *(("id", each.id) for each in mine)],
            button=f"{action.capitalize()} {len(mine)}",
            danger=action == "cancel",
            back=back,
            records=mine[:20],
            more=max(0, len(mine) - 20),
        )
    tally = acts.for_all(shared, visitor, action, ids)
    return go(request, visitor, back, f"{tally}.", kind="good" if tally.done else "bad")


@router.post("/jobs")
async def submit(request: Request, shared: Shared, visitor: Writer) -> Response:
    """Take a picture, and go to its page."""
    if CSRF_HEADER in request.headers:
        check_csrf(request, visitor.session, None)  # before the picture is read
    with await uploads.read_form(request, shared.settings, max_files=1) as form:
        sent = form.fields.pop(CSRF_FIELD, None)
        if CSRF_HEADER not in request.headers:
            check_csrf(request, visitor.session, sent or "")
        asked, file = fields.from_form(form.fields), only_file(form)

        def accept() -> jobs.Submission:
            wish = Wish(job_id=jobs.new_job_id(), chosen=False, fields=asked)
            accepted = submission.from_file(shared, visitor.caller, wish, file)
            if accepted.created:
                acts.note(shared, visitor, "job.submit", accepted.record.id, file.filename or "")
            return accepted

        accepted = await run_sync(accept)
    there = f"{HOME}/jobs/{accepted.record.id}"
    if wants_json(request):
        known = {"location": there, "id": accepted.record.id, "created": accepted.created}
        return JSONResponse(known, status_code=202 if accepted.created else 200)
    said = "" if accepted.created else "An earlier job with the same picture and wishes answers."
    return await run_sync(lambda: go(request, visitor, there, said))


@router.get("/estimate")
def estimate(
    shared: Shared,
    visitor: Reader,
    width: Annotated[int, Query(ge=1, le=65_535)],
    height: Annotated[int, Query(ge=1, le=65_535)],
    effort: Annotated[int, Query(ge=1, le=9)] = 5,
    quality: Annotated[float, Query(ge=1, le=100)] = 75,
) -> JSONResponse:
    """Tell how long a picture would take and how large its file would be."""
    found = shared.estimator.estimate(Parameters(effort=effort, quality=quality), width, height)
    if not found.bytes:
        raise Problem("invalid_parameter", "nothing is known about such a picture")
    return JSONResponse(
        {
            "seconds": round(found.seconds, 1),
            "bytes": found.bytes,
            "bpp": round(found.bpp, 4),
            "calibrated": found.calibrated,
        }
    )
