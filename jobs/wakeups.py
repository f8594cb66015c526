"""How workers are told that there is work. The message is a hint; the record is the truth."""

from __future__ import annotations

from typing import Protocol


class Wakeups(Protocol):
    """Carries job ids to workers; ``worker/`` implements it over Celery.

    Messages may be lost, repeated and reordered: a claim decides who works, and the reaper sends
    lost ones again.
    """

    def publish(self, job_id: str, *, priority: int, queue: str) -> None:
        """Send one wake-up. Any exception means that it may not have been sent."""

    def waiting(self, queue: str) -> int | None:
        """Return how many messages of the queue no worker has been given yet.

        None means that it cannot be told.
        """


class NoWakeups:
    """Publishes nothing, for tools that only look."""

    def publish(self, job_id: str, *, priority: int, queue: str) -> None:
        """Refuse: a job that is noted as published would wait in vain.

        Raises:
            RuntimeError: always; the reaper of a process with real wake-ups publishes instead.
        """
        raise RuntimeError("this process sends no wake-ups")

    def waiting(self, queue: str) -> int | None:
        """Return None."""
        return None
