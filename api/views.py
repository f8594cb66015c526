"""What clients see: the bodies of answers, built from records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs import ApiKey, Event, JobRecord, QueueStats, Settings, State, Upload, WorkerStatus

_EXAMPLE_ID = "job_01JD9X7Q3W8E5R2T6Y4V0N1M9B"
_EXAMPLE_TIME = "2026-03-01T12:00:00Z"


JOB_EXAMPLE: dict[str, Any] = {
    "id": _EXAMPLE_ID,
    "tenant": "acme",
    "state": "running",
    "queue": "encode",
    "priority": 5,
    "position": None,
    "eta_seconds": 21.5,
    "input": {
        "size": 5241337,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "media_type": "image/png",
        "width": 1632,
        "height": 1224,
        "filename": "photo.png",
    },
    "parameters": {"effort": 5, "bpp": 0.3, "seed": 0, "keep_icc": False},
    "codec": "0.1.0",
    "metadata": {"album": "spring"},
    "webhook": None,
    "batch": None,
    "attempt": 1,
    "attempts": [
        {
            "number": 1,
            "worker": "host-1a2b3c4d",
            "started_at": _EXAMPLE_TIME,
            "ended_at": None,
            "end": None,
        }
    ],
    "progress": {
        "phase": "fit",
        "step": 1,
        "steps": 1,
        "iteration": 300,
        "iterations": 960,
        "tile": 0,
        "tiles": 1,
        "loss": 0.0021,
        "psnr_db": 28.4,
        "bpp": 0.3,
        "seconds": 9.2,
        "eta_seconds": 21.5,
        "message": None,
    },
    "result": None,
    "failure": None,
    "cancel_requested": False,
    "finish_requested": False,
    "created_at": _EXAMPLE_TIME,
    "started_at": _EXAMPLE_TIME,
    "finished_at": None,
    "updated_at": _EXAMPLE_TIME,
    "expires_at": None,
    "links": {
        "self": f"/v1/jobs/{_EXAMPLE_ID}",
        "result": None,
        "image": None,
        "report": None,
        "preview": f"/v1/jobs/{_EXAMPLE_ID}/previews/4",
    },
}
"""A running job as its owner sees it."""


class View(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class InputView(View):
    """The picture as it was received."""

    size: int
    sha256: str
    media_type: str
    width: int | None
    height: int | None
    filename: str | None


class ProgressView(View):
    """How far a running job is."""

    phase: str = Field(description="prepare, fit, quantise, code or verify.")
    step: int
    steps: int
    iteration: int
    iterations: int
    tile: int
    tiles: int
    loss: float | None
    psnr_db: float | None
    bpp: float | None
    seconds: float
    eta_seconds: float | None
    message: str | None


class ResultView(View):
    """The finished file."""

    size: int
    sha256: str
    media_type: str
    bpp: float | None
    psnr_db: float | None
    ms_ssim: float | None


class FailureView(View):
    """Why a job failed."""

    code: str
    message: str


class AttemptView(View):
    """One worker's go at a job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    end: str | None


class Links(View):
    """Where to go from here."""

    self: str
    result: str | None
    image: str | None
    report: str | None
    preview: str | None = Field(description="The latest small picture of a running encode.")


class JobView(View):
    """A job."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={"example": JOB_EXAMPLE},
    )

    id: str
    tenant: str
    state: State
    queue: str
    priority: int
    position: int | None = Field(
        description="Place in the queue, 1 is next; null unless queued, and in lists."
    )
    eta_seconds: float | None = Field(description="Until the end of the running attempt.")
    input: InputView
    parameters: dict[str, Any] = Field(description="What was asked, defaults left out.")
    codec: str = Field(description="Version of the codec that the job was accepted for.")
    metadata: dict[str, str]
    webhook: str | None
    batch: str | None
    attempt: int
    attempts: tuple[AttemptView, ...]
    progress: ProgressView | None
    result: ResultView | None
    failure: FailureView | None
    cancel_requested: bool
    finish_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    expires_at: datetime | None = Field(description="When the job and its files are deleted.")
    links: Links


class SubmittedView(JobView):
    """A job that answers a submission."""

    created: bool = Field(description="False when an earlier job answers.")
    deduplicated: bool = Field(description="An earlier job with the same picture and parameters.")
    replayed: bool = Field(description="The same request was seen before.")


class JobList(View):
    """A page of jobs, newest first."""

    items: tuple[JobView, ...]
    next_cursor: str | None = Field(description="Send as `cursor` for the next page.")


class BatchItem(View):
    """What became of one picture of a batch: a job or a problem."""

    index: int
    filename: str | None
    job: SubmittedView | None
    problem: dict[str, Any] | None


class BatchView(View):
    """A batch as it was received."""

    id: str
    accepted: int
    refused: int
    items: tuple[BatchItem, ...]


class UploadView(View):
    """A direct upload: where to send the bytes, and how."""

    id: str
    size: int
    media_type: str
    sha256: str | None
    filename: str | None
    url: str
    method: str
    headers: dict[str, str] = Field(description="To be sent exactly so.")
    expires_at: datetime


class EstimateView(View):
    """What a job is expected to take and to give."""

    seconds: float = Field(description="Of the encode itself.")
    wait_seconds: float = Field(description="Until its turn, at the queue's present length.")
    bytes: int
    bpp: float
    calibrated: bool = Field(
        description="Whether the time comes from workers or jobs of this service."
    )


class EventView(View):
    """Something that happened to a job."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "id": "1767225600000-0",
                "type": "job.progress",
                "job": _EXAMPLE_ID,
                "state": "running",
                "attempt": 1,
                "version": 7,
                "at": _EXAMPLE_TIME,
                "data": {"phase": "fit", "iteration": 300, "psnr_db": 28.4, "bpp": 0.3},
            }
        },
    )

    id: str = Field(description="Its place; events of one stream compare by both numbers.")
    type: str
    job: str
    state: State = Field(description="Of the job right after it.")
    attempt: int
    version: int = Field(description="Of the job; grows with every change.")
    at: datetime
    data: dict[str, Any]


class EventPage(View):
    """Events, oldest first."""

    items: tuple[EventView, ...]
    last_id: str = Field(description="Send as `after` for what follows.")
    more: bool = Field(description="Whether there is more by now.")
    ended: bool = Field(description="Whether the job has ended.")


class RivalView(View):
    """What another codec made of the picture, at the highest quality within a number of bytes."""

    codec: str = Field(description="`JPEG`, `WEBP` or `AVIF`.")
    quality: int = Field(description="The codec's own quality setting.")
    settings: str = Field(description="Its other settings.")
    bytes: int
    bpp: float = Field(description="Bits per pixel.")
    psnr_db: float
    ms_ssim: float | None = Field(description="Null for pictures with a side below 161.")
    larger: bool = Field(description="Even its lowest quality takes more bytes than were allowed.")


class ReportView(View):
    """What was measured on the decoded result, and how it stands beside other formats."""

    job: str
    report: dict[str, Any]
    rivals: tuple[RivalView, ...] | None = Field(
        description="JPEG, WebP and AVIF of this very picture around the size of the result, by "
        "codec and size; null unless `rivals=true` asks for them."
    )
    no_rivals: Literal["not_asked", "picture_gone"] | None = Field(
        description="Why there are none: they were not asked for, or the picture is not kept any "
        "more."
    )


class KeyLimitsView(View):
    """Limits of one key; null means the service's default, 0 any number."""

    requests_per_minute: int | None
    jobs_per_day: int | None
    bytes_per_day: int | None
    active_jobs: int | None


class KeyView(View):
    """An API key without its secret."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    name: str
    limits: KeyLimitsView
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyView(KeyView):
    """A new API key; its secret is shown this once."""

    key: str


class KeyList(View):
    """API keys."""

    items: tuple[KeyView, ...]


class WorkerView(View):
    """A worker as it was last heard of."""

    id: str
    host: str
    pid: int
    device: str
    queues: tuple[str, ...]
    job: str | None
    attempt: int | None
    started_at: datetime
    seen_at: datetime
    alive: bool
    draining: bool
    facts: dict[str, Any]


class WorkerList(View):
    """Workers."""

    items: tuple[WorkerView, ...]


class QueueView(View):
    """A queue."""

    name: str
    depth: int
    running: int
    oldest_age_seconds: float | None
    paused: bool


class QueueList(View):
    """Queues."""

    items: tuple[QueueView, ...]


def _number(report: Mapping[str, Any] | None, name: str) -> float | None:
    value = None if report is None else report.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def job_values(record: JobRecord, settings: Settings, position: int | None) -> dict[str, Any]:
    """Return the members of a job's view."""
    spec, here = record.spec, f"/v1/jobs/{record.id}"
    done = record.state is State.SUCCEEDED and record.result is not None
    result = record.result
    expires = None
    if record.finished_at is not None and settings.retention_days:
        expires = record.finished_at + timedelta(days=settings.retention_days)
    running = record.state is State.RUNNING
    return {
        "id": record.id,
        "tenant": record.tenant,
        "state": record.state,
        "queue": record.queue,
        "priority": record.priority,
        "position": position,
        "eta_seconds": record.progress.eta_seconds if running and record.progress else None,
        "input": InputView(
            size=spec.input.size,
            sha256=spec.input.sha256,
            media_type=spec.input.media_type,
            width=spec.width,
            height=spec.height,
            filename=spec.filename,
        ),
        "parameters": spec.parameters.to_dict(),
        "codec": spec.codec,
        "metadata": dict(record.metadata),
        "webhook": record.webhook,
        "batch": record.batch,
        "attempt": record.attempt,
        "attempts": tuple(
            AttemptView(
                number=each.number,
                worker=each.worker,
                started_at=each.started_at,
                ended_at=each.ended_at,
                end=each.end,
            )
            for each in record.attempts
        ),
        "progress": None
        if record.progress is None
        else ProgressView(
            **{name: getattr(record.progress, name) for name in ProgressView.model_fields}
        ),
        "result": None
        if not done or result is None
        else ResultView(
            size=result.size,
            sha256=result.sha256,
            media_type=result.media_type,
            bpp=_number(record.report, "bpp"),
            psnr_db=_number(record.report, "psnr_db"),
            ms_ssim=_number(record.report, "ms_ssim"),
        ),
        "failure": None
        if record.failure is None
        else FailureView(code=record.failure.code, message=record.failure.message),
        "cancel_requested": record.cancel_requested,
        "finish_requested": record.finish_requested,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "updated_at": record.updated_at,
        "expires_at": expires,
        "links": Links(
            self=here,
            result=f"{here}/result" if done else None,
            image=f"{here}/image" if done else None,
            report=f"{here}/report" if done else None,
            preview=f"{here}/previews/{record.previews}" if running and record.previews else None,
        ),
    }


def job_view(record: JobRecord, settings: Settings, position: int | None = None) -> JobView:
    """Return a job as its owner sees it."""
    return JobView(**job_values(record, settings, position))


def event_view(event: Event) -> EventView:
    """Return an event."""
    return EventView(
        id=event.id,
        type=event.type,
        job=event.job_id,
        state=event.state,
        attempt=event.attempt,
        version=event.version,
        at=event.at,
        data=dict(event.data),
    )


def upload_view(upload: Upload, url: str, method: str, headers: Mapping[str, str]) -> UploadView:
    """Return a new upload."""
    return UploadView(
        id=upload.id,
        size=upload.size,
        media_type=upload.media_type,
        sha256=upload.sha256,
        filename=upload.filename,
        url=url,
        method=method,
        headers=dict(headers),
        expires_at=upload.expires_at,
    )


def key_values(key: ApiKey) -> dict[str, Any]:
    """Return the members of a key's view."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": tuple(sorted(key.scopes)),
        "name": key.name,
        "limits": KeyLimitsView(
            **{name: getattr(key.limits, name) for name in KeyLimitsView.model_fields}
        ),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


def worker_view(worker: WorkerStatus) -> WorkerView:
    """Return a worker."""
    info = worker.info
    return WorkerView(
        id=info.id,
        host=info.host,
        pid=info.pid,
        device=info.device,
        queues=tuple(info.queues),
        job=info.job_id,
        attempt=info.attempt,
        started_at=info.started_at,
        seen_at=worker.seen_at,
        alive=worker.alive,
        draining=worker.draining,
        facts=dict(info.facts),
    )


def queue_view(queue: QueueStats) -> QueueView:
    """Return a queue."""
    return QueueView(
        name=queue.name,
        depth=queue.depth,
        running=queue.running,
        oldest_age_seconds=queue.oldest_age_seconds,
        paused=queue.paused,
    )
