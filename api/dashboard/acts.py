"""What people do at the dashboard, and the note of it in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jobs
from api.context import Context
from api.dashboard.visitor import Visitor

MOST_AT_ONCE = 500
"""Jobs that one press of a button moves at most."""


def note(shared: Context, visitor: Visitor, action: str, target: str, detail: str = "") -> None:
    """Write down what was done."""
    shared.service.audit.note(
        action,
        target,
        key_id=visitor.key.id,
        key_name=visitor.key.name,
        tenant=visitor.key.tenant,
        way="dashboard",
        detail=detail,
    )


@dataclass(frozen=True)
class Tally:
    """How many of some jobs were moved, and what the others were refused for."""

    action: str
    done: int
    refused: int

    def __str__(self) -> str:
        verb = {"cancel": "cancelled or asked to stop", "retry": "queued again"}[self.action]
        text = f"{self.done} {'job' if self.done == 1 else 'jobs'} {verb}"
        return text + (f"; {self.refused} in no state for it" if self.refused else "")


def for_all(shared: Context, visitor: Visitor, action: str, job_ids: Iterable[str]) -> Tally:
    """Cancel or retry many jobs; those that cannot be are left as they are."""
    service = shared.service
    move: Callable[..., object] = {"cancel": service.cancel, "retry": service.retry}[action]
    done = refused = 0
    for job_id in list(job_ids)[:MOST_AT_ONCE]:
        try:
            move(visitor.sees, job_id)
            done += 1
        except (jobs.WrongState, jobs.NotFound, jobs.QuotaExceeded):
            refused += 1
    tally = Tally(action, done, refused)
    note(shared, visitor, f"jobs.{action}", f"{done} jobs", str(tally))
    return tally
