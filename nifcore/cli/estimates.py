"""What the commands say about time before it has passed."""

from __future__ import annotations

import io

from nifcore import calibration, config
from nifcore.calibration import ASSUMED, Calibration
from nifcore.cli import compute, inputs
from nifcore.header import Colour
from nifcore.limits import Limits
from nifcore.presets import Recipe
from nifcore.workload import Workload


def stored(settings: config.Settings) -> Calibration | None:
    """Return this machine's calibration for a device, kernel and threads, if it was made."""
    import torch

    from nifcore.devices import describe_device, resolve_device

    device = describe_device(resolve_device(settings.device))
    kernel, threads = compute.kernel(settings), torch.get_num_threads()
    return calibration.stored(config.cache_folder(), device, kernel, threads)


def current(settings: config.Settings) -> Calibration:
    """Return this machine's calibration, or one of a machine that is assumed instead."""
    return stored(settings) or ASSUMED


def workload(size: tuple[int, int], recipe: Recipe, bpp: float) -> Workload:
    """Return what an encode of a colour picture amounts to."""
    width, height = size
    return Workload.planned(recipe, width, height, Colour.SRGB, bpp * width * height / 8)


def pixel_size(name: str, limits: Limits) -> tuple[int, int]:
    """Return (width, height) of a picture file.

    Raises:
        InputError: it cannot be read. LimitExceeded: it is too large.
    """
    from nifcore.picture import read_picture

    picture = read_picture(io.BytesIO(inputs.read(name, limits)), limits)
    return picture.width, picture.height


class Ahead:
    """Tells the time left of many encodes, from what was expected of each and what they took."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._expected: list[float] = []
        self._taken = 0.0
        self.finished = 0

    def add(self, work: Workload) -> None:
        """Another encode is to come."""
        self._expected.append(self._calibration.estimate(work))

    @property
    def count(self) -> int:
        """Encodes in all."""
        return len(self._expected)

    def done(self, seconds: float) -> float:
        """The next encode took so long; return the seconds that the others may take."""
        self._taken += seconds
        self.finished += 1
        pace = self._taken / sum(self._expected[: self.finished])
        return pace * sum(self._expected[self.finished :])


def clock(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
