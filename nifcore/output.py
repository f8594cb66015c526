"""Writing a finished result so that no reader ever sees half of it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from nifcore.errors import OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "there is no such folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder; a file name is needed",
    errno.ENAMETOOLONG: "the name is too long",
}


def write_atomically(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write ``data`` to ``path``: afterwards there is the whole new file, or what was there before.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    in one step. Any failure, an interrupt included, removes the temporary file. A symbolic link is
    followed and stays; an existing file keeps its permissions. A device or pipe (``/dev/stdout``)
    cannot be replaced and is written directly.

    Args:
        path: file to create or replace; its folder must exist.
        data: the whole content.

    Raises:
        OutputError: the file cannot be written; the message names the path and the reason.
    """
    named = os.fspath(path)
    target = os.path.realpath(named)
    try:
        try:
            existing = os.stat(target)
        except FileNotFoundError:
            _replace(target, data, None)
            return
        if stat.S_ISDIR(existing.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        if stat.S_ISREG(existing.st_mode):
            _replace(target, data, stat.S_IMODE(existing.st_mode))
        else:
            Path(target).write_bytes(data)
    except OSError as error:
        raise output_error(named, error) from error


def output_error(name: str, error: OSError) -> OutputError:
    """Return the error to raise when writing ``name`` failed with ``error``."""
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {name!r}: {reason}")


def _replace(target: str, data: bytes | bytearray | memoryview, mode: int | None) -> None:
    folder = os.path.dirname(target)
    # A name of its own length: "<name>.tmp" could pass the file system's limit where <name> fits.
    temporary = os.path.join(folder, f".nif-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # 0o666 and not tempfile's 0o600: the umask then decides, as for any file a user makes.
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        # The first failure is the one to report; that the clean-up fails too changes nothing.
        with suppress(OSError):
            os.unlink(temporary)
        raise
