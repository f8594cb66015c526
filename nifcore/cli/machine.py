"""What a measurement was made on."""

from __future__ import annotations

from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return system, versions, threads and GPU, to be kept beside numbers."""
    import platform

    import torch

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
