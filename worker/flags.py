"""A few bytes that the processes of one worker share: what it has been told."""

from __future__ import annotations

import mmap

_STOPPING, _DRAINING, _PAUSED = range(3)


class Flags:
    """Made before the worker forks; every process then sees what any of them sets.

    Setting a flag is one byte into shared memory, so that a signal handler may do it.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 3)

    @property
    def stopping(self) -> bool:
        """The worker shuts down: save the state, give the job back."""
        return self._bytes[_STOPPING] == 1

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._bytes[_STOPPING] = int(value)

    @property
    def draining(self) -> bool:
        """Finish the job at hand and take no other."""
        return self._bytes[_DRAINING] == 1

    @draining.setter
    def draining(self, value: bool) -> None:
        self._bytes[_DRAINING] = int(value)

    @property
    def paused(self) -> bool:
        """Nothing may be taken from the queue at present."""
        return self._bytes[_PAUSED] == 1

    @paused.setter
    def paused(self, value: bool) -> None:
        self._bytes[_PAUSED] = int(value)

    @property
    def holding(self) -> bool:
        """No wake-up is to be taken, for whatever reason."""
        return self.stopping or self.draining or self.paused
