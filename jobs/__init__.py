"""What a job of the compression service is: record, life, store, journal. Knows no HTTP, no torch.

`open_service` puts everything together; the errors are drawn as one tree in `jobs.errors`, the ways
between the states of a job in `jobs.lifecycle`.
"""

from jobs.access import Access, Admission, Seen
from jobs.audit import AuditEntry, AuditLog
from jobs.blobs import BlobInfo, BlobPage, Blobs, PresignedPut
from jobs.counters import COUNTERS, HISTOGRAMS, Counters, Histogram
from jobs.deliveries import (
    TROUBLES,
    Backlog,
    Deliveries,
    Delivery,
    DeliveryAttempt,
    DeliveryClaim,
    DeliveryPage,
    DeliveryState,
    Settled,
    Trouble,
    Verdict,
)
from jobs.endpoints import DisabledReason, Endpoint, EndpointCounts, Endpoints
from jobs.errors import (
    BlobDamaged,
    BlobDenied,
    BlobError,
    BlobExists,
    BlobNotFound,
    BlobsUnavailable,
    ClaimRefused,
    EndpointDisabled,
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
from jobs.events import EVENT_TYPES, Event, EventLog, EventType
from jobs.feed import Feed, Subscription
from jobs.file_blobs import FileBlobs, Grant
from jobs.history import History, Sample
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
from jobs.previews import Preview, Previews
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
from jobs.search import Found, JobSearch
from jobs.service import JobService, Submission, open_service
from jobs.settings import Settings, load_settings
from jobs.signing import SigningSecret
from jobs.storage import open_blobs
from jobs.store import Claim, JobFilter, JobPage, JobStore
from jobs.uploads import Upload, Uploads
from jobs.wakeups import NoWakeups, Wakeups
from jobs.webhook_events import DEFAULT_EVENTS, WEBHOOK_EVENTS, WebhookEvent
from jobs.webhook_urls import check_webhook_url
from jobs.workers import WorkerInfo, Workers, WorkerStatus

__all__ = [
    "COUNTERS",
    "DEFAULT_EVENTS",
    "EVENT_TYPES",
    "HISTOGRAMS",
    "TRANSITIONS",
    "TROUBLES",
    "WEBHOOK_EVENTS",
    "Access",
    "Admission",
    "Allowance",
    "ApiKey",
    "Attempt",
    "AuditEntry",
    "AuditLog",
    "Backlog",
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
    "Deliveries",
    "Delivery",
    "DeliveryAttempt",
    "DeliveryClaim",
    "DeliveryPage",
    "DeliveryState",
    "DisabledReason",
    "Endpoint",
    "EndpointCounts",
    "EndpointDisabled",
    "Endpoints",
    "Event",
    "EventLog",
    "EventType",
    "Failure",
    "Feed",
    "FileBlobs",
    "Found",
    "Grant",
    "Histogram",
    "History",
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
    "JobSearch",
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
    "Preview",
    "Previews",
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
    "Sample",
    "Scope",
    "Seen",
    "Settings",
    "Settled",
    "SigningSecret",
    "StaleLease",
    "State",
    "StoreUnavailable",
    "Submission",
    "Subscription",
    "Transition",
    "Trouble",
    "Unavailable",
    "Upload",
    "Uploads",
    "UrlRefused",
    "Verdict",
    "Wakeups",
    "WebhookEvent",
    "WorkerInfo",
    "WorkerStatus",
    "Workers",
    "WrongState",
    "check_job_id",
    "check_tenant",
    "check_webhook_url",
    "load_settings",
    "new_batch_id",
    "new_job_id",
    "new_upload_id",
    "new_worker_id",
    "open_blobs",
    "open_service",
    "reconcile",
]
