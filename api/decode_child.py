"""The child process that renders a .nif file: limits first, then the ``nif`` program.

python -m api.decode_child CPU_SECONDS MEMORY_BYTES FILE_BYTES decode IN OUT ...
"""

from __future__ import annotations

import resource
import sys


def main() -> None:
    """Lower the limits of this process for good, then run ``nif`` with the other arguments."""
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
    # Imported after the limits, which hold for everything that is loaded.
    from nifcore.cli import main as nif

    sys.argv = ["nif", *sys.argv[4:]]
    nif()


if __name__ == "__main__":
    main()
