"""The exceptions of the job service, as one tree.

::

    JobsError
    ├── NotFound              no such job, upload, key, worker, ..., or not this tenant's
    ├── WrongState            the asked transition is not allowed from the state the job is in
    ├── EndpointDisabled      nothing is sent to the webhook endpoint until it is enabled again
    ├── StaleLease            the writer no longer holds the job
    ├── ClaimRefused          the job cannot be claimed (now)
    ├── IdTaken               a client-chosen id belongs to something else
    ├── IdempotencyInFlight   another request with the same key is being worked on
    ├── IdempotencyMismatch   the same key came with another body
    ├── QuotaExceeded         a tenant's limit is reached
    ├── Invalid               a value that no later attempt can make right (also a ValueError)
    ├── Unavailable           a part that the service leans on does not answer; try again later
    │   ├── StoreUnavailable
    │   └── BlobsUnavailable
    └── BlobError
        ├── BlobNotFound
        ├── BlobExists        keys are written once
        ├── BlobDenied        the storage refuses our credentials
        ├── BlobDamaged       size or SHA-256 is not what was declared
        ├── RangeUnsatisfiable
        └── UrlRefused        a presigned URL is expired, altered or for another method
"""

from __future__ import annotations


class JobsError(Exception):
    """Base of every error that this package raises on purpose."""


class NotFound(JobsError):
    """There is no such thing, or it belongs to another tenant."""

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"no {kind} {identifier!r}")
        self.kind = kind
        self.id = identifier


class WrongState(JobsError):
    """The job is in a state from which the asked transition does not lead anywhere."""

    def __init__(self, job_id: str, state: str, wanted: str) -> None:
        super().__init__(f"{job_id} is {state}: {wanted} is not possible")
        self.job_id = job_id
        self.state = state
        self.wanted = wanted


class EndpointDisabled(JobsError):
    """The webhook endpoint is disabled: nothing is sent to it until it is enabled again."""

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(f"{endpoint_id} is disabled; enable it first")
        self.endpoint_id = endpoint_id


class StaleLease(JobsError):
    """The job was given to another attempt, ended, or is gone: stop and write nothing more."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"lease on {job_id} is stale: {reason}")
        self.job_id = job_id
        self.reason = reason


class ClaimRefused(JobsError):
    """The job is not to be worked on by the caller, at least not now.

    ``reason`` is one of ``missing``, ``deleted``, ``not_queued``, ``paused``, ``draining`` and
    ``not_due``. The wake-up that led here can be dropped in every case.
    """

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"claim of {job_id} refused: {reason}")
        self.job_id = job_id
        self.reason = reason


class IdTaken(JobsError):
    """The client-chosen id already names another job."""

    def __init__(self, identifier: str) -> None:
        super().__init__(f"{identifier} already names another job")
        self.id = identifier


class IdempotencyInFlight(JobsError):
    """A request with the same idempotency key has not been answered yet."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("a request with the same idempotency key is still being worked on")
        self.retry_after_seconds = retry_after_seconds


class IdempotencyMismatch(JobsError):
    """The idempotency key was used before, with another body."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"this idempotency key made {job_id} from another body")
        self.job_id = job_id


class QuotaExceeded(JobsError):
    """A limit of the tenant or key is reached."""

    def __init__(self, name: str, limit: int, used: int, retry_after_seconds: float) -> None:
        super().__init__(f"{name}: {used} of {limit} used")
        self.name = name
        self.limit = limit
        self.used = used
        self.retry_after_seconds = retry_after_seconds


class Invalid(JobsError, ValueError):
    """A value is malformed; the message says what was received and what is accepted."""


class Unavailable(JobsError):
    """A part of the service does not answer. Nothing was changed, or it can be repeated safely."""

    part = "service"

    def __init__(self, reason: str, retry_after_seconds: float = 5.0) -> None:
        super().__init__(f"{self.part} unavailable: {reason}")
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class StoreUnavailable(Unavailable):
    """Redis cannot be reached, is still loading, is out of memory, or is a read-only replica."""

    part = "store"


class BlobsUnavailable(Unavailable):
    """The object storage cannot be reached or answers with server errors, or the disk is full."""

    part = "blobs"


class BlobError(JobsError):
    """Base of what can be wrong with one blob."""

    what = "blob error"

    def __init__(self, key: str, detail: str = "") -> None:
        super().__init__(f"{self.what}: {key}" + (f" ({detail})" if detail else ""))
        self.key = key
        self.detail = detail


class BlobNotFound(BlobError):
    """Nothing is stored under the key."""

    what = "no blob"


class BlobExists(BlobError):
    """Something is already stored under the key; keys are written once."""

    what = "blob exists"


class BlobDenied(BlobError):
    """The storage refused the request: wrong credentials or no permission."""

    what = "access denied"


class BlobDamaged(BlobError):
    """What is stored has not the declared size or SHA-256."""

    what = "blob is not what was declared"


class RangeUnsatisfiable(BlobError):
    """The asked range begins at or after the end of the blob."""

    what = "range unsatisfiable"

    def __init__(self, key: str, size: int) -> None:
        super().__init__(key, f"it has {size} bytes")
        self.size = size


class UrlRefused(BlobError):
    """A presigned URL is not valid: ``reason`` is ``expired``, ``tampered`` or ``method``."""

    what = "URL refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
