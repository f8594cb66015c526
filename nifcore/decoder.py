"""Decoding: a .nif file in, pixels out."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nifcore.architecture import Architecture
from nifcore.bitstream import unpack_tiles
from nifcore.devices import describe_device, resolve_device
from nifcore.errors import DeviceError, InputError, LimitExceeded
from nifcore.header import EXTENSION_ICC_PROFILE, Header
from nifcore.kernels import make_kernel
from nifcore.limits import Limits
from nifcore.network import Params
from nifcore.quantise import as_weights
from nifcore.render import View, make_view, render, tiles_in_view

FileSource = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


def decode(
    data: FileSource,
    *,
    size: tuple[int, int] | None = None,
    scale: float | None = None,
    region: tuple[int, int, int, int] | None = None,
    device: str = "auto",
    kernel: str | None = None,
    limits: Limits | None = None,
) -> Image.Image:
    """Decode a .nif file at its own size or any other, whole or in part.

    Args:
        data: bytes, path or binary file.
        size: (width, height) of the whole rendering; excludes ``scale``.
        scale: factor on both sides.
        region: (x, y, width, height) in pixels of the whole rendering; only it is computed.
        device: "auto", "cpu", "cuda" or "cuda:N".
        kernel: name of a kernel, or None for the best.
        limits: bounds on the file and on the rendering.

    Returns:
        An image of mode L, LA, RGB or RGBA; ``info["icc_profile"]`` where the file carries one.

    Raises:
        NotNif, CorruptBitstream, UnsupportedVersion: the data cannot be decoded.
        LimitExceeded: the file or the rendering is too large.
        UsageError: contradictory size, scale or region. DeviceError: device missing or full.
    """
    where = resolve_device(device)
    bounds = limits or Limits()
    raw = read_file(data, bounds)
    name = None if kernel in (None, "auto") else kernel
    pixels, header = _decode(raw, size, scale, region, where, name, bounds)
    image = Image.fromarray(pixels[:, :, 0] if header.channels == 1 else pixels)
    for block in header.extensions:
        if block.id == EXTENSION_ICC_PROFILE:
            image.info["icc_profile"] = block.data
    return image


def decode_pixels(
    data: bytes, *, device: torch.device, kernel: str | None, limits: Limits
) -> NDArray[np.uint8]:
    """Decode at the file's own size to uint8 (height, width, channels)."""
    return _decode(data, None, None, None, device, kernel, limits)[0]


def _decode(
    data: bytes,
    size: tuple[int, int] | None,
    scale: float | None,
    region: tuple[int, int, int, int] | None,
    device: torch.device,
    kernel: str | None,
    limits: Limits,
) -> tuple[NDArray[np.uint8], Header]:
    def view_of(header: Header) -> View:
        return make_view(header, size, scale, region, limits)

    header, tiles = unpack_tiles(
        data, lambda header: tiles_in_view(header, view_of(header)), limits
    )
    view = view_of(header)

    def weights(index: int) -> Params:
        return [as_weights(tensor, device) for tensor in tiles[index]]

    try:
        chosen = make_kernel(Architecture.of(header), kernel, device.type)
        pixels = render(header, weights, chosen, view, device)
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"{describe_device(device)} ran out of memory: {error}") from error
    return pixels, header


def read_file(source: FileSource, limits: Limits) -> bytes:
    """Return the bytes of a .nif file given as bytes, path or binary file.

    Raises:
        InputError: the path cannot be read. LimitExceeded: more bytes than allowed.
    """
    most = limits.max_file_bytes
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            raise InputError(
                f"cannot read {os.fspath(source)!r}: {error.strerror or error}"
            ) from error
    else:
        data = source.read(most + 1)
    if len(data) > most:
        raise LimitExceeded(f"the file has more than {most} bytes, which is the limit")
    return data
