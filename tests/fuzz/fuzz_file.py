"""Fuzz the whole decoder of weights: ``python -m tests.fuzz.fuzz_file -runs=20000``.

The lowest bits of the first byte choose what the rest is: 0 a file as it is, 1 and 2 what stands
between that version and the CRC, from 3 on one tile's stream on one of the lattices, in one of the
entropy models.
Whatever is accepted must pack to a file of the same weights.
"""

from __future__ import annotations

import sys
import zlib

import atheris

with atheris.instrument_imports(include=["nifcore"]):
    from nifcore.bitstream import pack, unpack
    from nifcore.errors import BitstreamError, LimitExceeded
    from nifcore.header import (
        MAGIC,
        Colour,
        EntropyModel,
        Header,
        LatticeKind,
        NetShape,
        header_bytes,
    )
    from nifcore.limits import Limits

LIMITS = Limits(
    max_pixels=1 << 20, max_file_bytes=1 << 16, max_parameters=4096, max_metadata_bytes=1 << 10
)
HEADERS = [
    Header(
        8,
        8,
        Colour.SRGB,
        NetShape((4, 3), 2),
        NetShape((2,), 1),
        lattice=lattice,
        entropy_model=model,
    )
    for lattice in LatticeKind
    for model in EntropyModel
]


def file_of(data: bytes) -> bytes:
    """Return the file that ``data`` stands for."""
    kind = data[0] % (3 + len(HEADERS)) if data else 0
    if kind == 0:
        return data[1:]
    if kind < 3:
        body = MAGIC + bytes((kind,)) + data[1:]
    else:
        body = header_bytes(HEADERS[kind - 3]) + data[1:]
    return body + zlib.crc32(body).to_bytes(4, "little")


def one_input(data: bytes) -> None:
    """Read one file."""
    try:
        header, tiles = unpack(file_of(data), LIMITS)
    except (BitstreamError, LimitExceeded):
        return
    again, tensors = unpack(pack(header, tiles), LIMITS)
    assert again == header
    for first, second in zip(tiles, tensors, strict=True):
        for a, b in zip(first, second, strict=True):
            assert a.step == b.step
            assert (a.symbols == b.symbols).all()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
