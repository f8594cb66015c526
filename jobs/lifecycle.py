"""The life of a job: every way from one state to another, as data. Nothing else defines them.

::

                    ┌────── lose, release ──────┐
                    v                           │
    create ──────> queued ────── claim ──────> running ── succeed ──────> succeeded
                    │  ^                        │  │
                    │  │                        │  └───── fail, poison ─> failed ────┐
                    │  │                        └──────── obey_cancel ──> cancelled ─┤
                    └──┼───────── cancel ───────────────────────────────> cancelled ─┤
                       └───────── retry ─────────────────────────────────────────────┘

The table is handed to the Lua scripts (``jobs/lua/``), whose function ``move`` is the only place
that writes a state. In the same atomic call it keeps the indexes, writes the event to the job's
and the tenant's stream, the webhook outbox entry, and the counters. A move that is not in this
table ends the script with an error before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.record import State


@dataclass(frozen=True)
class Transition:
    """One way from a state to another.

    Attributes:
        name: what happens.
        source: the state before; None for a job that did not exist.
        target: the state after.
        event: type of the event that is emitted.
        end: how the running attempt ended, if one did.
        webhook: type of the message that webhooks get.
        journal: whether the service, not a worker, must write the change to the journal.
    """

    name: str
    source: State | None
    target: State
    event: str
    end: str | None = None
    webhook: str | None = None
    journal: bool = False


_QUEUED, _RUNNING = State.QUEUED, State.RUNNING
_SUCCEEDED, _FAILED, _CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED

TRANSITIONS: tuple[Transition, ...] = (
    Transition("create", None, _QUEUED, "job.queued", None, "job.queued"),
    Transition("claim", _QUEUED, _RUNNING, "job.running", None, "job.running"),
    Transition("succeed", _RUNNING, _SUCCEEDED, "job.succeeded", "succeeded", "job.succeeded"),
    Transition("fail", _RUNNING, _FAILED, "job.failed", "failed", "job.failed"),
    Transition(
        "obey_cancel", _RUNNING, _CANCELLED, "job.cancelled", "cancelled", "job.cancelled", True
    ),
    Transition("lose", _RUNNING, _QUEUED, "job.requeued", "lost", "job.queued"),
    Transition("release", _RUNNING, _QUEUED, "job.requeued", "released", "job.queued"),
    Transition("poison", _RUNNING, _FAILED, "job.failed", "lost", "job.failed", True),
    Transition("cancel", _QUEUED, _CANCELLED, "job.cancelled", None, "job.cancelled", True),
    Transition("retry_failed", _FAILED, _QUEUED, "job.retried", None, "job.queued", True),
    Transition("retry_cancelled", _CANCELLED, _QUEUED, "job.retried", None, "job.queued", True),
)


def lua_table() -> str:
    """Return the transitions as a Lua table constructor, keyed by name."""

    def text(value: str | None) -> str:
        return "false" if value is None else f"'{value}'"

    def truth(value: bool) -> str:
        return "true" if value else "false"

    rows = [
        f"  {each.name} = {{from = {text(each.source)}, to = {text(each.target)}, "
        f"event = {text(each.event)}, finish = {text(each.end)}, "
        f"webhook = {text(each.webhook)}, journal = {truth(each.journal)}}},"
        for each in TRANSITIONS
    ]
    return "\n".join(["{", *rows, "}"])
