"""Estimates: from what workers measured and jobs took."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api import estimate
from api.estimate import Estimator
from jobs import Parameters, WorkerInfo
from jobs.ids import new_worker_id
from jobs.workers import CALIBRATION
from nifcore.calibration import ASSUMED, Calibration
from nifcore.workload import PARTS
from tests.api.asking import code_of, submit
from tests.api.running import Running, picture, serving, settings_in

WISH = Parameters(effort=1, bpp=0.45)
SIZE = (640, 480)


def times(factor: float) -> Calibration:
    """Return the calibration of a machine that takes so many times longer than is assumed."""
    coefficients = {
        family: {part: tuple(factor * each for each in parts[part]) for part in PARTS}
        for family, parts in ASSUMED.coefficients.items()
    }
    return replace(ASSUMED, identity=f"{factor} times", coefficients=coefficients)


def seconds_assumed() -> float:
    return ASSUMED.estimate(estimate.planned(WISH, *SIZE)[0])


@contextmanager
def working(running: Running, *facts: dict[str, Any]) -> Iterator[None]:
    """Have workers in the registry that publish these facts."""
    names = [new_worker_id(f"w{index}") for index, _ in enumerate(facts)]
    for name, each in zip(names, facts, strict=True):
        info = WorkerInfo(
            id=name,
            host=socket.gethostname(),
            pid=1,
            device="cpu",
            queues=("encode",),
            started_at=datetime.now(UTC),
            facts=each,
        )
        running.service.workers.beat(info)
    try:
        yield
    finally:
        for name in names:
            running.service.workers.gone(name)


@pytest.fixture
def fresh(running: Running, tmp_path: Path) -> Iterator[Running]:
    """A service in the same Redis that has neither workers nor jobs."""
    settings = settings_in(tmp_path, redis_prefix=f"t{secrets.token_hex(4)}")
    with serving(settings, running.redis) as found:
        yield found


def test_without_anything_known_a_machine_is_assumed(fresh: Running) -> None:
    found = Estimator(fresh.service).estimate(WISH, *SIZE)
    assert found.seconds == pytest.approx(seconds_assumed())
    assert not found.calibrated


def test_the_middle_of_the_fleet_counts(fresh: Running) -> None:
    facts = [{CALIBRATION: times(factor).to_dict()} for factor in (100.0, 3.0, 0.5)]
    # of a light worker, an older version, and one that publishes nonsense
    facts += [{"role": "light"}, {CALIBRATION: {"format": 0}}, {CALIBRATION: "quick"}]
    with working(fresh, *facts):
        found = Estimator(fresh.service).estimate(WISH, *SIZE)
    assert found.seconds == pytest.approx(3 * seconds_assumed())
    assert found.calibrated


def finished(running: Running, seconds: float, seed: int, **changes: Any) -> None:
    """Have a job that took so many times what is assumed of it."""
    asked = {"effort": 1} | changes.pop("asked", {"bpp": 0.45})
    with running.client(running.key("estimates")) as client:
        job = submit(client, picture(seed), **asked).json()["id"]
    report = {
        "width": SIZE[0],
        "height": SIZE[1],
        "seconds": seconds * seconds_assumed(),
        "complete": True,
        "bpp": 0.45,
        "psnr_db": 30.0,
    }
    running.succeed(job, report=report | changes)


def test_finished_jobs_correct_it_within_bounds(fresh: Running) -> None:
    with working(fresh, {CALIBRATION: times(2.0).to_dict()}):
        for seed, factor in enumerate((2.2, 3.0, 90.0)):
            finished(fresh, factor, seed)
        # neither of these says anything
        finished(fresh, 500.0, 11, asked={"psnr": 30})
        finished(fresh, 0.01, 12, complete=False)
        found = Estimator(fresh.service).estimate(WISH, *SIZE)
        assert found.seconds == pytest.approx(3.0 * seconds_assumed())
        for seed in range(20, 24):
            finished(fresh, 1000.0, seed)
        found = Estimator(fresh.service).estimate(WISH, *SIZE)
        assert found.seconds == pytest.approx(4 * 2.0 * seconds_assumed())


def test_jobs_alone_calibrate_too(fresh: Running) -> None:
    finished(fresh, 20.0, 1)
    found = Estimator(fresh.service).estimate(WISH, *SIZE)
    assert found.seconds == pytest.approx(20 * seconds_assumed())
    assert found.calibrated


def test_a_psnr_is_guessed_to_take_two_rounds() -> None:
    assert estimate.rounds(Parameters(psnr=30)) == 2
    assert estimate.rounds(WISH) == 1


def test_an_estimate_is_given(client: httpx2.Client) -> None:
    def ask(**asked: object) -> dict[str, float]:
        answer = client.post("/v1/estimate", json={"width": 1632, "height": 1224} | asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, float] = answer.json()
        return found

    assert ask(max_bytes=50_000)["bytes"] == 50_000
    assert ask(bpp=0.2)["bpp"] == 0.2
    assert ask(effort=9)["seconds"] > ask(effort=1)["seconds"] > 0
    assert ask(psnr=40)["bytes"] > ask(psnr=30)["bytes"]
    assert ask(preset="paper-680")["bytes"] > ask(preset="paper-120")["bytes"]
    assert ask()["wait_seconds"] >= 0
    for bad, code in (
        ({"width": 0, "height": 1}, "invalid_parameter"),
        ({"width": 8}, "invalid_parameter"),
        ({"width": 8, "height": 8, "bpp": 1, "psnr": 30}, "contradictory_parameters"),
        ({"width": 8, "height": 8, "size": 1}, "unknown_parameter"),
    ):
        assert code_of(client.post("/v1/estimate", json=bad)) == (422, code)
