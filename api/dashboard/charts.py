"""Geometry of the drawings that the server makes: small curves and the states of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs import Sample, State


@dataclass(frozen=True)
class Sparkline:
    """A small curve, as data of SVG paths in a box of ``width`` by ``height``."""

    width: int
    height: int
    line: str
    area: str


def sparkline(values: Sequence[float], places: Sequence[float] | None = None) -> Sparkline | None:
    """Return a curve over zero; None for less than two values.

    Args:
        values: not negative, oldest first.
        places: where each stands between the left end, 0, and the right end, 1; evenly if None.
    """
    if len(values) < 2:
        return None
    width, height = 240, 44
    if places is None:
        places = [index / (len(values) - 1) for index in range(len(values))]
    span = max(*values, 1e-9)
    points = [
        (round(width * place, 1), round(height - 2 - (height - 4) * value / span, 1))
        for place, value in zip(places, values, strict=True)
    ]
    line = "M" + "L".join(f"{x:g},{y:g}" for x, y in points)
    area = f"{line}L{points[-1][0]:g},{height}L{points[0][0]:g},{height}Z"
    return Sparkline(width, height, line, area)


def places_of(samples: Sequence[Sample], now: datetime, seconds: float = 3600) -> list[float]:
    """Return where samples stand in the last so many seconds."""
    ages = [(now - sample.at).total_seconds() for sample in samples]
    return [min(1.0, max(0.0, 1 - age / seconds)) for age in ages]


@dataclass(frozen=True)
class Node:
    """A state's box: its upper left corner and size."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Edge:
    """A way between states: the transitions that take it, its path, and where its name stands."""

    names: tuple[str, ...]
    path: str
    label: str
    at: tuple[int, int]
    anchor: str = "middle"


@dataclass(frozen=True)
class Layout:
    """A drawing of all states and ways of `jobs.lifecycle`."""

    name: str
    width: int
    height: int
    start: tuple[int, int]
    nodes: Mapping[State, Node]
    edges: tuple[Edge, ...]


LANDSCAPE = Layout(
    "landscape",
    720,
    300,
    (22, 150),
    {
        State.QUEUED: Node(84, 130, 112, 40),
        State.RUNNING: Node(318, 130, 112, 40),
        State.SUCCEEDED: Node(594, 130, 118, 40),
        State.FAILED: Node(594, 44, 118, 40),
        State.CANCELLED: Node(594, 216, 118, 40),
    },
    (
        Edge(("create",), "M28,150H80", "create", (54, 142)),
        Edge(("claim",), "M196,143H314", "claim", (257, 135)),
        Edge(("lose", "release"), "M318,159C300,180 214,180 199,161", "lost, released", (257, 191)),
        Edge(("succeed",), "M430,150H590", "succeed", (512, 142)),
        Edge(("fail", "poison"), "M392,130C410,74 480,64 590,64", "fail", (500, 58)),
        Edge(("obey_cancel",), "M392,170C410,226 480,236 590,236", "cancel", (500, 228)),
        Edge(("cancel",), "M158,170C190,262 400,258 590,246", "cancel while queued", (310, 262)),
        Edge(("retry_failed",), "M640,44C600,-4 190,-6 150,127", "retry", (390, 18)),
        Edge(("retry_cancelled",), "M640,256C600,306 180,312 128,173", "retry", (390, 294)),
    ),
)

PORTRAIT = Layout(
    "portrait",
    350,
    400,
    (175, 12),
    {
        State.QUEUED: Node(120, 48, 110, 38),
        State.RUNNING: Node(120, 178, 110, 38),
        State.SUCCEEDED: Node(120, 320, 110, 38),
        State.FAILED: Node(4, 320, 104, 38),
        State.CANCELLED: Node(242, 320, 104, 38),
    },
    (
        Edge(("create",), "M175,18V45", "create", (183, 36), "start"),
        Edge(("claim",), "M162,86V175", "claim", (154, 134), "end"),
        Edge(("lose", "release"), "M188,178C206,150 206,116 190,89", "lost", (208, 136), "start"),
        Edge(("succeed",), "M175,216V317", "succeed", (182, 272), "start"),
        Edge(("fail", "poison"), "M140,216C116,252 66,262 60,317", "fail", (92, 254), "end"),
        Edge(("obey_cancel",), "M210,216C234,252 278,262 286,317", "cancel", (252, 238), "start"),
        Edge(("cancel",), "M230,74C300,96 312,220 306,317", "cancel", (296, 190), "start"),
        Edge(("retry_failed",), "M30,320C6,200 20,80 117,66", "retry", (26, 150), "start"),
        Edge(("retry_cancelled",), "M334,320C352,170 330,60 233,62", "retry", (330, 110), "end"),
    ),
)
LAYOUTS = (LANDSCAPE, PORTRAIT)


def times(edge: Edge, taken: Mapping[str, int]) -> int:
    """Return how often a way was taken."""
    return sum(taken.get(name, 0) for name in edge.names)
