"""``nif verify``: check a file to its last bit."""

from __future__ import annotations

from typing import Annotated

import typer

from nifcore import config
from nifcore.cli import compute, inputs
from nifcore.cli.failure import Command, exit_code, report
from nifcore.cli.messages import byte_count, print_json
from nifcore.cli.options import Debug, Device, Json, Quiet, Threads
from nifcore.errors import NifError

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def verify(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The .nif files, or - for stdin.")
    ],
    json: Json = False,
    quiet: Quiet = False,
    device: Device = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Check the CRC of .nif files and decode them whole. Exit code 4 when one is damaged."""
    flags = {"device": device, "threads": threads, "debug": debug or None}
    settings = config.load(flags).settings
    compute.prepare(settings)
    failed = 0
    for file in files:
        try:
            data = inputs.read(file, settings.limits())
            width, height = _decode(data, settings)
        except NifError as error:
            if settings.debug:
                raise
            report(error, as_json=json, input_name=file)
            failed = failed or exit_code(error)
            continue
        if json:
            found = {"input": file, "ok": True, "bytes": len(data)}
            print_json(found | {"width": width, "height": height})
        elif not quiet:
            print(f"{file}: ok, {width}x{height}, {byte_count(len(data))}")
    if failed:
        raise typer.Exit(failed)


def _decode(data: bytes, settings: config.Settings) -> tuple[int, int]:
    import nifcore

    return nifcore.decode(
        data, device=settings.device, kernel=settings.kernel, limits=settings.limits()
    ).size
