"""Bounds that the child sets on itself before it looks at a picture."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

MOST_OPEN_FILES = 256


@dataclass(frozen=True)
class Bounds:
    """What the child may use; 0 is no bound.

    Attributes:
        memory_bytes: of address space. Not for CUDA, which reserves far more than it uses.
        file_bytes: size of any file it writes.
    """

    memory_bytes: int = 0
    file_bytes: int = 0


def apply(bounds: Bounds) -> None:
    """Set the bounds on this process, for good: no core dumps, few open files, and the given."""
    if sys.platform == "win32":
        return
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
    ]
    for name, value in (
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
    ):
        if value:
            wanted.append((name, value))
    for name, value in wanted:
        _, most = resource.getrlimit(name)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(name, (value, value))


def prefer_as_victim() -> None:
    """Let the kernel kill this process first when memory runs out (Linux)."""
    # Without /proc there is nothing to prefer; the child works as well.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
