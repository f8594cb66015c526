"""The one connection to Redis: scripts, keys, and errors that mean something to callers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from jobs.errors import StoreUnavailable
from jobs.lifecycle import lua_table
from jobs.record import from_milliseconds
from jobs.settings import Settings


def connect(url: str, *, timeout_seconds: float = 5.0, connections: int = 64) -> redis.Redis:
    """Return a client with a pool of connections, keepalive and few quick retries.

    Every script can be repeated safely, so that a retry after a lost reply does no harm.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        health_check_interval=30,
        decode_responses=True,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=2),
        **({} if url.startswith("unix") else {"socket_keepalive": True}),
    )
    client = redis.Redis(connection_pool=pool)
    # The pool was made for this client alone: closing the client closes it.
    client.auto_close_connection_pool = True
    return client


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of Redis that a later try may not meet into `StoreUnavailable`."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error
    except (redis.ReadOnlyError, redis.OutOfMemoryError, redis.ResponseError) as error:
        text = str(error)
        passing = ("READONLY", "OOM", "LOADING", "MISCONF", "MASTERDOWN", "NOREPLICAS")
        if isinstance(error, (redis.ReadOnlyError, redis.OutOfMemoryError)) or any(
            word in text[:200] for word in passing
        ):
            raise StoreUnavailable(text) from error
        raise


class Database:
    """A Redis client with the key prefix and the scripts of ``jobs/lua``.

    Args:
        client: with ``decode_responses=True``.
        settings: prefix and limits.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.client = client
        self.prefix = settings.redis_prefix
        self._preamble = _preamble(settings)
        self._script = functools.cache(self._register)

    def key(self, *parts: str) -> str:
        """Return the key of these parts below the prefix."""
        return ":".join((self.prefix, *parts))

    def _register(self, name: str) -> Callable[..., Any]:
        return self.client.register_script(self._preamble + _source(name))

    def run(self, name: str, *arguments: str | int | float) -> Any:
        """Run ``jobs/lua/{name}.lua`` atomically and return its reply.

        Raises:
            StoreUnavailable: Redis does not answer or cannot write.
        """
        with translated():
            return self._script(name)(args=[self.prefix, *arguments])

    def call(self, command: str, *arguments: str | int | float) -> Any:
        """Run one command and return its reply.

        Raises:
            StoreUnavailable: Redis does not answer or cannot write.
        """
        with translated():
            return getattr(self.client, command)(*arguments)

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        """Yield a pipeline without a transaction; errors are translated."""
        with translated(), self.client.pipeline(transaction=False) as pipeline:
            yield pipeline

    def now_milliseconds(self) -> int:
        """Return the clock of Redis, in Unix milliseconds."""
        seconds, microseconds = self.call("time")
        return int(seconds) * 1000 + int(microseconds) // 1000

    def now(self) -> datetime:
        """Return the clock of Redis."""
        return from_milliseconds(self.now_milliseconds())

    def check(self) -> None:
        """Raise `StoreUnavailable` unless Redis answers."""
        self.call("ping")

    def close(self) -> None:
        """Close all connections."""
        self.client.close()


def pairs(flat: list[str]) -> dict[str, str]:
    """Return a hash that a script answered as a flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


@functools.cache
def _source(name: str) -> str:
    return (resources.files("jobs") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _preamble(settings: Settings) -> str:
    limits = {
        "lease_ms": settings.lease_seconds * 1000,
        "max_attempts": settings.max_attempts,
        "events_per_job": settings.events_per_job,
        "events_per_tenant": settings.events_per_tenant,
        "idempotency_ms": settings.idempotency_hours * 3_600_000,
        "idempotency_lock_ms": settings.idempotency_lock_seconds * 1000,
    }
    table = ", ".join(f"{name} = {round(value)}" for name, value in limits.items())
    return f"local TRANSITIONS = {lua_table()}\nlocal LIMITS = {{{table}}}\n" + _source("common")
