"""Waking the workers: a Celery message with a job's id and nothing else."""

from __future__ import annotations

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.settings import Settings
from worker.app import ENCODE_TASK, broker_priority, make_app


class CeleryWakeups:
    """`jobs.Wakeups` over Celery. Thread-safe; connects when first used.

    Args:
        settings: of the service, ``redis_url`` set.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What `publish` may raise."""
        return (OperationalError, OSError)

    def publish(self, job_id: str, *, priority: int, queue: str) -> None:
        """Wake a worker of ``queue`` for a job.

        Raises:
            kombu.exceptions.OperationalError: the broker does not answer.
        """
        self._app.send_task(
            ENCODE_TASK,
            kwargs={"job_id": job_id},
            queue=queue,
            priority=broker_priority(priority),
            retry=False,
        )

    def waiting(self, queue: str) -> int | None:
        """Return how many wake-ups wait for a worker, or None if the broker cannot tell.

        Those that a worker is busy with are not counted: their jobs are not waiting any more.
        """
        try:
            with self._app.connection_for_write() as connection, connection.channel() as channel:
                return int(channel._size(queue))
        except (OperationalError, RedisError, OSError):
            return None

    def close(self) -> None:
        """Close the connections."""
        self._app.close()
