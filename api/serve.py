"""``python -m api.serve``: the whole service on this machine, as one command."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> int:
    """Start everything and stay until told to stop; returns the exit code."""
    # By name: which processes there are is the worker room's business.
    supervisor = import_module("worker.supervisor")
    code: int = supervisor.serve()
    return code


if __name__ == "__main__":
    sys.exit(main())
