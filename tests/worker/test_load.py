"""What a heartbeat tells of the load."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from worker.load import LoadMeter

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


def test_processor_time_is_what_the_process_used() -> None:
    meter = LoadMeter()
    assert "cpu_percent" not in meter.read([os.getpid()], "cpu")
    used, began = time.process_time(), time.monotonic()
    while time.process_time() - used < 0.5:
        pass
    found = meter.read([os.getpid()], "cpu")
    spent, seconds = time.process_time() - used, time.monotonic() - began
    # The system counts in ticks of a hundredth of a second.
    assert found["cpu_percent"] * seconds / 100 == pytest.approx(spent, abs=0.05)


def test_a_process_that_ended_is_left_out() -> None:
    meter = LoadMeter()
    meter.read([os.getpid()], "cpu")
    assert meter.read([2**22 + 1], "cpu").get("cpu_percent") is None


def test_memory_of_the_machine() -> None:
    found = LoadMeter().read([os.getpid()], "cpu")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert found["machine_memory_bytes"] == pytest.approx(pages * size, rel=0.05)
    assert 0 < found["machine_memory_used_bytes"] < found["machine_memory_bytes"]


DRIVER = """#!/bin/sh
case "$*" in *--id=3*) ;; *) exit 1;; esac
echo 'NVIDIA H200, 87, 20480, 143771'
"""


def test_a_gpu_is_asked_by_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for the driver's tool, which is only where the driver is.
    tool = tmp_path / "nvidia-smi"
    tool.write_text(DRIVER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = LoadMeter().read([os.getpid()], "cuda:1")
    assert (found["gpu_name"], found["gpu_percent"]) == ("NVIDIA H200", 87.0)
    assert found["gpu_memory_used_bytes"] == 20480 * 1024**2
    assert found["gpu_memory_bytes"] == 143771 * 1024**2
    assert "gpu_percent" not in LoadMeter().read([os.getpid()], "cuda:0")
    assert "gpu_percent" not in LoadMeter().read([os.getpid()], "cpu")
