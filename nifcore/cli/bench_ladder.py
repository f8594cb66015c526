"""``nif bench ladder``: every effort level on the same pictures at one rate."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from nifcore import config
from nifcore.cli import compute, estimates, outputs, results
from nifcore.cli.estimates import Ahead, clock, pixel_size
from nifcore.cli.machine import describe_machine
from nifcore.cli.messages import columns, print_json, say, similarity
from nifcore.cli.options import (
    Debug,
    Device,
    Json,
    Kernel,
    MaxPixels,
    Quiet,
    ResultsFile,
    Seed,
    Threads,
)
from nifcore.cli.request import Request
from nifcore.cli.run import Run
from nifcore.errors import Cancelled, InputError, UsageError
from nifcore.ladder import LadderRun, Rung, rungs
from nifcore.presets import EFFORTS, find_recipe

_EXAMPLES = ("astronaut", "chelsea", "coffee")
_MOST_BPP = 16.0


def parse_efforts(text: str) -> tuple[int, ...]:
    """Read levels like ``3``, ``1-6`` or ``1-3,5,9``."""
    levels: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d)\s*(?:-\s*(\d)\s*)?", part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise typer.BadParameter(f"{text!r} is no range of efforts like 1-6 or 1,3,5")
        levels |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not levels <= set(EFFORTS):
        raise typer.BadParameter(f"{text!r}: efforts are {min(EFFORTS)} to {max(EFFORTS)}")
    return tuple(sorted(levels))


def ladder(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES...]",
            help="The pictures; scikit-image's astronaut, chelsea and coffee by default.",
        ),
    ] = None,
    bpp: Annotated[
        float,
        typer.Option("--bpp", min=1e-4, max=_MOST_BPP, metavar="RATE", help="Rate of all encodes."),
    ] = 0.226,
    efforts: Annotated[
        Any,
        typer.Option("--efforts", metavar="RANGE", parser=parse_efforts, help="Levels: 1-6, 1,3."),
    ] = "1-6",
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Read results from an earlier --output instead of encoding; may be given again.",
        ),
    ] = None,
    output: ResultsFile = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the ladder here, as SVG.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    kernel: Kernel = None,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Measure every effort level on the same pictures at one rate, as a table and a plot.

    Each picture goes through all levels before the next one does, so that a change in the machine's
    load meets all levels alike.
    """
    flags = {"device": device, "kernel": kernel, "threads": threads, "max_pixels": max_pixels}
    settings = config.load(flags).settings
    for name in (output, plot):
        if name is not None:
            outputs.check(name, source=files[0] if files else "-")
    if earlier:
        if files:
            raise UsageError("--from reads results; it takes no pictures to encode")
        document = _merged([read_results(path) for path in earlier])
    else:
        with ExitStack() as stack:
            pictures = files or _examples(Path(stack.enter_context(TemporaryDirectory())))
            compute.prepare(settings)
            document = {"bpp": bpp, "seed": seed, "machine": describe_machine(), "runs": []}
            _measure(document, pictures, efforts, settings, output, quiet=quiet)
    levels = rungs([LadderRun(**run) for run in document["runs"]], document["bpp"])
    if not levels:
        raise InputError("no picture was encoded at every level: there is nothing to compare")
    document["levels"] = [asdict(level) | _iterations(level.effort) for level in levels]
    if json:
        for level in document["levels"]:
            print_json({"bpp": document["bpp"]} | level)
    elif not quiet:
        print(columns(_table(levels), right=range(8)))
    results.write(output, document)
    if plot is not None:
        from nifcore.cli.ladder_plot import draw

        names = {run["picture"] for run in document["runs"]}
        outputs.write(plot, draw(levels, document["bpp"], len(names)).encode())


def read_results(path: Path) -> dict[str, Any]:
    """Return what an earlier run wrote with ``--output``.

    Raises:
        InputError: the file cannot be read or holds something else.
    """

    def understood(found: Any) -> dict[str, Any]:
        return {
            "bpp": float(found["bpp"]),
            "seed": int(found["seed"]),
            "machine": found["machine"],
            "runs": [asdict(LadderRun(**run)) for run in found["runs"]],
        }

    return results.read(str(path), "nif bench ladder", understood)


def _merged(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs of all documents in one; rates must agree."""
    rates = sorted({document["bpp"] for document in documents})
    if len(rates) > 1:
        shown = " and ".join(f"{rate:g}" for rate in rates)
        raise UsageError(f"results at {shown} bpp cannot be put into one ladder")
    runs = [run for document in documents for run in document["runs"]]
    return documents[0] | {"runs": runs}


def _examples(folder: Path) -> list[str]:
    """Write scikit-image's pictures into a folder and return their names.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("skimage") is None:
        raise UsageError(
            "no pictures given, and scikit-image, whose examples are used then, is not installed"
        )
    from PIL import Image
    from skimage import data

    names = [str(folder / f"{name}.png") for name in _EXAMPLES]
    for name, path in zip(_EXAMPLES, names, strict=True):
        Image.fromarray(getattr(data, name)()).save(path)
    return names


def _measure(
    document: dict[str, Any],
    pictures: Sequence[str],
    efforts: Sequence[int],
    settings: config.Settings,
    output: str | None,
    *,
    quiet: bool,
) -> None:
    """Encode every picture at every level, and keep what was measured after each."""
    base = Request(device=settings.device, kernel=settings.kernel, seed=document["seed"])
    rate = document["bpp"]
    sizes = [pixel_size(name, settings.limits()) for name in pictures]
    ahead = Ahead(estimates.current(settings))
    for size in sizes:
        for effort in efforts:
            ahead.add(estimates.workload(size, find_recipe(None, effort), rate))
    run = Run(settings, progress=not quiet and sys.stderr.isatty())
    for name in pictures:
        for effort in efforts:
            _, encoded = run.encode(name, replace(base, effort=effort, bpp=rate))
            if run.interrupted:
                raise Cancelled("stopped; a picture finished early would spoil the ladder")
            report = encoded.report
            done = LadderRun(
                picture=Path(name).name,
                pixels=report.width * report.height,
                effort=effort,
                bytes=report.bytes,
                psnr_db=report.psnr_db,
                ms_ssim=report.ms_ssim,
                seconds=report.seconds,
            )
            document["runs"].append(asdict(done))
            results.keep(output, document)
            left = ahead.done(report.seconds)
            if not quiet:
                say(
                    f"{done.picture}, effort {effort}: {done.psnr_db:.2f} dB at {report.bpp:.3f} "
                    f"bpp in {report.seconds:.1f} s; {ahead.finished} of {ahead.count}, "
                    f"about {clock(left)} left"
                )


def _iterations(effort: int) -> dict[str, list[int]]:
    stages = find_recipe(None, effort).stages
    return {"iterations": [stage.steps * stage.length for stage in stages]}


def _table(levels: Sequence[Rung]) -> list[list[str]]:
    rows = [["effort", "iterations", "seconds", "s/MP", "PSNR", "MS-SSIM", "dB/doubling", "front"]]
    for level in levels:
        iterations = " + ".join(map(str, _iterations(level.effort)["iterations"]))
        gain = "-" if level.gain_db is None else f"{level.gain_db:+.2f}"
        rows.append(
            [
                str(level.effort),
                iterations,
                f"{level.seconds:.1f}",
                f"{level.seconds_per_megapixel:.1f}",
                f"{level.psnr_db:.2f}",
                similarity(level.ms_ssim),
                gain,
                "yes" if level.on_front else "no",
            ]
        )
    return rows
