"""How a file stands beside a JPEG and a WebP of the same picture and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nifcore.cli.messages import columns, decibels, say, similarity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nifcore.compare import Comparison


CODECS = ("JPEG", "WEBP")


def rivals_of(pixels: NDArray[np.uint8], size: int) -> list[Comparison]:
    """Return what JPEG and WebP make of ``pixels`` in ``size`` bytes; Ctrl-C skips it."""
    from nifcore.compare import available_codecs, equal_size

    codecs = [codec for codec in CODECS if codec in available_codecs()]
    try:
        return equal_size(pixels, size, codecs)
    except KeyboardInterrupt:
        say("comparison with JPEG and WebP skipped")
        return []


def table(
    name: str,
    pixels: int,
    size: int,
    psnr_db: float,
    ms_ssim: float | None,
    rivals: Sequence[Comparison],
) -> str:
    """Lay out a file and its rivals: size, bits per pixel, PSNR, MS-SSIM."""
    rows = [["", "bytes", "bpp", "PSNR", "MS-SSIM"]]
    rows.append(_row(name, size, pixels, psnr_db, ms_ssim))
    rows += [_row(_name(each), each.bytes, pixels, each.psnr_db, each.ms_ssim) for each in rivals]
    return columns(rows, right=(1, 2, 3, 4))


def _name(rival: Comparison) -> str:
    codec = {"WEBP": "WebP"}.get(rival.codec, rival.codec)
    if rival.larger:
        return f"{codec}, at its smallest"
    return f"{codec}, quality {rival.quality}"


def _row(name: str, size: int, pixels: int, psnr_db: float, ms_ssim: float | None) -> list[str]:
    return [
        name,
        f"{size:,}",
        f"{8 * size / pixels:.3f}",
        decibels(psnr_db),
        similarity(ms_ssim),
    ]
