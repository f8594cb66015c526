"""What webhook endpoints can be told, and the body of such a message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.errors import Invalid
from jobs.outbox import Message
from jobs.record import JobRecord, State


@dataclass(frozen=True)
class WebhookEvent:
    """One thing that an endpoint can be told.

    Attributes:
        type: name of it.
        meaning: when it is told.
        default: whether an endpoint wants it that says nothing about it.
    """

    type: str
    meaning: str
    default: bool = False


WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = (
    WebhookEvent("job.queued", "A job waits: it is new, was retried, or came back from a worker."),
    WebhookEvent("job.running", "A worker has begun an attempt."),
    WebhookEvent("job.progress", "How far a running job is, once in a while."),
    WebhookEvent("job.succeeded", "The file is there.", True),
    WebhookEvent("job.failed", "The job failed; `failure` says why.", True),
    WebhookEvent("job.cancelled", "The job was cancelled.", True),
)
"""Everything that can be subscribed to; a job's own webhook is told of its end."""

EVENT_NAMES = tuple(each.type for each in WEBHOOK_EVENTS)
DEFAULT_EVENTS = tuple(each.type for each in WEBHOOK_EVENTS if each.default)
PROGRESS = "job.progress"
TEST = "webhook.test"


def check_events(events: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Return the events once each, in the order of the table.

    Raises:
        Invalid: there is none, or an unknown one.
    """
    unknown = [each for each in events if each not in EVENT_NAMES]
    if unknown or not events:
        got = repr(unknown[0])[:80] if unknown else "none"
        raise Invalid(f"events must be of {', '.join(EVENT_NAMES)}; got {got}")
    return tuple(each for each in EVENT_NAMES if each in events)


def job_body(message: Message, record: JobRecord, public_url: str) -> str:
    """Return the JSON text that tells what happened to a job.

    It shows the job as it was at that moment, however late it is written: state, attempt and
    version are the event's, and everything else is settled by then or never changes. What the
    operator alone may see and the job's own webhook, whose URL may hold a secret, are left out.

    Args:
        message: of the outbox.
        record: the job, as it is now.
        public_url: beginning of links.
    """
    event = message.event
    spec, here = record.spec, f"{public_url.rstrip('/')}/v1/jobs/{record.id}"
    done = event.state is State.SUCCEEDED
    job = {
        "id": record.id,
        "tenant": record.tenant,
        "state": event.state.value,
        "version": event.version,
        "attempt": event.attempt,
        "queue": record.queue,
        "priority": record.priority,
        "batch": record.batch,
        "metadata": dict(record.metadata),
        "input": {
            "size": spec.input.size,
            "sha256": spec.input.sha256,
            "media_type": spec.input.media_type,
            "width": spec.width,
            "height": spec.height,
            "filename": spec.filename,
        },
        "parameters": spec.parameters.to_dict(),
        "codec": spec.codec,
        "created_at": _moment(record.created_at),
        "progress": dict(event.data) if message.type == PROGRESS else None,
        "result": _result(record, event.data) if done else None,
        "failure": _failure(event.data) if event.state is State.FAILED else None,
        "links": {
            "self": here,
            "result": f"{here}/result" if done else None,
            "image": f"{here}/image" if done else None,
            "report": f"{here}/report" if done else None,
        },
    }
    return _body(message.type, event.at, {"job": job})


def body_of_test(endpoint_id: str, at: datetime) -> str:
    """Return the JSON text of a test message."""
    return _body(TEST, at, {"webhook": endpoint_id, "message": "It works."})


def _body(kind: str, at: datetime, data: Mapping[str, Any]) -> str:
    body = {"type": kind, "timestamp": _moment(at), "data": data}
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _result(record: JobRecord, report: Mapping[str, Any]) -> dict[str, Any] | None:
    if record.result is None:
        return None

    def number(name: str) -> float | None:
        value = report.get(name)
        return float(value) if isinstance(value, int | float) else None

    return {
        "size": record.result.size,
        "sha256": record.result.sha256,
        "media_type": record.result.media_type,
        "bpp": number("bpp"),
        "psnr_db": number("psnr_db"),
        "ms_ssim": number("ms_ssim"),
    }


def _failure(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"code": data.get("code"), "message": data.get("message")}
