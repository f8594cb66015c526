"""``nif bench``: measure encodes, decodes and kernels on this machine."""

from __future__ import annotations

import json as jsonlib
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.cli import compute, inputs, outputs
from nifcore.cli.failure import Command
from nifcore.cli.messages import SCHEMA_VERSION, columns, finite, print_json
from nifcore.cli.options import (
    Debug,
    Device,
    Json,
    Kernel,
    MaxPixels,
    Quiet,
    Threads,
    complete_preset,
    parse_size,
)
from nifcore.cli.request import Request
from nifcore.cli.run import Run
from nifcore.errors import Cancelled, InputError, UsageError

if TYPE_CHECKING:
    from nifcore import Report

_HEADINGS = ("picture", "asked", "bytes", "bpp", "PSNR", "MS-SSIM", "seconds")
_WIDTHS = (24, 20, 9, 7, 7, 8, 8)


@dataclass(frozen=True)
class Curve:
    """A published rate-distortion curve.

    Attributes:
        codec: its name.
        points: (bpp, PSNR in dB), by increasing rate.
    """

    codec: str
    points: tuple[tuple[float, float], ...]

    def at(self, bpp: float) -> float | None:
        """Return the PSNR at a rate, linear in log(bpp) between points; None outside them."""
        import numpy as np

        rates = np.array([point[0] for point in self.points])
        if not rates[0] <= bpp <= rates[-1]:
            return None
        levels = np.array([point[1] for point in self.points])
        return float(np.interp(np.log(bpp), np.log(rates), levels))


app = typer.Typer(name="bench", no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure encodes, decodes and kernels on this machine."""


@app.command(cls=Command)
def encode(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The pictures.")],
    effort: Annotated[
        list[int] | None,
        typer.Option("--effort", "-e", min=1, max=9, help="Effort; may be given again."),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            autocompletion=complete_preset,
            help="Preset; may be given again.",
        ),
    ] = None,
    bpp: Annotated[
        list[float] | None,
        typer.Option("--bpp", metavar="RATE", help="Target rate; may be given again."),
    ] = None,
    quality: Annotated[
        list[int] | None,
        typer.Option("--quality", "-Q", min=1, max=100, help="Quality; may be given again."),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            "--published",
            metavar="FILE",
            help="JSON of published points, whose PSNR at the same rate is shown beside.",
        ),
    ] = None,
    test_set: Annotated[
        str, typer.Option("--set", metavar="NAME", help="Which set of pictures in that file.")
    ] = "kodak",
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Also write everything here as JSON."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Start of the random numbers.")
    ] = 0,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    kernel: Kernel = None,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Encode every picture with every asked combination; print each result and the means."""
    flags = {"device": device, "kernel": kernel, "threads": threads, "max_pixels": max_pixels}
    settings = config.load(flags).settings
    requests = _requests(settings, effort, preset, bpp, quality, seed)
    curves = [] if published is None else read_curves(published, test_set)
    if output is not None:
        outputs.check(output, source=files[0])
    compute.prepare(settings)
    run = Run(settings, progress=not quiet and sys.stderr.isatty())
    document: dict[str, Any] = {"machine": _machine(), "runs": [], "means": []}
    if not json and not quiet:
        print(_line(_HEADINGS), flush=True)
    for request in requests:
        asked = _asked(request)
        reports = []
        for file in files:
            _, encoded = run.encode(file, request)
            if run.interrupted:
                raise Cancelled("stopped; a picture finished early would spoil the means")
            reports.append(encoded.report)
            document["runs"].append(_row(Path(file).name, asked, encoded.report))
            _print_row(document["runs"][-1], json, quiet)
        document["means"].append(_means(asked, reports, curves))
        _print_row(document["means"][-1], json, quiet)
        for name, level in {} if json or quiet else document["means"][-1]["published"].items():
            shown = "-" if level is None else f"{level:.2f}"
            print(_line((f"  {name}", "at this bpp", "", "", shown, "", "")), flush=True)
    if output is not None:
        text = jsonlib.dumps({"schema_version": SCHEMA_VERSION} | finite(document), indent=1)
        outputs.write(output, text.encode() + b"\n")


@app.command(cls=Command)
def decode(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The .nif files.")],
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, metavar="N", help="Decodes of each file.")
    ] = 5,
    device: Device = None,
    json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure the seconds that decoding takes, without start-up and reading."""
    settings = config.load({"device": device, "threads": threads}).settings
    compute.prepare(settings)
    import nifcore

    rows = [["file", "pixels", "first", "fastest", "median"]]
    for file in files:
        data = inputs.read(file, settings.limits())
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            size = nifcore.decode(
                data, device=settings.device, kernel=settings.kernel, limits=settings.limits()
            ).size
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        if json:
            found = {"input": file, "width": size[0], "height": size[1], "seconds": seconds}
            print_json(found | {"fastest": min(seconds), "median": median})
        times = (f"{each:.3f} s" for each in (seconds[0], min(seconds), median))
        rows.append([file, f"{size[0]}x{size[1]}", *times])
    if not json:
        print(columns(rows, right=(1, 2, 3, 4)))


@app.command(cls=Command)
def kernels(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KERNELS...]", help="Those to measure; all by default."),
    ] = None,
    size: Annotated[
        Any,
        typer.Option(
            "--size", metavar="WxH", parser=parse_size, help="Size of the picture fitted."
        ),
    ] = "768x512",
    repeat: Annotated[
        int,
        typer.Option("--repeat", min=1, metavar="N", help="Passes of each kernel after a first."),
    ] = 5,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, ...")] = "cpu",
    json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure one pass (loss and gradient of every pixel) of the network of paper-120.

    The kernels take turns, so that a change in the machine's load meets all of them. A first pass
    that compiles and allocates does not count.
    """
    settings = config.load({"device": device, "threads": threads}).settings
    compute.prepare(settings)
    seconds = compute.pass_seconds(names or compute.kernel_names(), size, repeat, settings.device)
    fastest = {name: min(each[1:]) for name, each in seconds.items()}
    if json:
        import torch

        found: dict[str, Any] = {
            "width": size[0],
            "height": size[1],
            "device": settings.device,
            "threads": torch.get_num_threads(),
        }
        for name, best in fastest.items():
            found[f"{'eager' if name == 'reference' else name}_seconds_per_pass"] = best
        print_json(found | {"seconds": seconds})
        return
    rows = [["kernel", "first", "fastest", "median"]]
    for name, each in seconds.items():
        times = (each[0], fastest[name], statistics.median(each[1:]))
        rows.append([name, *(f"{t:.3f} s" for t in times)])
    print(columns(rows, right=(1, 2, 3)))


def read_curves(path: Path, test_set: str) -> list[Curve]:
    """Read published curves: ``{set: {codec: {"points": [{"bpp": ..., "psnr": ...}]}}}``.

    Raises:
        InputError: the file cannot be read, is not of this form, or has no such set.
    """
    try:
        content = jsonlib.loads(path.read_text(encoding="utf-8"))
        found = content[test_set]
        return [
            Curve(
                codec,
                tuple(sorted((float(p["bpp"]), float(p["psnr"])) for p in entry["points"])),
            )
            for codec, entry in found.items()
            if entry["points"]
        ]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no published points of {test_set!r}; expected is "
            '{"kodak": {"CODEC": {"points": [{"bpp": 0.28, "psnr": 28.3}, ...]}}}'
        ) from error


def _requests(
    settings: config.Settings,
    efforts: Sequence[int] | None,
    presets: Sequence[str] | None,
    rates: Sequence[float] | None,
    qualities: Sequence[int] | None,
    seed: int,
) -> list[Request]:
    if rates and qualities:
        raise UsageError("--bpp and --quality exclude each other")
    base = Request(device=settings.device, kernel=settings.kernel, seed=seed)
    recipes = [replace(base, effort=level) for level in efforts or ()]
    recipes += [replace(base, preset=name) for name in presets or ()]
    targets: list[dict[str, Any]] = [{"bpp": rate} for rate in rates or ()]
    targets += [{"quality": quality} for quality in qualities or ()]
    return [
        replace(recipe, **target).with_defaults(settings)
        for recipe in recipes or [base]
        for target in targets or [{}]
    ]


def _asked(request: Request) -> str:
    recipe = request.preset or f"effort {request.effort}"
    if request.bpp is not None:
        return f"{recipe}, {request.bpp:g} bpp"
    return recipe if request.quality is None else f"{recipe}, quality {request.quality}"


def _row(name: str, asked: str, report: Report) -> dict[str, Any]:
    return {
        "picture": name,
        "asked": asked,
        "bytes": report.bytes,
        "bpp": report.bpp,
        "psnr_db": report.psnr_db,
        "ms_ssim": report.ms_ssim,
        "seconds": report.seconds,
        "passes": report.passes,
        "device": report.device,
        "kernel": report.kernel,
    }


def _means(asked: str, reports: Sequence[Report], curves: Sequence[Curve]) -> dict[str, Any]:
    rate = statistics.fmean(each.bpp for each in reports)
    similarities = [each.ms_ssim for each in reports if each.ms_ssim is not None]
    return {
        "picture": f"mean of {len(reports)}",
        "asked": asked,
        "bytes": statistics.fmean(each.bytes for each in reports),
        "bpp": rate,
        "psnr_db": statistics.fmean(each.psnr_db for each in reports),
        "ms_ssim": statistics.fmean(similarities) if similarities else None,
        "seconds": statistics.fmean(each.seconds for each in reports),
        "published": {curve.codec: curve.at(rate) for curve in curves},
    }


def _print_row(row: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(row)
        sys.stdout.flush()
    elif not quiet:
        similarity = row["ms_ssim"]
        cells = (
            row["picture"],
            row["asked"],
            f"{row['bytes']:,.0f}",
            f"{row['bpp']:.3f}",
            f"{row['psnr_db']:.2f}",
            "-" if similarity is None else f"{similarity:.4f}",
            f"{row['seconds']:.1f}",
        )
        print(_line(cells), flush=True)


def _line(cells: Iterable[str]) -> str:
    padded = [
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _machine() -> dict[str, Any]:
    import platform

    import torch

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
