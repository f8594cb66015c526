"""The application: ``create_app()`` puts the parts together, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request

import jobs
from api import audit, dashboard, docs_page, documents, problems
from api.context import Context
from api.decoding import Decoder
from api.estimate import Estimator
from api.metrics import Metrics
from api.middleware import Surroundings
from api.routes import (
    batches,
    blobs,
    decode,
    estimate,
    events,
    health,
    keys,
    queues,
    results,
    uploads,
    webhooks,
    workers,
)
from api.routes import jobs as job_routes
from api.streams import open_streams
from jobs import JobService, Settings, Wakeups, load_settings, logs, open_service
from nifcore import __version__

log = structlog.get_logger("api")


async def refuse_unknown(request: Request) -> None:
    """Refuse query parameters that the address does not have: a typo must not pass in silence.

    Raises:
        Problem: ``unknown_parameter``.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = set() if dependant is None else {each.alias for each in dependant.query_params}
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        accepted = ", ".join(sorted(known)) or "none"
        raise problems.Problem(
            "unknown_parameter",
            f"no parameter {unknown[0][:80]!r}; accepted are {accepted}",
            errors=[
                {"in": "query", "name": name[:80], "message": "no such parameter"}
                for name in unknown[:20]
            ],
        )


def create_app(settings: Settings | None = None, *, wakeups: Wakeups | None = None) -> FastAPI:
    """Build the application; everything that it holds is opened when it starts.

    Args:
        settings: of the service, by default those of the environment.
        wakeups: how workers are told of new jobs, by default over Celery.
    """
    chosen = load_settings() if settings is None else settings
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.configure(chosen.log_level)
        carrier = _celery_wakeups(chosen) if wakeups is None else wakeups
        async with (
            _service(chosen, carrier) as service,
            open_streams(chosen, service, metrics) as streams,
        ):
            app.state.context = Context(
                settings=chosen,
                service=service,
                decoder=Decoder(chosen),
                estimator=Estimator(service),
                metrics=metrics,
                streams=streams,
            )
            await run_sync(_ensure_admin, service, chosen)
            log.info("ready", version=__version__)
            yield
            log.info("stopping")

    app = FastAPI(
        title="NIF",
        version=__version__,
        lifespan=lifespan,
        dependencies=[Depends(refuse_unknown)],
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        openapi_tags=_TAGS,
    )
    app.add_middleware(Surroundings, metrics=metrics)
    problems.install(app)
    for module in (
        job_routes,
        results,
        events,
        uploads,
        batches,
        estimate,
        decode,
        webhooks,
        keys,
        workers,
        queues,
        health,
    ):
        administrative = module in (keys, workers, queues)
        app.include_router(module.router, dependencies=[audit.NOTED] if administrative else [])
    if chosen.blobs == "file":
        app.include_router(blobs.router)
    docs_page.install(app)
    dashboard.install(app, chosen)
    documents.install(app)
    return app


_TAGS: list[dict[str, Any]] = [
    {"name": "jobs", "description": "Submit pictures and follow them."},
    {"name": "results", "description": "What came of them."},
    {"name": "events", "description": "Follow jobs as they happen."},
    {"name": "uploads", "description": "Large pictures, straight to the storage."},
    {"name": "webhooks", "description": "Be told of jobs, and see what became of the telling."},
    {"name": "blobs", "description": "Presigned links, where blobs are kept in files."},
    {"name": "administration", "description": "Keys, workers and queues."},
    {"name": "service", "description": "About the service itself."},
]


@asynccontextmanager
async def _service(settings: Settings, wakeups: Wakeups) -> AsyncIterator[JobService]:
    with open_service(settings, wakeups=wakeups) as service:
        try:
            yield service
        finally:
            await service.close_async()


def _celery_wakeups(settings: Settings) -> Wakeups:
    # By name: this room must not depend on the worker's, which a process that only serves HTTP
    # behind another broker need not even have.
    module = import_module("worker.wakeups")
    wakeups: Wakeups = module.CeleryWakeups(settings)
    return wakeups


def _ensure_admin(service: JobService, settings: Settings) -> None:
    """Make the first administrator's key known, if one is set."""
    if settings.admin_key is None:
        return
    secret = settings.admin_key.get_secret_value()
    try:
        service.keys.ensure_admin(secret)
    except jobs.Unavailable as error:
        # The key may be there from before; if not, a restart once the store is up makes it.
        log.warning("admin key not checked", reason=str(error))
