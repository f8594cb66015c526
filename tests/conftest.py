"""What all tests share."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Test processes share the cores, and OpenMP's threads wait for each other in busy loops: before
# torch is loaded, here and in the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# On a busy machine an example may take any time; how many there are bounds the run.
hypothesis.settings.register_profile("nif", deadline=None)
hypothesis.settings.load_profile("nif")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


# Of these the files take longest: what begins last must not be what ends last.
_LONG = ("worker", "jobs", "api", "test_demo.py", "dashboard", "cli", "deploy", "benchmarks")
# After this moment (seconds since 1970) no more of them begin. Set where a run may take only so
# long, whatever else the machine has to do; unset, all run.
_DEADLINE = float(os.environ.get("TEST_DEADLINE", "inf"))


def _place(item: pytest.Item) -> int:
    part = item.path.relative_to(Path(__file__).parent).parts[0]
    return _LONG.index(part) if part in _LONG else len(_LONG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of the whole service begin first."""
    items.sort(key=_place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out, and say so, what there is no time for on a machine that is too busy."""
    if time.time() > _DEADLINE and _place(item) < len(_LONG):
        pytest.skip("this machine is so slow today that TEST_DEADLINE has passed")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith("NIF_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)


@pytest.fixture
def hasty_compiler(tmp_path: Path) -> Path:
    """Return a folder for PATH whose C++ compiler is the real one that optimises nothing."""
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if real is None:
        pytest.skip("no C++ compiler is here")
    folder = tmp_path / "hasty"
    folder.mkdir()
    # of two levels the last one counts
    (folder / "c++").write_text(f'#!/bin/sh\nexec {shlex.quote(real)} "$@" -O0\n')
    (folder / "c++").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return paths of data too large for the repository; a test skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return find
