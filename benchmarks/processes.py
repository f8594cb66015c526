"""Looking at the service's processes from outside, through ``/proc`` (Linux)."""

from __future__ import annotations

from pathlib import Path


def child_with(parent: int, word: str) -> int:
    """Return the process id of the child of ``parent`` whose command has ``word`` in it.

    Raises:
        LookupError: there is none.
    """
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            # "pid (name) state parent ...", and the name may have anything in it.
            state = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if int(state[1]) == parent and word in command:
            return int(folder.name)
    raise LookupError(f"process {parent} has no child with {word!r} in its command")


def resident_mebibytes(pid: int) -> float:
    """Return how much of a process is in memory.

    Raises:
        LookupError: the system does not tell.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"no VmRSS of process {pid}")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, its own threads only."""
    import os

    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
