"""``python -m benchmarks.gpu``: what the codec does on a CUDA device, against what it could do.

Four parts, in less than ten minutes: are the programs right on this device; seconds per pass of
configuration 120, for batches of several sizes, against the arithmetic floor; seconds per picture
alone; pictures per second together. Without a CUDA device it says so and ends with status 6.

``--smoke`` goes the same way without a device: in Triton's interpreter on the CPU, with a picture
of 24x16 and a fit of a few iterations. It shows that all of this runs; its times mean nothing, and
the JSON says so.
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

import nifcore
from nifcore import encoder
from nifcore.architecture import Architecture
from nifcore.errors import DeviceError
from nifcore.gpu import batch_encode
from nifcore.gpu.base import BatchKernel
from nifcore.gpu.batch_encode import MOST_TOGETHER, Job, encode_many
from nifcore.gpu.fused import FusedKernel, Precision, Tuning
from nifcore.gpu.graphs import Recorder
from nifcore.gpu.lattices import Axes, Batch, LatticeStore
from nifcore.gpu.layout import Layout
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import NetShape
from nifcore.losses import Objective
from nifcore.network import initialise
from nifcore.presets import EFFORTS, shortened
from nifcore.report import Report

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
COUNTS = (1, 8, 24, 64)
"""Pictures in a launch."""
EFFORT = 5
OTHER_EFFORTS = (1, 3, 7)
TOLERANCES = {"tf32x3": 1e-3, "tf32": 3e-2, "bf16": 1e-1}


@dataclass(frozen=True)
class Place:
    """Where it is measured, and how much of it.

    Attributes:
        device: of the tensors.
        name: of the device, for people.
        smoke: in Triton's interpreter, on a CPU.
        height, width: of the pictures that are made here.
        counts: pictures in a launch.
        precisions: of products. The interpreter has no bfloat16.
        peak: multiplications and additions per second without tensor cores; 0 if unknown.
    """

    device: torch.device
    name: str
    smoke: bool
    height: int
    width: int
    counts: tuple[int, ...]
    precisions: tuple[Precision, ...]
    peak: float

    @classmethod
    def cuda(cls, device: str, clock_ghz: float) -> Place:
        """Return a CUDA device."""
        where = torch.device(device)
        torch.cuda.set_device(where)
        properties = torch.cuda.get_device_properties(where)
        # one multiplication and addition per lane and clock
        peak = properties.multi_processor_count * 128 * 2 * clock_ghz * 1e9
        return cls(where, properties.name, False, HEIGHT, WIDTH, COUNTS, PRECISIONS, peak)

    @classmethod
    def interpreter(cls) -> Place:
        """Return Triton's interpreter, and few enough pixels for it."""
        name = "none: Triton's interpreter"
        return cls(torch.device("cpu"), name, True, 16, 24, (1, 2), PRECISIONS[:2], 0.0)

    @property
    def note(self) -> str:
        """Say what the numbers are."""
        if self.smoke:
            return (
                "a smoke test without a GPU, in Triton's interpreter on the CPU, with tiny "
                "pictures and a few iterations: it shows that everything runs and that gradients "
                "are right; no time in this file says anything of any device"
            )
        return f"measured on {self.name}"

    def kernel(self, arch: Architecture, precision: Precision = "tf32") -> BatchKernel:
        """Return the programs; for the interpreter in few large pieces, each of which costs it."""
        return FusedKernel(arch, precision, Tuning(strip=16) if self.smoke else Tuning())

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


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


def correctness(place: Place) -> dict[str, Any]:
    """Compare gradients on the device with batched torch in float64 on the CPU."""
    size = (49, 55) if place.smoke else (61, 83)  # windows of the structure need 11 rows
    _, weights, store = scene(3, place.device, *size)
    indices = torch.tensor([0, 5, 15], device=place.device)
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
        for precision in place.precisions:
            kernel = place.kernel(ARCH, precision)
            gradient = kernel.loss_and_gradient(weights, batch, objective)[1].double().cpu()
            error = float((gradient - truth).norm() / truth.norm())
            found[f"{objective.pixel} {precision}"] = {
                "relative_error": error,
                "right": error < TOLERANCES[precision],
            }
    return found


def _double(axes: Axes) -> Axes:
    return Axes(axes.y.double().cpu(), axes.x.double().cpu())


def seconds_per_pass(count: int, place: Place, precision: Precision) -> dict[str, float | None]:
    """Time loss and gradient over all lattices, recorded as a graph."""
    device, pixels = place.device, place.height * place.width
    _, weights, store = scene(count, device, place.height, place.width)
    kernel, recorder = place.kernel(ARCH, precision), Recorder(device)
    indices = torch.zeros(count, dtype=torch.int64, device=device)

    def work() -> None:
        kernel.loss_and_gradient(weights, store.gather(indices), Objective("mse"))

    def one_pass() -> None:
        for _ in range(1 if place.smoke else store.count):
            recorder.run("pass", work)
        place.synchronise()

    if not place.smoke:
        one_pass()
    seconds = min(_timed(one_pass) for _ in range(1 if place.smoke else 5)) / count
    flop = pixels * (FLOP_PER_PIXEL + SINES_PER_PIXEL * SINE_FLOP)
    return {
        "images": count,
        "seconds_per_pass_and_image": seconds,
        "arithmetic_tflops": pixels * FLOP_PER_PIXEL / seconds / 1e12,
        "times_the_floor": seconds * place.peak / flop if place.peak else None,
    }


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pictures(folder: Path | None, count: int, place: Place) -> list[NDArray[np.uint8]]:
    """Return pictures of a folder, or noise with the spectrum of photographs."""
    if folder is not None and folder.is_dir():
        from PIL import Image

        paths = sorted(folder.glob("*.png"))[:count]
        found = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        # one batch needs one shape: upright pictures are laid down
        return [p if p.shape[1] >= p.shape[0] else p.transpose(1, 0, 2).copy() for p in found]
    return [_noise(seed, place.height, place.width) for seed in range(count)]


def _noise(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1.0 / np.maximum(np.hypot(y, x), 1 / width) ** 1.2
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(amplitude.shape))
        plane = np.fft.irfft2(amplitude * phase, (height, width))
        planes.append((plane - plane.min()) / np.ptp(plane))
    return (np.stack(planes, -1) * 255).astype(np.uint8)


Work = Callable[[], list[nifcore.Encoded | Exception]]


def encode_alone(image: NDArray[np.uint8], place: Place, wanted: dict[str, Any]) -> Work:
    """Return the encode of one picture as everybody calls it."""
    return lambda: [nifcore.encode(image, device=str(place.device), **wanted)]


def encode_together(images: list[NDArray[np.uint8]], place: Place, wanted: dict[str, Any]) -> Work:
    """Return the encode of pictures in one batch."""
    jobs = [Job(image, **wanted) for image in images]
    kernel = place.kernel if place.smoke else None
    return lambda: encode_many(jobs, device=str(place.device), kernel=kernel)


def timed_encodes(work: Work, wanted: dict[str, Any]) -> dict[str, Any]:
    """Encode and return how long it took and what came out."""
    with watched() as load:
        began = time.perf_counter()
        results = work()
        seconds = time.perf_counter() - began
    reports: list[Report] = [r.report for r in results if not isinstance(r, Exception)]
    count = len(results)
    return {
        **wanted,
        "images": count,
        "failures": [repr(r) for r in results if isinstance(r, Exception)],
        "kernels": sorted({report.kernel for report in reports}),
        "notes": sorted({note for report in reports for note in report.notes}),
        "seconds": seconds,
        "seconds_per_image": seconds / count,
        "images_per_second": count / seconds,
        "psnr_db": statistics.mean(r.psnr_db for r in reports) if reports else None,
        "bpp": statistics.mean(r.bpp for r in reports) if reports else None,
        "utilisation": load.summary(),
    }


def measure(arguments: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Run every part that there is time for."""
    clock = Clock(arguments.seconds)
    result: dict[str, Any] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "where": place.note,
        "smoke": place.smoke,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "device": place.name,
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda if place.device.type == "cuda" else None,
        },
        "float32_peak_tflops": place.peak / 1e12 or None,
        "correctness": correctness(place),
        "passes": [],
        "alone": [],
        "together": [],
    }
    for precision in place.precisions[1:]:
        for count in place.counts:
            if clock.allows(f"pass {precision} {count}", 20):
                entry = seconds_per_pass(count, place, precision)
                result["passes"].append({"precision": precision, **entry})
    images = pictures(arguments.images, place.counts[-1], place)[: arguments.count]
    efforts = (1,) if place.smoke else (EFFORT, *OTHER_EFFORTS)
    bpp = 4.0 if place.smoke else PAPER_BPP
    first = {"effort": efforts[-1] if place.smoke else 1, "bpp": bpp}
    # with what is compiled and set up once in a process, unless compiled programs were kept
    result["first"] = timed_encodes(encode_alone(images[0], place, first), first)
    pace = 0.0
    for effort in efforts:
        wanted = {"effort": effort, "bpp": bpp}
        scale = 4.0 if effort == 7 else 1.0
        if clock.allows(f"alone {wanted}", scale * max(10.0, pace)):
            entry = timed_encodes(encode_alone(images[0], place, wanted), wanted)
            result["alone"].append(entry)
            pace = max(pace, entry["seconds"])
        if clock.allows(f"together {wanted}", scale * pace * len(images) / 2):
            work = encode_together(images[:MOST_TOGETHER], place, wanted)
            result["together"].append(timed_encodes(work, wanted))
    result["skipped_for_time"] = clock.skipped
    # on a CPU only the batch can run in the interpreter; alone it is the C++ kernel
    ours = [] if place.smoke else [result["first"], *result["alone"]]
    result["right"] = all(entry["right"] for entry in result["correctness"].values()) and all(
        entry["kernels"] == ["triton"] and not entry["failures"]
        for entry in (*ours, *result["together"])
    )
    return result


@contextmanager
def in_the_interpreter() -> Iterator[None]:
    """Make every effort a few iterations, for that is what the interpreter has time for."""
    recipe = shortened(EFFORTS[1], 0.02)
    kept = encoder.find_recipe, batch_encode.find_recipe
    encoder.find_recipe = batch_encode.find_recipe = lambda preset, effort: recipe
    try:
        yield
    finally:
        encoder.find_recipe, batch_encode.find_recipe = kept


def main() -> int:
    """Measure, write, and tell in a few lines."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--images", type=Path, help="folder of PNG files, as Kodak's; else noise")
    parser.add_argument("--count", type=int, default=24, help="pictures in a batch")
    parser.add_argument(
        "--smoke", action="store_true", help="without a GPU, in Triton's interpreter: see above"
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing after so long")
    parser.add_argument(
        "--clock-ghz", type=float, default=1.98, help="of the device, for the floor"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/gpu.json"), help="JSON file"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        if not triton.knobs.runtime.interpret:
            # Triton decides when a program is defined, which was when this was imported.
            again = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]]
            return subprocess.run(again, env={**os.environ, "TRITON_INTERPRET": "1"}).returncode
        with in_the_interpreter():
            result = measure(arguments, Place.interpreter())
    elif torch.cuda.is_available():
        result = measure(arguments, Place.cuda(arguments.device, arguments.clock_ghz))
    else:
        print(
            f"no CUDA device here (torch {torch.__version__}): nothing was measured; --smoke runs "
            "all of it in Triton's interpreter",
            file=sys.stderr,
        )
        return DeviceError.exit_code
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["where"])
    for name, entry in result["correctness"].items():
        print(
            f"{name:16} error {entry['relative_error']:.1e} {'ok' if entry['right'] else 'WRONG'}"
        )
    for entry in result["passes"]:
        floor = entry["times_the_floor"]
        print(
            f"{entry['precision']}, {entry['images']:2} together: "
            f"{entry['seconds_per_pass_and_image'] * 1e3:.3f} ms per pass and image"
            + (f", {floor:.1f} times the floor" if floor else "")
        )
    for entry in (*result["alone"], *result["together"]):
        print(
            f"effort {entry['effort']}, {entry['images']:2} together: "
            f"{entry['seconds_per_image']:.2f} s per image, {entry['psnr_db']:.2f} dB "
            f"at {entry['bpp']:.3f} bpp, {', '.join(entry['kernels'])}"
        )
        for note in (*entry["notes"], *entry["failures"]):
            print(f"  {note}")
    return 0 if result["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
