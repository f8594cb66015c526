"""Limits on how much may be used in a span of time, counted over a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.database import Database
from jobs.errors import Invalid


@dataclass(frozen=True)
class Allowance:
    """The answer to one taking.

    Attributes:
        allowed: whether it was taken.
        limit: the most per window; 0 = any number.
        remaining: what is left now.
        reset_seconds: until nothing counts any more, if nothing more is taken.
        retry_after_seconds: until the same taking could be allowed; 0 if it was.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float
    retry_after_seconds: float


class Quotas:
    """Takes from quotas, atomically."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(
        self, name: str, subject: str, *, cost: int = 1, limit: int, window_seconds: int
    ) -> Allowance:
        """Take ``cost`` from the quota ``name`` of ``subject``, if that much is left.

        The window slides: it counts the running window of the clock, and of the one before the
        share that the last ``window_seconds`` still cover, as if its use had been even.

        Args:
            name: of the quota, such as ``requests``.
            subject: key id or tenant.
            cost: how much; nothing is taken if it is not all there.
            limit: most per window; 0 = any number.
            window_seconds: length of the window.

        Raises:
            Invalid: a negative cost or limit, or no window.
        """
        if cost < 0 or limit < 0 or window_seconds <= 0:
            raise Invalid(
                "cost and limit must not be negative and the window must be positive; got "
                f"{cost}, {limit}, {window_seconds}"
            )
        if limit == 0:
            return Allowance(True, 0, 0, 0.0, 0.0)
        reply = self._database.run("quota", name, subject, cost, limit, window_seconds * 1000)
        allowed, remaining, reset, retry = (int(value) for value in reply)
        return Allowance(bool(allowed), limit, remaining, reset / 1000, retry / 1000)
