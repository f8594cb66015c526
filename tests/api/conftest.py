"""One running service for all tests of the API; each test has a tenant of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import httpx2
import pytest

from jobs import RedisServer
from tests.api.running import ADMIN_KEY, Running, serving, settings_in

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    settings = settings_in(folder)
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        yield found


@pytest.fixture
def tenant() -> str:
    return f"tenant-{next(_numbers)}"


@pytest.fixture
def client(running: Running, tenant: str) -> Iterator[httpx2.Client]:
    with running.client(running.key(tenant)) as found:
        yield found


@pytest.fixture
def admin(running: Running) -> Iterator[httpx2.Client]:
    with running.client(ADMIN_KEY) as found:
        yield found
