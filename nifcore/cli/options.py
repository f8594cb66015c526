"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from nifcore.config import Settings

ADVANCED = "Advanced"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per file on stdout instead of text.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=ADVANCED),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help=f"Where to compute: auto, cpu, cuda, cuda:1, ... (default {Settings.device}).",
    ),
]
Kernel = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="NAME",
        help=f"What computes: auto, or a name of nif info --system (default {Settings.kernel}).",
        rich_help_panel=ADVANCED,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=0,
        metavar="N",
        help=f"CPU threads; 0 leaves the choice to torch (default {Settings.threads}).",
        rich_help_panel=ADVANCED,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        help=f"Refuse pictures of more pixels (default {Settings.max_pixels}).",
        rich_help_panel=ADVANCED,
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        file_okay=False,
        help="Take every name as an input and write the outputs into this folder.",
    ),
]
NoClobber = Annotated[
    bool,
    typer.Option("--no-clobber", "-n", help="Leave an existing output as it is (and say so)."),
]


Efforts = Annotated[
    list[int] | None,
    typer.Option("--effort", "-e", min=1, max=9, help="Effort; may be given again."),
]
Rates = Annotated[
    list[float] | None,
    typer.Option("--bpp", metavar="RATE", help="Target rate; may be given again."),
]
ResultsFile = Annotated[
    str | None,
    typer.Option("--output", metavar="FILE", help="Also write everything here as JSON."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Start of the random numbers.")]


def parse_size(text: str) -> tuple[int, int]:
    """Read ``WxH`` in pixels."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size like 640x480")
    return int(match[1]), int(match[2])


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Read ``x,y,w,h`` in pixels."""
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a region like 100,50,320,240 (x,y,w,h)")
    return int(match[1]), int(match[2]), int(match[3]), int(match[4])


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets whose names begin as typed, for shell completion."""
    from nifcore.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]
