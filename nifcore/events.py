"""What an encode tells its caller while it runs, and what the caller can ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

Phase = Literal["prepare", "fit", "quantise", "code", "verify"]


class Control(Enum):
    """What the caller wants of a running encode, asked before every iteration."""

    CONTINUE = "continue"
    FINISH = "finish"
    """Stop fitting, quantise and code the best state so far."""
    CANCEL = "cancel"
    """Stop at once and raise :class:`nifcore.errors.Cancelled`."""


@dataclass(frozen=True)
class ProgressEvent:
    """One moment of an encode.

    Attributes:
        phase: what is being done.
        tile, tiles: how many tiles are done, of how many; several may be at work.
        step, steps: the fitting or quantisation step (1-based) of how many, of one at work.
        iteration, iterations: optimiser iterations done and planned, over the whole encode.
        loss: latest training loss of a tile at work, or None outside fitting.
        psnr_db: latest estimate of the PSNR in dB, or None before the first.
        bpp: of the whole file: as planned at first, as the coder counts the weights once they are
            trained for the rate; None where nothing is planned (published presets).
        seconds: since the encode began.
        eta_seconds: estimated seconds left, or None while unknown; of the present round where a
            PSNR is asked for and several sizes may be tried.
        preview: uint8 (height, width, channels), the whole picture as it looks by now, at most 256
            pixels on its longer side; present only now and then.
        message: a sentence worth showing (a restart, a recovery), or None.
    """

    phase: Phase
    tile: int = 0
    tiles: int = 1
    step: int = 1
    steps: int = 1
    iteration: int = 0
    iterations: int = 0
    loss: float | None = None
    psnr_db: float | None = None
    bpp: float | None = None
    seconds: float = 0.0
    eta_seconds: float | None = None
    preview: NDArray[Any] | None = None
    message: str | None = None


ProgressFunction = Callable[[ProgressEvent], None]
ControlFunction = Callable[[], Control | None]


class Checkpoint(Protocol):
    """Where an encode keeps its state so that a later run can go on from it."""

    def load(self) -> bytes | None:
        """Return the last saved state, or None if there is none."""

    def save(self, data: bytes) -> None:
        """Keep ``data``; a partial write must never replace a whole one."""
