"""How busy this worker and its machine are: what the dashboard shows beside a heartbeat."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import Any

_GPU_FIELDS = ("name", "utilization.gpu", "memory.used", "memory.total")
_GPU_SECONDS = 5.0
_MEBIBYTE = 1024 * 1024


class LoadMeter:
    """Measures from one heartbeat to the next; what cannot be read here is left out."""

    def __init__(self) -> None:
        self._ticks_before: dict[int, int] = {}
        self._measured_at = time.monotonic()
        self._smi = shutil.which("nvidia-smi")

    def read(self, pids: list[int], device: str) -> dict[str, Any]:
        """Return the load since the last call.

        Args:
            pids: processes of the worker, its encoding child among them.
            device: ``cpu``, ``cuda``, ``cuda:1``, or ``cuda (1)`` as the child says it.

        Returns:
            ``cpu_percent`` of these processes (100 is one core), ``load_average`` of the machine
            over one minute, ``machine_memory_bytes`` and ``machine_memory_used_bytes``, and on a
            GPU ``gpu_name``, ``gpu_percent``, ``gpu_memory_bytes`` and ``gpu_memory_used_bytes``.
        """
        found: dict[str, Any] = {"cpu_percent": self._cpu_percent(pids)}
        found |= _machine()
        if device.startswith("cuda") and self._smi is not None:
            found |= _gpu(self._smi, device)
        return {name: value for name, value in found.items() if value is not None}

    def _cpu_percent(self, pids: list[int]) -> float | None:
        now = time.monotonic()
        ticks = {pid: used for pid in pids if (used := _ticks(pid)) is not None}
        # A process that is new since the last time counts from its own beginning.
        spent = sum(used - self._ticks_before.get(pid, 0) for pid, used in ticks.items())
        seconds, first = now - self._measured_at, not self._ticks_before
        self._ticks_before, self._measured_at = ticks, now
        if first or seconds <= 0 or not ticks:
            return None
        return round(100 * spent / os.sysconf("SC_CLK_TCK") / seconds, 1)


def _ticks(pid: int) -> int | None:
    """Return the processor time that a process has used, in ticks of the clock."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found["load_average"] = round(os.getloadavg()[0], 2)
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return found
    return found | {
        "machine_memory_bytes": total * 1024,
        "machine_memory_used_bytes": (total - free) * 1024,
    }


def _gpu(smi: str, device: str) -> dict[str, Any]:
    """Ask the driver's own tool: torch is not loaded in this process."""
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    _, _, number = device.partition(":")
    place = int(number) if number.isdigit() else 0
    index = visible[place] if place < len(visible) else str(place)
    command = [
        smi,
        f"--id={index}",
        f"--query-gpu={','.join(_GPU_FIELDS)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True
        ).stdout
        name, percent, used, total = (part.strip() for part in said.splitlines()[0].split(","))
        return {
            "gpu_name": name,
            "gpu_percent": float(percent),
            "gpu_memory_used_bytes": int(used) * _MEBIBYTE,
            "gpu_memory_bytes": int(total) * _MEBIBYTE,
        }
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}  # a driver that says nothing of use is no reason to fail
