"""Estimates against what encodes took."""

from __future__ import annotations

import httpx2
import pytest

from api import estimate
from jobs import Parameters
from tests.api.asking import code_of


def test_passes_are_those_that_an_encode_reported() -> None:
    # ``nif encode -e 1 --bpp 0.45`` on 256x256 and 512x512: passes 100 and 44.4, weights 4940 and
    # 19936, 2.8 and 13.2 seconds on one busy core.
    for side, passes, weights in ((256, 100.0, 4940), (512, 44.44, 19936)):
        amount, size = estimate.work(Parameters(effort=1, bpp=0.45), side, side)
        assert size == 0.45 * side * side / 8
        assert amount == pytest.approx(side * side * passes * weights, rel=0.03)
        seconds = amount * estimate.ASSUMED_RATE
        assert 0.5 < seconds / {256: 2.8, 512: 13.2}[side] < 2


def test_the_rate_is_measured_on_reports() -> None:
    report = {"width": 10, "height": 10, "passes": 2, "parameters": 100, "tiles": 1, "seconds": 4.0}
    assert estimate.measured_rate([report, {"width": 3}, {**report, "seconds": None}]) == 4 / 20000
    assert estimate.measured_rate([]) is None


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
