"""``nif compare``: how near two pictures are, and what JPEG and WebP make of the same bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nifcore import config
from nifcore.cli import compute, inputs, outputs
from nifcore.cli.failure import Command
from nifcore.cli.messages import byte_count, decibels, print_json
from nifcore.cli.options import Debug, Device, Json, MaxPixels, Quiet, Threads
from nifcore.cli.rivals import rivals_of, table
from nifcore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def compare(
    original: Annotated[
        str, typer.Argument(metavar="A", help="The original: a picture or a .nif file.")
    ],
    other: Annotated[str, typer.Argument(metavar="B", help="What is compared with it: likewise.")],
    picture: Annotated[
        str | None,
        typer.Option(
            "--picture",
            metavar="OUT",
            help="Write A, B and their difference side by side.",
        ),
    ] = None,
    no_codecs: Annotated[
        bool, typer.Option("--no-codecs", help="Leave out JPEG and WebP of the size of B.")
    ] = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    debug: Debug = False,
) -> None:
    """Measure PSNR and MS-SSIM of B against A, beside a JPEG and a WebP of A as large as B."""
    flags = {"device": device, "threads": threads, "max_pixels": max_pixels}
    settings = config.load(flags).settings
    if picture is not None:
        outputs.check(picture, source=original)
    compute.prepare(settings)
    from nifcore import metrics

    reader = _Reader(settings)
    first, second = reader.read(original), reader.read(other)
    a, b = _aligned(first.pixels, second.pixels)
    psnr_db, ms_ssim = metrics.psnr(a, b), metrics.ms_ssim_pictures(a, b)
    height, width, channels = a.shape
    rivals = [] if no_codecs or (quiet and not json) else rivals_of(a, second.bytes)
    if picture is not None:
        titles = (
            f"{Path(original).name}, {byte_count(first.bytes)}",
            f"{Path(other).name}, {byte_count(second.bytes)}, {decibels(psnr_db)}",
        )
        outputs.write(picture, _side_by_side(a, b, titles, picture))
    if json:
        print_json(
            {
                "original": original,
                "compared": other,
                "width": width,
                "height": height,
                "channels": channels,
                "original_bytes": first.bytes,
                "bytes": second.bytes,
                "bpp": 8 * second.bytes / (width * height),
                "psnr_db": psnr_db,
                "ms_ssim": ms_ssim,
                "comparisons": [asdict(each) for each in rivals],
                "picture": picture,
            }
        )
    elif not quiet:
        print(table(other, width * height, second.bytes, psnr_db, ms_ssim, rivals))
        print(f"{width}x{height}; {original} has {byte_count(first.bytes)}")
        if picture is not None:
            print(f"side by side: {picture}")


@dataclass(frozen=True)
class _Read:
    """Pixels, uint8 (height, width, channels), and the size of the file that held them."""

    pixels: NDArray[np.uint8]
    bytes: int


@dataclass(frozen=True)
class _Reader:
    """Reads pictures of any kind, .nif files among them."""

    settings: config.Settings

    def read(self, name: str) -> _Read:
        """Return the pixels of a file or of stdin.

        Raises:
            InputError: it cannot be read, or is no picture.
        """
        import numpy as np

        import nifcore
        from nifcore.picture import read_picture

        limits = self.settings.limits()
        data = inputs.read(name, limits)
        if not nifcore.is_nif(data):
            return _Read(read_picture(data, limits).pixels, len(data))
        decoded = nifcore.decode(
            data, device=self.settings.device, kernel=self.settings.kernel, limits=limits
        )
        pixels = np.asarray(decoded)
        return _Read(pixels.reshape(*pixels.shape[:2], -1), len(data))


def _aligned(
    a: NDArray[np.uint8], b: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give both pictures colour if one has colour, and alpha if one has alpha.

    Raises:
        UsageError: their sizes differ.
    """
    if a.shape[:2] != b.shape[:2]:
        sizes = " and ".join(f"{each.shape[1]}x{each.shape[0]}" for each in (a, b))
        raise UsageError(f"pictures of {sizes} cannot be compared; equal sizes are accepted")
    colour = any(each.shape[2] >= 3 for each in (a, b))
    alpha = any(each.shape[2] in (2, 4) for each in (a, b))
    return _with_channels(a, colour, alpha), _with_channels(b, colour, alpha)


def _with_channels(pixels: NDArray[np.uint8], colour: bool, alpha: bool) -> NDArray[np.uint8]:
    import numpy as np

    has_alpha = pixels.shape[2] in (2, 4)
    samples = pixels[..., :-1] if has_alpha else pixels
    if colour and samples.shape[2] == 1:
        samples = np.repeat(samples, 3, axis=2)
    if alpha:
        opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        samples = np.concatenate([samples, pixels[..., -1:] if has_alpha else opaque], axis=2)
    return np.ascontiguousarray(samples)


def _side_by_side(
    a: NDArray[np.uint8], b: NDArray[np.uint8], names: tuple[str, str], output: str
) -> bytes:
    """Return the encoded picture of A, B and their difference, each with its name."""
    from nifcore.compare import side_by_side
    from nifcore.picture import write_picture

    buffer = BytesIO()
    write_picture(side_by_side(a, b, names), buffer, Path(output).suffix or "png")
    return buffer.getvalue()
