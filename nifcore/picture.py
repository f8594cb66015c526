"""Pictures in and out: all that a codec of 8-bit sRGB pixels has to know about image files.

Reading goes from the cheap to the dear and stops at the first thing that is refused::

    bytes (counted) -> format (sniffed, allow-list) -> header (size, frames, metadata) -> pixels
          -> EXIF orientation -> 8 bits -> grey or RGB, with or without alpha -> sRGB
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from nifcore.errors import (
    InputError,
    LimitExceeded,
    NotAnImage,
    OutputError,
    UnsupportedImage,
    UsageError,
)
from nifcore.icc import UnusableProfile, describes, to_srgb
from nifcore.limits import Limits
from nifcore.output import output_error, write_atomically

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "AVIF",
    "JPEG2000",
    "TIFF",
    "BMP",
    "GIF",
    "PPM",
    "QOI",
    "PCX",
    "SGI",
)
"""Formats that are read, by Pillow's names. JPEG includes MPO, whose first picture is taken."""

PictureSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | NDArray[np.uint8]
)

_NIF_MAGIC = b"\x8eNIF\r\n\x1a\n"

# All that Pillow's parsers and decoders were seen to raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    AssertionError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# EXIF tag 0x0112: value -> what undoes it (EXIF 2.32, section 4.6.4 A).
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A decoded picture is written as near to its pixels as each format allows without growing absurd.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0, "optimize": True},
    "WEBP": {"quality": 95, "exact": True},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the codec takes it.

    Attributes:
        pixels: uint8 (height, width, channels), C order, its own memory; channels: 1 grey,
            2 grey + alpha, 3 sRGB, 4 sRGB + alpha (alpha not premultiplied, 255 = opaque).
        icc: the embedded profile that the pixels are in, only if it was asked to be kept.
        notes: one sentence for each thing that was converted, dropped or ignored.
        source_format: Pillow's name of the file format, None for arrays.
    """

    pixels: NDArray[np.uint8]
    icc: bytes | None = None
    notes: tuple[str, ...] = ()
    source_format: str | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[2])


def read_picture(
    source: PictureSource,
    limits: Limits | None = None,
    keep_icc: bool = False,
) -> Picture:
    """Read a picture from any accepted source as 8-bit grey or sRGB, with or without alpha.

    EXIF orientation is applied; palettes become colours; 16-bit samples are reduced to 8; CMYK,
    LAB, YCbCr and HSV become RGB; an embedded ICC profile is converted away; fully opaque alpha
    is dropped. Whatever was changed is told in the notes. Size, frame count and metadata are
    checked on the header, before any pixel is decoded.

    Args:
        source: path, encoded bytes, binary file object (read to its end), Pillow image, or uint8
            array of shape (height, width) or (height, width, 1..4).
        limits: upper bounds; None means the defaults.
        keep_icc: leave grey and RGB pixels in the space of the embedded profile and return it. A
            profile of another kind of pixel (of CMYK, of RGB in a grey picture) is converted away.

    Raises:
        InputError: the file is missing, may not be read, or is a folder.
        NotAnImage: no format of :data:`FORMATS`, damaged, or truncated.
        UnsupportedImage: no pixels, several frames or pages, or pixels that are not 8 or 16 bits.
        LimitExceeded: too many bytes, pixels, pixels per side, or bytes of metadata.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    notes: list[str] = []
    with _pillow_warnings_as(notes):
        if isinstance(source, Image.Image):
            image = source
        else:
            image = _open(_read_bytes(source, limits), limits, _name_of(source))
        _check_header(image, limits)
        raw = _raw_mode(image)
        try:
            image.load()
        except _DECODER_ERRORS as error:
            raise NotAnImage(
                f"the {image.format or 'picture'} file is damaged or truncated: {error}"
            ) from error
        if ImageFile.LOAD_TRUNCATED_IMAGES and image.format:
            notes.append(
                "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: a truncated file is not noticed"
            )
        source_format = image.format
        icc = _metadata(image, "icc_profile", limits)
        image = _upright(image, limits, notes)
        image = _plain_mode(image, raw, notes)
        image, icc = _srgb(image, icc, keep_icc, notes)
        pixels = np.array(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    pixels = _without_idle_alpha(pixels, notes)
    return Picture(pixels, icc, tuple(dict.fromkeys(notes)), source_format)


def write_picture(
    image: Image.Image,
    destination: str | os.PathLike[str] | IO[bytes],
    format: str | None = None,
) -> tuple[str, ...]:
    """Write a picture in any format that Pillow writes; a path gets the whole file or none.

    Lossy formats are written at high quality (JPEG 95 without chroma subsampling, WebP 95,
    AVIF 90 in 4:4:4). Where the format has no alpha, the picture is composited on white.

    Args:
        image: what to write; an ICC profile in its ``info`` is embedded where the format can.
        destination: path, or binary file object.
        format: Pillow's name of the format (any case) or a file extension; by default the
            extension of the path decides.

    Returns:
        Notes on what the format could not hold (empty as a rule).

    Raises:
        UsageError: the format is unknown or missing, or cannot hold such a picture.
        OutputError: the file cannot be written.
    """
    path = None if hasattr(destination, "write") else os.fspath(destination)
    name = _output_format(path, format)
    notes: list[str] = []
    data = _encode(image, name, notes)
    if path is not None:
        write_atomically(path, data)
        return tuple(notes)
    try:
        destination.write(data)  # type: ignore[union-attr]
    except OSError as error:
        raise output_error(getattr(destination, "name", "the output"), error) from error
    return tuple(notes)


# --- bytes -------------------------------------------------------------------------------------


def _name_of(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    return "the input"


def _read_bytes(source: object, limits: Limits) -> bytes:
    """Return the encoded picture, reading no more than one byte over the limit."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                data = _read_file(file, limits)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot read {_name_of(source)}: {reason}") from error
    elif hasattr(source, "read"):
        data = _read_file(source, limits)
    else:
        raise InputError(
            f"a picture cannot be read from {type(source).__name__}; accepted: a path, bytes, a "
            "binary file object, a PIL image, or a uint8 array"
        )
    if len(data) > limits.max_file_bytes:
        raise LimitExceeded(
            f"{_name_of(source)} is larger than the limit of {limits.max_file_bytes:,} bytes"
        )
    return data


def _read_file(file: Any, limits: Limits) -> bytes:
    parts: list[bytes] = []
    missing = limits.max_file_bytes + 1
    while missing > 0:
        # Piece by piece: a read of the whole allowance would take that much memory at once.
        part = file.read(min(missing, 1 << 20))
        if not part:
            break
        if not isinstance(part, bytes):
            raise InputError("the file object returns text; open it in binary mode ('rb')")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


# --- header ------------------------------------------------------------------------------------

_PILLOW_LOCK = threading.RLock()


@contextmanager
def _pillow_warnings_as(notes: list[str]) -> Iterator[None]:
    """Collect what Pillow warns of as notes, so that no warning reaches the caller.

    ``warnings`` keeps one list of filters per process; the lock keeps two readings from undoing
    each other's.
    """
    with _PILLOW_LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notes.append(f"Pillow: {warning.message}")


def _open(data: bytes, limits: Limits, name: str) -> Image.Image:
    """Identify the format and parse its header, without decoding.

    This is ``Image.open(formats=...)`` without its check of the pixel count: that one warns and
    stops at numbers of its own, where ours are in force (:func:`_check_header`).
    """
    if not data:
        raise NotAnImage(f"{name} is empty; a picture is needed")
    if data.startswith(_NIF_MAGIC[: max(4, min(len(data), len(_NIF_MAGIC)))]):
        raise NotAnImage(f"{name} is a .nif file already; decode it first (nif decode)")
    width, height = _webp_size(data)
    _check_size(width, height, limits)
    Image.init()
    failure: tuple[str, BaseException] | None = None
    for format_name in FORMATS:
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is None:
            continue
        matches = accept(data[:16]) if accept else True
        if isinstance(matches, str):
            raise NotAnImage(f"{name} looks like {format_name}, but {matches}")
        if not matches:
            continue
        try:
            return factory(io.BytesIO(data), "")
        except Image.DecompressionBombError as error:
            raise LimitExceeded(f"{name}: {error} (PIL.Image.MAX_IMAGE_PIXELS)") from error
        except _DECODER_ERRORS as error:
            failure = failure or (format_name, error)
    if failure is None:
        raise NotAnImage(
            f"{name} is not a picture in a known format; accepted: {', '.join(FORMATS)} "
            f"(it begins with {data[:8].hex(' ')})"
        )
    format_name, cause = failure
    if "not identified by this driver" in str(cause):
        # What ImageFile raises for a header that is well-formed but has a side of zero.
        raise UnsupportedImage(
            f"{name} is a {format_name} file without pixels (a side of zero) or with pixels of "
            "an unknown kind"
        ) from cause
    raise NotAnImage(f"{name} is a damaged or truncated {format_name} file: {cause}") from cause


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file's canvas, (1, 1) if it is none.

    Pillow's WebP reader allocates the canvas while opening, before a caller can see the size. The
    container is specified in RFC 9649, section 2.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 1, 1
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return 1, 1


def _check_header(image: Image.Image, limits: Limits) -> None:
    _check_size(image.width, image.height, limits)
    # Cameras wrap a JPEG and its previews as MPO: one photograph, not an animation.
    if image.format != "MPO" and _has_frames(image):
        raise UnsupportedImage(
            f"the {image.format or 'picture'} has several frames or pages; a single picture is "
            "needed (pass one frame as a PIL image: frame.copy())"
        )


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DECODER_ERRORS as error:
        raise NotAnImage(f"the {image.format} file is damaged or truncated: {error}") from error


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise UnsupportedImage(f"the picture has no pixels: its size is {width}x{height}")
    if max(width, height) > limits.max_side:
        raise LimitExceeded(
            f"the picture is {width}x{height}; at most {limits.max_side:,} pixels per side are "
            "accepted"
        )
    if width * height > limits.max_pixels:
        raise LimitExceeded(
            f"the picture is {width}x{height} = {width * height:,} pixels; at most "
            f"{limits.max_pixels:,} are accepted"
        )


def _metadata(image: Image.Image, key: str, limits: Limits) -> bytes | None:
    value = image.info.get(key)
    if not isinstance(value, bytes | bytearray) or not value:
        return None
    if len(value) > limits.max_metadata_bytes:
        raise LimitExceeded(
            f"the picture's {key} has {len(value):,} bytes; at most "
            f"{limits.max_metadata_bytes:,} are accepted"
        )
    return bytes(value)


# --- pixels ------------------------------------------------------------------------------------


def _raw_mode(image: Image.Image) -> str:
    """Return how the file lays out its samples, in Pillow's words; empty once decoded.

    Pillow keeps the high byte of 16-bit colour while decoding and then says 8 bits; only this
    tells afterwards what the file held.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    codec, _, _, args = tiles[0]
    if codec == "SGI16":
        return f"{image.mode};16"
    first, *others = args if isinstance(args, tuple) and args else (args,)
    if codec in ("ppm", "ppm_plain") and others and others[0] > 255:
        return f"{image.mode};16"
    return first if isinstance(first, str) else ""


def _upright(image: Image.Image, limits: Limits, notes: list[str]) -> Image.Image:
    _metadata(image, "exif", limits)
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODER_ERRORS as error:
        notes.append(f"EXIF data ignored, it cannot be read: {error}")
        return image
    undo = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    if undo is None:
        return image
    notes.append(f"EXIF orientation {orientation} applied")
    return image.transpose(undo)


def _plain_mode(image: Image.Image, raw: str, notes: list[str]) -> Image.Image:
    """Return the picture in mode L, LA, RGB, RGBA, CMYK or LAB."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and raw.startswith("I;16")):
        notes.append("16-bit grey reduced to 8 bits")
        return _grey_from_16_bits(image, raw)
    if mode in ("I", "F"):
        kind = "integer" if mode == "I" else "floating-point"
        raise UnsupportedImage(
            f"the picture has 32-bit {kind} pixels (mode {mode}), whose range is unknown; "
            "accepted: 8-bit and 16-bit pixels"
        )
    if ";16" in raw:
        notes.append("16-bit samples reduced to 8 bits (their high bytes)")
        if isinstance(image.info.get("transparency"), tuple):
            image = image.copy()
            image.info["transparency"] = tuple(v >> 8 for v in image.info["transparency"])
    if raw in ("L;2", "L;4") and isinstance(image.info.get("transparency"), int):
        # Pillow scales the samples to 0..255, not the one that stands for transparent.
        image = image.copy()
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}[raw]
    transparent = image.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        if mode == "1":
            notes.append("1-bit pixels converted to grey")
        return image.convert("LA" if transparent else "L")
    if mode in ("P", "PA"):
        notes.append("palette converted to colours")
        return _grey_if_neutral(image.convert("RGBA" if transparent else "RGB"))
    if raw.startswith("LA;"):
        return _grey_if_neutral(image)
    if mode in ("RGB", "RGBA", "RGBa", "RGBX"):
        return image.convert("RGBA" if transparent else "RGB")
    if mode in ("CMYK", "LAB"):
        return image
    if mode in ("YCbCr", "HSV"):
        notes.append(f"{mode} converted to RGB")
        return image.convert("RGB")
    raise UnsupportedImage(
        f"pixels of mode {mode} are not supported; accepted: grey, RGB, palette, CMYK, LAB, "
        "YCbCr and HSV of 8 or 16 bits, with or without alpha"
    )


def _grey_from_16_bits(image: Image.Image, raw: str) -> Image.Image:
    samples = np.asarray(image).astype(np.uint32)
    maximum = 4095 if raw == "I;12" else 65535
    grey = Image.fromarray(((samples * 255 + maximum // 2) // maximum).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(alpha)))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey


def _grey_if_neutral(image: Image.Image) -> Image.Image:
    """Return L or LA if every pixel has equal red, green and blue; these were grey as stored."""
    pixels = np.asarray(image)
    if (pixels[..., 0] != pixels[..., 1]).any() or (pixels[..., 0] != pixels[..., 2]).any():
        return image
    bands = image.split()
    return bands[0] if image.mode == "RGB" else Image.merge("LA", (bands[0], bands[3]))


def _srgb(
    image: Image.Image, icc: bytes | None, keep_icc: bool, notes: list[str]
) -> tuple[Image.Image, bytes | None]:
    """Return the picture in L, LA, RGB or RGBA, and the profile if its pixels are left in it."""
    unmanaged = image.mode in ("CMYK", "LAB")
    if icc and keep_icc and describes(icc, image.mode):
        return image, icc
    if icc:
        try:
            converted, changed = to_srgb(image, icc)
        except UnusableProfile as error:
            notes.append(f"embedded ICC profile ignored: {error}")
        else:
            if changed:
                notes.append(f"{image.mode} converted to sRGB through the embedded ICC profile")
            return converted, None
    if unmanaged:
        notes.append(f"{image.mode} converted to RGB without a colour profile")
        return image.convert("RGB"), None
    return image, None


def _without_idle_alpha(pixels: NDArray[np.uint8], notes: list[str]) -> NDArray[np.uint8]:
    if pixels.shape[2] in (2, 4) and int(pixels[..., -1].min()) == 255:
        notes.append("fully opaque alpha dropped")
        return np.ascontiguousarray(pixels[..., :-1])
    return pixels


def _from_array(array: NDArray[Any], limits: Limits) -> Picture:
    if array.dtype != np.uint8:
        raise UnsupportedImage(
            f"the array has dtype {array.dtype}; accepted: uint8, values 0 to 255"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UnsupportedImage(
            f"the array has shape {array.shape}; accepted: (height, width) or "
            "(height, width, channels) with 1 to 4 channels"
        )
    _check_size(array.shape[1], array.shape[0], limits)
    notes: list[str] = []
    pixels = np.array(array, dtype=np.uint8, order="C").reshape(*array.shape[:2], -1)
    return Picture(_without_idle_alpha(pixels, notes), None, tuple(notes), None)


# --- writing -----------------------------------------------------------------------------------

# What each format can hold besides grey and RGB; formats not listed: nothing.
_HOLDS = {
    "PNG": ("L", "LA", "RGB", "RGBA"),
    "TIFF": ("L", "LA", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "TGA": ("L", "LA", "RGB", "RGBA"),
    "NIF": ("L", "LA", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
    "GIF": ("L", "RGB", "RGBA"),
    "SGI": ("L", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
}


def _output_format(path: str | None, format: str | None) -> str:
    Image.init()
    extensions = Image.registered_extensions()
    asked = format if format is not None else os.path.splitext(path or "")[1]
    name = asked.upper()
    if name not in Image.SAVE:
        name = extensions.get("." + asked.lower().removeprefix("."), "")
    if name not in Image.SAVE:
        known = sorted({e for e, f in extensions.items() if f in Image.SAVE and f in FORMATS})
        what = f"{asked!r}" if asked else "no format or file extension"
        raise UsageError(f"cannot tell the output format: got {what}; accepted: {', '.join(known)}")
    return name


def _encode(image: Image.Image, name: str, notes: list[str]) -> bytes:
    image = _fitted(image, _HOLDS.get(name, ("L", "RGB")), name, notes)
    options = dict(_SAVE_OPTIONS.get(name, {}))
    if image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
    buffer = io.BytesIO()
    with _pillow_warnings_as(notes):
        try:
            image.save(buffer, format=name, **options)
        except _DECODER_ERRORS as error:
            raise OutputError(
                f"a {image.width}x{image.height} picture of mode {image.mode} cannot be written "
                f"as {name}: {error}"
            ) from error
    return buffer.getvalue()


def _fitted(image: Image.Image, held: tuple[str, ...], name: str, notes: list[str]) -> Image.Image:
    if image.mode in held or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    if image.mode == "L":
        return _converted(image, "RGB")
    if image.mode == "LA" and "RGBA" in held:
        return _converted(image, "RGBA")
    notes.append(f"{name} has no alpha: the picture was composited on white")
    return flattened(image)


def flattened(image: Image.Image) -> Image.Image:
    """Composite a picture of mode LA or RGBA on white; returns mode L or RGB."""
    opaque = image.mode[:-1]
    white = Image.new(image.mode, image.size, (255,) * len(image.mode))
    result = Image.alpha_composite(white.convert("RGBA"), image.convert("RGBA")).convert(opaque)
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result


def _converted(image: Image.Image, mode: str) -> Image.Image:
    result = image.convert(mode)
    # A profile of grey pixels does not describe colour ones.
    result.info.pop("icc_profile", None)
    return result
