"""Colour profiles: from whatever space a picture's ICC profile describes to sRGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, features

# ICC.1 data colour space signatures, by the Pillow mode of the pixels they describe.
_SPACES = {
    "L": ("GRAY", "RGB"),
    "LA": ("GRAY", "RGB"),
    "RGB": ("RGB",),
    "RGBA": ("RGB",),
    "CMYK": ("CMYK",),
    "LAB": ("Lab",),
}

# Photographs keep their in-gamut colours exactly; black maps to black.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


class UnusableProfile(Exception):
    """The profile cannot be applied to this picture; the text says why."""


def describes(profile: bytes, mode: str) -> bool:
    """Return whether the profile is one of grey pixels for L and LA, of RGB ones for RGB and RGBA.

    Only such a profile can travel with the pixels: PNG, for one, refuses any other.
    """
    # The space is a field of the header, bytes 16 to 19 (ICC.1:2022, section 7.2.6).
    space = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}.get(mode)
    return profile[16:20] == space


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, bool]:
    """Convert a picture to sRGB, relative colorimetric with black point compensation.

    A profile that moves no colour by more than one level is taken as sRGB itself: the pixels then
    stay exactly as they are.

    Args:
        image: mode L, LA, RGB, RGBA, CMYK or LAB.
        profile: the embedded ICC profile.

    Returns:
        The picture (L and LA stay grey, alpha is untouched, the rest becomes RGB or RGBA), and
        whether any pixel can have changed.

    Raises:
        UnusableProfile: the profile is damaged, or describes another kind of pixel.
    """
    if not features.check("littlecms2"):
        raise UnusableProfile("this Pillow was built without LittleCMS")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space not in _SPACES[image.mode]:
            raise UnusableProfile(f"it describes {space} pixels, the picture has {image.mode}")
        return _convert(image, source, space)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise UnusableProfile(f"LittleCMS: {error}") from error


def _convert(
    image: Image.Image, source: ImageCms.ImageCmsProfile, space: str
) -> tuple[Image.Image, bool]:
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}[space]
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB", _INTENT, _FLAGS
    )
    if image.mode in ("L", "LA"):
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :]).convert(mode)
        # sRGB white is neutral, so the three results agree but for rounding; green weighs most.
        levels = np.asarray(_apply(ramp, transform))[0, :, 1]
        if _moves_nothing(np.arange(256), levels):
            return image, False
        table = levels.tolist()
        if image.mode == "L":
            return image.point(table), True
        return image.point(table + list(range(256))), True
    if image.mode in ("RGB", "RGBA"):
        steps = np.linspace(0, 255, 18).round().astype(np.uint8)
        probe = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
        if _moves_nothing(probe, np.asarray(_apply(Image.fromarray(probe), transform))):
            return image, False
    if image.mode == "RGBA":
        *colours, alpha = image.split()
        converted = _apply(Image.merge("RGB", colours), transform)
        return Image.merge("RGBA", (*converted.split(), alpha)), True
    return _apply(image, transform), True


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("the transform returned no picture")
    return converted


def _moves_nothing(before: np.ndarray, after: np.ndarray) -> bool:
    return bool(np.abs(before.astype(np.int16) - after.astype(np.int16)).max() <= 1)
