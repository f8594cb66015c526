"""``nif import-published``: files of the paper's own encoder."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nifcore
from tests.cli.program import nif, nif_here


@pytest.fixture
def sample(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("reference")


def test_the_sample_decodes_to_the_pixels_of_its_own_decoder(sample: Path, tmp_path: Path) -> None:
    run = nif(
        *("import-published", "-", "-", "--config", sample / "kodim03_x2.yaml"),
        folder=tmp_path,
        stdin=(sample / "kodim03_x2.nif").read_bytes(),
    )
    assert run.code == 0, run.stderr
    assert run.stderr == f"nif: stdout: {len(run.stdout):,} bytes, was 15,805 bytes\n"
    with Image.open(sample / "kodim03_x2_decoded.png") as wanted:
        difference = np.asarray(wanted).astype(int) - np.asarray(nifcore.decode(run.stdout))
    assert np.abs(difference).max() <= 2


def test_json_and_no_clobber(sample: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.nif"
    arguments = ["import-published", sample / "kodim03_x2.nif", output, "--json", "--no-clobber"]
    arguments += ["--config", sample / "kodim03_x2.yaml"]
    (said,) = nif_here(*arguments).objects
    assert said["bytes"] == output.stat().st_size
    assert said["published_bytes"] == 15_805
    assert nif_here(*arguments).code == 2


class Hostile:
    """Creates a file when it is unpickled by the usual means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["hostile", "text", "nif"])
def test_what_is_no_published_file(tmp_path: Path, kind: str) -> None:
    content = {
        "hostile": pickle.dumps({"head.weight": Hostile(tmp_path / "executed")}),
        "text": b"no pickle",
        "nif": b"\x8eNIF\r\n\x1a\n",
    }
    (tmp_path / "in").write_bytes(content[kind])
    (tmp_path / "config.yaml").write_text("model: {}")
    run = nif_here(
        *("import-published", tmp_path / "in", tmp_path / "out.nif"),
        *("--config", tmp_path / "config.yaml"),
    )
    assert run.code == (2 if kind == "nif" else 4)
    (line,) = run.stderr.splitlines()
    assert line.startswith("nif: error: ")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.yaml", "in"]


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(pickle.dumps({}))
    for content, code in ((b"a: [", 2), (None, 3)):
        config = tmp_path / "config.yaml"
        if content is None:
            config.unlink()
        else:
            config.write_bytes(content)
        run = nif_here("import-published", tmp_path / "in", tmp_path / "out", "--config", config)
        assert run.code == code
