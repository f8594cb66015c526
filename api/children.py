"""Child processes of the API that read strangers' files: their limits, and waiting for them."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

ROOT = Path(__file__).parents[1]


def limit_self() -> list[str]:
    """In the child: lower its limits for good to the first three arguments; return the others.

    The three are processor seconds, bytes of address space and bytes of a written file.
    """
    seconds, memory, file_bytes = (int(text) for text in sys.argv[1:4])
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (wanted, wanted))
    return sys.argv[4:]


def child_environment() -> dict[str, str]:
    """Return what a child needs to start, and none of the service's secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return kept | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CONFIG_HOME": os.devnull,
    }


async def finished(child: Process, seconds: float) -> tuple[bytes, bytes]:
    """Wait for a child that leads a session of its own; return what it wrote to its two outputs.

    It is killed, with all that it started, if it takes longer or the request is given up.

    Raises:
        TimeoutError: it took longer than ``seconds``.
    """
    try:
        return await asyncio.wait_for(child.communicate(), seconds)
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
