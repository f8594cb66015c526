"""The JSON documents that benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nifcore.cli import outputs
from nifcore.cli.inputs import STDIO
from nifcore.cli.messages import SCHEMA_VERSION, finite
from nifcore.errors import InputError

Found = TypeVar("Found")


def read(name: str, command: str, understood: Callable[[Any], Found]) -> Found:
    """Return what an earlier run of a command wrote.

    Args:
        understood: takes what it needs from the document; its ValueError, KeyError or TypeError
            says that this is another document.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        return understood(json.loads(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {name!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name} holds no results of {command}: {error}") from error


def keep(output: str | None, document: Mapping[str, Any]) -> None:
    """Write what there is so far into a file, for the case that the benchmark is stopped."""
    if output != STDIO:
        write(output, document)


def write(output: str | None, document: Mapping[str, Any]) -> None:
    """Write a whole document to a file or to stdout; nothing without an ``output``."""
    if output is not None:
        text = json.dumps({"schema_version": SCHEMA_VERSION} | finite(document), indent=1)
        outputs.write(output, text.encode() + b"\n")
