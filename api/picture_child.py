"""The child process that reads what a client sent: limits first, then the picture.

python -m api.picture_child CPU_SECONDS MEMORY_BYTES FILE_BYTES original IN OUT MAX_PIXELS
python -m api.picture_child CPU_SECONDS MEMORY_BYTES FILE_BYTES rivals IN OUT MAX_PIXELS BYTES ...
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from api.children import limit_self


def main() -> None:
    """Lower the limits of this process for good, then do what the other arguments say."""
    work, source, target, max_pixels, *sizes = limit_self()
    os.nice(5)  # nobody waits for a comparison as they wait for their job
    # Imported after the limits, which hold for everything that is loaded.
    from nifcore.errors import NifError
    from nifcore.limits import Limits

    limits = Limits(max_pixels=int(max_pixels))
    try:
        if work == "original":
            _original(source, target, limits)
        else:
            _rivals(source, target, limits, [int(text) for text in sizes])
    except NifError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _original(source: str, target: str, limits: object) -> None:
    """Write the pixels that the codec sees, as PNG."""
    from PIL import Image

    from nifcore.limits import Limits
    from nifcore.picture import read_picture

    assert isinstance(limits, Limits)
    pixels = read_picture(source, limits).pixels
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    # Fast rather than small: it is shown, not kept for ever.
    Image.fromarray(pixels).save(target, "PNG", compress_level=3)


def _rivals(source: str, target: str, limits: object, sizes: list[int]) -> None:
    """Write what the classic codecs make of the picture in each of ``sizes`` bytes, as JSON."""
    from nifcore.compare import equal_size
    from nifcore.limits import Limits
    from nifcore.picture import read_picture

    assert isinstance(limits, Limits)
    pixels = read_picture(source, limits).pixels
    found: dict[tuple[str, int], dict[str, object]] = {}
    for size in sizes:
        for each in equal_size(pixels, size):
            values = asdict(each)
            if math.isinf(each.psnr_db):
                continue  # lossless has no place on the scale
            found[each.codec, each.quality] = values
    Path(target).write_text(json.dumps(list(found.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
