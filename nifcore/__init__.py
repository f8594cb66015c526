"""NIF: pictures as small neural networks.

``encode`` fits networks to a picture and returns a .nif file, ``decode`` renders one at any size,
``read_header`` tells what a file holds without loading torch. Everything else is internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nifcore.errors import (
    BitstreamError,
    Cancelled,
    CorruptBitstream,
    DeviceError,
    FitDiverged,
    ImpossibleTarget,
    InputError,
    LimitExceeded,
    NifError,
    NotAnImage,
    NotNif,
    OutputError,
    RemoteError,
    UnknownPreset,
    UnsupportedImage,
    UnsupportedVersion,
    UsageError,
)
from nifcore.events import Checkpoint, Control, ProgressEvent
from nifcore.header import Header, is_nif, read_header
from nifcore.limits import Limits

if TYPE_CHECKING:
    from nifcore.decoder import decode
    from nifcore.encoder import encode
    from nifcore.report import Encoded, Report

__version__ = "0.1.0"

__all__ = [
    "BitstreamError",
    "Cancelled",
    "Checkpoint",
    "Control",
    "CorruptBitstream",
    "DeviceError",
    "Encoded",
    "FitDiverged",
    "Header",
    "ImpossibleTarget",
    "InputError",
    "LimitExceeded",
    "Limits",
    "NifError",
    "NotAnImage",
    "NotNif",
    "OutputError",
    "ProgressEvent",
    "RemoteError",
    "Report",
    "UnknownPreset",
    "UnsupportedImage",
    "UnsupportedVersion",
    "UsageError",
    "decode",
    "encode",
    "is_nif",
    "read_header",
]

_LAZY = {
    "encode": "nifcore.encoder",
    "Encoded": "nifcore.report",
    "Report": "nifcore.report",
    "decode": "nifcore.decoder",
}


def __getattr__(name: str) -> object:
    # torch takes seconds to import, and reading a header needs none of it
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
