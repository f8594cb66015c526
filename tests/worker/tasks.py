"""Tasks for an encoding child."""

from pathlib import Path
from typing import Any

from worker import messages


def task_in(folder: Path, picture: bytes, **changes: Any) -> messages.Task:
    """Return a task whose files are in a folder, with its picture there."""
    (folder / "input").write_bytes(picture)
    names = {name: str(folder / name) for name in ("input", "output", "checkpoint")}
    values: dict[str, Any] = {
        **names,
        "parameters": {"effort": 1, "bpp": 4.0},
        "device": "cpu",
        "max_pixels": 10_000,
        "max_file_bytes": 100_000,
        "checkpoint_seconds": 3600.0,
        "previews": 0,
        "preview_bytes": 0,
        "memory_bytes": 0,
        "output_bytes": 0,
    }
    return messages.Task(**{**values, **changes})
