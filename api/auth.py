"""Who is asking: API keys, their scopes, and whose jobs they may see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api import limits
from api.context import Shared
from api.problems import Problem
from jobs import ApiKey, Scope

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    bearerFormat="nif_...",
    description="An API key, `Authorization: Bearer nif_...`. Only its hash is stored.",
)


@dataclass(frozen=True)
class Caller:
    """A request's API key, known to be good.

    Attributes:
        key: the key's record.
        tenant: whose jobs are made.
        sees: whose jobs are seen: the tenant, or None for everybody's (an administrator).
    """

    key: ApiKey

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def sees(self) -> str | None:
        return None if Scope.ADMIN in self.key.scopes else self.key.tenant


def needs(scope: Scope) -> Callable[..., Caller]:
    """Return the dependency that lets requests with ``scope`` (or ``admin``) through."""

    def caller(
        request: Request,
        shared: Shared,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Caller:
        key = None if given is None else shared.service.keys.verify(given.credentials)
        if key is None:
            what = "no API key was sent" if given is None else "the API key is not valid"
            # One text for unknown, expired and revoked: a guesser learns nothing.
            raise Problem(
                "unauthenticated", what, headers={"WWW-Authenticate": 'Bearer realm="nif"'}
            )
        structlog.contextvars.bind_contextvars(tenant=key.tenant, key=key.id)
        request.state.log |= {"tenant": key.tenant, "key": key.id}
        limits.take_request(request, shared, key)
        if scope not in key.scopes and Scope.ADMIN not in key.scopes:
            raise Problem("forbidden", f"this needs a key with the scope {scope}")
        return Caller(key)

    return caller


Reader = Annotated[Caller, Depends(needs(Scope.JOBS_READ))]
Writer = Annotated[Caller, Depends(needs(Scope.JOBS_WRITE))]
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
