"""The person at the dashboard: what their key lets them see and do, and the proof that a form is
their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request

from api import limits
from api.caller import Caller
from api.context import Context, Shared
from api.dashboard.sessions import Session, Sessions
from api.problems import Problem
from jobs import ApiKey, NotFound, Scope
from jobs.access import REQUESTS

COOKIE = "nif_session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"


class SignInFirst(Exception):
    """There is no session, or none any more."""


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Attributes:
        key: that the session stands for, in force at this moment.
        session: of this browser.
    """

    key: ApiKey
    session: Session

    @property
    def caller(self) -> Caller:
        """The same person, as the API knows them."""
        return Caller(self.key)

    @property
    def is_admin(self) -> bool:
        """May see everybody's jobs, and run the service."""
        return Scope.ADMIN in self.key.scopes

    @property
    def may_write(self) -> bool:
        """May submit and steer jobs."""
        return self.is_admin or Scope.JOBS_WRITE in self.key.scopes

    @property
    def sees(self) -> str | None:
        """Whose jobs are seen: a tenant's, or None for everybody's."""
        return self.caller.sees

    @property
    def role(self) -> str:
        """In a word, for people."""
        return "administrator" if self.is_admin else "full" if self.may_write else "read-only"


def in_force(key: ApiKey) -> bool:
    """Tell whether a key is neither revoked nor expired."""
    expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return key.revoked_at is None and not expired


def may_sign_in(key: ApiKey) -> bool:
    """Tell whether a key may look at anything."""
    return bool(key.scopes & {Scope.ADMIN, Scope.JOBS_READ})


def _from_session(request: Request, shared: Context) -> Visitor:
    sessions = Sessions(shared.service.database)
    session = sessions.find(request.cookies.get(COOKIE, ""))
    if session is None:
        raise SignInFirst
    try:
        key = shared.service.keys.get(session.key_id)
    except NotFound:
        raise SignInFirst from None
    if not in_force(key):
        sessions.end(session)
        raise SignInFirst
    structlog.contextvars.bind_contextvars(tenant=key.tenant, key=key.id)
    request.state.log |= {"tenant": key.tenant, "key": key.id}
    return Visitor(key, session)


def signed_in(request: Request, shared: Shared) -> Visitor:
    """Let whoever is signed in through, and count one request of their key.

    Pages, what they fetch while they are looked at, and acts count as requests to the API do, out
    of the same minute. Scripts and styles do not: they come from no session.

    Raises:
        SignInFirst: nobody is.
        Problem: ``rate_limited``.
    """
    visitor = _from_session(request, shared)
    request.state.visitor = visitor
    own = visitor.key.limits.requests_per_minute
    limit = shared.settings.requests_per_minute if own is None else own
    if limit:
        allowance = shared.service.quotas.take(
            REQUESTS, visitor.key.id, limit=limit, window_seconds=60
        )
        limits.check_rate(request, allowance)
    return visitor


def _needs(allowed: Callable[[Visitor], bool], scope: Scope) -> Callable[..., Visitor]:
    def visitor(found: Annotated[Visitor, Depends(signed_in)]) -> Visitor:
        if not allowed(found):
            raise Problem("forbidden", f"this needs a key with the scope {scope}")
        return found

    return visitor


Reader = Annotated[Visitor, Depends(signed_in)]
Writer = Annotated[Visitor, Depends(_needs(lambda each: each.may_write, Scope.JOBS_WRITE))]
Admin = Annotated[Visitor, Depends(_needs(lambda each: each.is_admin, Scope.ADMIN))]


def check_origin(request: Request) -> None:
    """Refuse a form that another site sent, by what browsers say about it.

    Raises:
        Problem: ``forbidden``.
    """
    site = request.headers.get("sec-fetch-site")
    if site is None:
        # An old browser. Pages say "no-referrer", so that an honest origin may come as "null".
        origin = request.headers.get("origin", "null")
        foreign = origin != "null" and urlsplit(origin).netloc != request.headers.get("host")
    else:
        foreign = site not in ("same-origin", "none")
    if foreign:
        raise Problem("forbidden", "the form comes from another site")


def check_csrf(request: Request, session: Session, sent: str | None) -> None:
    """Refuse a form that does not carry the session's token.

    Raises:
        Problem: ``forbidden``.
    """
    check_origin(request)
    given = sent if sent is not None else request.headers.get(CSRF_HEADER, "")
    if not secrets.compare_digest(given.encode(), session.csrf.encode()):
        raise Problem("forbidden", "the form is too old or not from here; load the page again")
