"""Ctrl-C and SIGTERM during an encode, as answers to its ``control`` function."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

from nifcore.events import Control, ProgressEvent


class Interrupts:
    """Turns signals into what the encode is asked to do, while used as a context.

    The first Ctrl-C asks to code the best so far, or to cancel when nothing was fitted yet;
    the second cancels; a third does not wait for the encode to notice. SIGTERM cancels.

    Attributes:
        wanted: what :meth:`control` answers.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.wanted = Control.CONTINUE
        self._say = say
        self._something_to_keep = False
        self._before: dict[int, signal.Handlers | Callable[..., object] | int | None] = {}

    def __enter__(self) -> Interrupts:
        for number, handler in (
            (signal.SIGINT, self._on_interrupt),
            (signal.SIGTERM, self._on_terminate),
        ):
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def control(self) -> Control:
        """Answer the encode, which asks before every iteration."""
        return self.wanted

    def watch(self, event: ProgressEvent) -> None:
        """Note from the encode's progress when there is a state worth keeping."""
        if event.iteration > 0:
            self._something_to_keep = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is Control.CANCEL:
            raise KeyboardInterrupt
        if self.wanted is Control.CONTINUE and self._something_to_keep:
            self.wanted = Control.FINISH
            self._say("finishing: coding the best so far (Ctrl-C again stops without a file)")
        else:
            self._cancel()

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._cancel()

    def _cancel(self) -> None:
        self.wanted = Control.CANCEL
        self._say("stopping: no file will be written (once more does not wait)")


def say_in_signal(text: str) -> None:
    """Write a remark to stderr in a way that is safe in a signal handler."""
    os.write(sys.stderr.fileno(), f"nif: {text}\n".encode())
