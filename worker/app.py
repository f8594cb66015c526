"""The Celery application.

Celery moves wake-ups and nothing else: a message says which job to look at, and the job's record
says what is true. Losing or repeating a message is therefore harmless, and the settings below only
keep both rare.
"""

from __future__ import annotations

from celery import Celery  # type: ignore[import-untyped]

from jobs.errors import Invalid
from jobs.record import DEFAULT_QUEUE, PRIORITIES
from jobs.settings import Settings

ENCODE_TASK = "nif.encode"

LIMIT_MARGIN_SECONDS = 120.0
"""Our own time limit comes first, with a clear failure; Celery's is for a worker that hangs."""


def broker_priority(priority: int) -> int:
    """Return a job's priority (9 first) as the Redis transport counts it (0 first)."""
    return PRIORITIES[-1] - priority


def hard_limit_seconds(settings: Settings) -> float:
    """Return after how long a task is killed, however its attempt goes."""
    return settings.job_time_limit_seconds + settings.stop_seconds + 2 * LIMIT_MARGIN_SECONDS


def broker_url(settings: Settings) -> str:
    """Return the URL of Redis as Celery writes it: unix sockets are ``redis+socket://`` there.

    Raises:
        Invalid: no URL is set; whoever starts Redis sets it.
    """
    url = settings.redis_url
    if url is None:
        raise Invalid("NIF_REDIS_URL is not set: the worker needs a Redis that runs already")
    if url.startswith("unix://"):
        return "redis+socket://" + url.removeprefix("unix://")
    return url


def make_app(settings: Settings, *, queue: str = DEFAULT_QUEUE) -> Celery:
    """Return the application, configured and without tasks.

    Args:
        settings: of the service, ``redis_url`` set.
        queue: what a worker listens to.
    """
    broker = broker_url(settings)
    app = Celery("nif", broker=broker, set_as_current=False)
    hard_limit = hard_limit_seconds(settings)
    transport = {
        # A message is delivered again after this time, running task or not: later than any task.
        "visibility_timeout": round(hard_limit + LIMIT_MARGIN_SECONDS),
        "global_keyprefix": f"{settings.redis_prefix}:celery:",
        "priority_steps": list(PRIORITIES),
        "queue_order_strategy": "priority",
        "socket_timeout": settings.redis_timeout_seconds,
        "socket_connect_timeout": settings.redis_timeout_seconds,
        "socket_keepalive": not broker.startswith("redis+socket"),
        "health_check_interval": 25,
        "retry_on_timeout": True,
        # Of a publisher: one more try, then the reaper is the one to publish.
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.1,
        "interval_max": 0.2,
    }
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_default_queue=queue,
        task_create_missing_queues=True,
        task_soft_time_limit=hard_limit - LIMIT_MARGIN_SECONDS,
        task_time_limit=hard_limit,
        task_track_started=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        # A warm shutdown tells the running attempt to save its state and give the job back
        # (`worker.tasks`); a cold one leaves it as much time as that takes.
        worker_soft_shutdown_timeout=settings.stop_seconds,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options=transport,
        result_backend_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=settings.redis_timeout_seconds,
        broker_pool_limit=4,
        redis_socket_keepalive=transport["socket_keepalive"],
        redis_backend_health_check_interval=25,
        enable_utc=True,
        timezone="UTC",
    )
    return app
