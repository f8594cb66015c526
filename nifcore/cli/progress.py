"""The live display of a running encode on a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nifcore.events import ProgressEvent

_PHASES = {
    "prepare": "preparing",
    "fit": "fitting",
    "quantise": "quantising",
    "code": "coding",
    "verify": "verifying",
}


class Display:
    """Two lines on stderr that follow an encode, gone when it ends. Used as a context.

    Args:
        title: what is being encoded.
        pixels: width times height, to turn bits per pixel into bytes.
    """

    def __init__(self, title: str, pixels: int) -> None:
        self._title = title
        self._pixels = pixels
        self._event = ProgressEvent(phase="prepare")
        self._notice: str | None = None
        self._console = Console(stderr=True)
        # Drawn by a thread of its own, so that a long step does not freeze it.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, event: ProgressEvent) -> None:
        """Take the latest event; a message in it is printed above the display, to stay."""
        self._event = event
        if event.message:
            self._console.print(Text(f"nif: {event.message}"))

    def notice(self, text: str) -> None:
        """Show a line below the display until it ends; safe to call in a signal handler."""
        self._notice = text

    def _render(self) -> RenderableType:
        event = self._event
        where = _PHASES[event.phase]
        if event.steps > 1:
            where += f" {event.step}/{event.steps}"
        if event.tiles > 1:
            where += f", {event.tile} of {event.tiles} tiles done"
        share = min(1.0, event.iteration / event.iterations) if event.iterations else 0.0
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=3)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(self._title),
            Text(where, style="bold"),
            ProgressBar(total=1.0, completed=share),
            Text(f"{share:4.0%}"),
        )
        lines: list[RenderableType] = [bar, Text("  ".join(self._numbers(event)))]
        if self._notice is not None:
            lines.append(Text(f"nif: {self._notice}", style="bold"))
        return Group(*lines)

    def _numbers(self, event: ProgressEvent) -> list[str]:
        numbers = []
        if event.psnr_db is not None:
            numbers.append(f"PSNR {event.psnr_db:.2f} dB")
        if event.bpp is not None:
            size = event.bpp * self._pixels / 8
            numbers.append(f"about {size:,.0f} bytes ({event.bpp:.3f} bpp)")
        numbers.append(f"{_clock(event.seconds)} elapsed")
        if event.eta_seconds is not None:
            numbers.append(f"{_clock(event.eta_seconds)} left")
        return numbers


def _clock(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
