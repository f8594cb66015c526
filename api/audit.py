"""Writing down what administrators do through the API, after it was done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from anyio.to_thread import run_sync
from fastapi import Depends, Request

import jobs
from api.context import Context, Shared


async def audited(request: Request, shared: Shared) -> AsyncIterator[None]:
    """Note a request that changed something; one that failed changed nothing.

    The action is named after the module and the function of the route, such as ``worker.drain``;
    the target is the id in its address, or what the handler left in ``request.state.audit_target``.
    """
    yield
    if request.method not in ("GET", "HEAD"):
        # It is done already: that this cannot be written must not make it look undone.
        with suppress(jobs.Unavailable):
            await run_sync(_note, request, shared)


NOTED = Depends(audited, scope="function")
"""For routers of administrators. Written before the answer is sent: who reads it finds the note."""


def _note(request: Request, shared: Context) -> None:
    key_id = request.state.log["key"]
    route = request.scope["route"]
    target = next(iter(request.path_params.values()), "")
    module = route.endpoint.__module__.rpartition(".")[2]
    with suppress(jobs.NotFound):
        key = shared.service.keys.get(key_id)
        shared.service.audit.note(
            f"{module.removesuffix('s')}.{route.endpoint.__name__}",
            getattr(request.state, "audit_target", target),
            key_id=key.id,
            key_name=key.name,
            tenant=key.tenant,
            way="api",
        )
