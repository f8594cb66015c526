"""Bjontegaard deltas against scipy's PCHIP and against curves with known distances."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from nifcore.bdrate import bd_psnr, bd_rate
from nifcore.errors import UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "published-rd.json"

Curve = list[tuple[float, float]]


def scipy_mean(xa: list[float], ya: list[float], xb: list[float], yb: list[float]) -> float:
    low, high = max(xa[0], xb[0]), min(xa[-1], xb[-1])
    a, b = PchipInterpolator(xa, ya), PchipInterpolator(xb, yb)
    return float(b.integrate(low, high) - a.integrate(low, high)) / (high - low)


def split(curve: Curve) -> tuple[list[float], list[float]]:
    ordered = sorted(curve)
    return [math.log10(rate) for rate, _ in ordered], [quality for _, quality in ordered]


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    steps = draw(
        st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.01, 6)), min_size=1, max_size=7)
    )
    rate, quality = draw(st.floats(0.05, 0.3)), draw(st.floats(20, 26))
    curve = [(rate, quality)]
    for rate_step, quality_step in steps:
        rate, quality = rate * math.exp(rate_step), quality + quality_step
        curve.append((rate, quality))
    return draw(st.permutations(curve))


@given(curves(), curves())
def test_both_deltas_are_scipys(anchor: Curve, test: Curve) -> None:
    (rate_a, quality_a), (rate_b, quality_b) = split(anchor), split(test)
    if max(quality_a[0], quality_b[0]) < min(quality_a[-1], quality_b[-1]) - 1e-3:
        expected = scipy_mean(quality_a, rate_a, quality_b, rate_b)
        assert bd_rate(anchor, test) == pytest.approx(100 * (10**expected - 1), abs=1e-6, rel=1e-6)
    if max(rate_a[0], rate_b[0]) < min(rate_a[-1], rate_b[-1]) - 1e-3:
        expected = scipy_mean(rate_a, quality_a, rate_b, quality_b)
        assert bd_psnr(anchor, test) == pytest.approx(expected, abs=1e-6, rel=1e-6)


ANCHOR: Curve = [(0.28, 28.3), (0.58, 30.9), (0.97, 33.2), (1.63, 35.6)]


def test_known_distances() -> None:
    halved = [(rate / 2, quality) for rate, quality in ANCHOR]
    lifted = [(rate, quality + 1.5) for rate, quality in ANCHOR]
    assert bd_rate(ANCHOR, halved) == pytest.approx(-50)
    assert bd_rate(halved, ANCHOR) == pytest.approx(100)
    assert bd_psnr(ANCHOR, lifted) == pytest.approx(1.5)
    assert bd_rate(ANCHOR, ANCHOR) == 0
    assert bd_psnr(ANCHOR, ANCHOR) == 0


def test_a_straight_line_through_two_points() -> None:
    # Quality is 10 dB per decade of rate for both, 3 dB apart.
    line = [(0.1, 20.0), (10.0, 40.0)]
    better = [(0.2, 26.010299957), (2.0, 36.010299957)]
    assert bd_psnr(line, better) == pytest.approx(3.0, abs=1e-8)
    assert bd_rate(line, better) == pytest.approx(100 * (10**-0.3 - 1), abs=1e-6)


def test_the_order_of_the_points_and_their_type_do_not_matter() -> None:
    test = [(rate * 0.8, quality) for rate, quality in ANCHOR]
    expected = bd_rate(ANCHOR, test)
    assert bd_rate(ANCHOR[::-1], iter(test)) == expected
    assert bd_rate(np.array(ANCHOR), np.array(test)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ([(0.5, 30.0)], "at least two"),
        ([], "at least two"),
        ([(0.0, 30.0), (1.0, 31.0)], "rates above 0"),
        ([(0.5, math.nan), (1.0, 31.0)], "finite"),
        ([(0.5, 30.0), (1.0, math.inf)], "finite"),
        ([(0.5, 31.0), (1.0, 30.0)], "the quality of the test does not rise"),
        ([(0.5, 31.0), (1.0, 31.0)], "does not rise"),
        ([(0.5, 31.0), (0.5, 32.0)], "does not rise"),
        ([(0.5, 35.6), (1.0, 40.0)], "no quality in common: the anchor spans 28.3 to 35.6"),
    ],
)
def test_curves_that_cannot_be_compared(test: Curve, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        bd_rate(ANCHOR, test)


def test_curves_without_a_common_rate() -> None:
    with pytest.raises(UsageError, match=r"no rate in common: .* 0\.28 to 1\.63, the test 2 to 4"):
        bd_psnr(ANCHOR, [(2.0, 30.0), (4.0, 33.0)])


def test_published_curves_of_the_literature() -> None:
    """The distances that a separate calculation gave for the published Kodak points."""
    if not SHARED.exists():
        pytest.skip("the shared table of published points is not here")
    kodak = json.loads(SHARED.read_text())["kodak"]

    def curve(name: str) -> Curve:
        return [(point["bpp"], point["psnr"]) for point in kodak[name]["points"]]

    known = {"COIN": 122, "Strumpler basic 8-bit": 12, "RECOMBINER": -34, "NIF25 (psnr)": -25}
    for name, expected in known.items():
        assert bd_rate(curve("NIF"), curve(name)) == pytest.approx(expected, abs=0.6)
