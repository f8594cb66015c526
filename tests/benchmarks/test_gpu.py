"""The benchmark of GPUs says where it ran, and without one nothing that looks like a number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_device_nothing_is_measured(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "out.json"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 6
    assert "nothing was measured" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_a_smoke_test_goes_through_the_interpreter_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    output = tmp_path / "out.json"
    # No time for encodes in the interpreter, which take a minute: they are left out, and named.
    done = run("--smoke", "--seconds", "10", "--output", str(output), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["smoke"] is True
    assert "without a GPU" in result["where"]
    assert "no time in this file" in result["where"]
    assert result["device"] == "none: Triton's interpreter"
    assert result["float32_peak_tflops"] is None
    assert result["versions"]["torch"] == torch.__version__
    assert all(entry["right"] for entry in result["correctness"].values())
    assert {name.split()[1] for name in result["correctness"]} == {"tf32x3", "tf32"}
    assert all(entry["times_the_floor"] is None for entry in result["passes"])
    assert result["first"]["failures"] == []
    assert any("alone" in part for part in result["skipped_for_time"])
    assert result["where"] in done.stdout
