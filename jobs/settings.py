"""Every setting of the service, in one frozen object from one factory.

Nothing else reads the environment. A setting is given as ``NIF_`` and its name in capitals
(``NIF_REDIS_URL``); ``docs/operations.md`` lists them all, and a test compares it with this file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.addresses import parse_networks
from jobs.errors import Invalid

MEBIBYTE = 1024 * 1024
_DECIMAL = re.compile(r"\d{1,7}(\.\d{1,6})?")
_WEEK_SECONDS = 7 * 86_400


class Settings(BaseSettings):
    """Settings of API, workers and tools."""

    model_config = SettingsConfigDict(
        env_prefix="NIF_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    # Where things are
    data_dir: Path = Field(
        Path("nif-data"), description="Folder of everything that is kept locally: Redis, blobs."
    )
    public_url: str = Field(
        "http://127.0.0.1:8000",
        description="How clients reach the service; the beginning of links it hands out.",
    )

    # Redis
    redis_url: str | None = Field(
        None,
        description="Redis to use: redis://, rediss:// or unix://. Without it the service looks "
        "for a server program and starts its own.",
    )
    redis_prefix: str = Field(
        "nif", pattern=r"^[A-Za-z0-9_-]+$", description="First part of every key in Redis."
    )
    redis_timeout_seconds: float = Field(
        5.0, gt=0, description="How long a call to Redis may take before it counts as down."
    )

    # Blobs
    blobs: Literal["file", "s3"] = Field(
        "file", description="Where pictures and results are kept: in files, or in S3."
    )
    s3_bucket: str | None = Field(None, description="Bucket; needed with NIF_BLOBS=s3.")
    s3_endpoint: str | None = Field(None, description="URL of the S3 server; without it AWS.")
    s3_public_endpoint: str | None = Field(
        None, description="URL of the S3 server in presigned links, if clients reach it elsewhere."
    )
    s3_region: str = Field("us-east-1", description="Region that requests are signed for.")
    s3_access_key: str | None = Field(
        None, description="Access key; without it the usual AWS sources are asked."
    )
    s3_secret_key: SecretStr | None = Field(None, description="Secret of the access key.")
    s3_prefix: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_.-]+/)*$",
        description="Put before every key; empty, or path parts that each end in a slash.",
    )
    s3_timeout_seconds: float = Field(
        30.0, gt=0, description="How long S3 may be silent before it counts as down."
    )
    url_secret: SecretStr | None = Field(
        None,
        description="Signs download and upload links of NIF_BLOBS=file. Without it one is made and "
        "kept in the data folder; several API machines must share it.",
    )

    # Jobs
    lease_seconds: float = Field(
        30.0, gt=0, description="A worker that is not heard of for so long loses its job."
    )
    heartbeat_seconds: float = Field(
        5.0, gt=0, description="How often a worker renews its lease and reads cancel and finish."
    )
    reaper_seconds: float = Field(10.0, gt=0, description="How often lost jobs are looked for.")
    max_attempts: int = Field(
        3, ge=1, description="A job whose worker was lost so often fails as poisoned."
    )
    republish_seconds: float = Field(
        60.0, gt=0, description="A wake-up older than this is sent again if the broker lost it."
    )
    retention_days: float = Field(
        30.0, ge=0, description="Ended jobs are deleted after so many days; 0 keeps them for ever."
    )
    queue_limit: int = Field(
        10_000, ge=0, description="Most jobs that may wait in one queue; 0 = any number."
    )
    events_per_job: int = Field(
        2000, ge=10, description="Events kept for one job, progress included."
    )
    events_per_tenant: int = Field(10_000, ge=10, description="Events kept for one tenant.")
    previews_per_job: int = Field(
        12, ge=0, le=100, description="Small pictures made of a running encode; 0 = none."
    )
    preview_seconds: float = Field(
        3600.0, gt=0, description="How long they are kept after the last one of a job."
    )
    idempotency_hours: float = Field(
        24.0, gt=0, description="How long an Idempotency-Key is remembered."
    )
    idempotency_lock_seconds: float = Field(
        120.0, gt=0, description="A request that holds an Idempotency-Key loses it after so long."
    )

    # Webhooks
    webhook_schedule_seconds: str = Field(
        "5,30,120,600,1800,3600,7200,14400,28800,43200,64800,86400",
        description="Waits between the attempts of a delivery, in seconds with commas; each is "
        "lengthened or shortened by up to a fifth. After the last one the delivery has failed.",
    )
    webhook_timeout_seconds: float = Field(
        15.0, gt=0, description="How long one attempt may take, from looking the host up."
    )
    webhook_concurrency: int = Field(
        32, ge=1, description="Deliveries that a light worker sends at the same time."
    )
    webhook_concurrency_per_host: int = Field(
        4, ge=1, description="Of these, to one host: a slow one does not hold up the others."
    )
    webhook_concurrency_per_tenant: int = Field(
        8, ge=1, description="Of these, of one tenant, to whatever hosts."
    )
    webhook_progress_seconds: float = Field(
        10.0, ge=0.001, description="job.progress is told once in so long for each job."
    )
    webhook_disable_days: float = Field(
        5.0, ge=0, description="An endpoint to which every attempt failed for so long is disabled."
    )
    webhook_retention_days: float = Field(
        7.0, gt=0, description="How long deliveries that were made or have failed are kept."
    )
    webhook_deliveries_per_endpoint: int = Field(
        2000,
        ge=1,
        description="Most deliveries to one endpoint that were made, and most that have failed, "
        "that are kept; the oldest go.",
    )
    webhook_deliveries_per_tenant: int = Field(
        10_000,
        ge=1,
        description="Likewise of one tenant: to all its endpoints, deleted ones and jobs' own "
        "webhooks.",
    )
    webhooks_per_tenant: int = Field(
        20, ge=0, description="Most endpoints of one tenant; 0 = any number."
    )
    webhook_allow_insecure: bool = Field(
        False,
        description="For development only: accept http:// and deliver to this machine itself.",
    )
    webhook_allow_networks: str = Field(
        "",
        description="Networks that webhooks may be sent to although they are not public, with "
        "commas, such as 10.1.0.0/16.",
    )

    # Uploads and links
    upload_ttl_seconds: int = Field(
        900, ge=1, description="How long a direct upload may take and wait to be used."
    )
    presign_ttl_seconds: int = Field(
        300, ge=1, description="How long a link to a result is good for."
    )

    # Keys and limits
    admin_key: SecretStr | None = Field(
        None,
        description="API key of the first administrator, nif_ and at least 32 characters. Without "
        "it `make serve` makes one and prints it once.",
    )
    requests_per_minute: int = Field(
        600, ge=0, description="Requests per API key and minute; 0 = any number."
    )
    jobs_per_day: int = Field(0, ge=0, description="Jobs per tenant and day; 0 = any number.")
    bytes_per_day: int = Field(
        0, ge=0, description="Bytes of pictures per tenant and day; 0 = any number."
    )
    active_jobs: int = Field(
        0, ge=0, description="Queued and running jobs per tenant; 0 = any number."
    )

    # API
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 = any free one.")
    max_upload_bytes: int = Field(
        64 * MEBIBYTE, ge=1, description="Largest picture that is accepted, in bytes."
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Largest picture that is accepted, in pixels."
    )
    max_files_per_batch: int = Field(100, ge=1, description="Most pictures in one batch.")
    upload_timeout_seconds: float = Field(
        60.0, gt=0, description="A request body may pause for so long."
    )
    min_upload_bytes_per_second: int = Field(
        1024, ge=0, description="A request body that is slower on average is cut off."
    )

    # Event streams
    streams: int = Field(
        2000, ge=0, description="Event streams that one API process keeps open; 0 = any number."
    )
    streams_per_tenant: int = Field(
        100, ge=0, description="Of them, those of one tenant; 0 = any number."
    )
    stream_heartbeat_seconds: float = Field(
        15.0, gt=0, description="A stream with no news says so often that it is alive."
    )
    stream_queue: int = Field(
        256, ge=1, description="Events that may wait for a slow reader of a stream."
    )

    # Workers
    workers: int = Field(1, ge=0, description="Encode workers that `make serve` starts.")
    device: str = Field("auto", description="Device of the workers: auto, cpu, cuda, cuda:1, ...")
    worker_gather: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Most waiting jobs of one tenant, of like size and parameters, that a worker "
        "encodes together; 1 = one at a time. Without it 16 on a GPU and 1 on a CPU.",
    )
    job_time_limit_seconds: float = Field(
        3600.0, gt=0, description="An attempt that takes longer is stopped and fails."
    )
    child_memory_bytes: int = Field(
        0, ge=0, description="Address space of the child that encodes, in bytes; 0 = no limit."
    )
    child_file_bytes: int = Field(
        512 * MEBIBYTE, ge=1, description="Largest file that the child may write, in bytes."
    )
    child_threads: int = Field(
        0, ge=0, description="Threads of the child that encodes; 0 = as many as torch likes."
    )
    calibrate: bool = Field(
        True,
        description="Whether a worker measures, once and while it is idle, how fast it encodes: a "
        "few seconds of work.",
    )
    checkpoint_seconds: float = Field(
        10.0, gt=0, description="How often the state of a running encode is kept."
    )
    stop_seconds: float = Field(
        20.0,
        gt=0,
        description="How long a worker that is told to stop may take to keep its state.",
    )

    # Seeing it
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages that are logged."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.blobs == "s3" and not self.s3_bucket:
            raise ValueError("NIF_BLOBS=s3 needs NIF_S3_BUCKET")
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("NIF_S3_ACCESS_KEY and NIF_S3_SECRET_KEY are given together or not")
        try:
            parse_networks(self.webhook_allow_networks)
        except ValueError as error:
            raise ValueError(f"NIF_WEBHOOK_ALLOW_NETWORKS: {error}") from None
        if not self.webhook_waits:
            raise ValueError(
                "NIF_WEBHOOK_SCHEDULE_SECONDS must be 1 to 50 numbers from 0 to 604800 with "
                f"commas; got {self.webhook_schedule_seconds!r:.100}"
            )
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "NIF_LEASE_SECONDS must be at least twice NIF_HEARTBEAT_SECONDS, or one late "
                f"heartbeat loses the job; got {self.lease_seconds} and {self.heartbeat_seconds}"
            )
        return self

    @property
    def webhook_waits(self) -> tuple[float, ...]:
        """Waits between the attempts of a delivery, in seconds."""
        parts = [each.strip() for each in self.webhook_schedule_seconds.split(",")]
        if len(parts) > 50 or not all(_DECIMAL.fullmatch(each) for each in parts):
            return ()
        waits = tuple(float(each) for each in parts)
        return waits if max(waits) <= _WEEK_SECONDS else ()


def load_settings(**overrides: Any) -> Settings:
    """Return the settings: ``overrides``, else ``NIF_*`` variables, else the defaults.

    Raises:
        Invalid: a value is not accepted; the message names the setting and what was received.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for each in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in each["loc"])
            lines.append(f"NIF_{name.upper()}: {each['msg']}" if name else each["msg"])
        raise Invalid("; ".join(lines)) from None
