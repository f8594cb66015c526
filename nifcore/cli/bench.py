"""``nif bench``: measure encodes, decodes and kernels on this machine."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import typer

from nifcore import config
from nifcore.cli import bench_encode, bench_ladder, bench_time, compute, inputs
from nifcore.cli.failure import Command
from nifcore.cli.messages import columns, print_json
from nifcore.cli.options import (
    Debug,
    Device,
    Json,
    Threads,
    parse_size,
)

app = typer.Typer(name="bench", no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure encodes, decodes and kernels on this machine."""


app.command(cls=Command)(bench_encode.encode)
app.command(cls=Command)(bench_ladder.ladder)
app.command(cls=Command)(bench_time.calibrate)
app.command(cls=Command)(bench_time.estimate)


@app.command(cls=Command)
def decode(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The .nif files.")],
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, metavar="N", help="Decodes of each file.")
    ] = 5,
    device: Device = None,
    json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure the seconds that decoding takes, without start-up and reading."""
    settings = config.load({"device": device, "threads": threads}).settings
    compute.prepare(settings)
    import nifcore

    rows = [["file", "pixels", "first", "fastest", "median"]]
    for file in files:
        data = inputs.read(file, settings.limits())
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            size = nifcore.decode(
                data, device=settings.device, kernel=settings.kernel, limits=settings.limits()
            ).size
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        if json:
            found = {"input": file, "width": size[0], "height": size[1], "seconds": seconds}
            print_json(found | {"fastest": min(seconds), "median": median})
        times = (f"{each:.3f} s" for each in (seconds[0], min(seconds), median))
        rows.append([file, f"{size[0]}x{size[1]}", *times])
    if not json:
        print(columns(rows, right=(1, 2, 3, 4)))


@app.command(cls=Command)
def kernels(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KERNELS...]", help="Those to measure; all by default."),
    ] = None,
    size: Annotated[
        Any,
        typer.Option(
            "--size", metavar="WxH", parser=parse_size, help="Size of the picture fitted."
        ),
    ] = "768x512",
    repeat: Annotated[
        int,
        typer.Option("--repeat", min=1, metavar="N", help="Passes of each kernel after a first."),
    ] = 5,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, ...")] = "cpu",
    json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure one pass (loss and gradient of every pixel) of the network of paper-120.

    The kernels take turns, so that a change in the machine's load meets all of them. A first pass
    that compiles and allocates does not count.
    """
    settings = config.load({"device": device, "threads": threads}).settings
    compute.prepare(settings)
    seconds = compute.pass_seconds(names or compute.kernel_names(), size, repeat, settings.device)
    fastest = {name: min(each[1:]) for name, each in seconds.items()}
    if json:
        import torch

        found: dict[str, Any] = {
            "width": size[0],
            "height": size[1],
            "device": settings.device,
            "threads": torch.get_num_threads(),
        }
        for name, best in fastest.items():
            found[f"{'eager' if name == 'reference' else name}_seconds_per_pass"] = best
        print_json(found | {"seconds": seconds})
        return
    rows = [["kernel", "first", "fastest", "median"]]
    for name, each in seconds.items():
        times = (each[0], fastest[name], statistics.median(each[1:]))
        rows.append([name, *(f"{t:.3f} s" for t in times)])
    print(columns(rows, right=(1, 2, 3)))
