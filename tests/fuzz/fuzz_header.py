"""Fuzz the header parser: ``python -m tests.fuzz.fuzz_header -runs=20000`` (libFuzzer's options).

Odd first byte: the rest stands behind a valid magic and a version that its upper bit chooses.
Whatever is accepted must be
the only form of its header.
"""

from __future__ import annotations

import io
import sys

import atheris

with atheris.instrument_imports(include=["nifcore"]):
    from nifcore.errors import BitstreamError, LimitExceeded
    from nifcore.header import MAGIC, VERSIONS, header_bytes, is_nif, read_header
    from nifcore.limits import Limits

LIMITS = Limits(max_metadata_bytes=1 << 16)


def one_input(data: bytes) -> None:
    """Read one header."""
    start = MAGIC + bytes((VERSIONS[data[0] >> 7],)) if data[:1] and data[0] & 1 else b""
    file = io.BytesIO(start + data[1:])
    try:
        header = read_header(file, LIMITS)
    except (BitstreamError, LimitExceeded):
        return
    assert is_nif(file.getvalue()) is True
    assert header_bytes(header) == file.getvalue()[: file.tell()]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
