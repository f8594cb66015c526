"""What commands print: results on stdout, remarks on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA_VERSION = 1


def say(text: str) -> None:
    """Print a remark on stderr."""
    print(f"nif: {text}", file=sys.stderr)


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object with the schema's version on stdout, on one line.

    JSON knows no infinity: the PSNR of identical pictures is printed as null.
    """
    fields = {"schema_version": SCHEMA_VERSION} | finite(dict(fields))
    print(json.dumps(fields, allow_nan=False), flush=True)


def finite(value: Any) -> Any:
    """Return the same structure with None in place of infinity and NaN, for JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Lay out rows of cells in aligned columns; ``right`` lists those that end flush right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def byte_count(count: int) -> str:
    """Return ``12,345 bytes``."""
    return f"{count:,} bytes"


def decibels(psnr_db: float) -> str:
    """Return a PSNR in dB with two decimals, or a word for identical pictures."""
    return "identical" if math.isinf(psnr_db) else f"{psnr_db:.2f} dB"


def similarity(value: float | None) -> str:
    """Return an MS-SSIM with four decimals; pictures below 176 pixels a side have none."""
    return "-" if value is None else f"{value:.4f}"
