"""Which waiting jobs go with the one that was just claimed, and claiming them.

Only jobs that promise to be fitted in the same launches are taken, and only one tenant's: what the
child of one tenant's picture could do if the picture got the better of it, it must not do to
another's. A job that was tried before goes alone, so that one which ends its child cannot take
others with it twice. Each is claimed as from a wake-up, with a token of its own; its wake-up, when
it comes, is refused like any repeated one.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from jobs.errors import StoreUnavailable
from jobs.logs import get_logger
from jobs.record import JobRecord
from jobs.service import JobService
from jobs.store import Claim
from nifcore.likeness import Likeness, likeness
from worker.attempt import claim_job
from worker.flags import Flags

log = get_logger(__name__)

LOOK_AT = 256
"""Jobs at the head of the queue among which those that go together are sought."""
CLAIM_SECONDS = 2.0
"""Patience with a store that does not answer: jobs that were claimed before wait meanwhile."""


def gather(service: JobService, claim: Claim, most: int, worker: str, flags: Flags) -> list[Claim]:
    """Claim waiting jobs to be encoded with the one of ``claim``, and return their claims.

    Args:
        claim: the job that a wake-up led to.
        most: jobs in a group, that one included.
        worker: id of this worker.
        flags: a worker that is told to stop, drain or pause takes no more.
    """
    first = claim.record
    kind = None if most < 2 or first.attempt > 1 else likeness_of(first)
    if kind is None:
        return []
    try:
        waiting = service.store.waiting(first.queue, limit=LOOK_AT)
        alike = [each for each in waiting if _goes_with(each, first) and likeness_of(each) == kind]
        if not alike:
            return []
        share = math.ceil((1 + len(alike)) / (1 + _idle(service, first.queue, worker)))
    except StoreUnavailable as error:
        log.warning("nothing gathered", reason=str(error))
        return []
    claims = []
    for record in alike[: min(most, share) - 1]:
        if flags.holding:
            break
        found = claim_job(service, record.id, worker, flags, patience_seconds=CLAIM_SECONDS)
        if found is not None:
            claims.append(found)
    return claims


def likeness_of(record: JobRecord) -> Likeness | None:
    """Return what a job has in common with those that it can be encoded with, None if nothing."""
    spec = record.spec
    if spec.width is None or spec.height is None:
        return None
    return likeness(spec.width, spec.height, asdict(spec.parameters))


def _goes_with(record: JobRecord, first: JobRecord) -> bool:
    """Tell whether a waiting job may be taken out of turn with the first one."""
    return (
        record.tenant == first.tenant
        and record.priority >= first.priority
        and record.attempt == 0
        and record.not_before is None
        # its submission is over, and cannot take it back
        and record.accepted
    )


def _idle(service: JobService, queue: str, worker: str) -> int:
    """Return how many other workers of the queue have nothing to do: they get their part."""
    return sum(
        status.alive
        and not status.draining
        and status.info.job_id is None
        and queue in status.info.queues
        and status.info.id != worker
        for status in service.workers.list()
    )
