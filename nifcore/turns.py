"""Something that every one of several fits does at its own next iteration, once a pause is over."""

from __future__ import annotations

import math
from collections.abc import Collection


class Turns:
    """See the module's text; times are seconds of one clock.

    Args:
        begin: when the first pause began; there is none unless given.
    """

    def __init__(self, begin: float = -math.inf) -> None:
        self._last: dict[int, float] = {}
        self._completed = begin

    def forget(self) -> None:
        """Other tiles come; the pause goes on."""
        self._last.clear()

    def due(self, tile: int, now: float, pause: float) -> bool:
        """Tell whether it is a tile's turn."""
        return now - self._last.get(tile, self._completed) >= pause

    def taken(self, tile: int, now: float, pause: float, working: Collection[int]) -> bool:
        """A tile had its turn; tell whether all at work did, or were waited for in vain."""
        self._last[tile] = now
        since = self._completed if self._completed > -math.inf else min(self._last.values())
        missing = any(self._last.get(each, -math.inf) <= self._completed for each in working)
        if missing and now - since < 2.0 * pause:
            return False
        self._completed = now
        return True
