"""``nif bench``: what it runs, and that its means are means."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from nifcore import kernels
from nifcore.bdrate import bd_psnr, bd_rate
from nifcore.cli.curves import Curve, read_curves
from nifcore.cli.rate_plot import draw
from nifcore.errors import InputError
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import nif_here

POINTS = [{"bpp": 4.0, "psnr": 30.0}, {"bpp": 1.0, "psnr": 20.0}, {"bpp": 2.0, "psnr": 26.0}]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.json"
    path.write_text(json.dumps({"_about": "", "kodak": {"CODEC": {"points": POINTS}}}))
    return path


def test_every_combination_is_run_and_averaged(
    coded: Coded, tmp_path: Path, published: Path
) -> None:
    output = tmp_path / "out.json"
    run = nif_here(
        *("bench", "encode", coded.picture, coded.picture, "--json", "--output", output),
        *("--effort", 1, "--bpp", 2, "--bpp", 4, "--published", published),
    )
    assert run.code == 0, run.stderr
    document = json.loads(output.read_text())
    runs, means = document["runs"], document["means"]
    assert [each["asked"] for each in runs] == ["effort 1, 2 bpp"] * 2 + ["effort 1, 4 bpp"] * 2
    assert run.objects == [
        {"schema_version": 1} | each
        for each in (*runs[:2], means[0], *runs[2:], means[1], *document["bd"])
    ]
    ours = [(each["bpp"], each["psnr_db"]) for each in means]
    theirs = [(each["bpp"], each["psnr"]) for each in POINTS]
    assert document["bd"] == [
        {
            "asked": "effort 1",
            "codec": "CODEC",
            "bd_rate_percent": pytest.approx(bd_rate(theirs, ours)),
            "bd_psnr_db": pytest.approx(bd_psnr(theirs, ours)),
        }
    ]
    assert runs[2]["bytes"] == coded.file.stat().st_size
    assert runs[2]["psnr_db"] == coded.said["psnr_db"]
    for mean, group in zip(means, (runs[:2], runs[2:]), strict=True):
        for name in ("bytes", "bpp", "psnr_db", "seconds"):
            assert mean[name] == pytest.approx(sum(each[name] for each in group) / 2)
    expected = 26 + 4 * np.log2(means[1]["bpp"] / 2)
    assert means[1]["published"] == {"CODEC": pytest.approx(expected)}
    assert document["machine"]["threads"] >= 1


def test_the_table_for_people(coded: Coded, published: Path) -> None:
    run = nif_here(
        *("bench", "encode", coded.picture, "--effort", 1, "--bpp", 4),
        *("--published", published),
    )
    heading, row, mean, rival = run.text.splitlines()
    assert heading.split() == ["picture", "asked", "bytes", "bpp", "PSNR", "MS-SSIM", "seconds"]
    assert row.startswith("photo.png")
    assert row.split()[-4] == f"{coded.said['bpp']:.3f}"
    assert mean.startswith("mean of 1")
    assert rival.split()[0] == "CODEC"


def test_a_stopped_benchmark_goes_on_where_it_was(coded: Coded, tmp_path: Path) -> None:
    output, plot = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ("bench", "encode", coded.picture, "--output", output, "--effort", 1, "--quiet")
    assert nif_here(*arguments, "--bpp", 2).code == 0
    document = json.loads(output.read_text())
    document["runs"][0]["seconds"] = 12345.0
    output.write_text(json.dumps(document))
    run = nif_here(*arguments, "--bpp", 2, "--bpp", 4, "--resume", "--plot", plot)
    assert run.code == 0, run.stderr
    runs = json.loads(output.read_text())["runs"]
    assert [each["asked"] for each in runs] == ["effort 1, 2 bpp", "effort 1, 4 bpp"]
    assert runs[0] == document["runs"][0]
    drawn = ElementTree.fromstring(plot.read_text())
    titles = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    expected = [f"effort 1: {r['psnr_db']:.2f} dB at {r['bpp']:.3f} bpp" for r in runs]
    assert titles[1:] == expected


def test_a_part_of_a_curve() -> None:
    curve = Curve("CODEC", ((1.0, 20.0), (2.0, 26.0), (4.0, 30.0)))
    assert curve.between(2**0.5, 8.0).points == (
        (2**0.5, pytest.approx(23.0)),
        (2.0, 26.0),
        (4.0, 30.0),
    )
    assert curve.between(2.0, 4.0).points == curve.points[1:]
    between_two = curve.between(2**1.25, 2**1.5).points
    assert [level for _, level in between_two] == pytest.approx([27.0, 28.0])
    assert curve.between(5.0, 8.0).points == ()


def test_published_curves_reach_the_borders_of_the_plot() -> None:
    # neither published rate is near ours, but the line between them passes by
    published = [Curve("FAR", ((0.01, 20.0), (10.0, 40.0))), Curve("ELSEWHERE", ((5.0, 30.0),))]
    drawn = ElementTree.fromstring(draw([Curve("ours", ((0.2, 28.0),))], published, 24))
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "FAR" in texts
    assert "ELSEWHERE" not in texts


def test_stdout_gets_the_whole_document_once(coded: Coded) -> None:
    run = nif_here(
        *("bench", "encode", coded.picture, coded.picture, "--effort", 1, "--bpp", 4),
        *("--quiet", "--output", "-"),
    )
    assert run.code == 0, run.stderr
    assert len(json.loads(run.stdout)["means"]) == 1


def test_resuming_what_cannot_be_gone_on_with(coded: Coded, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    arguments = ("bench", "encode", coded.picture, "--effort", 1, "--bpp", 4, "--resume")
    run = nif_here(*arguments)
    assert run.code == 2
    assert "--output" in run.stderr
    output.write_text("{}")
    run = nif_here(*arguments, "--output", output)
    assert run.code != 0
    assert "holds no results" in run.stderr
    output.write_text('{"seed": 5, "runs": []}')
    run = nif_here(*arguments, "--output", output)
    assert run.code == 2
    assert "seed 5, not 0" in run.stderr


def test_bpp_and_quality_exclude_each_other(coded: Coded) -> None:
    run = nif_here("bench", "encode", coded.picture, "--bpp", 1, "--quality", 50)
    assert run.code == 2
    assert "exclude each other" in run.stderr


def test_curves_are_read_sorted_and_end_where_their_points_end(published: Path) -> None:
    (curve,) = read_curves(published, "kodak")
    assert curve.codec == "CODEC"
    assert curve.at(2.0) == 26.0
    assert curve.at(2**0.5) == pytest.approx(23.0)
    assert curve.at(0.99) is None
    assert curve.at(4.01) is None


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"kodak": {"C": {"points": [{"bpp": 1}]}}}'])
def test_files_that_hold_no_curves(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no published points of 'kodak'"):
        read_curves(path, "kodak")


def test_one_point_is_a_curve_too() -> None:
    assert Curve("C", ((1.0, 20.0),)).at(1.0) == 20.0


def test_bench_decode(coded: Coded) -> None:
    run = nif_here("bench", "decode", coded.file, "--repeat", 3, "--json")
    (said,) = run.objects
    assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
    assert len(said["seconds"]) == 3
    assert said["fastest"] == min(said["seconds"]) > 0
    assert said["median"] == sorted(said["seconds"])[1]
    assert str(coded.file) in nif_here("bench", "decode", coded.file, "--repeat", 1).text


def test_bench_kernels() -> None:
    names = [each.name for each in kernels.choices() if each.available and each.name != "compiled"]
    run = nif_here("bench", "kernels", *names, "--size", "24x16", "--repeat", 2, "--json")
    (said,) = run.objects
    assert list(said["seconds"]) == names
    assert (said["width"], said["height"]) == (24, 16)
    for name, seconds in said["seconds"].items():
        assert len(seconds) == 3  # a first pass and the two that count
        label = "eager" if name == "reference" else name
        assert said[f"{label}_seconds_per_pass"] == min(seconds[1:]) > 0
    text = nif_here("bench", "kernels", "reference", "--size", "8x8", "--repeat", 1).text
    assert "reference" in text
    assert nif_here("bench", "kernels", "nonesuch").code == 2
