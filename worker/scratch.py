"""Folders for the files of one attempt, cleared away even if nobody was left to do it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder below ``root`` that is removed at the end.

    Its lock is held meanwhile; `sweep` knows by it which folders are in use.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(root: Path) -> int:
    """Remove folders whose owner died, and return how many there were."""
    removed = 0
    for lock in root.glob(f"*/{_LOCK}"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its owner just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # in use
        else:
            shutil.rmtree(lock.parent, ignore_errors=True)
            removed += 1
        finally:
            os.close(descriptor)
    return removed
