"""The one connection to Redis: scripts, keys, and errors that mean something to callers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from jobs.errors import Invalid, StoreUnavailable
from jobs.lifecycle import lua_table
from jobs.record import from_milliseconds
from jobs.settings import Settings

# The first line of a script that uses what another file shares.
_NEEDS = re.compile(r"-- needs (\w+)\n")


def connect(url: str, *, timeout_seconds: float = 5.0, connections: int = 64) -> redis.Redis:
    """Return a client with a pool of connections, keepalive and few quick retries.

    Every script can be repeated safely, so that a retry after a lost reply does no harm.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url, **_options(url, timeout_seconds, connections), retry=Retry(_backoff(), retries=2)
    )
    client = redis.Redis(connection_pool=pool)
    # The pool was made for this client alone: closing the client closes it.
    client.auto_close_connection_pool = True
    return client


def connect_async(
    url: str, *, timeout_seconds: float = 5.0, connections: int = 64
) -> redis.asyncio.Redis:
    """Return a client like that of `connect`, for one event loop."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, **_options(url, timeout_seconds, connections), retry=AsyncRetry(_backoff(), retries=2)
    )
    return redis.asyncio.Redis.from_pool(pool)


def _options(url: str, timeout_seconds: float, connections: int) -> dict[str, Any]:
    return {
        "max_connections": connections,
        "timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "health_check_interval": 30,
        "decode_responses": True,
        **({} if url.startswith("unix") else {"socket_keepalive": True}),
    }


def _backoff() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(base=0.02, cap=0.2)


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
        self._settings = settings
        self._preamble = _preamble(settings)
        self._async_client: redis.asyncio.Redis | None = None
        self._async_scripts: dict[str, Callable[..., Any]] = {}
        self._script = functools.cache(self._register)

    def key(self, *parts: str) -> str:
        """Return the key of these parts below the prefix."""
        return ":".join((self.prefix, *parts))

    def _register(self, name: str) -> Callable[..., Any]:
        return self.client.register_script(self._preamble + _source(name))

    def run(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """Run ``jobs/lua/{name}.lua`` atomically and return its reply.

        Raises:
            StoreUnavailable: Redis does not answer or cannot write.
        """
        with translated():
            return self._script(name)(args=[self.prefix, *arguments])

    async def run_async(self, name: str, *arguments: str | int | float) -> Any:
        """Do as `run` does, without blocking; always in the same event loop.

        Raises:
            StoreUnavailable: Redis does not answer or cannot write.
        """
        script = self._async_scripts.get(name)
        if script is None:
            script = self._register_async(name)
        with translated():
            return await script(args=[self.prefix, *arguments])

    def _register_async(self, name: str) -> Callable[..., Any]:
        if self._async_client is None:
            if self._settings.redis_url is None:
                raise Invalid("asynchronous calls need NIF_REDIS_URL")
            self._async_client = connect_async(
                self._settings.redis_url, timeout_seconds=self._settings.redis_timeout_seconds
            )
        script = self._async_client.register_script(self._preamble + _source(name))
        self._async_scripts[name] = script
        return script

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
        """Close all connections, but for those of `run_async`."""
        self.client.close()

    async def close_async(self) -> None:
        """Close the connections of `run_async`, in its event loop."""
        if self._async_client is not None:
            await self._async_client.aclose()


def pairs(flat: list[str]) -> dict[str, str]:
    """Return a hash that a script answered as a flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


@functools.cache
def _source(name: str) -> str:
    text = (resources.files("jobs") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    shared = _NEEDS.match(text)
    return text if shared is None else _source(shared[1]) + text


def _preamble(settings: Settings) -> str:
    limits = {
        "lease_ms": settings.lease_seconds * 1000,
        "max_attempts": settings.max_attempts,
        "events_per_job": settings.events_per_job,
        "events_per_tenant": settings.events_per_tenant,
        "previews_per_job": settings.previews_per_job,
        "preview_ms": settings.preview_seconds * 1000,
        "webhook_progress_ms": settings.webhook_progress_seconds * 1000,
        "webhook_endpoint_kept": settings.webhook_deliveries_per_endpoint,
        "webhook_tenant_kept": settings.webhook_deliveries_per_tenant,
        "idempotency_ms": settings.idempotency_hours * 3_600_000,
        "idempotency_lock_ms": settings.idempotency_lock_seconds * 1000,
    }
    table = ", ".join(f"{name} = {round(value)}" for name, value in limits.items())
    return f"local TRANSITIONS = {lua_table()}\nlocal LIMITS = {{{table}}}\n" + _source("common")
