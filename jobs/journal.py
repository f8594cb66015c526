"""The durable account of every job, in the blob store, from which Redis can be rebuilt.

::

    {tenant}/jobs/{id}/input-{nonce}              the picture as it came in
    {tenant}/jobs/{id}/spec.json                  the accepted draft, before the record exists
    {tenant}/jobs/{id}/checkpoints/{n}-{time}     where attempt n can be resumed; the newest counts
    {tenant}/jobs/{id}/attempts/{n}/out.nif       the file that attempt n made
    {tenant}/jobs/{id}/attempts/{n}/outcome.json  how attempt n ended, before the record says so
    {tenant}/jobs/{id}/changes/{version}.json     what the service decided: cancelled, poisoned,
                                                  queued again

Keys are written once. A worker writes below its own attempt's number only, which no other has.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from jobs.blobs import BlobInfo, Blobs, Data, chunks_of
from jobs.errors import BlobExists, BlobNotFound, Invalid
from jobs.record import BlobRef, Failure, JobDraft, JobRecord, Lease, State
from jobs.store import finite

log = logging.getLogger(__name__)

JSON = "application/json"
NIF = "application/vnd.nif"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, or what the service decided.

    Attributes:
        state: a terminal state; ``queued`` if a person had it queued again.
        result, report: of a success.
        failure: of a failure.
        at: when.
    """

    state: State
    result: BlobRef | None = None
    report: Mapping[str, Any] | None = None
    failure: Failure | None = None
    at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        at = self.at or datetime.now(UTC)
        return {
            "schema": 1,
            "state": self.state.value,
            "result": None if self.result is None else self.result.to_dict(),
            "report": None if self.report is None else finite(self.report),
            "failure": None if self.failure is None else self.failure.to_dict(),
            "at": at.isoformat(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what ``to_dict`` wrote.

        Raises:
            Invalid: it is something else.
        """
        try:
            if values["schema"] != 1:
                raise Invalid(f"outcome schema must be 1; got {values['schema']!r}")
            result, failure = values["result"], values["failure"]
            return cls(
                state=State(values["state"]),
                result=None if result is None else BlobRef.from_dict(result),
                report=values["report"],
                failure=None if failure is None else Failure.from_dict(failure),
                at=datetime.fromisoformat(values["at"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid(f"Outcome: {error!r}") from error


@dataclass(frozen=True)
class History:
    """What the journal knows of one job.

    Attributes:
        draft: as it was accepted.
        state: where the job is, ``queued`` if no end is known.
        outcome: of the end, or None.
        attempt: the highest number that any attempt left a trace of.
        version: the highest version of a change.
    """

    draft: JobDraft
    state: State
    outcome: Outcome | None
    attempt: int
    version: int


def folder(tenant: str, job_id: str) -> str:
    """Return the beginning of all keys of a job."""
    return f"{tenant}/jobs/{job_id}/"


class Journal:
    """Writes and reads the account.

    Args:
        blobs: where.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    # Accepting

    def input_key(self, tenant: str, job_id: str) -> str:
        """Return a key for the picture of a job, another one with every call."""
        return f"{folder(tenant, job_id)}input-{secrets.token_hex(8)}"

    def write_input(self, tenant: str, job_id: str, data: Data, media_type: str) -> BlobRef:
        """Store a picture under a fresh `input_key` and return what a `JobSpec` needs.

        Raises:
            BlobExists: the storage has other bytes there.
        """
        key = self.input_key(tenant, job_id)
        content, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for piece in chunks_of(data):
                content.update(piece)
                size += len(piece)
                yield piece

        try:
            return self._ref(self._blobs.put(key, counted(), media_type=media_type))
        except BlobExists:
            # Nobody else has the key: a client that repeats its request after a lost reply is
            # refused what it has done itself.
            info = self._blobs.head(key)
            if (info.size, info.sha256) != (size, content.hexdigest()):
                raise
            return self._ref(info)

    def write_spec(self, draft: JobDraft) -> None:
        """Make a draft durable.

        Raises:
            BlobExists: there is one of this tenant and id already; `read_spec` has it.
        """
        self._put(_spec_key(draft.tenant, draft.id), draft.to_dict())

    def read_spec(self, tenant: str, job_id: str) -> JobDraft:
        """Return the draft of a job.

        Raises:
            BlobNotFound.
        """
        return JobDraft.from_dict(self._read(_spec_key(tenant, job_id)))

    def spec_written(self, tenant: str, job_id: str) -> datetime | None:
        """Return when a job was made durable, None if it was not or was withdrawn since."""
        try:
            return self._blobs.head(_spec_key(tenant, job_id)).modified
        except BlobNotFound:
            return None

    def remove_spec(self, tenant: str, job_id: str) -> None:
        """Take a draft back: without it there is no job."""
        self._blobs.delete(_spec_key(tenant, job_id))

    def remove_input(self, draft: JobDraft) -> None:
        """Remove the picture of a draft that made no job."""
        self._blobs.delete(draft.spec.input.key)

    # Working

    def save_checkpoint(self, tenant: str, lease: Lease, data: bytes) -> None:
        """Keep where the attempt can be resumed, and remove what it replaces."""
        place = f"{folder(tenant, lease.job_id)}checkpoints/"
        key = f"{place}{lease.attempt:06d}-{time.time_ns():020d}"
        self._blobs.put(key, data)
        for info in self._all(place):
            if info.key < key:
                self._blobs.delete(info.key)

    def load_checkpoint(self, tenant: str, job_id: str) -> bytes | None:
        """Return the newest checkpoint of the latest attempt that left one, or None."""
        place = f"{folder(tenant, job_id)}checkpoints/"
        while True:
            keys = [info.key for info in self._all(place)]
            if not keys:
                return None
            try:
                return self._blobs.get(max(keys))
            except BlobNotFound:
                continue  # replaced since it was listed

    def out_key(self, tenant: str, job_id: str, attempt: int) -> str:
        """Return the key of the file that an attempt makes."""
        return f"{folder(tenant, job_id)}attempts/{attempt}/out.nif"

    def write_result(self, tenant: str, lease: Lease, data: Data) -> BlobRef:
        """Store the file that the attempt made. Repeating it with the same bytes is fine.

        Raises:
            BlobExists: the attempt stored other bytes before.
        """
        key = self.out_key(tenant, lease.job_id, lease.attempt)
        if not isinstance(data, bytes):
            return self._ref(self._blobs.put(key, data, media_type=NIF))
        try:
            return self._ref(self._blobs.put(key, data, media_type=NIF))
        except BlobExists:
            if self._blobs.get(key) != data:
                raise
            return self._ref(self._blobs.head(key))

    def write_outcome(self, tenant: str, lease: Lease, outcome: Outcome) -> None:
        """Make the end of an attempt durable; the store is told after it. Repeating it is fine.

        Raises:
            BlobExists: the attempt ended otherwise before.
        """
        key = f"{folder(tenant, lease.job_id)}attempts/{lease.attempt}/outcome.json"
        try:
            self._put(key, outcome.to_dict())
        except BlobExists:
            before = Outcome.from_dict(self._read(key))
            if (before.state, before.result) != (outcome.state, outcome.result):
                raise

    def finished(self, tenant: str, job_id: str) -> Outcome | None:
        """Return the latest success that any attempt made durable, or None.

        An attempt may have been cut off right before it could hand its result in; the next one
        adopts it instead of doing everything again.
        """
        outcomes = self._outcomes(tenant, job_id)
        for attempt in sorted(outcomes, reverse=True):
            outcome = outcomes[attempt]
            if outcome.state is State.SUCCEEDED and outcome.result is not None:
                if self._blobs.exists(outcome.result.key):
                    return outcome
                log.warning("%s: attempt %d has no file", job_id, attempt)
        return None

    # Deciding

    def write_change(self, record: JobRecord) -> None:
        """Make durable what the service decided about a job: its state. Repeating it is fine.

        A job that was queued again and is running already counts as queued.
        """
        waiting = record.state in (State.QUEUED, State.RUNNING)
        attempt = record.attempt - (record.state is State.RUNNING)
        change = Outcome(
            State.QUEUED if waiting else record.state,
            result=record.result,
            report=record.report,
            failure=record.failure,
            at=record.updated_at,
        )
        key = f"{folder(record.tenant, record.id)}changes/{record.version:012d}.json"
        try:
            self._put(key, change.to_dict() | {"attempt": attempt})
        except BlobExists:
            log.debug("%s was written before", key)

    def delete_job(self, tenant: str, job_id: str) -> int:
        """Remove everything of a job, its spec first, and return how many blobs that was."""
        spec = _spec_key(tenant, job_id)
        had_spec = self._blobs.exists(spec)
        # Without its spec a half-deleted job cannot come back.
        self._blobs.delete(spec)
        return had_spec + self._blobs.delete_prefix(folder(tenant, job_id))

    def history(self, tenant: str, job_id: str) -> History:
        """Return what the journal knows of a job.

        Raises:
            BlobNotFound: no such job was ever made durable, or it was withdrawn.
        """
        draft = self.read_spec(tenant, job_id)
        outcomes = self._outcomes(tenant, job_id)
        last, last_attempt, state = None, 0, State.QUEUED
        if outcomes:
            last_attempt = max(outcomes)
            last = outcomes[last_attempt]
            state = last.state
        version, highest = 0, last_attempt
        changes = [info.key for info in self._all(f"{folder(tenant, job_id)}changes/")]
        if changes:
            version = int(max(changes).rpartition("/")[2].removesuffix(".json"))
            values = self._read(max(changes))
            attempt = int(values.pop("attempt"))
            highest = max(highest, attempt)
            # An attempt with a higher number began after the change; any other one before it.
            if attempt >= last_attempt:
                last = Outcome.from_dict(values)
                state = last.state
        for info in self._all(f"{folder(tenant, job_id)}checkpoints/"):
            highest = max(highest, int(info.key.rpartition("/")[2].split("-")[0]))
        for info in self._all(f"{folder(tenant, job_id)}attempts/"):
            highest = max(highest, int(info.key.split("/")[-2]))
        return History(draft, state, last, highest, version)

    # Parts

    def _outcomes(self, tenant: str, job_id: str) -> dict[int, Outcome]:
        return {
            int(info.key.split("/")[-2]): Outcome.from_dict(self._read(info.key))
            for info in self._all(f"{folder(tenant, job_id)}attempts/")
            if info.key.endswith("/outcome.json")
        }

    def _all(self, prefix: str) -> Iterator[BlobInfo]:
        after: str | None = None
        while True:
            page = self._blobs.list(prefix, after=after)
            yield from page.items
            if page.next is None:
                return
            after = page.next

    def _put(self, key: str, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        self._blobs.put(key, text.encode(), media_type=JSON)

    def _read(self, key: str) -> Any:
        return json.loads(self._blobs.get(key))

    @staticmethod
    def _ref(info: BlobInfo) -> BlobRef:
        assert info.sha256 is not None
        return BlobRef(info.key, info.size, info.sha256, info.media_type)


def _spec_key(tenant: str, job_id: str) -> str:
    return f"{folder(tenant, job_id)}spec.json"
