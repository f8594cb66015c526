"""Imports point one way, and what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("nifcore", "jobs", "worker", "api")
ALLOWED = {
    "nifcore": set(),
    "jobs": set(),
    "worker": {"jobs", "nifcore"},
    "api": {"jobs", "nifcore"},
}
HEAVY = {"torch", "numpy", "PIL", "rich", "yaml", "scipy"}


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a source file imports, also inside functions."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_there_is_a_codec_to_look_at() -> None:
    assert len(sources("nifcore")) > 20


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    forbidden = set(ROOMS) - ALLOWED[room] - {room}
    for path in sources(room):
        wrong = imported_packages(path) & forbidden
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def heavy_modules_after(code: str) -> set[str]:
    """Return which heavy packages a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in run.stdout.split()} & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "nifcore",
        "nifcore.errors",
        "nifcore.limits",
        "nifcore.header",
        "nifcore.events",
        "nifcore.config",
        "nifcore.cli",
        "nifcore.cli.app",
        "nifcore.cli.encode",
        "nifcore.cli.info",
    ],
)
def test_starts_without_heavy_imports(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


def test_the_heavy_imports_would_be_seen() -> None:
    assert "numpy" in heavy_modules_after("import nifcore.picture")


def test_reading_a_header_loads_nothing_heavy() -> None:
    code = (
        "import nifcore.header as h\n"
        "header = h.Header(8, 8, h.Colour.SRGB, h.NetShape((4,), 2))\n"
        "assert h.read_header(h.header_bytes(header)) == header"
    )
    assert heavy_modules_after(code) == set()
