"""What a measurement was made on: everything that a reader needs to judge the numbers."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(folder: Path) -> dict[str, Any]:
    """Return processor, system, versions, how busy it is, and how long a durable write takes.

    Args:
        folder: on the file system that the measurement will write to.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("fastapi", "uvicorn", "redis", "celery")},
        "fsync_ms": round(1000 * _fsync_seconds(folder), 3),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _fsync_seconds(folder: Path) -> float:
    """Return how long it takes to write 4 KiB durably, the median of 20."""
    seconds = []
    probe = folder / "fsync-probe"
    try:
        with probe.open("wb") as file:
            for _ in range(20):
                began = time.perf_counter()
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
                seconds.append(time.perf_counter() - began)
    finally:
        probe.unlink(missing_ok=True)
    return statistics.median(seconds)
