"""Rebuild Redis from the journal: after a FLUSHALL, a lost disk, or a backup that is too old.

It only adds: a job that Redis knows is left alone, unless it waits there and the journal knows how
it ended. It can run at any time, also while the service works, and again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from jobs.blobs import BlobInfo
from jobs.errors import BlobExists, BlobNotFound, Invalid
from jobs.journal import History
from jobs.record import State, to_milliseconds
from jobs.service import JobService
from jobs.store import hash_fields

log = logging.getLogger(__name__)

# What is younger may belong to a request that is still being served.
_GARBAGE_AGE = timedelta(hours=1)
# Attempts begun before a rebuild may still be at work, and not all left a trace: attempts after the
# n-th rebuild are numbered from n times this, so that no number is given twice.
REBUILDS_PREFIX = "_system/rebuilds/"
_ATTEMPT_STEP = 1000
# Versions that clients saw before must not come again with another content.
_VERSION_STEP = 1_000_000


@dataclass(frozen=True)
class Reconciled:
    """What was found and done.

    Attributes:
        jobs: jobs in the journal.
        imported: of them, those that Redis did not know.
        advanced: of them, those that Redis had as queued though they had ended.
        queued, succeeded, failed, cancelled: states of the imported and advanced ones.
        keys: API keys brought back.
        webhooks: webhook endpoints brought back.
        garbage: blobs without a job that were removed.
        unreadable: jobs whose spec or outcome cannot be read; they are left and logged.
    """

    jobs: int = 0
    imported: int = 0
    advanced: int = 0
    queued: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    keys: int = 0
    webhooks: int = 0
    garbage: int = 0
    unreadable: int = 0


def reconcile(service: JobService) -> Reconciled:
    """Bring every job, API key and webhook endpoint of the journal into Redis.

    Raises:
        Unavailable: Redis or the blob store does not answer; run it again.
    """
    done: Counter[str] = Counter(keys=service.keys.restore(), webhooks=service.endpoints.restore())
    first_attempt: int | None = None
    for (tenant, job_id), blobs in _jobs(service):
        if not any(info.key.endswith("/spec.json") for info in blobs):
            done["garbage"] += _remove_garbage(service, tenant, job_id, blobs)
            continue
        done["jobs"] += 1
        record = service.store.get_many([job_id])[0]
        if record is not None and record.state is not State.QUEUED:
            continue
        try:
            history = service.journal.history(tenant, job_id)
        except BlobNotFound:
            continue  # withdrawn or deleted meanwhile
        except (Invalid, json.JSONDecodeError, KeyError) as error:
            log.error("journal of %s cannot be read: %s", job_id, error)
            done["unreadable"] += 1
            continue
        if first_attempt is None and record is None:
            first_attempt = _ATTEMPT_STEP * _count_rebuild(service)
        outcome = _import(service, history, first_attempt or 0)
        if outcome != "known":
            done[outcome] += 1
            done[history.state.value] += 1
    return Reconciled(**done)


def _jobs(service: JobService) -> Iterator[tuple[tuple[str, str], list[BlobInfo]]]:
    """Yield each job's tenant, id and blobs; its keys follow one another in any listing."""

    def blobs() -> Iterator[BlobInfo]:
        after: str | None = None
        while True:
            page = service.blobs.list("", after=after)
            for info in page.items:
                if info.key.count("/") >= 3 and info.key.split("/")[1] == "jobs":
                    yield info
            if page.next is None:
                return
            after = page.next

    def job(info: BlobInfo) -> tuple[str, str]:
        tenant, _, job_id, _ = info.key.split("/", 3)
        return tenant, job_id

    for key, group in groupby(blobs(), job):
        yield key, list(group)


def _remove_garbage(service: JobService, tenant: str, job_id: str, blobs: list[BlobInfo]) -> int:
    newest = max(info.modified for info in blobs)
    if service.store.exists(job_id) or newest > datetime.now(UTC) - _GARBAGE_AGE:
        return 0
    return service.journal.delete_job(tenant, job_id)


def _count_rebuild(service: JobService) -> int:
    """Note in the journal that one more rebuild began, and return which it is."""
    number = 1
    while True:
        page = service.blobs.list(REBUILDS_PREFIX, after=f"{REBUILDS_PREFIX}{number:06d}")
        if page.items:
            number = int(page.items[-1].key.removeprefix(REBUILDS_PREFIX))
            continue
        try:
            service.blobs.put(f"{REBUILDS_PREFIX}{number:06d}", b"", media_type="text/plain")
            return number
        except BlobExists:
            number += 1


def _import(service: JobService, history: History, first_attempt: int) -> str:
    draft, outcome = history.draft, history.outcome
    fields = hash_fields(draft)
    ended = ""
    if history.state is not State.QUEUED and outcome is not None:
        ended = str(to_milliseconds(outcome.at or draft.submitted_at))
        for name, value in (("result", outcome.result), ("failure", outcome.failure)):
            if value is not None:
                fields[name] = json.dumps(value.to_dict())
        if outcome.report is not None:
            fields["report"] = json.dumps(outcome.report)
            if outcome.report.get("complete") is False:
                fields["finish"] = "1"  # ended early by wish: it answers for no equal job
    claim = draft.idempotency
    attempt = history.attempt
    if history.state is State.QUEUED:
        attempt = max(attempt, first_attempt)
    version = (history.version // _VERSION_STEP + 1) * _VERSION_STEP
    return str(
        service.database.run(
            "import",
            draft.id,
            draft.tenant,
            json.dumps(fields),
            draft.body_digest(),
            draft.dedup_digest(),
            history.state.value,
            attempt,
            to_milliseconds(draft.submitted_at),
            ended,
            *(("", "", "") if claim is None else (claim.digest, claim.fingerprint, claim.nonce)),
            version,
        )
    )
