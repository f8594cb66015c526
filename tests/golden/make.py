"""Make the golden files from real pictures, with the pixels they decode to: run once.

::

    python -m tests.golden.make

Files that exist stay as they are. The pictures are crops of scikit-image's photographs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs

import nifcore
from tests.golden.catalogue import FOLDER, add, read_index
from tests.golden.synthetic import main as add_synthetic

Pixels = NDArray[np.uint8]


def crop(photograph: Pixels, x: int, y: int, width: int, height: int, factor: int) -> Image.Image:
    """Cut out a part and reduce it by ``factor``."""
    part = Image.fromarray(photograph[y : y + height * factor, x : x + width * factor])
    return part.resize((width, height), Image.Resampling.BOX)


def pictures() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """Return the pictures and how each is encoded, by name."""
    astronaut, cat, coffee = photographs.astronaut(), photographs.chelsea(), photographs.coffee()
    portrait = crop(astronaut, 130, 0, 96, 96, 2)
    alpha = Image.linear_gradient("L").resize(portrait.size)
    translucent = portrait.copy()
    translucent.putalpha(alpha)
    return {
        "photo-srgb": (crop(coffee, 120, 40, 144, 96, 3), {"bpp": 1.0}),
        "photo-portrait": (portrait, {"quality": 75}),
        "photo-alpha": (translucent, {"bpp": 1.5}),
        "photo-grey": (crop(cat, 60, 30, 80, 61, 3).convert("L"), {"bpp": 1.0}),
        "photo-tiny": (crop(cat, 100, 60, 8, 8, 16), {"effort": 1}),
        "photo-ordered": (crop(coffee, 120, 40, 144, 96, 3), {"bpp": 1.0, "effort": 2}),
        "photo-published": (crop(coffee, 120, 40, 48, 32, 9), {"preset": "paper-120"}),
    }


def main() -> None:
    """Encode what is missing; write each file and a PNG of its pixels."""
    add_synthetic()
    for name, (picture, how) in pictures().items():
        if name in read_index():
            print(f"{name}: exists")
            continue
        encoded = nifcore.encode(picture, device="cpu", **how)  # type: ignore[arg-type]
        nifcore.decode(encoded.data, device="cpu").save(FOLDER / f"{name}.png", optimize=True)
        add(name, encoded.data)
        print(f"{name}: {len(encoded.data)} bytes, {encoded.report.psnr_db:.2f} dB")


if __name__ == "__main__":
    main()
