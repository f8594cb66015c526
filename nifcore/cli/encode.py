"""``nif encode``: pictures to .nif files, with progress, and a comparison at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.cli import compute, inputs, outputs
from nifcore.cli.checkpoint import FileCheckpoint
from nifcore.cli.failure import Command, exit_code, report
from nifcore.cli.messages import print_json, say
from nifcore.cli.options import (
    ADVANCED,
    Debug,
    Device,
    Json,
    Kernel,
    MaxPixels,
    NoClobber,
    OutputDir,
    Quiet,
    Threads,
    complete_preset,
)
from nifcore.cli.request import Request
from nifcore.cli.rivals import rivals_of, table
from nifcore.cli.run import Run
from nifcore.config import Settings
from nifcore.errors import Cancelled, NifError, UsageError
from nifcore.output import output_error

if TYPE_CHECKING:
    from nifcore import Encoded
    from nifcore.compare import Comparison

TARGET = "Target (one of these)"

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def encode(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IN [OUT]",
            help="A picture and the file to write; - is stdin or stdout. "
            "OUT defaults to IN with the ending .nif.",
        ),
    ],
    effort: Annotated[
        int | None,
        typer.Option(
            "--effort",
            "-e",
            min=1,
            max=9,
            help=f"How long to fit, 1 to 9 (default {Settings.effort}).",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            autocompletion=complete_preset,
            help="A published recipe instead of an effort; nif presets lists them.",
        ),
    ] = None,
    output_dir: OutputDir = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    quality: Annotated[
        int | None,
        typer.Option(
            "--quality",
            "-Q",
            min=1,
            max=100,
            help="1 to 100, a scale of rates: 25 means 0.1 bits per pixel, 50 means 0.2, "
            f"75 means 0.45, 90 means 1.2, 100 means 4 (default {Settings.quality}).",
            rich_help_panel=TARGET,
        ),
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option("--psnr", metavar="DB", help="PSNR to reach.", rich_help_panel=TARGET),
    ] = None,
    bpp: Annotated[
        float | None,
        typer.Option(
            "--bpp",
            metavar="RATE",
            help="Bits per pixel of the whole file, at most.",
            rich_help_panel=TARGET,
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes",
            metavar="N",
            help="Size of the whole file, at most.",
            rich_help_panel=TARGET,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            help="Start of the random numbers.",
            rich_help_panel=ADVANCED,
        ),
    ] = 0,
    keep_icc: Annotated[
        bool,
        typer.Option(
            "--keep-icc",
            help="Keep the colour profile in the file instead of converting to sRGB.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Save the state here now and then; go on from it if it exists.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    no_compare: Annotated[
        bool,
        typer.Option(
            "--no-compare",
            help="Leave out the comparison with JPEG and WebP.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    no_clobber: NoClobber = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Overwrite OUT even if it is no .nif file.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    kernel: Kernel = None,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Encode a picture: fit a small network to it and write its weights.

    Ctrl-C once codes the best so far; twice stops without a file.
    """
    flags = {"effort": effort, "quality": quality, "device": device}
    flags |= {"kernel": kernel, "threads": threads, "max_pixels": max_pixels}
    flags |= {"debug": debug or None}
    settings = config.load(flags).settings
    request = Request(
        preset=preset,
        effort=effort,
        quality=quality,
        psnr=psnr,
        bpp=bpp,
        max_bytes=max_bytes,
        device=settings.device,
        kernel=settings.kernel,
        seed=seed,
        keep_icc=keep_icc,
    ).with_defaults(settings)
    pairs = outputs.pair(names, output_dir, ".nif")
    if checkpoint is not None and len(pairs) > 1:
        raise UsageError("--checkpoint holds the state of one picture; give one input")
    for source, output in pairs:
        if json and output == inputs.STDIO:
            raise UsageError("--json and the file both want stdout; name an output file")
        outputs.check(output, source=source, no_clobber=no_clobber)
        if not force:
            _check_replaceable(output)
    compute.prepare(settings)

    store = None if checkpoint is None else FileCheckpoint(checkpoint)
    run = Run(settings, progress=not quiet and sys.stderr.isatty(), checkpoint=store)
    failed = 0
    for index, (source, output) in enumerate(pairs):
        if run.interrupted:
            raise Cancelled(f"interrupted; {len(pairs) - index} of {len(pairs)} not encoded")
        try:
            picture, encoded = run.encode(source, request)
            outputs.write(output, encoded.data)
        except Cancelled:
            raise
        except NifError as error:
            if settings.debug:
                raise
            report(error, as_json=json, input_name=source)
            failed = failed or exit_code(error)
            continue
        if store is not None and encoded.report.complete:
            store.remove()
        rivals: list[Comparison] = []
        if not no_compare and (json or not quiet):
            rivals = rivals_of(picture.pixels, len(encoded.data))
        for note in () if quiet else encoded.report.notes:
            say(note)
        if json:
            print_json(described(source, output, encoded, rivals))
        elif not quiet:
            text = _summary(output, encoded, rivals)
            print(text, file=sys.stderr if output == inputs.STDIO else sys.stdout)
    if failed:
        raise typer.Exit(failed)


def described(
    source: str, output: str | None, encoded: Encoded, rivals: list[Comparison]
) -> dict[str, Any]:
    """Return what ``--json`` prints of one encoded picture."""
    fields: dict[str, Any] = {"input": source, "output": output}
    fields |= asdict(encoded.report)
    fields["comparisons"] = [asdict(rival) for rival in rivals]
    return fields


def _check_replaceable(output: str) -> None:
    """Refuse to overwrite a file that is no .nif: most likely it was meant as an input."""
    from nifcore.header import MAGIC, is_nif

    path = Path(output)
    if output == inputs.STDIO or not path.is_file():
        return
    try:
        with path.open("rb") as file:
            prefix = file.read(len(MAGIC))
    except OSError as error:
        raise output_error(output, error) from error
    if prefix and not is_nif(prefix):
        raise UsageError(
            f"{output} exists and is no .nif file; give --output-dir to encode several "
            "pictures, or --force to overwrite it"
        )


def _summary(output: str, encoded: Encoded, rivals: Sequence[Comparison]) -> str:
    done = encoded.report
    name = "stdout" if output == inputs.STDIO else output
    pixels = done.width * done.height
    recipe = done.preset or f"effort {done.effort}"
    ended = "" if done.complete else ", finished early"
    return (
        table(name, pixels, done.bytes, done.psnr_db, done.ms_ssim, rivals)
        + f"\n{done.width}x{done.height} in {done.seconds:.1f} s, {recipe} on {done.device}{ended}"
    )
