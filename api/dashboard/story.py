"""What happened to one job, read from its record and events: path, curve, phases, log lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.dashboard import figures
from jobs import TRANSITIONS, Event, JobRecord, JobSpec, State
from nifcore.plan import DEFAULT_QUALITY, bpp_of_quality

_MOVES = {
    "job.queued",
    "job.running",
    "job.requeued",
    "job.retried",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
}
_NAMES = {each.name for each in TRANSITIONS}


def path_of(record: JobRecord, events: Sequence[Event]) -> Counter[str]:
    """Return how often the job took each way of `jobs.lifecycle`.

    The events tell all of it as long as the first of them is kept; where the stream has grown too
    long, the attempts of the record tell nearly all.
    """
    moves = [event for event in events if event.type in _MOVES]
    taken = (
        _path_from_events(record, moves)
        if moves and moves[0].type == "job.queued"
        else _path_from_attempts(record)
    )
    assert set(taken) <= _NAMES, taken
    return taken


def _path_from_events(record: JobRecord, moves: Sequence[Event]) -> Counter[str]:
    ends = {attempt.number: attempt.end for attempt in record.attempts}
    taken: Counter[str] = Counter()
    before: State | None = None
    for event in moves:
        match event.type:
            case "job.queued":
                name = "create"
            case "job.running":
                name = "claim"
            case "job.requeued":
                name = "lose" if ends.get(event.attempt) == "lost" else "release"
            case "job.retried":
                name = "retry_failed" if before is State.FAILED else "retry_cancelled"
            case "job.succeeded":
                name = "succeed"
            case "job.failed":
                name = "poison" if event.data.get("code") == "poisoned" else "fail"
            case _:
                name = "obey_cancel" if before is State.RUNNING else "cancel"
        taken[name] += 1
        before = event.state
    return taken


_OF_END = {
    "succeeded": "succeed",
    "failed": "fail",
    "cancelled": "obey_cancel",
    "lost": "lose",
    "released": "release",
}


def _path_from_attempts(record: JobRecord) -> Counter[str]:
    taken: Counter[str] = Counter(create=1)
    last = len(record.attempts) - 1
    for index, attempt in enumerate(record.attempts):
        taken["claim"] += 1
        if attempt.end is None:
            continue
        name = _OF_END[attempt.end]
        ended = index == last and record.state is State.FAILED
        if name == "lose" and ended:
            name = "poison"
        taken[name] += 1
        goes_on = index < last or not record.state.terminal
        if goes_on and name in ("fail", "obey_cancel"):
            taken["retry_failed" if name == "fail" else "retry_cancelled"] += 1
    never_ran = not record.attempts or record.attempts[-1].end != "cancelled"
    if record.state is State.CANCELLED and never_ran:
        taken["cancel"] += 1
    return taken


@dataclass(frozen=True)
class Span:
    """A stretch of a job's time: waiting, or one phase of one attempt.

    Attributes:
        kind: ``queued``, ``prepare``, ``fit``, ``quantise``, ``code``, ``verify``, or ``work``
            where the events of an attempt are no longer kept.
        attempt: its number, 0 while waiting.
        x, width: in thousandths of the whole time.
    """

    kind: str
    attempt: int
    start: datetime
    end: datetime
    x: float
    width: float

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


def spans_of(record: JobRecord, events: Sequence[Event], now: datetime) -> list[Span]:
    """Return what the job spent its time on, in order."""
    over = record.finished_at or now
    pieces: list[tuple[str, int, datetime, datetime]] = []
    free_from = record.created_at
    for attempt in record.attempts:
        if attempt.started_at > free_from:
            pieces.append(("queued", 0, free_from, attempt.started_at))
        end = attempt.ended_at or over
        pieces += _phases(attempt.number, attempt.started_at, end, events)
        free_from = end
    if record.state is State.QUEUED or not record.attempts:
        pieces.append(("queued", 0, free_from, over))
    begun, ended = record.created_at, max(over, record.created_at)
    whole = max((ended - begun).total_seconds(), 1e-3)
    return [
        Span(
            kind,
            attempt,
            start,
            end,
            round(1000 * (start - begun).total_seconds() / whole, 2),
            round(1000 * (end - start).total_seconds() / whole, 2),
        )
        for kind, attempt, start, end in pieces
        if end > start
    ]


def _phases(
    number: int, start: datetime, end: datetime, events: Sequence[Event]
) -> list[tuple[str, int, datetime, datetime]]:
    own = [
        event
        for event in events
        if event.type == "job.progress" and event.attempt == number and event.data.get("phase")
    ]
    marks: list[tuple[str, datetime]] = []
    for event in own:
        phase = str(event.data["phase"])
        if not marks or marks[-1][0] != phase:
            marks.append((phase, event.at))
    if not marks:
        return [("work", number, start, end)]
    # What comes before the first word of the codec belongs to its first phase.
    marks[0] = (marks[0][0], start)
    bounds = [at for _, at in marks[1:]] + [end]
    return [(phase, number, at, until) for (phase, at), until in zip(marks, bounds, strict=True)]


def phase_totals(spans: Sequence[Span]) -> dict[str, float]:
    """Return seconds per kind of span, in order of first appearance."""
    totals: dict[str, float] = {}
    for span in spans:
        totals[span.kind] = totals.get(span.kind, 0.0) + span.seconds
    return totals


@dataclass(frozen=True)
class Line:
    """A line of a job's log."""

    at: datetime
    type: str
    attempt: int
    text: str


_SAID = {
    "job.queued": "accepted and queued",
    "job.running": "claimed by {worker}",
    "job.requeued": "back to the queue: {reason}",
    "job.retried": "queued again by request",
    "job.cancel_requested": "asked to cancel",
    "job.finish_requested": "asked to finish with the best so far",
    "job.cancelled": "cancelled",
    "job.deleted": "deleted",
}


def lines_of(events: Sequence[Event]) -> list[Line]:
    """Return the log, oldest first: every move, and progress where its phase or step changes."""
    lines = []
    before: tuple[Any, ...] = ()
    for event in events:
        if event.type == "job.progress":
            place = (event.attempt, event.data.get("phase"), event.data.get("step"))
            message = event.data.get("message")
            if place == before and not message:
                continue
            before = place
        elif event.type == "job.preview":
            continue
        lines.append(Line(event.at, event.type, event.attempt, _text(event)))
    return lines


def _text(event: Event) -> str:
    data = event.data
    match event.type:
        case "job.progress":
            return _progress_text(data)
        case "job.succeeded":
            parts = [
                figures.decibels(_number(data, "psnr_db")),
                figures.rate(_number(data, "bpp")),
                figures.size(_number(data, "bytes")),
            ]
            return "done: " + ", ".join(part for part in parts if part != figures.NOTHING)
        case "job.failed":
            return f"failed, {data.get('code', 'unknown')}: {data.get('message', '')}"
    said = _SAID.get(event.type, event.type)
    return said.format(worker=data.get("worker", "a worker"), reason=data.get("reason", "?"))


def _progress_text(data: Mapping[str, Any]) -> str:
    if data.get("message"):
        return f"{data.get('phase')}: {data['message']}"
    text = str(data.get("phase"))
    steps = data.get("steps") or 0
    if steps > 1:
        text += f", step {data.get('step')} of {steps}"
    psnr = _number(data, "psnr_db")
    if psnr is not None:
        text += f", {figures.decibels(psnr)} so far"
    return text


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def budget_of(spec: JobSpec) -> float | None:
    """Return how many bytes the parameters allow the file.

    None where they do not say: with a published preset or a PSNR, and without the picture's size.
    """
    asked = spec.parameters
    if asked.max_bytes is not None:
        return float(asked.max_bytes)
    if asked.preset is not None or asked.psnr is not None or not (spec.width and spec.height):
        return None
    bpp = asked.bpp
    if bpp is None:
        bpp = bpp_of_quality(DEFAULT_QUALITY if asked.quality is None else asked.quality)
    return bpp * spec.width * spec.height / 8


def points_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return what the curves need of each progress event; times in Unix seconds."""
    return [
        {
            "id": event.id,
            "at": event.at.timestamp(),
            "attempt": event.attempt,
            **{
                name: event.data.get(name)
                for name in ("phase", "iteration", "iterations", "psnr_db", "bpp", "eta_seconds")
            },
        }
        for event in events
        if event.type == "job.progress"
    ]
