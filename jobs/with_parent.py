"""Run a command that is ended when its parent dies.

``python jobs/with_parent.py PARENT_PID COMMAND ...`` asks the kernel (Linux ``prctl``) for SIGTERM
at the death of the parent, and becomes the command. The request survives ``exec``. On other systems
the command runs without it: a supervisor that is killed outright leaves it behind there.

The kernel watches the thread that started the process: start long-lived children from a thread
that lives as long, best the main one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` so wrapped that it ends with this process. ``argv[0]`` is found on PATH."""
    # Run as a file without site packages: it starts in milliseconds.
    return [sys.executable, "-P", "-S", os.path.abspath(__file__), str(os.getpid()), *argv]


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(f"{argv[0]}: the parent is gone already")  # it died before the request
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
