from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nifcore.architecture import Architecture
from nifcore.errors import ImpossibleTarget
from nifcore.header import CRC_BYTES, Colour, header_bytes
from nifcore.plan import (
    BITS_PER_PARAMETER,
    bpp_of_quality,
    frequencies_for,
    is_deep,
    modulation_widths,
    plan_rate,
    shapes_for,
    tile_count,
    widths,
)
from nifcore.presets import PRESETS


@pytest.mark.parametrize("name", [f"paper-{n}" for n in (120, 200, 280, 360, 450)])
def test_the_rule_follows_the_published_ladder(name):
    """At every rung's parameter count, the rule's networks are like the published ones."""
    published = PRESETS[name]
    size = Architecture(published.genesis, published.modulation, 3).parameters

    genesis, modulation = shapes_for(size, 768, deep=False)

    assert Architecture(genesis, modulation, 3).parameters == pytest.approx(size, rel=0.05)
    # within a third: the ladder itself is not smooth (its third layers go 40, 48, 70, 85)
    for ours, theirs in zip(genesis.hidden, published.genesis.hidden, strict=True):
        assert 0.66 < ours / theirs < 1.5
    assert genesis.frequencies == 16


@pytest.mark.parametrize(
    ("size", "parameters", "layers"),
    [
        ((768, 512), 15_000, 5),
        ((768, 512), 65_000, 5),
        ((768, 512), 66_000, 4),  # more than a weight for six pixels
        ((768, 512), 4_900, 4),
        ((192, 128), 4_500, 4),
        ((4043, 2641), 200_000, 5),
    ],
)
def test_photographs_at_usual_rates_get_a_fifth_layer(size, parameters, layers):
    width, height = size
    deep = is_deep(parameters, width * height)
    genesis, _ = shapes_for(parameters, max(size), deep=deep)
    assert len(genesis.hidden) == layers


@given(st.floats(100, 250_000), st.integers(8, 8192), st.booleans())
def test_networks_grow_with_the_parameters_and_never_exceed_them(parameters, side, deep):
    genesis, modulation = shapes_for(parameters, side, deep=deep)
    bigger, more = shapes_for(parameters * 1.5, side, deep=deep)

    arch = Architecture(genesis, modulation, 3)
    smallest = Architecture(*shapes_for(0, side, deep=deep), 3).parameters
    assert arch.parameters <= max(parameters, smallest)
    assert Architecture(bigger, more, 3).parameters >= arch.parameters


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("first", [4, 20, 120, 200, 360, 680])
def test_layers_narrow_towards_the_output(first, deep):
    sizes = widths(first, deep=deep)

    assert list(sizes[1:]) == sorted(sizes[1:], reverse=True)
    assert list(modulation_widths(first)) == sorted(modulation_widths(first), reverse=True)


@pytest.mark.parametrize(("side", "count"), [(768, 16), (218, 12), (8, 3), (4043, 21), (65535, 24)])
def test_frequencies_follow_the_longer_side(side, count):
    assert frequencies_for(side) == count


def test_quality_is_monotone_and_hits_its_anchors():
    rates = [bpp_of_quality(q) for q in range(1, 101)]

    assert rates == sorted(set(rates))
    assert (rates[0], rates[74], rates[99]) == pytest.approx((0.05, 0.45, 4.0))


@given(
    st.integers(8, 9000),
    st.integers(8, 5000),
    st.floats(0.1, 4.0),
    st.sampled_from(list(Colour)),
)
@settings(max_examples=150)
def test_every_picture_and_rate_has_a_plan_that_adds_up_or_a_reason(width, height, bpp, colour):
    size = width * height * bpp / 8
    if size < 500:  # whether a tiny file is possible depends on the shape
        with suppress(ImpossibleTarget):
            plan_rate(width, height, colour, size, 0)
        return

    plan = plan_rate(width, height, colour, size, 0)
    header = plan.header
    fixed = len(header_bytes(header)) + CRC_BYTES
    assert plan.budget_bits * header.tile_count / 8 + fixed <= size + 1
    assert header.parameters <= 1.26 * 260_000
    spent = plan.budget_bits / header.parameters
    assert spent >= 2.5
    if header.parameters > 2000:
        # one more unit in the first layer is up to 11 % more weights in a network of 2,000
        assert BITS_PER_PARAMETER * 0.99 <= spent <= BITS_PER_PARAMETER * 1.12


def test_a_target_below_the_smallest_file_says_how_small_it_gets():
    with pytest.raises(ImpossibleTarget, match=r"10 bytes asked.*smallest file for it has about"):
        plan_rate(768, 512, Colour.SRGB, 10, 0)


@pytest.mark.parametrize(
    ("width", "height", "parameters", "wanted"),
    [
        (500, 400, 60_000, 1),
        (768, 512, 7_500, 1),
        (768, 512, 17_900, 2),
        (768, 512, 240_000, 2),
        (2048, 1365, 94_000, 10),
        (5472, 3648, 100_000, 11),
        (5472, 3648, 15_000, 5),
        (8000, 6000, 33_000_000, 240),
        (700, 1000, 364_000, 4),
    ],
)
def test_tiles_bound_pixels_and_parameters_per_network(width, height, parameters, wanted):
    count = tile_count(width, height, parameters)

    assert count == wanted
    assert parameters / count <= 300_000
    assert width * height / count <= 5e6


def test_tiles_follow_what_divides_the_picture():
    def unevenly(box, tiles, share):
        return box[2] // 4, False

    plan = plan_rate(1200, 800, Colour.SRGB, 24_000, 0, unevenly)
    even = plan_rate(1200, 800, Colour.SRGB, 24_000, 0)

    boxes = [plan.header.tile_box(i) for i in range(plan.header.tile_count)]
    assert [w for _, _, w, _ in boxes] == [75, 225, 225, 675]
    assert all(h == 800 for *_, h in boxes)
    # what is fitted together has one shape
    assert even.header.cuts != plan.header.cuts
    assert (even.header.genesis, even.header.modulation) == (
        plan.header.genesis,
        plan.header.modulation,
    )
