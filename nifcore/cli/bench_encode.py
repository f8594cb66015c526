"""``nif bench encode``: every picture with every asked combination, the means, and BD-rates."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.bdrate import bd_psnr, bd_rate
from nifcore.cli import compute, outputs, results
from nifcore.cli.curves import Curve, read_curves
from nifcore.cli.machine import describe_machine
from nifcore.cli.messages import print_json
from nifcore.cli.options import (
    Debug,
    Device,
    Efforts,
    Json,
    Kernel,
    MaxPixels,
    Quiet,
    Rates,
    ResultsFile,
    Seed,
    Threads,
    complete_preset,
)
from nifcore.cli.request import Request
from nifcore.cli.run import Run
from nifcore.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from nifcore import Report

_HEADINGS = ("picture", "asked", "bytes", "bpp", "PSNR", "MS-SSIM", "seconds")
_WIDTHS = (24, 20, 9, 7, 7, 8, 8)
_ROW = (
    "picture", "asked", "bytes", "bpp", "psnr_db", "ms_ssim", "seconds", "passes", "device",
    "kernel",
)  # fmt: skip


def encode(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The pictures.")],
    effort: Efforts = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            autocompletion=complete_preset,
            help="Preset; may be given again.",
        ),
    ] = None,
    bpp: Rates = None,
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
    output: ResultsFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what --output holds already and go on.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw PSNR over rate here, as SVG."),
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
    """Encode every picture with every asked combination; print each result and the means.

    With published points and two rates or more, the BD-rate against each codec follows: the mean
    difference in rate at equal PSNR, over the means of all pictures.
    """
    flags = {"device": device, "kernel": kernel, "threads": threads, "max_pixels": max_pixels}
    settings = config.load(flags).settings
    requests = _requests(settings, effort, preset, bpp, quality, seed)
    curves = [] if published is None else read_curves(published, test_set)
    for name in (output, plot):
        if name is not None:
            outputs.check(name, source=files[0])
    runs = _earlier(output, seed) if resume else []
    compute.prepare(settings)
    run = Run(settings, progress=not quiet and sys.stderr.isatty())
    document: dict[str, Any] = {
        "seed": seed, "machine": describe_machine(), "runs": runs, "means": [], "bd": []
    }  # fmt: skip
    known = {(each["picture"], each["asked"]): each for each in runs}
    if not json and not quiet:
        print(_line(_HEADINGS), flush=True)
    for request in requests:
        asked = _asked(request)
        rows = []
        for file in files:
            row = known.get((Path(file).name, asked))
            if row is None:
                _, encoded = run.encode(file, request)
                if run.interrupted:
                    raise Cancelled("stopped; a picture finished early would spoil the means")
                row = _row(Path(file).name, asked, encoded.report)
                runs.append(row)
                results.keep(output, document)
            rows.append(row)
            _print_row(row, json, quiet)
        document["means"].append(_means(asked, rows, curves))
        _print_row(document["means"][-1], json, quiet)
        for codec, level in {} if json or quiet else document["means"][-1]["published"].items():
            shown = "-" if level is None else f"{level:.2f}"
            print(_line((f"  {codec}", "at this bpp", "", "", shown, "", "")), flush=True)
    ours = _curves(requests, document["means"])
    document["bd"] = _differences(ours, curves)
    for row in document["bd"]:
        if json:
            print_json(row)
        elif not quiet:
            print(
                f"{row['asked']} against {row['codec']}: BD-rate {row['bd_rate_percent']:+.1f} %, "
                f"BD-PSNR {row['bd_psnr_db']:+.2f} dB"
            )
    results.write(output, document)
    if plot is not None:
        from nifcore.cli.rate_plot import draw

        outputs.write(plot, draw(ours, curves, len(files)).encode())


def _earlier(output: str | None, seed: int) -> list[dict[str, Any]]:
    """Return the runs that an earlier, stopped benchmark left in its output."""
    if output is None:
        raise UsageError("--resume goes on with what --output holds; name that file")
    if not Path(output).exists():
        return []

    def understood(found: Any) -> tuple[Any, list[dict[str, Any]]]:
        return found["seed"], [{name: row[name] for name in _ROW} for row in found["runs"]]

    began_with, runs = results.read(output, "nif bench encode", understood)
    if began_with != seed:
        raise UsageError(f"{output} was measured with seed {began_with}, not {seed}")
    return runs


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


def _recipe(request: Request) -> str:
    return request.preset or f"effort {request.effort}"


def _asked(request: Request) -> str:
    recipe = _recipe(request)
    if request.bpp is not None:
        return f"{recipe}, {request.bpp:g} bpp"
    return recipe if request.quality is None else f"{recipe}, quality {request.quality}"


def _row(name: str, asked: str, report: Report) -> dict[str, Any]:
    said = {"picture": name, "asked": asked} | asdict(report)
    return {field: said[field] for field in _ROW}


def _means(asked: str, rows: Sequence[dict[str, Any]], curves: Sequence[Curve]) -> dict[str, Any]:
    mean = {
        name: statistics.fmean(each[name] for each in rows)
        for name in ("bytes", "bpp", "psnr_db", "seconds")
    }
    similarities = [each["ms_ssim"] for each in rows if each["ms_ssim"] is not None]
    return {
        "picture": f"mean of {len(rows)}",
        "asked": asked,
        **mean,
        "ms_ssim": statistics.fmean(similarities) if similarities else None,
        "published": {curve.codec: curve.at(mean["bpp"]) for curve in curves},
    }


def _curves(requests: Sequence[Request], means: Sequence[dict[str, Any]]) -> list[Curve]:
    """Return a curve per effort or preset: the means at each of its rates."""
    points: dict[str, list[tuple[float, float]]] = {}
    for request, mean in zip(requests, means, strict=True):
        points.setdefault(_recipe(request), []).append((mean["bpp"], mean["psnr_db"]))
    return [Curve(name, tuple(sorted(found))) for name, found in points.items()]


def _differences(ours: Sequence[Curve], published: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return the Bjontegaard deltas of every two curves that can be compared."""
    found = []
    for mine in ours:
        for theirs in published:
            try:
                rate = bd_rate(theirs.points, mine.points)
                psnr = bd_psnr(theirs.points, mine.points)
            except UsageError:
                continue  # a single point, or nothing in common
            found.append(
                {
                    "asked": mine.codec,
                    "codec": theirs.codec,
                    "bd_rate_percent": rate,
                    "bd_psnr_db": psnr,
                }
            )
    return found


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
