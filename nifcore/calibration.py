"""How fast this machine encodes: measured once, kept in the user's cache, and used for estimates.

A calibration is a table of coefficients; :mod:`nifcore.timing` measures it, :mod:`nifcore.workload`
says what they are multiplied with. Imports no torch: the service estimates with those that its
workers publish.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nifcore.errors import InputError
from nifcore.output import write_atomically
from nifcore.workload import PARTS, Part, Workload

_FORMAT = 2
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Durations:
    """What the parts of one encode are expected to take, in seconds.

    Attributes:
        open: before the first iteration.
        fit, quantise: one iteration.
        turn: between the last fitting and the first quantising iteration of a tile.
        close: after the last iteration.
        workload: whose.
        together: share of all tiles' seconds that is saved by fitting several at the same time.
    """

    open: float
    fit: float
    turn: float
    quantise: float
    close: float
    workload: Workload
    together: float = 0.0

    def iterations(self, done: int) -> float:
        """Return what the first ``done`` iterations of a tile take, the turn included."""
        work = self.workload
        later = max(0, done - work.fit)
        turn = self.turn if later else 0.0
        return min(done, work.fit) * self.fit + turn + later * self.quantise

    @property
    def tile(self) -> float:
        """All iterations of one tile."""
        return self.iterations(self.workload.iterations)

    @property
    def tiles(self) -> float:
        """All iterations of all tiles."""
        return self.workload.tiles * self.tile * (1.0 - self.together)

    @property
    def total(self) -> float:
        """The whole encode."""
        return self.open + self.tiles + self.close


@dataclass(frozen=True)
class Calibration:
    """Coefficients of one machine, device and version.

    Attributes:
        identity: what they hold for; see :func:`identity_of`.
        device: short name of the device.
        coefficients: by family, by part, as many as the part has features, none negative.
        lanes: tiles that are fitted at the same time, where there are so many.
        overlap: share of a tile's seconds that is divided by their number, 0 to 1; the rest is
            what the device is busy with, whoever it works for.
        seconds: what measuring them took.
    """

    identity: str
    device: str
    coefficients: Mapping[str, Mapping[Part, tuple[float, ...]]]
    lanes: int = 1
    overlap: float = 0.0
    seconds: float = field(default=0.0, compare=False)

    def durations(self, work: Workload) -> Durations:
        """Return what every part of an encode takes.

        A recipe with an optimiser that was not measured gets the coefficients of another.
        """
        table = self.coefficients.get(work.family) or next(iter(self.coefficients.values()))
        found = {
            part: sum(a * b for a, b in zip(table[part], work.features(part), strict=True))
            for part in PARTS
        }
        rounds = math.ceil(work.tiles / self.lanes)
        together = self.overlap * (1.0 - rounds / work.tiles)
        return Durations(**found, workload=work, together=together)

    def estimate(self, work: Workload) -> float:
        """Return the seconds of a whole encode."""
        return self.durations(work).total

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "device": self.device,
            "seconds": self.seconds,
            "lanes": self.lanes,
            "overlap": self.overlap,
            "coefficients": {
                family: {part: list(values) for part, values in parts.items()}
                for family, parts in self.coefficients.items()
            },
        }

    @classmethod
    def from_dict(cls, found: Any) -> Calibration:
        """Build from what :meth:`to_dict` returned.

        Raises:
            InputError: it is not that, or of another form than this version knows.
        """
        try:
            if found["format"] != _FORMAT or not found["coefficients"]:
                raise ValueError(f"format {found['format']!r}; {_FORMAT} is accepted")
            coefficients = {
                str(family): {part: _checked(part, parts[part]) for part in PARTS}
                for family, parts in found["coefficients"].items()
            }
            lanes, overlap = int(found["lanes"]), float(found["overlap"])
            if lanes < 1 or not 0.0 <= overlap <= 1.0:
                raise ValueError(f"overlap {overlap} of {lanes} lanes; 0 to 1 is accepted")
            return cls(
                str(found["identity"]),
                str(found["device"]),
                coefficients,
                lanes,
                overlap,
                float(found["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"this is no calibration: {error}") from error


def _checked(part: Part, values: Any) -> tuple[float, ...]:
    numbers = tuple(float(each) for each in values)
    if len(numbers) != len(_EXAMPLE.features(part)):
        raise ValueError(f"{len(numbers)} coefficients of {part!r}")
    if not all(math.isfinite(each) and each >= 0.0 for each in numbers):
        raise ValueError(f"coefficients of {part!r} are {numbers}; none may be negative")
    return numbers


_EXAMPLE = Workload("soap", 1, 1, 1, 1, 1, 1, 1, 1.0)


ASSUMED = Calibration(
    identity="assumed",
    device="cpu",
    coefficients={
        "soap": {
            "open": (0.005, 7e-8),
            "fit": (1e-3, 1e-11, 0.0, 7e-8, 1.5e-10),
            "turn": (0.0, 1e-9, 0.0, 0.0),
            "quantise": (1.2e-3, 1e-11, 0.0, 7e-8, 1.5e-10, 3e-8),
            "close": (0.01, 1.2e-5, 3e-11, 3e-7),
        },
        "adamw": {
            "open": (0.005, 1.2e-7),
            "fit": (1e-3, 2e-11, 4e-9, 0.0, 0.0),
            "turn": (0.0, 0.0, 0.0, 0.0),
            "quantise": (2e-3, 2e-11, 4e-9, 0.0, 0.0, 0.0),
            "close": (0.0, 5e-6, 1e-10, 3e-7),
        },
    },
    lanes=2,
    overlap=0.2,
)
"""A machine with two cores, about: what is used until one has measured itself."""


def identity_of(device: str, kernel: str | None, threads: int) -> str:
    """Return what a calibration holds for: versions, processor, device, kernel and threads."""
    from nifcore import __version__

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    return (
        f"nif {__version__}, torch {torch}, {_processor()} x {os.cpu_count()}, {device}, "
        f"kernel {kernel or 'auto'}, {threads} threads"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    import platform

    return platform.processor() or platform.machine()


def calibration_file(folder: Path, device: str, kernel: str | None, threads: int) -> Path:
    """Return where the calibration of a device is kept in a cache folder."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{device} {kernel or 'auto'} {threads}")
    return folder / f"calibration-{words.strip('-').lower()}.json"


def stored(folder: Path, device: str, kernel: str | None, threads: int) -> Calibration | None:
    """Return the calibration that a cache folder has for a device, kernel and threads."""
    path = calibration_file(folder, device, kernel, threads)
    return load(path, identity_of(device, kernel, threads))


def load(path: Path, identity: str) -> Calibration | None:
    """Return the calibration in a file; None if there is none, or of another version or machine.

    A damaged file is no error either: whoever wants a calibration then measures anew.
    """
    try:
        with path.open("rb") as file:
            found = Calibration.from_dict(json.loads(file.read(_MOST_BYTES)))
    except (OSError, ValueError, InputError):
        return None
    return found if found.identity == identity else None


def save(path: Path, calibration: Calibration) -> None:
    """Keep a calibration, making the folder where there is none.

    Raises:
        OutputError: it cannot be written.
        OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(calibration.to_dict(), indent=1).encode() + b"\n")
