"""A picture and its .nif file, encoded once for all tests of the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from tests.cli.program import Finished, nif

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Coded:
    """A photo, its .nif file, and how ``nif encode --json`` made it."""

    picture: Path
    file: Path
    run: Finished
    said: dict[str, Any]


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Coded:
    folder = tmp_path_factory.mktemp("coded")
    picture = folder / "photo.png"
    Image.fromarray(data.astronaut()[:256, 64:448]).resize((WIDTH, HEIGHT)).save(picture)
    run = nif("encode", "photo.png", "--effort", 1, "--bpp", 4, "--json", folder=folder)
    assert run.code == 0, run.stderr
    (said,) = run.objects
    return Coded(picture, folder / "photo.nif", run, said)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A picture that takes minutes to encode at effort 9."""
    path = tmp_path / "large.png"
    Image.fromarray(data.astronaut()).save(path)
    return path
