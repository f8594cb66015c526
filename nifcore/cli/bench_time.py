"""``nif bench calibrate`` and ``nif bench estimate``: how fast this machine encodes, and whether
what is said of that in advance comes true."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nifcore import config
from nifcore.calibration import Calibration, calibration_file, save
from nifcore.cli import compute, estimates, inputs
from nifcore.cli.messages import columns, print_json, say
from nifcore.cli.options import (
    Debug,
    Device,
    Efforts,
    Json,
    Kernel,
    MaxPixels,
    Quiet,
    Rates,
    Threads,
    parse_size,
)
from nifcore.errors import InputError, OutputError
from nifcore.events import ProgressEvent
from nifcore.header import Colour
from nifcore.presets import EFFORTS, find_recipe
from nifcore.workload import Workload

_SIZE = (768, 512)
_RATE = 0.226
_CLOSE = 0.25
"""An estimate is meant to be this near."""


def calibrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and print; keep nothing.")
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Measure only if this was not done before.")
    ] = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    kernel: Kernel = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure how fast this machine encodes, for the times that nif tells in advance.

    Takes a few seconds, during which the machine should have nothing else to do. The result is kept
    in the user's cache folder.
    """
    settings = config.load({"device": device, "kernel": kernel, "threads": threads}).settings
    compute.prepare(settings)
    found = estimates.stored(settings) if reuse else None
    if found is None:
        found = _measured(settings, keep=not dry_run)
    if json:
        print_json(found.to_dict())
        return
    if quiet:
        return
    print(found.identity)
    rows = [["effort", "open", "fit", "turn", "quantise", "close", "in all"]]
    for effort, recipe in EFFORTS.items():
        spent = found.durations(estimates.workload(_SIZE, recipe, _RATE))
        work = spent.workload
        fit, quantise = work.fit * spent.fit, work.quantise * spent.quantise
        parts = (spent.open, fit, spent.turn, quantise, spent.close, spent.total)
        rows.append([str(effort), *(f"{each:.2f} s" for each in parts)])
    print(f"\nExpected of a picture of {_SIZE[0]}x{_SIZE[1]} at {_RATE} bpp:\n")
    print(columns(rows, right=range(7)))


def _measured(settings: config.Settings, *, keep: bool) -> Calibration:
    import torch

    from nifcore.devices import resolve_device
    from nifcore.timing import calibrate as measure

    kernel = compute.kernel(settings)
    found = measure(resolve_device(settings.device), kernel)
    if keep:
        path = calibration_file(
            config.cache_folder(), found.device, kernel, torch.get_num_threads()
        )
        try:
            save(path, found)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return found


@dataclass(frozen=True)
class Trial:
    """One encode, and what was said about its time.

    Attributes:
        picture, width, height, effort, bpp: what was encoded.
        predicted: seconds, before it began.
        seconds: that it took.
        eta_total: what had passed plus what was said to be left, when a tenth of the iterations was
            done; None if that was never said.
    """

    picture: str
    width: int
    height: int
    effort: int
    bpp: float
    predicted: float
    seconds: float
    eta_total: float | None

    @property
    def error(self) -> float:
        """Share by which the prediction was off: 0.1 is a tenth too long."""
        return self.predicted / self.seconds - 1.0

    @property
    def eta_error(self) -> float | None:
        """The same of the early ETA."""
        return None if self.eta_total is None else self.eta_total / self.seconds - 1.0


def estimate(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The pictures.")],
    effort: Efforts = None,
    bpp: Rates = None,
    size: Annotated[
        list[Any] | None,
        typer.Option(
            "--size",
            metavar="WxH",
            parser=parse_size,
            help="Encode the upper left part of this size; may be given again.",
        ),
    ] = None,
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate", help="Calibrate anew before every picture, as the load may change."
        ),
    ] = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    kernel: Kernel = None,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Encode pictures and compare the seconds with those that were expected.

    Without a calibration of this machine, one is made first.
    """
    flags = {"device": device, "kernel": kernel, "threads": threads, "max_pixels": max_pixels}
    settings = config.load(flags).settings
    compute.prepare(settings)
    calibration = estimates.stored(settings) or _measured(settings, keep=True)
    trials = []
    for name in files:
        if recalibrate:
            calibration = _measured(settings, keep=True)
        for box in size or [None]:
            for rate in bpp or [_RATE]:
                for level in effort or [1, 2, 3]:
                    trial = _tried(name, box, level, rate, calibration, settings)
                    trials.append(trial)
                    if json:
                        errors = {"error": trial.error, "eta_error": trial.eta_error}
                        print_json(asdict(trial) | errors)
                    elif not quiet and sys.stderr.isatty():
                        say(f"{trial.picture}: {trial.predicted:.1f} s, {trial.seconds:.1f} s")
    if not json and not quiet:
        print(columns(_table(trials), right=range(1, 9)))
        print(_summary("predicted", [trial.error for trial in trials]))
        known = [trial.eta_error for trial in trials if trial.eta_error is not None]
        if known:
            print(_summary("ETA at a tenth", known))


def _tried(
    name: str,
    box: tuple[int, int] | None,
    effort: int,
    bpp: float,
    calibration: Calibration,
    settings: config.Settings,
) -> Trial:
    """Encode a part of a picture and listen to what is said about the time."""
    import nifcore
    from nifcore.picture import read_picture

    limits = settings.limits()
    pixels = read_picture(inputs.read(name, limits), limits).pixels
    if box is not None:
        width, height = box
        if width > pixels.shape[1] or height > pixels.shape[0]:
            raise InputError(f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels")
        pixels = pixels[:height, :width]
    said: list[float] = []

    def listen(event: ProgressEvent) -> None:
        due = event.iterations and event.iteration >= event.iterations / 10
        if due and not said and event.eta_seconds is not None:
            said.append(event.seconds + event.eta_seconds)

    rows, columns_, channels = pixels.shape
    work = Workload.planned(
        find_recipe(None, effort), columns_, rows, Colour(channels), bpp * rows * columns_ / 8
    )
    report = nifcore.encode(
        pixels,
        effort=effort,
        bpp=bpp,
        device=settings.device,
        kernel=settings.kernel,
        progress=listen,
        limits=limits,
    ).report
    return Trial(
        Path(name).name,
        report.width,
        report.height,
        effort,
        bpp,
        calibration.estimate(work),
        report.seconds,
        said[0] if said else None,
    )


def _table(trials: Sequence[Trial]) -> list[list[str]]:
    rows = [["picture", "size", "effort", "bpp", "predicted", "took", "error", "ETA", "error"]]
    for each in trials:
        eta = ("-", "-")
        if each.eta_total is not None and each.eta_error is not None:
            eta = (f"{each.eta_total:.1f} s", f"{each.eta_error:+.0%}")
        rows.append(
            [
                each.picture,
                f"{each.width}x{each.height}",
                str(each.effort),
                f"{each.bpp:g}",
                f"{each.predicted:.1f} s",
                f"{each.seconds:.1f} s",
                f"{each.error:+.0%}",
                *eta,
            ]
        )
    return rows


def _summary(what: str, errors: Sequence[float]) -> str:
    near = sum(abs(each) <= _CLOSE for each in errors)
    sizes = sorted(abs(each) for each in errors)
    middle = statistics.median(sizes)
    return (
        f"{what}: {near} of {len(errors)} within {_CLOSE:.0%}, "
        f"median {middle:.0%}, worst {sizes[-1]:.0%}"
    )
