"""``python -m benchmarks.gpu``: what the codec does on a CUDA device, against what it could do.

Four parts, in less than ten minutes: are the programs right on this device; seconds per pass of
configuration 120, for batches of several sizes, against the arithmetic floor; seconds per picture
alone; pictures per second together. Without a CUDA device it says so and ends with status 6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from nifcore.architecture import Architecture
from nifcore.errors import DeviceError
from nifcore.gpu.batch_encode import MOST_TOGETHER, Job, encode_many
from nifcore.gpu.fused import FusedKernel, Precision
from nifcore.gpu.graphs import Recorder
from nifcore.gpu.lattices import Axes, Batch, LatticeStore
from nifcore.gpu.layout import Layout
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import NetShape
from nifcore.losses import Objective
from nifcore.network import initialise

ARCH = Architecture(NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4), 3)
HEIGHT, WIDTH, STRIDE = 512, 768, 4
FLOP_PER_PIXEL = 38_000
"""Arithmetic of one pass, forward and backward, and"""
SINES_PER_PIXEL = 460
"""sines and cosines, of configuration 120."""
SINE_FLOP = 16
"""Multiplications and additions that a sine or cosine takes here."""
PAPER_BPP = 0.277
"""Published mean rate of configuration 120 on Kodak, at 28.32 dB."""
PRECISIONS: tuple[Precision, ...] = ("tf32x3", "tf32", "bf16")
TOLERANCES = {"tf32x3": 1e-3, "tf32": 3e-2, "bf16": 1e-1}


@dataclass
class Clock:
    """How much of the time for the whole is left.

    Attributes:
        skipped: what there was no time for.
    """

    seconds: float
    began: float = field(default_factory=time.monotonic)
    skipped: list[str] = field(default_factory=list)

    def allows(self, part: str, seconds: float) -> bool:
        """Tell whether ``part``, expected to take so long, can still be measured."""
        if time.monotonic() - self.began + seconds <= self.seconds:
            return True
        self.skipped.append(part)
        return False


@dataclass
class Load:
    """Utilisation of the device while something ran, as the driver counts it."""

    percent: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float] | None:
        """Return means and peaks, or None where the driver's tool is missing."""
        if not self.percent:
            return None
        return {
            "mean_percent": round(statistics.mean(self.percent), 1),
            "peak_memory_mb": max(self.memory_mb),
        }


@contextmanager
def watched() -> Iterator[Load]:
    """Ask ``nvidia-smi`` twice a second."""
    load, over = Load(), threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used"]
        while not over.wait(0.5):
            try:
                run = subprocess.run(
                    [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True
                )
            except FileNotFoundError:
                return
            if run.returncode:
                return
            percent, memory = run.stdout.splitlines()[0].split(",")
            load.percent.append(float(percent))
            load.memory_mb.append(float(memory))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield load
    finally:
        over.set()
        thread.join()


def scene(count: int, device: torch.device, height: int, width: int) -> tuple[Layout, Any, Any]:
    """Return layout, weights and lattices of ``count`` random networks and targets."""
    generator = torch.Generator().manual_seed(count)
    layout = Layout(ARCH)
    weights = layout.pack([initialise(ARCH, generator, []) for _ in range(count)], device)
    targets = [torch.rand(3, height, width, generator=generator) * 2 - 1 for _ in range(count)]
    store = LatticeStore(ARCH, [t.to(device) for t in targets], STRIDE, device)
    return layout, weights, store


def correctness(device: torch.device) -> dict[str, Any]:
    """Compare gradients on the device with batched torch in float64 on the CPU."""
    _, weights, store = scene(3, device, 61, 83)
    indices = torch.tensor([0, 5, 15], device=device)
    batch = store.gather(indices)
    assert batch.modulation is not None
    exact = Batch(
        _double(batch.genesis),
        _double(batch.modulation),
        batch.rows.cpu(),
        batch.cols.cpu(),
        batch.target.double().cpu(),
    )
    found: dict[str, Any] = {}
    for objective in (Objective("mse"), Objective("log_cosh", "dssim", 0.01)):
        truth = StackedKernel(ARCH).loss_and_gradient(weights.double().cpu(), exact, objective)[1]
        for precision in PRECISIONS:
            kernel = FusedKernel(ARCH, precision)
            gradient = kernel.loss_and_gradient(weights, batch, objective)[1].double().cpu()
            error = float((gradient - truth).norm() / truth.norm())
            found[f"{objective.pixel} {precision}"] = {
                "relative_error": error,
                "right": error < TOLERANCES[precision],
            }
    return found


def _double(axes: Axes) -> Axes:
    return Axes(axes.y.double().cpu(), axes.x.double().cpu())


def seconds_per_pass(
    count: int, device: torch.device, precision: Precision, peak: float
) -> dict[str, float]:
    """Time loss and gradient over all lattices, recorded as a graph."""
    _, weights, store = scene(count, device, HEIGHT, WIDTH)
    kernel, recorder = FusedKernel(ARCH, precision), Recorder(device)
    indices = torch.zeros(count, dtype=torch.int64, device=device)

    def work() -> None:
        kernel.loss_and_gradient(weights, store.gather(indices), Objective("mse"))

    def one_pass() -> None:
        for _ in range(store.count):
            recorder.run("pass", work)
        torch.cuda.synchronize()

    one_pass()
    seconds = min(_timed(one_pass) for _ in range(5)) / count
    pixels = HEIGHT * WIDTH
    floor = pixels * (FLOP_PER_PIXEL + SINES_PER_PIXEL * SINE_FLOP) / peak
    return {
        "images": count,
        "seconds_per_pass_and_image": seconds,
        "arithmetic_tflops": pixels * FLOP_PER_PIXEL / seconds / 1e12,
        "times_the_floor": seconds / floor,
    }


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pictures(folder: Path | None, count: int) -> list[NDArray[np.uint8]]:
    """Return pictures of a folder, or noise with the spectrum of photographs."""
    if folder is not None and folder.is_dir():
        from PIL import Image

        paths = sorted(folder.glob("*.png"))[:count]
        found = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        # one batch needs one shape: upright pictures are laid down
        return [p if p.shape[1] >= p.shape[0] else p.transpose(1, 0, 2).copy() for p in found]
    return [_noise(seed) for seed in range(count)]


def _noise(seed: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    amplitude = 1.0 / np.maximum(np.hypot(y, x), 1 / WIDTH) ** 1.2
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(amplitude.shape))
        plane = np.fft.irfft2(amplitude * phase, (HEIGHT, WIDTH))
        planes.append((plane - plane.min()) / np.ptp(plane))
    return (np.stack(planes, -1) * 255).astype(np.uint8)


def encode_all(
    images: list[NDArray[np.uint8]], device: str, wanted: dict[str, Any]
) -> dict[str, Any]:
    """Encode pictures together and return how long it took and what came out."""
    with watched() as load:
        began = time.perf_counter()
        results = encode_many([Job(image, **wanted) for image in images], device=device)
        seconds = time.perf_counter() - began
    reports = [r.report for r in results if not isinstance(r, Exception)]
    return {
        **wanted,
        "images": len(images),
        "failures": [repr(r) for r in results if isinstance(r, Exception)],
        "seconds": seconds,
        "seconds_per_image": seconds / len(images),
        "images_per_second": len(images) / seconds,
        "psnr_db": statistics.mean(r.psnr_db for r in reports) if reports else None,
        "bpp": statistics.mean(r.bpp for r in reports) if reports else None,
        "utilisation": load.summary(),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every part that there is time for."""
    device = torch.device(arguments.device)
    torch.cuda.set_device(device)
    properties = torch.cuda.get_device_properties(device)
    # one multiplication and addition per lane and clock, without tensor cores
    peak = properties.multi_processor_count * 128 * 2 * arguments.clock_ghz * 1e9
    clock = Clock(arguments.seconds)
    result: dict[str, Any] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "device": properties.name,
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "float32_peak_tflops": peak / 1e12,
        "correctness": correctness(device),
        "passes": [],
        "alone": [],
        "together": [],
    }
    for precision in PRECISIONS[1:]:
        for count in (1, 8, 24, 64):
            if clock.allows(f"pass {precision} {count}", 20):
                entry = seconds_per_pass(count, device, precision, peak)
                result["passes"].append({"precision": precision, **entry})
    images = pictures(arguments.images, arguments.count)
    settings: list[dict[str, Any]] = [
        {"effort": 5, "bpp": PAPER_BPP},
        {"effort": 1, "bpp": PAPER_BPP},
        {"effort": 3, "bpp": PAPER_BPP},
        {"effort": 7, "bpp": PAPER_BPP},
    ]
    encode_all(images[:1], arguments.device, {"effort": 1, "bpp": PAPER_BPP})  # compiles
    pace = 0.0
    for wanted in settings:
        scale = 4.0 if wanted["effort"] == 7 else 1.0
        if clock.allows(f"alone {wanted}", scale * max(10.0, pace)):
            result["alone"].append(entry := encode_all(images[:1], arguments.device, wanted))
            pace = max(pace, entry["seconds"])
        if clock.allows(f"together {wanted}", scale * pace * len(images) / 2):
            batch = images[:MOST_TOGETHER]
            result["together"].append(encode_all(batch, arguments.device, wanted))
    result["skipped_for_time"] = clock.skipped
    result["right"] = all(entry["right"] for entry in result["correctness"].values())
    return result


def main() -> int:
    """Measure, write, and tell in a few lines."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--images", type=Path, help="folder of PNG files, as Kodak's; else noise")
    parser.add_argument("--count", type=int, default=24, help="pictures in a batch")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing after so long")
    parser.add_argument(
        "--clock-ghz", type=float, default=1.98, help="of the device, for the floor"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/gpu.json"), help="JSON file"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            f"no CUDA device here (torch {torch.__version__}): nothing was measured",
            file=sys.stderr,
        )
        return DeviceError.exit_code
    result = measure(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, entry in result["correctness"].items():
        print(
            f"{name:16} error {entry['relative_error']:.1e} {'ok' if entry['right'] else 'WRONG'}"
        )
    for entry in result["passes"]:
        print(
            f"{entry['precision']}, {entry['images']:2} together: "
            f"{entry['seconds_per_pass_and_image'] * 1e3:.3f} ms per pass and image, "
            f"{entry['times_the_floor']:.1f} times the floor"
        )
    for entry in (*result["alone"], *result["together"]):
        print(
            f"effort {entry['effort']}, {entry['images']:2} together: "
            f"{entry['seconds_per_image']:.2f} s per image, {entry['psnr_db']:.2f} dB "
            f"at {entry['bpp']:.3f} bpp"
        )
    return 0 if result["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
