"""Limits on what is read, checked before anything large is allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds on pictures and files; every one is on by default.

    Attributes:
        max_pixels: width times height of an input, of a file's declared size, and of a rendering.
        max_side: longest side, in pixels.
        max_file_bytes: size of an input picture or a .nif file, in bytes.
        max_parameters: weights of all networks in one file.
        max_metadata_bytes: size of an ICC profile or of any extension block, in bytes.
    """

    max_pixels: int = 50_000_000
    max_side: int = 65_535
    max_file_bytes: int = 256 * 1024 * 1024
    max_parameters: int = 64_000_000
    max_metadata_bytes: int = 4 * 1024 * 1024
