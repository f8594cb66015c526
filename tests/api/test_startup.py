"""What the API process loads, and that nothing in it waits for a worker's code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_api_loads_no_torch_and_parses_no_picture() -> None:
    script = "import sys, api.app\napi.app.create_app()\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "fastapi" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "scipy", "celery", "worker"}


def test_the_client_needs_no_server() -> None:
    script = "import sys, nifcore.client\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"fastapi", "starlette", "uvicorn", "jobs", "api", "torch", "numpy"}
