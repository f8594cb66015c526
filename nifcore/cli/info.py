"""``nif info``: what a file's header says, and what this machine can compute with."""

from __future__ import annotations

import os
from dataclasses import asdict
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.cli import compute, inputs
from nifcore.cli.failure import Command
from nifcore.cli.messages import byte_count, columns, print_json
from nifcore.cli.options import Debug, Json
from nifcore.errors import InputError, UsageError

if TYPE_CHECKING:
    from nifcore.header import Header, NetShape
    from nifcore.limits import Limits


app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def info(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A .nif file, or - for stdin.")
    ] = None,
    system: Annotated[
        bool,
        typer.Option("--system", help="Show the devices and kernels here, and which is chosen."),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a .nif file holds. Reads only its header."""
    if system == (file is not None):
        raise UsageError("give either a FILE or --system")
    settings = config.load().settings
    if file is None:
        _show_system(json)
        return
    header, size = _read(file, settings.limits())
    if json:
        print_json(describe(header, file, size))
    else:
        print(columns([[f"{name}:", text] for name, text in _lines(header, file, size)]))


def describe(header: Header, file: str, size: int) -> dict[str, Any]:
    """Return what ``--json`` prints of a header; ``size`` is the whole file's, in bytes."""
    return {
        "input": file,
        "bytes": size,
        "bpp": 8 * size / (header.width * header.height),
        "version": header.version,
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "colour": header.colour.name.lower(),
        "genesis": _net(header.genesis),
        "modulation": None if header.modulation is None else _net(header.modulation),
        "base": header.base,
        "omega": header.omega,
        "sigma": header.sigma,
        "tiles": [list(header.tile_box(index)) for index in range(header.tile_count)],
        "lattice": header.lattice.name.lower(),
        "entropy_model": header.entropy_model.name.lower(),
        "parameters": header.parameters * header.tile_count,
        "extensions": [{"id": each.id, "bytes": len(each.data)} for each in header.extensions],
    }


def _read(file: str, limits: Limits) -> tuple[Header, int]:
    from nifcore.header import read_header

    if file == inputs.STDIO:
        data = inputs.read(file, limits)
        return read_header(BytesIO(data), limits), len(data)
    try:
        size = os.stat(file).st_size
    except OSError as error:
        raise InputError(f"cannot read {file!r}: {error.strerror or error}") from error
    return read_header(file, limits), size


def _lines(header: Header, file: str, size: int) -> list[tuple[str, str]]:
    from nifcore.header import EXTENSION_COMMENT, EXTENSION_ICC_PROFILE

    known = {EXTENSION_ICC_PROFILE: "ICC profile", EXTENSION_COMMENT: "comment"}
    pixels = header.width * header.height
    lines = [
        ("file", file),
        ("size", f"{byte_count(size)}, {8 * size / pixels:.3f} bpp"),
        ("picture", f"{header.width}x{header.height}, {header.colour.name.lower()}"),
        ("genesis", _sizes(header.genesis)),
        ("modulation", "none" if header.modulation is None else _sizes(header.modulation)),
        ("constants", f"base {header.base:g}, omega {header.omega:g}, sigma {header.sigma:g}"),
        ("parameters", f"{header.parameters * header.tile_count:,}"),
        ("tiles", f"{header.tile_count}"),
        ("lattice", header.lattice.name.lower()),
        ("format", f"version {header.version}"),
    ]
    for each in header.extensions:
        lines.append((known.get(each.id, f"block {each.id}"), byte_count(len(each.data))))
    return lines


def _net(shape: NetShape) -> dict[str, Any]:
    return {"hidden": list(shape.hidden), "frequencies": shape.frequencies}


def _sizes(shape: NetShape) -> str:
    return f"[{', '.join(map(str, shape.hidden))}], {shape.frequencies} frequencies"


def _show_system(as_json: bool) -> None:
    import platform

    import torch

    from nifcore import kernels

    settings = config.load().settings
    compute.prepare(settings)
    choices = kernels.choices(compute.kernel(settings))
    devices = [("cpu", f"{torch.get_num_threads()} threads")]
    devices += [
        (f"cuda:{index}", torch.cuda.get_device_name(index))
        for index in range(torch.cuda.device_count())
    ]
    if as_json:
        print_json(
            {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "devices": [{"name": name, "description": text} for name, text in devices],
                "kernels": [asdict(choice) for choice in choices],
            }
        )
        return
    print(f"Python {platform.python_version()}, torch {torch.__version__}\n")
    print(columns([["device", ""], *(list(each) for each in devices)]) + "\n")
    rows = [["kernel", "chosen", "why"]]
    rows += [[each.name, "yes" if each.chosen else "", each.reason] for each in choices]
    print(columns(rows))
