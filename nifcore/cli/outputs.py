"""Where commands write: a file that is replaced whole or not at all, or stdout for ``-``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nifcore.cli.inputs import STDIO
from nifcore.errors import OutputError, UsageError
from nifcore.output import output_error, write_atomically


def pair(names: Sequence[str], output_dir: Path | None, suffix: str) -> list[tuple[str, str]]:
    """Return (input, output) pairs for ``IN [OUT]`` or for ``IN... --output-dir DIR``.

    Without an OUT, the output is named after the input and lies beside it; stdin goes to stdout.

    Raises:
        UsageError: more than two names without a folder, or outputs that would coincide.
    """
    if output_dir is None:
        if len(names) > 2:
            raise UsageError(
                f"{len(names)} names given; accepted are IN [OUT], or IN... with --output-dir DIR"
            )
        return [(names[0], names[1] if len(names) == 2 else _beside(names[0], suffix))]
    make_folder(output_dir)
    pairs = [(name, str(output_dir / (_stem(name) + suffix))) for name in names]
    taken: dict[str, str] = {}
    for name, output in pairs:
        if output in taken:
            raise UsageError(f"{taken[output]} and {name} would both be written to {output}")
        taken[output] = name
    return pairs


def _stem(name: str) -> str:
    return "stdin" if name == STDIO else Path(name).stem


def _beside(name: str, suffix: str) -> str:
    return STDIO if name == STDIO else str(Path(name).with_suffix(suffix))


def check(name: str, *, source: str, no_clobber: bool = False) -> None:
    """Find out now, not after minutes of work, whether ``name`` can be written.

    Raises:
        UsageError: it is the input itself, a terminal, or exists and ``no_clobber`` is set.
        OutputError: it cannot be written.
    """
    if name == STDIO:
        if sys.stdout.isatty():
            raise UsageError("stdout is a terminal; name an output file or redirect it")
        return
    path = Path(name)
    if path.exists():
        if source != STDIO and Path(source).exists() and path.samefile(source):
            raise UsageError(f"{name} is the input itself; name another output")
        if no_clobber:
            raise UsageError(f"{name} exists, and --no-clobber was given")
        if path.is_dir():
            raise OutputError(f"cannot write {name!r}: it is a folder; a file name is needed")
        if not os.access(path, os.W_OK):
            raise OutputError(f"cannot write {name!r}: it is read-only")
    # Devices and pipes are written directly; a file is made anew in its folder.
    if path.is_file() or not path.exists():
        try:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise output_error(name, error) from error


def write(name: str, data: bytes) -> None:
    """Write ``data``: a file appears whole, under its own name, or stays as it was.

    Raises:
        OutputError: no permission, no such folder, disk full, reader gone.
    """
    if name != STDIO:
        write_atomically(name, data)
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has what it wanted; the program ends quietly.
        raise
    except OSError as error:
        raise output_error("stdout", error) from error


def make_folder(path: Path) -> None:
    """Create a folder for outputs if there is none.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(str(path), error) from error
