"""Where ``nif encode --checkpoint`` keeps the state of an encode."""

from __future__ import annotations

from pathlib import Path

from nifcore.errors import InputError
from nifcore.output import write_atomically


class FileCheckpoint:
    """A :class:`nifcore.events.Checkpoint` in one file, which is replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """Return the saved state, or None where there is no such file.

        Raises:
            InputError: the file is there but cannot be read.
        """
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot read checkpoint {str(self._path)!r}: {reason}") from error

    def save(self, data: bytes) -> None:
        """Replace the saved state.

        Raises:
            OutputError: the file cannot be written.
        """
        write_atomically(self._path, data)

    def remove(self) -> None:
        """Forget the state, when it is no longer needed."""
        self._path.unlink(missing_ok=True)
