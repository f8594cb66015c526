"""The child process that renders a .nif file: limits first, then the ``nif`` program.

python -m api.decode_child CPU_SECONDS MEMORY_BYTES FILE_BYTES decode IN OUT ...
"""

from __future__ import annotations

import sys

from api.children import limit_self


def main() -> None:
    """Lower the limits of this process for good, then run ``nif`` with the other arguments."""
    arguments = limit_self()
    # Imported after the limits, which hold for everything that is loaded.
    from nifcore.cli import main as nif

    sys.argv = ["nif", *arguments]
    nif()


if __name__ == "__main__":
    main()
