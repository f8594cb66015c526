"""Rate limits and quotas: what a key and a tenant may use, and the headers that tell."""

from __future__ import annotations

from fastapi import Request

from api.context import Context
from api.problems import Problem, retry_after
from jobs import Allowance, ApiKey

_DAY = 24 * 60 * 60


def _limit(own: int | None, default: int) -> int:
    return default if own is None else own


def headers(allowance: Allowance) -> dict[str, str]:
    """Return the usual headers of a limit."""
    return {
        "RateLimit-Limit": str(allowance.limit),
        "RateLimit-Remaining": str(max(0, allowance.remaining)),
        "RateLimit-Reset": str(max(0, round(allowance.reset_seconds))),
    }


def check_rate(request: Request, allowance: Allowance | None) -> None:
    """Have what is left of a key's requests sent with the answer; None where they are not counted.

    Raises:
        Problem: ``rate_limited``.
    """
    if allowance is None:
        return
    request.state.rate_headers = headers(allowance)
    if not allowance.allowed:
        raise Problem(
            "rate_limited",
            f"{allowance.limit} requests a minute are allowed",
            headers=retry_after(allowance.retry_after_seconds),
            limit=allowance.limit,
        )


def take_job(shared: Context, key: ApiKey, size: int) -> None:
    """Count one job of ``size`` bytes against the tenant's day.

    Raises:
        Problem: ``quota_exceeded``.
    """
    settings = shared.settings
    for name, cost, limit in (
        ("jobs_per_day", 1, _limit(key.limits.jobs_per_day, settings.jobs_per_day)),
        ("bytes_per_day", size, _limit(key.limits.bytes_per_day, settings.bytes_per_day)),
    ):
        if not limit:
            continue
        allowance = shared.service.quotas.take(
            name, key.tenant, cost=cost, limit=limit, window_seconds=_DAY
        )
        if not allowance.allowed:
            raise Problem(
                "quota_exceeded",
                f"{limit} {name.replace('_per_day', '')} a day are allowed",
                headers=retry_after(allowance.retry_after_seconds),
                quota=name,
                limit=limit,
            )


def active_jobs(shared: Context, key: ApiKey) -> int:
    """Return how many jobs the tenant may have queued and running, 0 for any number."""
    return _limit(key.limits.active_jobs, shared.settings.active_jobs)


def check_queue(shared: Context, queue: str) -> None:
    """Refuse more work than may wait.

    Raises:
        Problem: ``queue_full``.
    """
    limit = shared.settings.queue_limit
    if limit and shared.service.queues.depth(queue) >= limit:
        raise Problem(
            "queue_full", f"{limit} jobs wait already", headers=retry_after(30), limit=limit
        )
