"""``nif decode``: a .nif file to a picture in any format that Pillow writes."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.cli import compute, inputs, outputs
from nifcore.cli.failure import Command, exit_code, report
from nifcore.cli.messages import byte_count, print_json, say
from nifcore.cli.options import (
    Debug,
    Device,
    Json,
    MaxPixels,
    NoClobber,
    OutputDir,
    Quiet,
    Threads,
    parse_region,
    parse_size,
)
from nifcore.errors import NifError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_FORMAT = "png"


app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def decode(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IN [OUT]",
            help="A .nif file and the picture to write; - is stdin or stdout. "
            "OUT defaults to IN with the ending .png.",
        ),
    ],
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="S", help="Render S times as large: 0.25, 2, ..."),
    ] = None,
    size: Annotated[
        Any,
        typer.Option("--size", metavar="WxH", parser=parse_size, help="Render at this size."),
    ] = None,
    region: Annotated[
        Any,
        typer.Option(
            "--region",
            metavar="X,Y,W,H",
            parser=parse_region,
            help="Render only this part, in pixels of the (scaled) picture.",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="png, jpeg, webp, tiff, ... (default by the ending of OUT).",
        ),
    ] = None,
    output_dir: OutputDir = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    no_clobber: NoClobber = False,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Decode a .nif file to a picture.

    Any size and any part can be rendered, each at the cost of its own pixels.
    """
    flags = {"device": device, "threads": threads, "max_pixels": max_pixels}
    flags |= {"debug": debug or None}
    settings = config.load(flags).settings
    if scale is not None and size is not None:
        raise UsageError("--scale and --size exclude each other")
    suffix = f".{(format_ or DEFAULT_FORMAT).lower()}"
    pairs = outputs.pair(names, output_dir, suffix)
    for source, output in pairs:
        if json and output == inputs.STDIO:
            raise UsageError("--json and the picture both want stdout; name an output file")
        outputs.check(output, source=source, no_clobber=no_clobber)
        _check_format(output, format_)
    compute.prepare(settings)
    failed = 0
    for source, output in pairs:
        started = time.perf_counter()
        try:
            picture = _decoded(source, settings, scale, size, region)
            data, notes = _written(picture, _format_of(output, format_))
            outputs.write(output, data)
        except NifError as error:
            if settings.debug:
                raise
            report(error, as_json=json, input_name=source)
            failed = failed or exit_code(error)
            continue
        seconds = time.perf_counter() - started
        width, height = picture.size
        for note in notes:
            say(note)
        if json:
            found = {"input": source, "output": output, "bytes": len(data)}
            found |= {"width": width, "height": height, "seconds": seconds, "notes": notes}
            print_json(found)
        elif not quiet:
            line = f"{width}x{height}, {byte_count(len(data))}, {seconds:.2f} s"
            if output == inputs.STDIO:
                say(f"stdout: {line}")
            else:
                print(f"{output}: {line}")
    if failed:
        raise typer.Exit(failed)


def _decoded(
    source: str,
    settings: config.Settings,
    scale: float | None,
    size: tuple[int, int] | None,
    region: tuple[int, int, int, int] | None,
) -> Image:
    data = inputs.read(source, settings.limits())
    import nifcore

    return nifcore.decode(
        data,
        scale=scale,
        size=size,
        region=region,
        device=settings.device,
        kernel=settings.kernel,
        limits=settings.limits(),
    )


def _format_of(output: str, asked: str | None) -> str:
    """Return what names the format: --format, the ending of OUT, or else PNG."""
    return asked or ("" if output == inputs.STDIO else Path(output).suffix) or DEFAULT_FORMAT


def _check_format(output: str, asked: str | None) -> None:
    """Find out on a single pixel whether the format can be written, before any decoding."""
    from PIL import Image

    name = _format_of(output, asked)
    if name.lower().removeprefix(".") == "nif":
        raise UsageError(f"{output}: nif decode writes pictures, not .nif files")
    _written(Image.new("L", (1, 1)), name)


def _written(picture: Image, name: str) -> tuple[bytes, tuple[str, ...]]:
    from nifcore.picture import write_picture

    buffer = BytesIO()
    notes = write_picture(picture, buffer, name)
    return buffer.getvalue(), notes
