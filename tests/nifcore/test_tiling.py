"""Cuts into tiles: every pixel in one tile, and parts as large as they are to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nifcore.errors import UsageError
from nifcore.tiling import boxes_of, by_area, cuts_into, horizontal, vertical
from tests.nifcore.strategies import cuts


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_tiles_cover_every_pixel_once(width: int, height: int, data: st.DataObject) -> None:
    covered = np.zeros((height, width), dtype=int)
    boxes = boxes_of(width, height, data.draw(cuts(width, height, 20)))
    for x, y, w, h in boxes:
        assert w >= 1
        assert h >= 1
        covered[y : y + h, x : x + w] += 1
    assert (covered == 1).all()
    assert covered.sum() == sum(w * h for _, _, w, h in boxes)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 14, 144])
def test_tiles_are_about_equal_without_a_reason(count: int) -> None:
    width, height = 6000, 4000
    boxes = boxes_of(width, height, cuts_into(width, height, count, by_area))
    areas = [w * h * count / (width * height) for _, _, w, h in boxes]
    assert len(boxes) == count
    assert min(areas) > 0.98
    assert max(areas) < 1.02
    assert all(1 / 3 < w / h < 3 for _, _, w, h in boxes)


def test_as_many_tiles_as_there_are_pixels_at_most() -> None:
    assert cuts_into(1, 1, 5, by_area) == ()
    assert boxes_of(3, 1, cuts_into(3, 1, 99, by_area)) == (
        (0, 0, 1, 1),
        (1, 0, 1, 1),
        (2, 0, 1, 1),
    )


def test_parts_come_in_the_order_of_the_page() -> None:
    inner = (vertical(10), horizontal(4), 0, vertical(2), 0, 0, 0)
    assert boxes_of(30, 20, inner) == (
        (0, 0, 10, 4),
        (0, 4, 2, 16),
        (2, 4, 8, 16),
        (10, 0, 20, 20),
    )


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((vertical(30), 0, 0), "a cut at 30 through a side of 30; 1 to 29"),
        ((horizontal(20), 0, 0), "a cut at 20 through a side of 20; 1 to 19"),
        ((1, 0, 0), "a cut at 0"),
        ((vertical(3), 0), "1 parts left"),
        ((vertical(3), 0, 0, 0), "complete before the last"),
        ((0,), "one tile is given as a cut"),
    ],
)
def test_what_are_no_cuts_is_refused(numbers: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        boxes_of(30, 20, numbers)
