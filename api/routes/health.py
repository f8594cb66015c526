"""``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/problems``: about the service itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from api.context import Shared
from api.metrics import CONTENT_TYPE
from api.problems import CATALOGUE, Problem, documented, retry_after

router = APIRouter(tags=["service"])

_CODES = ("unknown_parameter", "headers_too_large", "internal")
_ALWAYS = documented(*_CODES)


class Health(BaseModel):
    """Whether the process answers."""

    status: str


class Readiness(BaseModel):
    """Whether work can be accepted, and which part is in the way."""

    ready: bool
    parts: dict[str, str]


class ProblemKind(BaseModel):
    """One kind of problem."""

    code: str
    status: int
    title: str
    meaning: str


class ProblemKinds(BaseModel):
    """Every kind of problem."""

    items: list[ProblemKind]


@router.get("/healthz", summary="Is the process alive", responses=_ALWAYS)
async def healthz() -> Health:
    """Answer without asking anybody else."""
    return Health(status="ok")


@router.get(
    "/readyz",
    response_model=None,
    summary="Can work be accepted",
    responses=_ALWAYS
    | {
        200: {"model": Readiness, "description": "Ready."},
        503: {"model": Readiness, "description": "A part does not answer."},
    },
)
def readyz(shared: Shared) -> Response:
    """Ask store and storage whether they answer."""
    parts = shared.service.check()
    ready = all(each == "ok" for each in parts.values())
    # What exactly is wrong goes to the log; addresses of parts are not for everybody.
    shown = {name: "ok" if each == "ok" else "unavailable" for name, each in parts.items()}
    return JSONResponse(
        {"ready": ready, "parts": shown},
        status_code=200 if ready else 503,
        headers={} if ready else retry_after(5),
    )


@router.get(
    "/metrics",
    response_class=Response,
    response_model=None,
    summary="Metrics for Prometheus",
    responses=_ALWAYS | {200: {"description": "Text format 0.0.4.", "content": {"text/plain": {}}}},
)
def metrics(shared: Shared) -> Response:
    """Return counters of this process and of the store."""
    return Response(shared.metrics.text(shared.service), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/problems", summary="List the kinds of problems", responses=_ALWAYS)
async def problems() -> ProblemKinds:
    """Return every `code`, its status, and what it means."""
    return ProblemKinds(items=[ProblemKind(**vars(kind)) for kind in CATALOGUE.values()])


@router.get(
    "/v1/problems/{code}",
    summary="Look up a kind of problem",
    responses=documented(*_CODES, "not_found", "invalid_parameter"),
)
async def problem(code: Annotated[str, Path(min_length=1, max_length=80)]) -> ProblemKind:
    """Return what a problem's `type` refers to."""
    if code not in CATALOGUE:
        raise Problem("not_found", f"no problem {code!r}")
    return ProblemKind(**vars(CATALOGUE[code]))
