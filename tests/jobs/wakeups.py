"""Wake-ups for tests."""

from __future__ import annotations


class ListWakeups:
    """Wake-ups that a test can look at, lose, and make fail."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str]] = []
        self.broken = False
        self.countable = True

    def publish(self, job_id: str, *, priority: int, queue: str) -> None:
        if self.broken:
            raise ConnectionError("no broker")
        self.sent.append((job_id, priority, queue))

    def waiting(self, queue: str) -> int | None:
        return sum(each[2] == queue for each in self.sent) if self.countable else None

    @property
    def ids(self) -> list[str]:
        return [job_id for job_id, _, _ in self.sent]
