"""``import nifcore.pillow`` teaches Pillow to open and save .nif files.

::

    import nifcore.pillow
    from PIL import Image

    Image.open("photo.nif").thumbnail((128, 128))
    image.save("photo.nif", quality=60, effort=3)

Opening parses the header only; the pixels are decoded when they are first needed, and a thumbnail
is rendered at its own size instead of the picture's. Saving takes the options ``quality``,
``psnr``, ``bpp``, ``max_bytes``, ``effort``, ``preset``, ``device``, ``seed``, ``keep_icc``,
``progress`` and ``control`` of :func:`nifcore.encode`.
"""

from __future__ import annotations

import math
import os
from typing import IO, Any, BinaryIO, cast

from PIL import Image, ImageFile

from nifcore.errors import BitstreamError, LimitExceeded
from nifcore.header import (
    EXTENSION_COMMENT,
    EXTENSION_ICC_PROFILE,
    MAGIC,
    Colour,
    read_header,
)

FORMAT = "NIF"
MIME = "image/x-nif"
"""Not registered with IANA."""

_MODES = {
    Colour.GREY: "L",
    Colour.GREY_ALPHA: "LA",
    Colour.SRGB: "RGB",
    Colour.SRGB_ALPHA: "RGBA",
}
_OPTIONS = (
    "preset",
    "effort",
    "quality",
    "psnr",
    "bpp",
    "max_bytes",
    "device",
    "seed",
    "keep_icc",
    "progress",
    "control",
)


class NifImageFile(ImageFile.ImageFile):
    """A .nif file as a Pillow image of mode L, LA, RGB or RGBA."""

    format = FORMAT
    format_description = "Neural image format"

    def _open(self) -> None:
        """Parse the header.

        Raises:
            SyntaxError: not a .nif file, or a damaged one (Pillow then tries other formats).
            PIL.Image.DecompressionBombError: larger than the default limits.
        """
        try:
            header = read_header(cast(BinaryIO, self.fp))
        except BitstreamError as error:
            raise SyntaxError(str(error)) from error
        except LimitExceeded as error:
            raise Image.DecompressionBombError(str(error)) from error
        self._size = (header.width, header.height)
        self._mode = _MODES[header.colour]
        for block in header.extensions:
            if block.id == EXTENSION_ICC_PROFILE:
                self.info["icc_profile"] = block.data
            elif block.id == EXTENSION_COMMENT:
                self.info["comment"] = block.data.decode("utf-8", errors="replace")

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Render no larger than needed to cover ``size``; called by ``Image.thumbnail``.

        Returns:
            The mode and the box of the rendering that holds the picture, or None if nothing
            changed.
        """
        if size is None or self._im is not None:
            return None
        width, height = self.size
        share = max(size[0] / width, size[1] / height)
        if not 0.0 < share < 1.0:
            return None
        self._size = (math.ceil(width * share), math.ceil(height * share))
        return self.mode, (0, 0, float(self.width), float(self.height))

    def load(self) -> Any:
        """Decode the pixels, once.

        Raises:
            OSError: the file is damaged.
        """
        if self._im is None:
            import nifcore

            assert self.fp is not None
            self.fp.seek(0)
            try:
                decoded = nifcore.decode(self.fp.read(), size=self.size)
            except BitstreamError as error:
                raise OSError(str(error)) from error
            self.im = decoded.im
            if self._exclusive_fp:
                self.fp.close()
        return Image.Image.load(self)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes | os.PathLike[str]) -> None:
    import nifcore

    options = {name: value for name, value in image.encoderinfo.items() if name in _OPTIONS}
    file.write(nifcore.encode(image, **options).data)


Image.register_open(FORMAT, NifImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".nif")
Image.register_mime(FORMAT, MIME)
