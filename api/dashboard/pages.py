"""What all pages share: templates, the policy of what they may load, and errors as pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse

from api.dashboard import charts, figures
from api.dashboard.sessions import Flash, Sessions
from api.dashboard.visitor import COOKIE, SignInFirst, Visitor
from api.problems import CATALOGUE, Problem, id_of, problem_of
from api.problems import response as as_json
from jobs import State
from nifcore import __version__

HOME = "/dashboard"
FOLDER = Path(__file__).parent

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: shows a picture before it is sent
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy of every page."""

NAVIGATION = (
    ("overview", "Overview", HOME, False),
    ("jobs", "Jobs", f"{HOME}/jobs", False),
    ("dead", "Dead jobs", f"{HOME}/dead", False),
    ("webhooks", "Webhooks", f"{HOME}/webhooks", False),
    ("workers", "Workers", f"{HOME}/workers", True),
    ("queues", "Queues", f"{HOME}/queues", True),
    ("keys", "Keys", f"{HOME}/keys", True),
    ("audit", "Audit log", f"{HOME}/audit", True),
)
"""Name, title, address, and whether it is for administrators only."""


@cache
def asset(name: str) -> str:
    """Return the address of a file of ours, another one whenever its content is another."""
    content = (FOLDER / "static" / name).read_bytes()
    return f"{HOME}/static/{name}?v={hashlib.blake2b(content, digest_size=6).hexdigest()}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= figures.FILTERS
    environment.globals |= {
        "asset": asset,
        "charts": charts,
        "home": HOME,
        "nothing": figures.NOTHING,
        "states": list(State),
        "version": __version__,
    }
    return environment


def render(template: str, **values: Any) -> str:
    """Return a filled template."""
    return _environment().get_template(template).render(now=datetime.now(UTC), **values)


def page(
    request: Request, visitor: Visitor, template: str, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return a page for somebody who is signed in.

    Args:
        request: a fragment is asked for with ``HX-Request``; it takes no flash away.
        visitor: whose page it is.
        template: name of the file.
        status: of the answer.
        values: for the template, which also gets ``visitor``, ``csrf``, ``path`` and ``flash``.
    """
    flash = None
    if "hx-request" not in request.headers:
        flash = Sessions(request.app.state.context.service.database).take_flash(visitor.session)
    text = render(
        template,
        visitor=visitor,
        csrf=visitor.session.csrf,
        path=request.url.path,
        flash=flash,
        navigation=NAVIGATION,
        **values,
    )
    return HTMLResponse(text, status_code=status)


def go(
    request: Request, visitor: Visitor, to: str, said: str = "", *, kind: str = "good"
) -> RedirectResponse:
    """Send the browser to another page, which will say ``said``."""
    if said:
        sessions = Sessions(request.app.state.context.service.database)
        sessions.put_flash(visitor.session, Flash(kind, said))
    return RedirectResponse(to, status_code=303)


def safe_path(text: str) -> str:
    """Return an address within the dashboard: ``text`` if it is one, its first page otherwise."""
    inside = text == HOME or text.startswith((f"{HOME}/", f"{HOME}?"))
    plain = text.isascii() and text.isprintable() and "\\" not in text and "//" not in text
    return text if inside and plain else HOME


class PageRoute(APIRoute):
    """A route whose failures are pages, and whose answers carry the policy."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await handler(request)
            except SignInFirst:
                response = _to_sign_in(request)
            except (HTTPException, RequestValidationError, Exception) as error:
                problem = _problem(error)
                if problem is None:
                    raise
                response = _failure(request, problem)
            response.headers.setdefault("Content-Security-Policy", POLICY)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle


def _problem(error: Exception) -> Problem | None:
    if isinstance(error, RequestValidationError):
        said = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:5])
        return Problem("invalid_parameter", said)
    if isinstance(error, HTTPException):
        return Problem("not_found", CATALOGUE["not_found"].meaning)
    return problem_of(error)


def wants_json(request: Request) -> bool:
    """Tell whether a script of ours asks, not a person."""
    return request.headers.get("accept", "").startswith("application/json")


def _to_sign_in(request: Request) -> Response:
    if request.method != "GET" or "hx-request" in request.headers or wants_json(request):
        # The scripts load the page anew when they see this.
        return _failure(request, Problem("unauthenticated", "the session has ended; sign in again"))
    there = request.url.path
    if request.url.query:
        there += f"?{request.url.query}"
    response = RedirectResponse(f"{HOME}/login?next={quote(there, safe='')}", status_code=303)
    if COOKIE in request.cookies:
        response.delete_cookie(COOKIE, path=HOME)
    return response


def _failure(request: Request, problem: Problem) -> Response:
    status = problem.kind.status
    if wants_json(request):
        return as_json(problem, request)
    visitor = getattr(request.state, "visitor", None)
    text = render(
        "error.html",
        status=status,
        title=problem.kind.title,
        detail=problem.detail,
        request_id=id_of(request),
        again_in=problem.headers.get("Retry-After"),
        visitor=visitor,
        navigation=NAVIGATION,
        flash=None,
        csrf="" if visitor is None else visitor.session.csrf,
        path=request.url.path,
        section="",
    )
    return HTMLResponse(text, status_code=status, headers=problem.headers)
