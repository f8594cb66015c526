"""What parent and child say to each other: JSON objects, one a line.

::

    child ──► {"event": "ready", "device": ...}              torch is loaded, a task may come
    parent ─► {"input": ..., "parameters": {...}, ...}       the task, once
              {"tasks": [{...}, ...]}                        or a group of them
    child ──► {"event": "progress", "phase": ..., ...}       at most twice a second
    child ──► {"event": "preview", "data": base64, ...}      a few times, if asked for
    child ──► {"event": "checkpoint", "bytes": ...}          the checkpoint file was replaced
    parent ─► {"order": "finish" | "stop"}                   any time; a cancelled child is killed
    child ──► {"event": "done", "report": {...}}             the output file is there
              {"event": "stopped"}                           the checkpoint file is up to date
              {"event": "error", "code": ..., "message": ..., "exit_code": ...}

Of a group, every message and every order has a ``member`` too, the place of its task in the list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

LONGEST_LINE = 1 << 20
LONGEST_MESSAGE = 2000


class Order(StrEnum):
    """What the parent asks of a child at work."""

    FINISH = "finish"
    """Keep the best so far: quantise, code and measure it."""
    STOP = "stop"
    """Save a checkpoint and end."""
    DROP = "drop"
    """Leave this picture, of a group, to itself and say "stopped": nobody wants it any more."""


@dataclass(frozen=True)
class Task:
    """What a child is to do.

    Attributes:
        input: path of the picture.
        output: path that the .nif file is to have.
        checkpoint: path of the state, read if it is there and replaced as the fit goes on.
        parameters: keyword arguments of ``nifcore.encode`` that say what is wanted.
        device: where to compute.
        max_pixels, max_file_bytes: limits on the picture.
        checkpoint_seconds: how often the state is saved.
        previews: most pictures of the running encode that are wanted; 0 is none.
        preview_bytes: most bytes of each.
        memory_bytes, output_bytes: bounds on the process; 0 is none.
    """

    input: str
    output: str
    checkpoint: str
    parameters: Mapping[str, Any]
    device: str
    max_pixels: int
    max_file_bytes: int
    checkpoint_seconds: float
    previews: int
    preview_bytes: int
    memory_bytes: int
    output_bytes: int

    def to_line(self) -> bytes:
        """Return the task as it is sent."""
        return line(asdict(self))


def group_line(tasks: Sequence[Task]) -> bytes:
    """Return a group of tasks as it is sent."""
    return line({"tasks": [asdict(task) for task in tasks]})


def read_tasks(text: bytes) -> Task | list[Task]:
    """Return the task that ``Task.to_line`` wrote, or the group that ``group_line`` wrote."""
    values = json.loads(text)
    if "tasks" in values:
        return [Task(**each) for each in values["tasks"]]
    return Task(**values)


def line(values: Mapping[str, Any]) -> bytes:
    """Return values as one line. Infinities and NaN, which JSON has not, become null."""
    return json.dumps(_finite(values), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
