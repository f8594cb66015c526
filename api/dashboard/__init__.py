"""The dashboard: pages rendered here, kept alive by small scripts of our own origin.

::

    cookie ─► session (Redis) ─► API key ─► visitor: whose jobs, may write, is administrator
                                               │
    routes/*.py ─► jobs.JobService ─► templates/*.html ─► the browser ─► static/*.js

Nothing is built and nothing is loaded from elsewhere; see ``static/vendor``.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from api.dashboard.pages import FOLDER, HOME
from api.dashboard.routes import (
    audit,
    dead,
    job,
    jobs,
    keys,
    login,
    overview,
    pictures,
    queues,
    webhooks,
    workers,
)
from api.pictures import Pictures
from jobs import Settings

# The sign-in module answers for every address that nobody else knows: it comes last.
PAGES = (overview, jobs, job, pictures, dead, webhooks, workers, queues, keys, audit, login)

_A_YEAR = "public, max-age=31536000, immutable"


class _Files(StaticFiles):
    """Files whose addresses change with their content."""

    def file_response(self, *arguments: Any, **more: Any) -> Response:
        response = super().file_response(*arguments, **more)
        response.headers["Cache-Control"] = _A_YEAR
        return response


def install(app: FastAPI, settings: Settings) -> None:
    """Add the dashboard to ``app``."""
    app.state.pictures = Pictures(settings)
    app.mount(f"{HOME}/static", _Files(directory=FOLDER / "static"))
    for module in PAGES:
        app.include_router(module.router, prefix=HOME, include_in_schema=False)
