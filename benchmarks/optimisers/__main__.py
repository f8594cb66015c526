"""Compare SOAP with other optimisers, and its own choices, on fits of a few pictures.

First every method runs with each of its learning rates for equally many iterations, and the best
one over all pictures is kept (first seed). Those are compared over all seeds; and once more at
equal seconds: each method gets as many iterations as fit into the processor time that SOAP needs,
with the schedule stretched or squeezed to them. Seconds are processor time of one thread, so that
other work on the machine hardly counts. Then SOAP's choices are changed one at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.optimisers.catalogue import CONTENDERS, VARIANTS, Contender, Variant
from benchmarks.optimisers.chart import Curve, Panel, draw
from benchmarks.optimisers.fits import SAMPLES, Course, Scene, open_scene, run

Say = Callable[[str], None]


def tournament(
    scenes: Sequence[Scene],
    contenders: Sequence[Contender],
    *,
    iterations: int,
    seeds: int,
    say: Say,
) -> dict[str, Any]:
    """Compare ``contenders``, the first of which sets the seconds, on ``scenes``."""
    grid: dict[str, dict[float, list[Course]]] = {}
    for contender in contenders:
        grid[contender.name] = {}
        for peak in contender.peaks:
            courses = [run(s, contender, peak=peak, iterations=iterations) for s in scenes]
            grid[contender.name][peak] = courses
            say(f"{contender.name}, rate {peak:g}: {_decibels(courses)}")
    best = {name: max(found, key=lambda p: _mean(found[p])) for name, found in grid.items()}

    equal_iterations: dict[str, list[Course]] = {}
    for contender in contenders:
        peak = best[contender.name]
        more = [
            run(scene, contender, peak=peak, iterations=iterations, seed=seed)
            for seed in range(1, seeds)
            for scene in scenes
        ]
        courses = grid[contender.name][peak] + more
        equal_iterations[contender.name] = courses
        say(f"{contender.name}, rate {peak:g}, all seeds: {_mean(courses):.3f} dB")

    pace = {name: _pace(courses) for name, courses in equal_iterations.items()}
    budget_ms = iterations * pace[contenders[0].name]
    equal_seconds: dict[str, list[Course]] = {}
    for contender in contenders:
        length = max(1, round(budget_ms / pace[contender.name]))
        peak = best[contender.name]
        same = length == iterations
        equal_seconds[contender.name] = (
            equal_iterations[contender.name]
            if same
            else [
                run(scene, contender, peak=peak, iterations=length, seed=seed)
                for seed in range(seeds)
                for scene in scenes
            ]
        )
        say(
            f"{contender.name}, {length} iterations in equal seconds: "
            f"{_mean(equal_seconds[contender.name]):.3f} dB"
        )
    return {
        "seeds": seeds,
        "rates": [
            {
                "method": name,
                "peak": peak,
                "best": peak == best[name],
                "psnr_db": _by_picture(courses),
                "mean_psnr_db": _finite(_mean(courses)),
            }
            for name, found in grid.items()
            for peak, courses in found.items()
        ],
        "equal_iterations": _summaries(equal_iterations),
        "equal_seconds": {"budget_seconds": round(budget_ms / 1e3, 4), **_summaries(equal_seconds)},
        "curves": [
            _course(course)
            for courses in (*equal_iterations.values(), *equal_seconds.values())
            for course in courses
            if course.seed == 0
        ],
    }


def ablation(
    scenes: Sequence[Scene],
    variants: Iterable[Variant],
    *,
    peak: float,
    iterations: int,
    seeds: int,
    say: Say,
) -> dict[str, Any]:
    """Run SOAP with each of ``variants`` at one learning rate, for equally many iterations."""
    found: dict[str, list[Course]] = {}
    for variant in variants:
        found[variant.name] = [
            run(
                scene,
                variant.contender(),
                peak=peak,
                iterations=iterations,
                warmup=variant.warmup,
                seed=seed,
            )
            for seed in range(seeds)
            for scene in scenes
        ]
        say(f"SOAP, {variant.name}: {_decibels(found[variant.name])}")
    return {"peak": peak, "seeds": seeds, **_summaries(found)}


def picture_of(result: dict[str, Any]) -> str:
    """Return an SVG of a tournament: per picture PSNR over iterations and over seconds."""
    names = list(dict.fromkeys(course["picture"] for course in result["curves"]))
    iterations = result["settings"]["iterations"]
    panels = []
    for name in names:
        mine = [course for course in result["curves"] if course["picture"] == name]
        count = len(result["equal_iterations"])
        same = mine[:count]
        timed = mine[count:]
        panels.append(_panel(f"{name}, {iterations} iterations each", "iterations", same, 0))
        panels.append(_panel(f"{name}, equal seconds", "seconds of one core", timed, 1))
    return draw(panels, columns=2)


def _panel(title: str, x_label: str, courses: Sequence[dict[str, Any]], column: int) -> Panel:
    curves = tuple(
        Curve(course["method"], tuple((s[column], s[2]) for s in course["samples"]))
        for course in courses
    )
    return Panel(title, x_label, "PSNR in dB", curves)


def table(summary: dict[str, Any]) -> str:
    """Return a Markdown table of one comparison; gains are over its first row."""
    rows = {name: row for name, row in summary.items() if isinstance(row, dict)}
    pictures = list(next(iter(rows.values()))["psnr_db"])
    first = next(iter(rows.values()))
    head = ["", "rate", "iterations", *pictures, "gain", "kernel ms", "step ms"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, row in rows.items():
        cells = [name, f"{row['peak']:g}", str(row["iterations"])]
        cells += ["diverged" if v is None else f"{v:.2f}" for v in row["psnr_db"].values()]
        gains = [
            value - base
            for value, base in zip(row["psnr_db"].values(), first["psnr_db"].values(), strict=True)
            if value is not None and base is not None
        ]
        cells.append(f"{statistics.mean(gains):+.3f}" if gains else "")
        cells += [f"{row['kernel_ms']:.2f}", f"{row['step_ms']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summaries(found: dict[str, list[Course]]) -> dict[str, Any]:
    return {
        name: {
            "peak": courses[0].peak,
            "iterations": courses[0].iterations,
            "warmup": courses[0].warmup,
            "psnr_db": _by_picture(courses),
            "mean_psnr_db": _finite(_mean(courses)),
            "kernel_ms": round(statistics.median(c.kernel_ms for c in courses), 3),
            "step_ms": round(statistics.median(c.step_ms for c in courses), 3),
        }
        for name, courses in found.items()
    }


def _by_picture(courses: Sequence[Course]) -> dict[str, float | None]:
    """Return the PSNR of every picture, mean over its seeds; None where one diverged."""
    names = dict.fromkeys(course.picture for course in courses)
    return {
        name: _finite(statistics.mean(c.psnr_db for c in courses if c.picture == name))
        for name in names
    }


def _mean(courses: Sequence[Course]) -> float:
    return statistics.mean(course.psnr_db for course in courses)


def _pace(courses: Sequence[Course]) -> float:
    """Return milliseconds per iteration."""
    return statistics.median(c.kernel_ms + c.step_ms for c in courses)


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _decibels(courses: Sequence[Course]) -> str:
    return ", ".join(f"{c.picture} {c.psnr_db:.3f} dB" for c in courses)


def _course(course: Course) -> dict[str, Any]:
    """Return what the chart needs."""
    return {
        "method": course.contender,
        "picture": course.picture,
        "peak": course.peak,
        "iterations": course.iterations,
        "samples": [
            [s.iteration, round(s.seconds, 3), round(s.psnr_db, 3)] for s in course.samples
        ],
    }


def main() -> int:
    """Measure, write, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimisers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--pictures", nargs="+", default=list(SAMPLES), help="files, or names of scikit-image's"
    )
    parser.add_argument(
        "--bpp", type=float, default=0.226, help="rate the networks are planned for"
    )
    parser.add_argument("--iterations", type=int, default=480, help="of every fit")
    parser.add_argument("--seeds", type=int, default=2, help="starts of every compared setting")
    parser.add_argument(
        "--part", choices=("methods", "choices", "all"), default="all", help="what to compare"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="of the methods or of SOAP's choices, these"
    )
    parser.add_argument("--peak", type=float, default=5e-3, help="learning rate of SOAP's choices")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/optimisers.json"), help="JSON file"
    )
    arguments = parser.parse_args()
    known = [each.name for each in (*CONTENDERS, *VARIANTS)]
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"unknown name {name!r}; there are {', '.join(map(repr, known))}")

    # kernels take torch's number of threads when they are made
    torch.set_num_threads(1)
    scenes = [open_scene(picture, arguments.bpp) for picture in arguments.pictures]
    measure(scenes, arguments)
    return 0


def measure(scenes: Sequence[Scene], arguments: argparse.Namespace) -> None:
    """Run what is asked for, and write it to ``arguments.output``.

    What that file holds already stays where it was measured with the same settings and is not
    measured anew: a long comparison can be made in pieces.
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    only = arguments.only
    wanted = [c for c in CONTENDERS if not only or c.name in only]
    variants = [v for v in VARIANTS if not only or v.name in only]
    settings = {
        "torch": torch.__version__,
        "kernel": scenes[0].kernel.name,
        "bpp": arguments.bpp,
        "iterations": arguments.iterations,
        "pictures": {
            s.name: {"size": list(s.target.shape[:0:-1]), "parameters": s.arch.parameters}
            for s in scenes
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = _read(arguments.output, settings)
    result["machine"] = describe(arguments.output.parent)
    common = {"iterations": arguments.iterations, "seeds": arguments.seeds, "say": say}
    if arguments.part != "choices" and wanted:
        result.update(tournament(scenes, wanted, **common))
        arguments.output.with_suffix(".svg").write_text(picture_of(result), encoding="utf-8")
        _write(arguments.output, result)
        for part in ("equal_iterations", "equal_seconds"):
            print(f"\n{part.replace('_', ' ')}\n\n{table(result[part])}")
    if arguments.part != "methods" and variants:
        before = result.get("choices", {})
        if any(before.get(key) != getattr(arguments, key) for key in ("peak", "seeds")):
            before = {}
        for variant in variants:
            found = ablation(scenes, [variant], peak=arguments.peak, **common)
            before = result["choices"] = _in_order({**before, **found})
            _write(arguments.output, result)
        print(f"\nSOAP's choices\n\n{table(result['choices'])}")


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run with the same settings wrote, or the start of a result."""
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(before, dict) and before.get("settings") == settings:
            return before
    return {"schema_version": 1, "machine": {}, "settings": settings}


def _in_order(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the rows in the catalogue's order, after what they share."""
    names = [variant.name for variant in VARIANTS]
    shared = {key: value for key, value in choices.items() if key not in names}
    return {**shared, **{name: choices[name] for name in names if name in choices}}


if __name__ == "__main__":
    sys.exit(main())
