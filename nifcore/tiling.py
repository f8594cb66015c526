"""How a picture is cut into tiles: by straight cuts, each through one part of what is left.

A file keeps the cuts as numbers, the first part before the second (preorder): 0 is a part that
stays whole, a tile; 2d cuts a part d columns from its left edge, 2d + 1 cuts it d rows from its
top. No cut at all is the empty tuple. Standard library only: headers are read with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nifcore.errors import UsageError

Box = tuple[int, int, int, int]
"""A part of a picture: (x, y, width, height) in pixels."""
Cuts = tuple[int, ...]
Divider = Callable[[Box, int, float], tuple[int, bool]]
"""Where to cut a part: given the part, the tiles that it is to become and the share of what it
holds that the first part gets, how many pixels the first part is to span, and whether the cut is
horizontal."""


def vertical(columns: int) -> int:
    """Return the number of a cut that many columns from the left, 1 and more."""
    return 2 * columns


def horizontal(rows: int) -> int:
    """Return the number of a cut that many rows from the top, 1 and more."""
    return 2 * rows + 1


def boxes_of(width: int, height: int, cuts: Sequence[int]) -> tuple[Box, ...]:
    """Return the tiles of a picture in file order.

    Raises:
        UsageError: the numbers are no cuts of such a picture.
    """
    if not cuts:
        return ((0, 0, width, height),)
    boxes: list[Box] = []
    waiting = [(0, 0, width, height)]
    for number in cuts:
        if not waiting:
            raise UsageError(f"{len(cuts)} cuts are given; the picture is complete before the last")
        x, y, w, h = waiting.pop()
        if number == 0:
            boxes.append((x, y, w, h))
            continue
        at, is_horizontal = divmod(number, 2)
        side = h if is_horizontal else w
        if not 1 <= at < side:
            raise UsageError(f"a cut at {at} through a side of {side}; 1 to {side - 1} is accepted")
        if is_horizontal:
            waiting += [(x, y + at, w, h - at), (x, y, w, at)]
        else:
            waiting += [(x + at, y, w - at, h), (x, y, at, h)]
    if waiting:
        raise UsageError(f"the cuts end with {len(waiting)} parts left")
    if len(boxes) == 1:
        raise UsageError("one tile is given as a cut; no cuts are accepted for it")
    return tuple(boxes)


def cuts_into(width: int, height: int, count: int, divide: Divider) -> Cuts:
    """Cut a picture into ``count`` tiles, halving their number again and again.

    Fewer come out where the picture has too few pixels.

    Args:
        divide: tells where; its answer is moved inside the part.
    """
    cuts: list[int] = []
    waiting = [((0, 0, width, height), count)]
    while waiting:
        box, tiles = waiting.pop()
        x, y, w, h = box
        if tiles < 2 or w * h < 2:
            cuts.append(0)
            continue
        first = tiles // 2
        at, is_horizontal = divide(box, tiles, first / tiles)
        if (h if is_horizontal else w) < 2:
            is_horizontal = not is_horizontal
        at = min(max(at, 1), (h if is_horizontal else w) - 1)
        if is_horizontal:
            cuts.append(horizontal(at))
            parts = (x, y, w, at), (x, y + at, w, h - at)
        else:
            cuts.append(vertical(at))
            parts = (x, y, at, h), (x + at, y, w - at, h)
        waiting += [(parts[1], tiles - first), (parts[0], first)]
    return tuple(cuts) if len(cuts) > 1 else ()


def by_area(box: Box, tiles: int, share: float) -> tuple[int, bool]:
    """Cut the longer side so that the parts' areas are as the share says."""
    _, _, w, h = box
    return round(share * max(w, h)), h > w
