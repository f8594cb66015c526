"""``/dashboard/login`` and ``/logout``: an API key becomes a session."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.context import Shared
from api.dashboard import acts
from api.dashboard.forms import Form, Posted, read_form
from api.dashboard.pages import HOME, PageRoute, render, safe_path
from api.dashboard.sessions import LIFETIME, Sessions
from api.dashboard.visitor import (
    COOKIE,
    CSRF_FIELD,
    Reader,
    Visitor,
    check_origin,
    may_sign_in,
)
from api.problems import Problem, retry_after

router = APIRouter(route_class=PageRoute)

ATTEMPTS_PER_MINUTE = 10
"""Of one address, right or wrong."""

_FORM_COOKIE = "nif_form"
_FORM_SECONDS = 3600

Next = Annotated[str, Query(max_length=2000)]


def _secure(request: Request, shared: Shared) -> bool:
    return request.url.scheme == "https" or shared.settings.public_url.startswith("https:")


def _form(
    request: Request, shared: Shared, to: str, *, said: str = "", status: int = 200
) -> HTMLResponse:
    # Before there is a session, the form's own cookie is what another site cannot know.
    token = secrets.token_urlsafe(32)
    text = render("login.html", csrf=token, to=to, said=said)
    response = HTMLResponse(text, status_code=status)
    response.set_cookie(
        _FORM_COOKIE,
        token,
        max_age=_FORM_SECONDS,
        path=HOME,
        httponly=True,
        samesite="strict",
        secure=_secure(request, shared),
    )
    return response


@router.get("/login")
def ask(request: Request, shared: Shared, next: Next = HOME) -> HTMLResponse:
    """Ask for an API key."""
    return _form(request, shared, safe_path(next))


@router.post("/login")
def sign_in(
    request: Request, shared: Shared, form: Annotated[Form, Depends(read_form)]
) -> Response:
    """Begin a session with an API key that may read."""
    check_origin(request)
    to = safe_path(form.one("next", HOME))
    expected = request.cookies.get(_FORM_COOKIE, "")
    given = form.one(CSRF_FIELD)
    if not expected or not secrets.compare_digest(expected.encode(), given.encode()):
        said = "The form was too old. Please try again."
        return _form(request, shared, to, said=said, status=403)
    client = request.client.host if request.client else "unknown"
    allowance = shared.service.quotas.take(
        "dashboard_logins", client, limit=ATTEMPTS_PER_MINUTE, window_seconds=60
    )
    if not allowance.allowed:
        seconds = retry_after(allowance.retry_after_seconds)
        said = f"Too many attempts. Wait {seconds['Retry-After']} seconds, then try again."
        response: Response = _form(request, shared, to, said=said, status=429)
        response.headers.update(seconds)
        return response
    key = shared.service.keys.verify(form.one("key"))
    if key is None:
        said = "This key is not valid: unknown, expired or revoked."
        return _form(request, shared, to, said=said, status=401)
    if not may_sign_in(key):
        said = "This key may submit pictures but not look at jobs: it lacks the scope jobs:read."
        return _form(request, shared, to, said=said, status=403)
    token, session = Sessions(shared.service.database).begin(key)
    acts.note(shared, Visitor(key, session), "session.begin", key.id, f"from {client}")
    response = RedirectResponse(to, status_code=303)
    response.delete_cookie(_FORM_COOKIE, path=HOME)
    response.set_cookie(
        COOKIE,
        token,
        max_age=round(LIFETIME.total_seconds()),
        path=HOME,
        httponly=True,
        samesite="strict",
        secure=_secure(request, shared),
    )
    return response


@router.post("/logout")
def sign_out(shared: Shared, visitor: Reader, form: Posted) -> Response:
    """End the session."""
    Sessions(shared.service.database).end(visitor.session)
    acts.note(shared, visitor, "session.end", visitor.key.id)
    response = RedirectResponse(f"{HOME}/login", status_code=303)
    response.delete_cookie(COOKIE, path=HOME)
    return response


@router.get("/{rest:path}")
def nothing_here(visitor: Reader, rest: str) -> Response:
    """Answer for every address that is none, but for the first page's with a slash."""
    if not rest:
        return RedirectResponse(HOME, status_code=303)
    raise Problem("not_found", "there is no such page")
