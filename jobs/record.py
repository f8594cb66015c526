"""What a job is: frozen data, and its two writings (JSON for the journal, a hash for Redis)."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from jobs.errors import Invalid
from jobs.ids import check_job_id, check_tenant

PRIORITIES = range(10)
DEFAULT_PRIORITY = 5
DEFAULT_QUEUE = "encode"

MAX_METADATA_ENTRIES = 32
MAX_METADATA_CHARACTERS = 512


class State(StrEnum):
    """Where a job is in its life; ``jobs.lifecycle`` has the ways between the states."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True for states that no worker leaves."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


def to_milliseconds(moment: datetime) -> int:
    """Return Unix milliseconds of an aware datetime."""
    if moment.tzinfo is None:
        raise Invalid(f"a time needs a time zone; got {moment.isoformat()}")
    return round(moment.timestamp() * 1000)


def from_milliseconds(value: int) -> datetime:
    """Return the UTC datetime of Unix milliseconds."""
    return datetime.fromtimestamp(value / 1000, UTC)


def _check_type(owner: str, name: str, value: object, hint: Any) -> None:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in allowed)
    if float in kinds:
        kinds += (int,)
    stray_bool = isinstance(value, bool) and bool not in kinds
    if stray_bool or not isinstance(value, kinds):
        raise Invalid(f"{owner}.{name} must be {hint}; got {value!r:.80}")


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(owner: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; finding them takes longer than reading a record."""
    if owner not in _HINTS:
        _HINTS[owner] = typing.get_type_hints(owner)
    return _HINTS[owner]


class Plain:
    """A flat dataclass that JSON can carry."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; those that are None are left out."""
        return {
            name: value
            for name, value in asdict(self).items()  # type: ignore[call-overload]
            if value is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what ``to_dict`` wrote.

        Raises:
            Invalid: a field is missing, unknown or of another type.
        """
        hints = _hints(cls)
        unknown = set(values) - set(hints)
        if unknown:
            raise Invalid(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
        for name, value in values.items():
            _check_type(cls.__name__, name, value, hints[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise Invalid(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class BlobRef(Plain):
    """A stored blob as a job refers to it.

    Attributes:
        key: where it is stored.
        size: length in bytes.
        sha256: of its content, 64 lower-case hexadecimal digits.
        media_type: MIME type.
    """

    key: str
    size: int
    sha256: str
    media_type: str


@dataclass(frozen=True)
class Parameters(Plain):
    """What was asked of the encoder, exactly as it was asked; None means not given.

    At most one of quality, psnr, bpp and max_bytes, and at most one of preset and effort, make
    sense together. That rule is the codec's: the API applies it before a job is made.
    """

    preset: str | None = None
    effort: int | None = None
    quality: float | None = None
    psnr: float | None = None
    bpp: float | None = None
    max_bytes: int | None = None
    seed: int = 0
    keep_icc: bool = False

    def __post_init__(self) -> None:
        for name, hint in _hints(Parameters).items():
            _check_type("Parameters", name, getattr(self, name), hint)


@dataclass(frozen=True)
class JobSpec:
    """What is to be done.

    Attributes:
        input: the picture as it was received.
        parameters: what was asked of the encoder.
        codec: version of the codec that the job was accepted for.
        width, height: of the picture in pixels, where its header told.
        filename: what the client called the picture; for display only.
    """

    input: BlobRef
    parameters: Parameters
    codec: str
    width: int | None = None
    height: int | None = None
    filename: str | None = None

    def fingerprint(self) -> str:
        """Return the SHA-256 that equal work shares: input bytes, parameters, codec version."""
        work = {
            "input": self.input.sha256,
            "parameters": self.parameters.to_dict(),
            "codec": self.codec,
        }
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {name: value for name, value in asdict(self).items() if value is not None} | {
            "input": self.input.to_dict(),
            "parameters": self.parameters.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what ``to_dict`` wrote."""
        known = dict(values)
        try:
            return cls(
                input=BlobRef.from_dict(known.pop("input")),
                parameters=Parameters.from_dict(known.pop("parameters")),
                **known,
            )
        except (KeyError, TypeError) as error:
            raise Invalid(f"JobSpec: {error!r}") from error


@dataclass(frozen=True)
class IdempotencyClaim:
    """The right to answer an idempotency key; see ``jobs.idempotency``.

    Attributes:
        tenant: whose key it is.
        digest: SHA-256 of the key.
        nonce: tells this request from another with the same key.
        fingerprint: SHA-256 of body and fields, empty until they were read.
    """

    tenant: str
    digest: str
    nonce: str
    fingerprint: str = ""

    def with_fingerprint(self, fingerprint: str) -> IdempotencyClaim:
        """Return the claim with the body's fingerprint."""
        return IdempotencyClaim(self.tenant, self.digest, self.nonce, fingerprint)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise Invalid(
            f"metadata may have {MAX_METADATA_ENTRIES} entries at most; got {len(metadata)}"
        )
    for name, value in metadata.items():
        _check_type("metadata", "name", name, str)
        _check_type("metadata", name, value, str)
        if not 1 <= len(name) <= MAX_METADATA_CHARACTERS or len(value) > MAX_METADATA_CHARACTERS:
            raise Invalid(
                f"metadata names and values may have {MAX_METADATA_CHARACTERS} characters; "
                f"{name[:40]!r} or its value has more, or the name is empty"
            )


@dataclass(frozen=True)
class JobDraft:
    """A job that is about to be accepted. Its writing is ``spec.json`` of the journal.

    Attributes:
        id: new or client-chosen job id.
        tenant: whose job it is.
        spec: what is to be done.
        submitted_at: when the request came in.
        priority: 0 to 9, 9 is worked on first.
        queue: which workers it is for.
        metadata: the client's own notes, text to text.
        webhook: where to report the end, or None.
        batch: id of the batch that it belongs to, or None.
        deduplicate: whether an equal earlier job of the tenant may answer for it.
        idempotency: the idempotency key that it answers, or None.
    """

    id: str
    tenant: str
    spec: JobSpec
    submitted_at: datetime
    priority: int = DEFAULT_PRIORITY
    queue: str = DEFAULT_QUEUE
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook: str | None = None
    batch: str | None = None
    deduplicate: bool = True
    idempotency: IdempotencyClaim | None = None

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        if check_job_id(self.id) != self.id:
            raise Invalid(f"job id must be in lower case; got {self.id!r}")
        if self.priority not in PRIORITIES or isinstance(self.priority, bool):
            raise Invalid(f"priority must be 0 to 9; got {self.priority!r}")
        check_tenant(self.queue)  # queues are named by the same rule
        _check_metadata(self.metadata)
        to_milliseconds(self.submitted_at)

    def dedup_digest(self) -> str:
        """Return what two jobs share if one may answer for the other.

        The webhook is part of it: who asked to be told must be told.
        """
        text = f"{self.spec.fingerprint()} {self.webhook or ''}"
        return hashlib.sha256(text.encode()).hexdigest()

    def body_digest(self) -> str:
        """Return what two requests for the same job share: all that the client chose."""
        values = self.to_dict()
        for ours in ("submitted_at", "idempotency"):
            values.pop(ours, None)
        values["spec"]["input"].pop("key")
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        values: dict[str, Any] = {
            "schema": 1,
            "id": self.id,
            "tenant": self.tenant,
            "spec": self.spec.to_dict(),
            "submitted_at": self.submitted_at.isoformat(),
            "priority": self.priority,
            "queue": self.queue,
            "metadata": dict(self.metadata),
            "deduplicate": self.deduplicate,
        }
        if self.webhook is not None:
            values["webhook"] = self.webhook
        if self.batch is not None:
            values["batch"] = self.batch
        if self.idempotency is not None:
            values["idempotency"] = asdict(self.idempotency)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what ``to_dict`` wrote.

        Raises:
            Invalid: not what ``to_dict`` writes, or of a newer schema.
        """
        known = dict(values)
        try:
            schema = known.pop("schema")
            if schema != 1:
                raise Invalid(f"spec schema must be 1; got {schema!r}")
            idempotency = known.pop("idempotency", None)
            return cls(
                spec=JobSpec.from_dict(known.pop("spec")),
                submitted_at=datetime.fromisoformat(known.pop("submitted_at")),
                idempotency=None if idempotency is None else IdempotencyClaim(**idempotency),
                **known,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Invalid(f"JobDraft: {error!r}") from error


@dataclass(frozen=True)
class Progress(Plain):
    """How far a running job is, in the codec's terms.

    Attributes:
        phase: ``prepare``, ``fit``, ``quantise``, ``code`` or ``verify``.
        step, steps: of the recipe.
        iteration, iterations: within the step.
        tile, tiles: of the picture.
        loss: of the fit.
        psnr_db: estimate so far.
        bpp: estimated bits per pixel of the whole file.
        seconds: since the attempt began.
        eta_seconds: until the end.
        message: for people.
    """

    phase: str
    step: int = 0
    steps: int = 0
    iteration: int = 0
    iterations: int = 0
    tile: int = 0
    tiles: int = 1
    loss: float | None = None
    psnr_db: float | None = None
    bpp: float | None = None
    seconds: float = 0.0
    eta_seconds: float | None = None
    message: str | None = None


@dataclass(frozen=True)
class Failure(Plain):
    """Why a job failed.

    Attributes:
        code: stable, for programs: ``poisoned`` is ours, the worker adds its own.
        message: for people.
        detail: for the operator, or None.
    """

    code: str
    message: str
    detail: str | None = None


@dataclass(frozen=True)
class Attempt:
    """One worker's go at a job; ``end`` is None while it lasts.

    ``end`` is ``succeeded``, ``failed``, ``cancelled``, ``lost`` or ``released``.
    """

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    end: str | None = None


@dataclass(frozen=True)
class Lease:
    """The token that every write of a worker presents.

    Attributes:
        job_id: the job.
        attempt: the fencing number; grows with every claim.
        nonce: makes the token unique even if Redis lost its memory and counts attempts anew.
        worker: who holds it.
    """

    job_id: str
    attempt: int
    nonce: str
    worker: str


@dataclass(frozen=True)
class Orders:
    """What the service wants of a running job."""

    cancel: bool = False
    finish: bool = False


@dataclass(frozen=True)
class JobRecord:
    """A job as the store knows it. Times are UTC and come from the clock of Redis.

    Attributes:
        attempt: how often it was claimed; the fencing number of the latest claim.
        strikes: how many attempts were lost since it was queued by a person.
        result: the finished file, once succeeded.
        report: what the worker measured on the re-decoded file, once succeeded.
        version: grows with every change; good for an ETag.
        worker, lease_until: of the running attempt.
        started_at: of the latest attempt.
        published_at: when its latest wake-up was sent; None if one is due.
        not_before: it cannot be claimed before.
        previews: how many pictures of the running encode there were; the number of the latest.
        accepted: its submitter knows of it, so that it will not be taken back.
    """

    id: str
    tenant: str
    state: State
    queue: str
    priority: int
    attempt: int
    strikes: int
    spec: JobSpec
    progress: Progress | None
    result: BlobRef | None
    report: Mapping[str, Any] | None
    failure: Failure | None
    metadata: Mapping[str, str]
    webhook: str | None
    batch: str | None
    attempts: tuple[Attempt, ...]
    worker: str | None
    lease_until: datetime | None
    cancel_requested: bool
    finish_requested: bool
    version: int
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    published_at: datetime | None
    not_before: datetime | None
    previews: int = 0
    accepted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values of everything but the lease."""
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, datetime):
                value = value.isoformat()
            elif hasattr(value, "to_dict"):
                value = value.to_dict()
            elif isinstance(value, tuple):
                value = [_attempt_values(attempt) for attempt in value]
            elif isinstance(value, Mapping):
                value = dict(value)
            values[each.name] = value
        return values


def _attempt_values(attempt: Attempt) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(attempt).items()
    }


def _moment(text: str | None) -> datetime | None:
    return from_milliseconds(int(text)) if text else None


def _attempts(lines: str) -> tuple[Attempt, ...]:
    """Read the attempts that the scripts wrote, a JSON object per line."""
    attempts: dict[int, Attempt] = {}
    for line in filter(None, lines.split("\n")):
        values = json.loads(line)
        number = int(values["n"])
        if "end" in values:
            begun = attempts.get(number)
            if begun is None:
                continue  # its beginning was cut off, the list has a greatest length
            attempts[number] = Attempt(
                number, begun.worker, begun.started_at, _moment(values["at"]), values["end"]
            )
        else:
            started = from_milliseconds(int(values["at"]))
            attempts[number] = Attempt(number, values["worker"], started)
    return tuple(attempts.values())


def record_from_hash(values: Mapping[str, str]) -> JobRecord:
    """Build a record from the fields of its Redis hash (``jobs/lua/common.lua`` lists them).

    Raises:
        KeyError: a field that every record has is missing.
    """

    def parsed(name: str) -> Any:
        text = values.get(name)
        return json.loads(text) if text else None

    progress, result, failure = parsed("progress"), parsed("result"), parsed("failure")
    running = values["state"] == State.RUNNING
    return JobRecord(
        id=values["id"],
        tenant=values["tenant"],
        state=State(values["state"]),
        queue=values["queue"],
        priority=int(values["priority"]),
        attempt=int(values["attempt"]),
        strikes=int(values["strikes"]),
        spec=JobSpec.from_dict(json.loads(values["spec"])),
        progress=None if progress is None else Progress.from_dict(progress),
        result=None if result is None else BlobRef.from_dict(result),
        report=parsed("report"),
        failure=None if failure is None else Failure.from_dict(failure),
        metadata=parsed("metadata") or {},
        webhook=values.get("webhook"),
        batch=values.get("batch") or None,
        attempts=_attempts(values.get("attempts", "")),
        worker=values.get("worker") or None if running else None,
        lease_until=_moment(values.get("lease_until")) if running else None,
        cancel_requested=values.get("cancel") == "1",
        finish_requested=values.get("finish") == "1",
        version=int(values["version"]),
        created_at=from_milliseconds(int(values["created"])),
        queued_at=from_milliseconds(int(values["queued"])),
        started_at=_moment(values.get("started")),
        finished_at=_moment(values.get("finished")),
        updated_at=from_milliseconds(int(values["updated"])),
        published_at=_moment(values.get("published")),
        not_before=_moment(values.get("not_before")),
        previews=int(values.get("previews") or 0),
        accepted=values.get("accepted") == "1",
    )
