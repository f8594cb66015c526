"""The ``nif`` program. One module per command; ``docs/cli.md`` describes them all."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program with the process's arguments; ends by SystemExit with the exit code."""
    try:
        from nifcore.cli.app import app

        app(prog_name="nif")
    except KeyboardInterrupt:
        # Before any command was reached: there is nothing to tell.
        sys.exit(130)
