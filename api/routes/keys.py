"""``/v1/keys``: API keys, for administrators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

import jobs
from api import views
from api.auth import Admin
from api.bodies import read_json
from api.context import Shared
from api.documents import json_body, with_body
from api.problems import COMMON, JSON_BODY, documented, invalid
from jobs import KeyLimits, Scope

router = APIRouter(prefix="/v1/keys", tags=["administration"])

KeyId = Annotated[str, Path(min_length=1, max_length=80, description="Id of the key.")]
Bound = Annotated[int | None, Field(ge=0, le=2**53)]


class NewKeyLimits(BaseModel):
    """Limits of a key: null means the service's default, 0 any number."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: Bound = None
    jobs_per_day: Bound = None
    bytes_per_day: Bound = None
    active_jobs: Bound = None


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "tenant": "acme",
                "scopes": ["jobs:write", "jobs:read"],
                "name": "upload server",
                "limits": {"requests_per_minute": 120},
            }
        },
    )

    tenant: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Whose jobs it makes.")
    scopes: list[Scope] = Field(min_length=1, max_length=3)
    name: str = Field("", max_length=100, description="For people.")
    limits: NewKeyLimits = NewKeyLimits()
    expires_at: AwareDatetime | None = None


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    responses=documented(*COMMON, *JSON_BODY, "blobs_unavailable"),
    openapi_extra=with_body(json_body(NewKey)),
)
async def create(request: Request, shared: Shared, caller: Admin) -> views.NewKeyView:
    """Make a key. Its secret is in this answer and nowhere else: only a hash is stored."""
    wanted = await read_json(request, shared.settings, NewKey)
    if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
        raise invalid("body", "expires_at", "must lie in the future")

    def make() -> views.NewKeyView:
        key, secret = shared.service.keys.create(
            wanted.tenant,
            wanted.scopes,
            name=wanted.name,
            limits=KeyLimits(**wanted.limits.model_dump()),
            expires_at=wanted.expires_at,
        )
        request.state.audit_target = key.id
        return views.NewKeyView(**views.key_values(key), key=secret)

    return await run_sync(make)


@router.get("", summary="List keys", responses=documented(*COMMON))
def list_keys(
    shared: Shared,
    caller: Admin,
    tenant: Annotated[str | None, Query(max_length=63, description="Only of this tenant.")] = None,
) -> views.KeyList:
    """List keys, revoked ones too."""
    if tenant is not None:
        jobs.check_tenant(tenant)
    found = shared.service.keys.list(tenant)
    return views.KeyList(items=tuple(views.KeyView(**views.key_values(key)) for key in found))


@router.get("/{key_id}", summary="See a key", responses=documented(*COMMON, "key_not_found"))
def get(shared: Shared, caller: Admin, key_id: KeyId) -> views.KeyView:
    """Return a key without its secret."""
    return views.KeyView(**views.key_values(shared.service.keys.get(key_id)))


@router.delete(
    "/{key_id}",
    summary="Revoke a key",
    responses=documented(*COMMON, "key_not_found", "blobs_unavailable"),
)
def revoke(shared: Shared, caller: Admin, key_id: KeyId) -> views.KeyView:
    """Revoke a key, from now on and for good."""
    return views.KeyView(**views.key_values(shared.service.keys.revoke(key_id)))
