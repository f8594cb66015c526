"""The JSON documents that benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nifcore.cli import outputs
from nifcore.cli.inputs import STDIO
from nifcore.cli.messages import SCHEMA_VERSION, finite


def keep(output: str | None, document: Mapping[str, Any]) -> None:
    """Write what there is so far into a file, for the case that the benchmark is stopped."""
    if output != STDIO:
        write(output, document)


def write(output: str | None, document: Mapping[str, Any]) -> None:
    """Write a whole document to a file or to stdout; nothing without an ``output``."""
    if output is not None:
        text = json.dumps({"schema_version": SCHEMA_VERSION} | finite(document), indent=1)
        outputs.write(output, text.encode() + b"\n")
