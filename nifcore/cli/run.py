"""Running an encode with its display, its checkpoint and the answers to Ctrl-C."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from nifcore.cli import inputs
from nifcore.cli.checkpoint import FileCheckpoint
from nifcore.cli.interrupts import Interrupts, say_in_signal
from nifcore.cli.request import Request
from nifcore.config import Settings
from nifcore.errors import Cancelled
from nifcore.events import Control, ProgressEvent

if TYPE_CHECKING:
    from nifcore import Encoded
    from nifcore.picture import Picture


class Run:
    """Encodes pictures one after another, with the display and the answers to Ctrl-C.

    Args:
        settings: limits, above all.
        progress: whether to show the live display.
        checkpoint: where the state is kept, if anywhere.

    Attributes:
        interrupted: whether the last encode was asked to end early.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        progress: bool,
        checkpoint: FileCheckpoint | None = None,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._checkpoint = checkpoint
        self.interrupted = False

    def encode(self, source: str, request: Request) -> tuple[Picture, Encoded]:
        """Read and encode one picture; returns it and the result."""
        from nifcore.picture import read_picture

        limits = self._settings.limits()
        data = inputs.read(source, limits)
        # Read here too, before torch is loaded: most mistakes show at once.
        picture = read_picture(data, limits, request.keep_icc)
        with ExitStack() as stack:
            if self._progress:
                from nifcore.cli.progress import Display

                display = stack.enter_context(Display(source, picture.width * picture.height))
                interrupts = Interrupts(display.notice)
                watchers = [interrupts.watch, display.show]
            else:
                interrupts = Interrupts(say_in_signal)
                watchers = [interrupts.watch]
            stack.enter_context(interrupts)

            def progress(event: ProgressEvent) -> None:
                for watcher in watchers:
                    watcher(event)

            import nifcore

            try:
                encoded = nifcore.encode(
                    data,
                    **asdict(request),
                    progress=progress,
                    checkpoint=self._checkpoint,
                    control=interrupts.control,
                    limits=limits,
                )
            finally:
                self.interrupted = interrupts.wanted is not Control.CONTINUE
        if interrupts.wanted is Control.CANCEL:
            # Asked for after the last iteration, where the encode asks no more.
            raise Cancelled("cancelled")
        return picture, encoded
