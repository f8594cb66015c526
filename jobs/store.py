"""The atomic layer over job records: every method is one script, done whole or not at all."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from jobs.counters import observations
from jobs.database import Database, pairs
from jobs.errors import (
    ClaimRefused,
    IdempotencyInFlight,
    IdempotencyMismatch,
    IdTaken,
    Invalid,
    NotFound,
    QuotaExceeded,
    StaleLease,
    StoreUnavailable,
    WrongState,
)
from jobs.record import (
    BlobRef,
    Failure,
    JobDraft,
    JobRecord,
    Lease,
    Orders,
    Progress,
    State,
    record_from_hash,
    to_milliseconds,
)

log = logging.getLogger(__name__)

MAX_PAGE = 500
MAX_REPORT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Claim:
    """A job that the caller now works on, and the token to say so."""

    lease: Lease
    record: JobRecord


@dataclass(frozen=True)
class Created:
    """What became of a draft.

    Attributes:
        record: the new job, or the earlier one that answers for it.
        outcome: ``created``; ``deduplicated`` (equal work of the tenant); ``replayed`` (the same
            request again, by idempotency key or client-chosen id).
    """

    record: JobRecord
    outcome: Literal["created", "deduplicated", "replayed"]


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list shows.

    Attributes:
        tenant: whose; None for everybody's.
        states: any of these; empty for all.
        batch: of this batch only; needs a tenant.
        created_after: at or after this time.
        created_before: before this time.
    """

    tenant: str | None
    states: frozenset[State] = frozenset()
    batch: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True)
class JobPage:
    """Some jobs, newest first, and the cursor of those after them, or None at the end."""

    records: tuple[JobRecord, ...]
    next_cursor: str | None


class JobStore:
    """Job records in Redis.

    Every write of a worker presents its `Lease`; one that is no longer current is refused with
    `StaleLease`. Every method raises `StoreUnavailable` if Redis does not answer, and can be
    repeated then: what was done already is answered as the first time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # Accepting

    def create(
        self, draft: JobDraft, *, submission: str, max_active: int = 0, queue_limit: int = 0
    ) -> Created:
        """Accept a draft whose blobs are durable already, or find the job that answers for it.

        Args:
            draft: the job.
            submission: any text that is the same when the call is repeated after an error, and
                of no other request.
            max_active: most queued and running jobs of the tenant; 0 = any number.
            queue_limit: most jobs waiting in the queue; 0 = any number.

        Raises:
            IdTaken: the id names another job.
            IdempotencyInFlight, IdempotencyMismatch: see `jobs.idempotency`.
            QuotaExceeded: ``active_jobs`` or ``queue``.
        """
        claim = draft.idempotency
        reply = self._database.run(
            "create",
            draft.id,
            draft.tenant,
            json.dumps(hash_fields(draft)),
            submission,
            draft.body_digest(),
            draft.dedup_digest(),
            "1" if draft.deduplicate else "0",
            *(("", "", "") if claim is None else (claim.digest, claim.nonce, claim.fingerprint)),
            max_active,
            queue_limit,
        )
        match reply:
            case ["created" | "deduplicated" | "replayed" as outcome, flat]:
                return Created(record_from_hash(pairs(flat)), outcome)
            case ["taken"]:
                raise IdTaken(draft.id)
            case ["mismatch", job_id]:
                raise IdempotencyMismatch(job_id)
            case ["in_flight", milliseconds]:
                raise IdempotencyInFlight(max(1.0, int(milliseconds) / 1000))
        raise quota_exceeded(reply)

    # Working

    def claim(self, job_id: str, *, worker: str, nonce: str | None = None) -> Claim:
        """Take a queued job: it is running now, in a new attempt, and the caller's.

        Args:
            job_id: of the wake-up.
            worker: id of the caller.
            nonce: give the same again to repeat a claim whose reply was lost.

        Raises:
            ClaimRefused: it is not to be worked on (now).
        """
        nonce = nonce or secrets.token_hex(8)
        status, value = self._database.run("claim", job_id, worker, nonce)
        if status == "refused":
            raise ClaimRefused(job_id, value)
        record = record_from_hash(pairs(value))
        return Claim(Lease(job_id, record.attempt, nonce, worker), record)

    def renew(self, lease: Lease) -> Orders:
        """Prolong the lease and return what is wanted of the job."""
        return self._orders(lease, self._with_lease("renew", lease))

    def progress(self, lease: Lease, progress: Progress) -> Orders | None:
        """Note how far the job is and return what is wanted of it.

        None means that Redis did not answer: nothing is lost but this note, go on. Call it at most
        twice a second; `jobs.progress.ProgressReporter` sees to that.

        Raises:
            StaleLease: the job is no longer the caller's.
        """
        try:
            reply = self._with_lease("progress", lease, json.dumps(finite(progress.to_dict())))
        except StoreUnavailable as error:
            log.warning("progress of %s not written: %s", lease.job_id, error)
            return None
        return self._orders(lease, reply)

    def succeed(self, lease: Lease, result: BlobRef, report: Mapping[str, object]) -> JobRecord:
        """End the job: the result is stored and was measured.

        Raises:
            StaleLease: the job is no longer the caller's.
            Invalid: the report is no JSON or has more than 256 KiB.
        """
        text = json.dumps(finite(report))
        if len(text) > MAX_REPORT_BYTES:
            raise Invalid(f"report may have {MAX_REPORT_BYTES} bytes; got {len(text)}")
        # Only for the counters; it may have changed until the script runs, its start has not.
        record = self.get_many([lease.job_id])[0]
        counters = observations(record, report, result.size)
        fields = {"result": json.dumps(result.to_dict()), "report": text, "failure": ""}
        return self._end(lease, "succeed", fields, counters)

    def fail(self, lease: Lease, failure: Failure) -> JobRecord:
        """End the job: it cannot be done, and trying again would not help."""
        fields = {"failure": json.dumps(failure.to_dict())}
        return self._end(lease, "fail", fields, {})

    def cancelled(self, lease: Lease) -> JobRecord:
        """End the job: the worker stopped because it was asked to."""
        return self._end(lease, "obey_cancel", {"progress": ""}, {})

    def release(
        self, lease: Lease, *, reason: str, strike: bool = False, delay_seconds: float = 0
    ) -> JobRecord:
        """Give the job back to the queue.

        Args:
            lease: the token.
            reason: for people.
            strike: whether the attempt counts towards the limit of lost attempts: yes for a fault,
                no for a worker that shuts down. The last strike fails the job as ``poisoned``.
            delay_seconds: it cannot be claimed earlier.
        """
        reply = self._with_lease(
            "release", lease, reason, "1" if strike else "0", round(delay_seconds * 1000)
        )
        return self._record(lease, reply)

    # Steering

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a queued job, ask a running one to stop; a cancelled one stays as it is.

        Raises:
            NotFound, WrongState.
        """
        return self._steered(job_id, "cancel", self._database.run("cancel", job_id))

    def finish_now(self, job_id: str) -> JobRecord:
        """Ask a running job to keep the best so far and end.

        Raises:
            NotFound, WrongState.
        """
        return self._steered(job_id, "finish", self._database.run("finish_now", job_id))

    def retry(self, job_id: str, *, max_active: int = 0) -> JobRecord:
        """Queue a failed or cancelled job again, without strikes.

        Raises:
            NotFound, WrongState, QuotaExceeded.
        """
        return self._steered(job_id, "retry", self._database.run("retry", job_id, max_active))

    def mark_published(self, job_id: str) -> bool:
        """Note that a wake-up was sent; False if the job no longer waits for one."""
        return bool(self._database.run("mark_published", job_id))

    def mark_accepted(self, job_id: str) -> bool:
        """Note that the submitter knows of its job; False without such a job."""
        return bool(self._database.run("mark_accepted", job_id))

    def begin_delete(self, job_id: str, *, withdraw: bool = False) -> str:
        """Hide a job that is not running, for good, and return its tenant.

        Its blobs are to be deleted next, then `purge` removes the record. What is left half-way
        stays listed in ``trash`` for the reaper.

        Raises:
            NotFound, WrongState.
        """
        reply = self._database.run("delete", job_id, "1" if withdraw else "0")
        match reply:
            case ["ok", tenant]:
                return str(tenant)
            case ["wrong_state", state]:
                raise WrongState(job_id, state, "delete")
        raise NotFound("job", job_id)

    def purge(self, job_id: str) -> None:
        """Remove the record of a job that `begin_delete` hid."""
        self._database.run("purge", job_id)

    # Looking

    def get(self, job_id: str) -> JobRecord:
        """Return a job.

        Raises:
            NotFound.
        """
        record = self.get_many([job_id])[0]
        if record is None:
            raise NotFound("job", job_id)
        return record

    def get_many(self, job_ids: Iterable[str]) -> list[JobRecord | None]:
        """Return jobs in the order of the ids, None for those that do not exist."""
        with self._database.pipeline() as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self._database.key("job", job_id))
            hashes = pipeline.execute()
        return [
            record_from_hash(values) if values and not values.get("deleted") else None
            for values in hashes
        ]

    def exists(self, job_id: str) -> bool:
        """Tell whether there is such a job."""
        key = self._database.key("job", job_id)
        state, deleted = self._database.call("hmget", key, "state", "deleted")
        return state is not None and not deleted

    def page(self, wanted: JobFilter, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return jobs, newest first.

        The cursor names a place in the order of creation, so that pages neither repeat nor leave
        out a job while others come, change state or go.

        Raises:
            Invalid: a bad cursor or limit, or a batch without a tenant.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"limit must be 1 to {MAX_PAGE}; got {limit}")
        indexes = self._indexes(wanted)
        lowest = "-inf"
        if wanted.created_after is not None:
            lowest = str(to_milliseconds(wanted.created_after) * 1000)
        highest = "+inf"
        if wanted.created_before is not None:
            highest = f"({to_milliseconds(wanted.created_before) * 1000}"
        if cursor is not None:
            place = read_cursor(cursor)
            if highest == "+inf" or place < int(highest[1:]):
                highest = f"({place}"

        found: list[JobRecord] = []
        place = 0
        while len(found) <= limit:
            want = limit + 1 - len(found)
            with self._database.pipeline() as pipeline:
                for key in indexes:
                    pipeline.zrevrangebyscore(
                        key, highest, lowest, start=0, num=want, withscores=True
                    )
                replies = pipeline.execute()
            rows = sorted((row for reply in replies for row in reply), key=lambda row: -row[1])
            rows = rows[:want]
            if not rows:
                break
            orders = {job_id: int(order) for job_id, order in rows}
            for record in self.get_many(orders):
                # The record is the truth: its state may have changed since the index was read.
                if record is not None and (not wanted.states or record.state in wanted.states):
                    found.append(record)
                    if len(found) == limit:
                        place = orders[record.id]
            highest = f"({min(orders.values())}"
        more = len(found) > limit
        return JobPage(tuple(found[:limit]), write_cursor(place) if more else None)

    def counts(self, tenant: str | None = None) -> dict[State, int]:
        """Return how many jobs are in each state."""
        scope = () if tenant is None else ("tenant", tenant)
        with self._database.pipeline() as pipeline:
            for state in State:
                pipeline.zcard(self._database.key(*scope, "jobs", state))
            return dict(zip(State, pipeline.execute(), strict=True))

    def active(self, tenant: str) -> int:
        """Return how many jobs of the tenant are queued or running."""
        counts = self.counts(tenant)
        return counts[State.QUEUED] + counts[State.RUNNING]

    def position(self, job_id: str, queue: str | None = None) -> int | None:
        """Return the place in the queue, 1 for the next one, or None if it does not wait.

        Args:
            job_id: the job.
            queue: which it was made for; asked for if None.
        """
        if queue is None:
            queue = self._database.call("hget", self._database.key("job", job_id), "queue")
        if queue is None:
            return None
        rank = self._database.call("zrank", self._database.key("queue", queue), job_id)
        return None if rank is None else int(rank) + 1

    def waiting(self, queue: str, *, limit: int) -> list[JobRecord]:
        """Return jobs that wait in a queue, those first that are to be worked on first."""
        key = self._database.key("queue", queue)
        found = self.get_many(self._database.call("zrange", key, 0, limit - 1))
        return [each for each in found if each is not None and each.state is State.QUEUED]

    def tenants(self) -> list[str]:
        """Return every tenant that ever had a job."""
        return sorted(self._database.call("smembers", self._database.key("tenants")))

    # Parts

    def _indexes(self, wanted: JobFilter) -> list[str]:
        key = self._database.key
        if wanted.batch is not None:
            if wanted.tenant is None:
                raise Invalid("a list of one batch needs its tenant")
            return [key("tenant", wanted.tenant, "batch", wanted.batch)]
        scope = () if wanted.tenant is None else ("tenant", wanted.tenant)
        if wanted.states:
            return [key(*scope, "jobs", state) for state in sorted(wanted.states)]
        return [key(*scope, "jobs")]

    def _with_lease(self, script: str, lease: Lease, *arguments: str | int) -> Any:
        return self._database.run(script, lease.job_id, lease.attempt, lease.nonce, *arguments)

    def _end(
        self, lease: Lease, transition: str, fields: dict[str, str], counters: dict[str, float]
    ) -> JobRecord:
        arguments = (transition, json.dumps(fields), json.dumps(counters))
        return self._record(lease, self._with_lease("finish", lease, *arguments))

    @staticmethod
    def _record(lease: Lease, reply: Any) -> JobRecord:
        status, value = reply
        if status != "ok":
            raise StaleLease(lease.job_id, value)
        return record_from_hash(pairs(value))

    @staticmethod
    def _orders(lease: Lease, reply: Any) -> Orders:
        if reply[0] != "ok":
            raise StaleLease(lease.job_id, reply[1])
        return Orders(cancel=reply[1] == "1", finish=reply[2] == "1")

    @staticmethod
    def _steered(job_id: str, wanted: str, reply: Any) -> JobRecord:
        match reply:
            case ["ok", flat]:
                return record_from_hash(pairs(flat))
            case ["missing"]:
                raise NotFound("job", job_id)
            case ["wrong_state", state]:
                raise WrongState(job_id, state, wanted)
        raise quota_exceeded(reply)


def quota_exceeded(reply: Any) -> QuotaExceeded:
    """Return the error for a script's ``{'quota', name, limit, used}``."""
    _, name, limit, used = reply
    return QuotaExceeded(name, int(limit), int(used), retry_after_seconds=10.0)


def hash_fields(draft: JobDraft) -> dict[str, str]:
    """Return what the client gave, as fields of the record's hash."""
    fields = {
        "spec": json.dumps(draft.spec.to_dict()),
        "priority": str(draft.priority),
        "queue": draft.queue,
        "metadata": json.dumps(dict(draft.metadata)),
    }
    if draft.webhook is not None:
        fields["webhook"] = draft.webhook
    if draft.batch is not None:
        fields["batch"] = draft.batch
    return fields


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with NaN and infinities, which JSON has not, as None.

    Raises:
        Invalid: a value that JSON has not either.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
            return None
        if isinstance(value, Mapping):
            return {str(name): cleaned(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(each) for each in value]
        if value is None or isinstance(value, str | int | float):
            return value
        raise Invalid(f"only plain values can be stored; got {type(value).__name__}")

    return {str(name): cleaned(value) for name, value in values.items()}


def write_cursor(place: int) -> str:
    """Return a place in the order of creation as clients see it."""
    return base64.urlsafe_b64encode(f"1:{place}".encode()).decode().rstrip("=")


def read_cursor(text: str) -> int:
    """Return the place that `write_cursor` wrote.

    Raises:
        Invalid: it wrote no such thing.
    """
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        version, place = raw.split(":")
        if version != "1" or not place.isdigit() or len(place) > 17:
            raise ValueError(raw)
        return int(place)
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise Invalid(f"no cursor of this service: {text[:80]!r}") from error
