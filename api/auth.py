"""Who is asking: API keys, their scopes, and whose jobs they may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api import limits
from api.caller import Caller
from api.context import Context, Shared
from api.problems import Problem
from jobs import Admission, Scope, Seen

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    bearerFormat="nif_...",
    description="An API key, `Authorization: Bearer nif_...`. Only its hash is stored.",
)


Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def admit(
    request: Request,
    shared: Context,
    given: HTTPAuthorizationCredentials | None,
    scope: Scope,
    *,
    job_id: str = "",
    known: str = "",
) -> tuple[Caller, Seen | None]:
    """Let a request with ``scope`` (or ``admin``) through, and look at a job in the same step.

    Args:
        request: it is counted; what is left is sent with the answer.
        shared: the app's context.
        given: the API key as it was sent.
        scope: what the key must be good for.
        job_id: of the job, empty for none.
        known: see :meth:`jobs.Access.look`.

    Returns:
        The caller, and the job if there is one and the caller may see it.

    Raises:
        Problem: ``unauthenticated``, ``rate_limited`` or ``forbidden``.
    """
    admission = Admission(None)
    if given is not None:
        admission = await shared.service.access.look(
            given.credentials,
            job_id,
            requests_per_minute=shared.settings.requests_per_minute,
            known=known,
        )
    key = admission.key
    if key is None:
        what = "no API key was sent" if given is None else "the API key is not valid"
        # One text for unknown, expired and revoked: a guesser learns nothing.
        raise Problem("unauthenticated", what, headers={"WWW-Authenticate": 'Bearer realm="nif"'})
    structlog.contextvars.bind_contextvars(tenant=key.tenant, key=key.id)
    request.state.log |= {"tenant": key.tenant, "key": key.id}
    limits.check_rate(request, admission.allowance)
    if scope not in key.scopes and Scope.ADMIN not in key.scopes:
        raise Problem("forbidden", f"this needs a key with the scope {scope}")
    caller, job = Caller(key), admission.job
    mine = job is not None and caller.sees in (None, job.tenant)
    return caller, job if mine else None


def needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency that lets requests with ``scope`` (or ``admin``) through."""

    async def caller(request: Request, shared: Shared, given: Given) -> Caller:
        return (await admit(request, shared, given, scope))[0]

    return caller


Reader = Annotated[Caller, Depends(needs(Scope.JOBS_READ))]
Writer = Annotated[Caller, Depends(needs(Scope.JOBS_WRITE))]
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
