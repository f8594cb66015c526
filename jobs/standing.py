"""Whether a job that a submission made will stay, as others who find it can tell.

A submission writes the spec, makes the record, and sends the wake-up. If it fails in between, it
takes the spec back; a record without a spec is withdrawn by whoever looks. It may fail long after
the record came to be: the reply of Redis was lost, and it waits for it. Until the submitter has
noted that it knows of the job, or its time for taking it back is over, nobody may answer for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum

from jobs.errors import BlobNotFound
from jobs.journal import Journal
from jobs.record import JobRecord
from jobs.settings import Settings

# Connecting, sending and waiting, three times each: see `jobs.database.connect`.
TAKE_BACK_TIMEOUTS = 6.0
# Two more for the taking back itself, and for clocks that differ.
TRUST_TIMEOUTS = 8.0


class Standing(Enum):
    """What becomes of a job.

    ``LASTING``: it stays. ``OPEN``: its submission may still take it back. ``FAILED``: that was
    done, and the client was told so.
    """

    LASTING = "lasting"
    OPEN = "open"
    FAILED = "failed"


def take_back_seconds(settings: Settings) -> float:
    """Return how long after it began a submission takes its spec back; later it leaves it."""
    return TAKE_BACK_TIMEOUTS * settings.redis_timeout_seconds


def may_be_taken_back(journal: Journal, settings: Settings, tenant: str, job_id: str) -> bool:
    """Tell whether the writer of a spec may still take it back, or has done so.

    Raises:
        BlobsUnavailable.
    """
    written = journal.spec_written(tenant, job_id)
    trusted = timedelta(seconds=TRUST_TIMEOUTS * settings.redis_timeout_seconds)
    return written is None or datetime.now(UTC) - written <= trusted


def was_taken_back(journal: Journal, record: JobRecord) -> bool:
    """Tell whether the spec that a record was made from is gone.

    Raises:
        BlobsUnavailable.
    """
    try:
        spec = journal.read_spec(record.tenant, record.id).spec
    except BlobNotFound:
        return True
    # A later request of the same id may have written its own.
    return spec.input.key != record.spec.input.key


def standing(journal: Journal, settings: Settings, record: JobRecord) -> Standing:
    """Return the standing of a job.

    Raises:
        BlobsUnavailable.
    """
    if record.attempt > 0 or record.published_at is not None or record.accepted:
        return Standing.LASTING
    if was_taken_back(journal, record):
        return Standing.FAILED
    if may_be_taken_back(journal, settings, record.tenant, record.id):
        return Standing.OPEN
    return Standing.LASTING
