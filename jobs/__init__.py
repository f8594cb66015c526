"""What a job of the compression service is: record, life, store, journal. Knows no HTTP, no torch.

`open_service` puts everything together; the errors are drawn as one tree in `jobs.errors`, the ways
between the states of a job in `jobs.lifecycle`.
"""

from jobs.blobs import BlobInfo, BlobPage, Blobs, PresignedPut
from jobs.counters import HISTOGRAMS, Counters, Histogram
from jobs.errors import (
    BlobDamaged,
    BlobDenied,
    BlobError,
    BlobExists,
    BlobNotFound,
    BlobsUnavailable,
    ClaimRefused,
    IdempotencyInFlight,
    IdempotencyMismatch,
    IdTaken,
    Invalid,
    JobsError,
    NotFound,
    QuotaExceeded,
    RangeUnsatisfiable,
    StaleLease,
    StoreUnavailable,
    Unavailable,
    UrlRefused,
    WrongState,
)
from jobs.events import Event, EventLog
from jobs.file_blobs import FileBlobs, Grant
from jobs.idempotency import Idempotency, Replay
from jobs.ids import (
    check_job_id,
    check_tenant,
    new_batch_id,
    new_job_id,
    new_upload_id,
    new_worker_id,
)
from jobs.journal import Journal, Outcome
from jobs.keys import ApiKey, KeyLimits, KeyRing, Scope
from jobs.lifecycle import TRANSITIONS, Transition
from jobs.outbox import Message, Outbox
from jobs.progress import ProgressReporter
from jobs.queues import Queues, QueueStats
from jobs.quotas import Allowance, Quotas
from jobs.reaper import Reaped, Reaper
from jobs.reconcile import Reconciled, reconcile
from jobs.record import (
    Attempt,
    BlobRef,
    Failure,
    IdempotencyClaim,
    JobDraft,
    JobRecord,
    JobSpec,
    Lease,
    Orders,
    Parameters,
    Progress,
    State,
)
from jobs.redis_server import RedisServer
from jobs.service import JobService, Submission, open_service
from jobs.settings import Settings, load_settings
from jobs.storage import open_blobs
from jobs.store import Claim, JobFilter, JobPage, JobStore
from jobs.uploads import Upload, Uploads
from jobs.wakeups import NoWakeups, Wakeups
from jobs.workers import WorkerInfo, Workers, WorkerStatus

__all__ = [
    "HISTOGRAMS",
    "TRANSITIONS",
    "Allowance",
    "ApiKey",
    "Attempt",
    "BlobDamaged",
    "BlobDenied",
    "BlobError",
    "BlobExists",
    "BlobInfo",
    "BlobNotFound",
    "BlobPage",
    "BlobRef",
    "Blobs",
    "BlobsUnavailable",
    "Claim",
    "ClaimRefused",
    "Counters",
    "Event",
    "EventLog",
    "Failure",
    "FileBlobs",
    "Grant",
    "Histogram",
    "IdTaken",
    "Idempotency",
    "IdempotencyClaim",
    "IdempotencyInFlight",
    "IdempotencyMismatch",
    "Invalid",
    "JobDraft",
    "JobFilter",
    "JobPage",
    "JobRecord",
    "JobService",
    "JobSpec",
    "JobStore",
    "JobsError",
    "Journal",
    "KeyLimits",
    "KeyRing",
    "Lease",
    "Message",
    "NoWakeups",
    "NotFound",
    "Orders",
    "Outbox",
    "Outcome",
    "Parameters",
    "PresignedPut",
    "Progress",
    "ProgressReporter",
    "QueueStats",
    "Queues",
    "QuotaExceeded",
    "Quotas",
    "RangeUnsatisfiable",
    "Reaped",
    "Reaper",
    "Reconciled",
    "RedisServer",
    "Replay",
    "Scope",
    "Settings",
    "StaleLease",
    "State",
    "StoreUnavailable",
    "Submission",
    "Transition",
    "Unavailable",
    "Upload",
    "Uploads",
    "UrlRefused",
    "Wakeups",
    "WorkerInfo",
    "WorkerStatus",
    "Workers",
    "WrongState",
    "check_job_id",
    "check_tenant",
    "load_settings",
    "new_batch_id",
    "new_job_id",
    "new_upload_id",
    "new_worker_id",
    "open_blobs",
    "open_service",
    "reconcile",
]
