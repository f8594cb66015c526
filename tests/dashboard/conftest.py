"""One running API for the tests without a browser; each has a tenant of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from jobs import RedisServer, Scope
from tests.api.running import ADMIN_KEY, Running, serving, settings_in
from tests.dashboard.visiting import Visit

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = settings_in(tmp_path_factory.mktemp("dashboard"))
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh_attempts(request: pytest.FixtureRequest) -> None:
    """Forget how often somebody tried to sign in: all tests come from one address."""
    if "running" in request.fixturenames:
        database = request.getfixturevalue("running").service.database
        for name in database.client.scan_iter(f"{database.prefix}:quota:dashboard_logins*"):
            database.client.delete(name)


@pytest.fixture
def tenant() -> str:
    return f"tenant-{next(_numbers)}"


@pytest.fixture
def visits(running: Running) -> Iterator[Callable[[str | None], Visit]]:
    made: list[Visit] = []

    def visit(key: str | None = None) -> Visit:
        made.append(Visit(running, key))
        return made[-1]

    yield visit
    for each in made:
        each.close()


@pytest.fixture
def writer(running: Running, visits: Callable[[str], Visit], tenant: str) -> Visit:
    return visits(running.key(tenant))


@pytest.fixture
def reader(running: Running, visits: Callable[[str], Visit], tenant: str) -> Visit:
    return visits(running.key(tenant, Scope.JOBS_READ))


@pytest.fixture
def admin(visits: Callable[[str], Visit]) -> Visit:
    return visits(ADMIN_KEY)
