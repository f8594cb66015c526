"""What commands read: a file, or stdin for ``-``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from nifcore.errors import InputError, LimitExceeded
from nifcore.limits import Limits

STDIO = "-"


def read(name: str, limits: Limits) -> bytes:
    """Return all bytes of a file or of stdin.

    Raises:
        InputError: it cannot be read.
        LimitExceeded: it has more than ``limits.max_file_bytes`` bytes.
    """
    if name == STDIO:
        return _bounded(sys.stdin.buffer, "stdin", limits)
    try:
        with Path(name).open("rb") as file:
            return _bounded(file, name, limits)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error


def _bounded(file: BinaryIO, name: str, limits: Limits) -> bytes:
    data = file.read(limits.max_file_bytes + 1)
    if len(data) > limits.max_file_bytes:
        raise LimitExceeded(
            f"{name}: larger than {limits.max_file_bytes} bytes; "
            "the setting max_file_bytes is the limit"
        )
    return data
