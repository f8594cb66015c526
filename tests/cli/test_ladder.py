"""``nif bench ladder``: what it runs, writes, draws, and reads again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from nifcore.cli.bench_ladder import parse_efforts
from nifcore.cli.ladder_plot import draw
from nifcore.ladder import Rung
from nifcore.presets import EFFORTS
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import Finished, nif_here

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def measured(coded: Coded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Finished]:
    folder = tmp_path_factory.mktemp("ladder")
    output, plot = folder / "ladder.json", folder / "ladder.svg"
    run = nif_here(
        *("bench", "ladder", coded.picture, "--efforts", "1-2", "--bpp", 4),
        *("--output", output, "--plot", plot, "--json"),
    )
    assert run.code == 0, run.stderr
    return output, plot, run


def test_levels_are_measured_at_one_rate(
    coded: Coded, measured: tuple[Path, Path, Finished]
) -> None:
    output, _, run = measured
    document = json.loads(output.read_text())
    first, second = run.objects
    assert [first["effort"], second["effort"]] == [1, 2]
    assert [{"schema_version": 1, "bpp": 4.0} | level for level in document["levels"]] == [
        first,
        second,
    ]
    # effort 1 at 4 bpp is what the fixture encoded
    rate = coded.said["bytes"] * 8 / (WIDTH * HEIGHT)
    assert first["psnr_db"] == pytest.approx(
        coded.said["psnr_db"] + 2.5 * math.log2(4.0 / rate), abs=1e-6
    )
    assert first["iterations"] == [stage.length for stage in EFFORTS[1].stages]
    assert first["gain_db"] is None
    assert document["machine"]["threads"] >= 1
    told = run.stderr.splitlines()
    assert "photo.png, effort 1" in told[0]
    assert "1 of 2" in told[0]
    assert "left" in told[0]


def test_it_is_drawn(measured: tuple[Path, Path, Finished]) -> None:
    _, plot, _ = measured
    drawing = ElementTree.fromstring(plot.read_text())
    titles = [each.findtext(f"{SVG}title") for each in drawing.iter(f"{SVG}circle")]
    assert [title.split(":")[0] for title in titles if title] == ["effort 1", "effort 2"]
    words = " ".join(each.text or "" for each in drawing.iter(f"{SVG}text"))
    assert "seconds per megapixel" in words
    assert "4 bits per pixel" in words


def test_earlier_results_are_read_again(
    measured: tuple[Path, Path, Finished], tmp_path: Path
) -> None:
    output, plot, _ = measured
    again = tmp_path / "again.svg"
    run = nif_here("bench", "ladder", "--from", output, "--from", output, "--plot", again)
    assert run.code == 0, run.stderr
    assert again.read_text() == plot.read_text()
    heading, *rows = run.text.splitlines()
    assert heading.split()[:4] == ["effort", "iterations", "seconds", "s/MP"]
    assert [row.split()[0] for row in rows] == ["1", "2"]


def test_what_cannot_be_put_together(
    coded: Coded, measured: tuple[Path, Path, Finished], tmp_path: Path
) -> None:
    output, _, _ = measured
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(output.read_text()) | {"bpp": 1.0}))
    run = nif_here("bench", "ladder", "--from", output, "--from", other)
    assert run.code == 2
    assert "1 and 4 bpp" in run.stderr
    assert nif_here("bench", "ladder", coded.picture, "--from", output).code == 2
    other.write_text("{}")
    assert nif_here("bench", "ladder", "--from", other).code == 3
    assert nif_here("bench", "ladder", "--from", tmp_path / "none.json").code == 3


def test_without_pictures_and_examples_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nifcore.cli.bench_ladder.find_spec", lambda name: None)
    run = nif_here("bench", "ladder", "--efforts", "1")
    assert run.code == 2
    assert "scikit-image" in run.stderr


def test_ranges_of_efforts() -> None:
    assert parse_efforts("1-3") == (1, 2, 3)
    assert parse_efforts("9") == (9,)
    assert parse_efforts("5, 1-2,2") == (1, 2, 5)
    for bad in ("", "0", "1-10", "3-1", "a", "1-", "1;2"):
        with pytest.raises(typer.BadParameter):
            parse_efforts(bad)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_point_lies_within_the_drawing(count: int) -> None:
    levels = [
        Rung(each + 1, 2.0**each, 3 * 2.0**each, 30 + each**0.5, None, None, each != 1)
        for each in range(count)
    ]
    drawing = ElementTree.fromstring(draw(levels, 0.226, 3))
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    points = [each for each in drawing.iter(f"{SVG}circle") if each.find(f"{SVG}title") is not None]
    assert len(points) == count
    for point in points:
        assert 0 < float(point.attrib["cx"]) < width
        assert 0 < float(point.attrib["cy"]) < height
    across = [float(point.attrib["cx"]) for point in points]
    assert across == sorted(set(across))
