"""``nif info``, ``nif presets``, ``nif config show`` and the program's own options."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import nifcore
from nifcore import kernels
from nifcore.config import Settings
from nifcore.header import (
    EXTENSION_COMMENT,
    Colour,
    Extension,
    Header,
    NetShape,
    header_bytes,
)
from nifcore.presets import EFFORTS, PRESETS
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import PROGRAM, ROOT, environment, nif, nif_here


def test_info_is_what_the_header_says(coded: Coded, tmp_path: Path) -> None:
    header = nifcore.read_header(coded.file)
    (said,) = nif("info", coded.file, "--json", folder=tmp_path).objects
    assert said["schema_version"] == 1
    assert said["bytes"] == coded.file.stat().st_size
    assert said["bpp"] == pytest.approx(coded.said["bpp"])
    assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
    assert (said["channels"], said["colour"]) == (3, "srgb")
    assert said["genesis"] == {
        "hidden": list(header.genesis.hidden),
        "frequencies": header.genesis.frequencies,
    }
    assert said["parameters"] == header.parameters == coded.said["parameters"]
    assert said["tiles"] == [[0, 0, WIDTH, HEIGHT]]
    assert (said["base"], said["omega"], said["sigma"]) == (1.4, 30.0, 10.0)


def test_info_for_people(coded: Coded) -> None:
    run = nif_here("info", coded.file)
    lines = dict(line.split(":", 1) for line in run.text.splitlines())
    size = coded.file.stat().st_size
    assert lines["size"].strip() == f"{size} bytes, {coded.said['bpp']:.3f} bpp"
    assert lines["picture"].strip() == f"{WIDTH}x{HEIGHT}, srgb"


def test_info_needs_only_the_header(tmp_path: Path) -> None:
    header = Header(
        width=30,
        height=20,
        colour=Colour.GREY,
        genesis=NetShape((5, 4), 3),
        tiles=(3, 2),
        extensions=(Extension(EXTENSION_COMMENT, b"hello"), Extension(99, b"?")),
    )
    run = nif("info", "-", "--json", folder=tmp_path, stdin=header_bytes(header))
    (said,) = run.objects
    assert said["input"] == "-"
    assert said["modulation"] is None
    assert said["parameters"] == 6 * header.parameters
    assert said["extensions"] == [{"id": 2, "bytes": 5}, {"id": 99, "bytes": 1}]
    file = tmp_path / "x.nif"
    file.write_bytes(header_bytes(header))
    text = nif_here("info", file).text
    assert "modulation:  none" in text
    assert "comment:     5 bytes" in text
    assert "block 99:    1 bytes" in text


def test_info_of_what_is_no_nif_file(tmp_path: Path) -> None:
    (tmp_path / "x.nif").write_bytes(b"NetImmerse File Format")
    run = nif("info", "x.nif", folder=tmp_path)
    assert run.code == 4
    assert "not a .nif file" in run.stderr


@pytest.mark.parametrize("arguments", [(), ("x.nif", "--system")])
def test_info_wants_a_file_or_the_system(arguments: tuple[str, ...]) -> None:
    run = nif_here("info", *arguments)
    assert run.code == 2
    assert "either a FILE or --system" in run.stderr


def test_info_loads_nothing_heavy(coded: Coded, tmp_path: Path) -> None:
    """What keeps it below 0.15 s is what it does not import."""
    import subprocess

    run = subprocess.run(
        [sys.executable, "-X", "importtime", *PROGRAM[1:], "info", str(coded.file)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "nifcore" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "rich", "yaml", "pydantic"}


def test_system_names_the_kernels_and_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = nif_here("info", "--system", "--json").objects
    assert said["torch"] == torch.__version__
    assert said["devices"][0]["name"] == "cpu"
    names = [each["name"] for each in said["kernels"]]
    assert names == [each.name for each in kernels.choices()]
    monkeypatch.setenv("NIF_KERNEL", "reference")
    (said,) = nif_here("info", "--system", "--json").objects
    chosen = [each for each in said["kernels"] if each["chosen"]]
    assert [each["name"] for each in chosen] == ["reference"]
    text = nif_here("info", "--system").text
    assert all(name in text for name in names)


def test_presets_are_those_of_the_library() -> None:
    (said,) = nif_here("presets", "--json").objects
    assert set(said["presets"]) == set(PRESETS)
    assert set(said["efforts"]) == {str(level) for level in EFFORTS}
    stages = said["presets"]["paper-120"]["stages"]
    assert [(each["steps"], each["length"], each["unit"]) for each in stages] == [
        (10, 150, "passes"),
        (5, 40, "passes"),
    ]
    assert said["presets"]["paper-120"]["genesis"]["hidden"] == [120, 40, 28, 16]
    lines = [line for line in nif_here("presets").text.splitlines() if line]
    for name, recipe in PRESETS.items():
        (line,) = (line for line in lines if line.startswith(name + " "))
        assert recipe.summary in line
        for stage in recipe.stages:
            assert f" {stage.steps}x{stage.length} " in line
    for level, recipe in EFFORTS.items():
        assert any(line.split()[0] == str(level) and recipe.summary in line for line in lines)


def test_config_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    (tmp_path / "nif.toml").write_text('device = "cpu"\nthreads = 3')
    home = tmp_path / ".config" / "nif" / "config.toml"
    home.parent.mkdir(parents=True)
    home.write_text("quality = 60\nthreads = 2")
    run = nif("config", "show", "--json", folder=tmp_path, env={"NIF_EFFORT": "3"})
    (said,) = run.objects
    settings = said["settings"]
    assert list(settings) == list(asdict(Settings()))
    assert settings["effort"] == {"value": 3, "source": "NIF_EFFORT"}
    assert settings["device"] == {"value": "cpu", "source": "nif.toml"}
    assert settings["threads"] == {"value": 3, "source": "nif.toml"}
    assert settings["quality"] == {"value": 60, "source": str(home)}
    assert settings["kernel"] == {"value": "auto", "source": "default"}


def test_config_show_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIF_THREADS", "7")
    rows = [line.split() for line in nif_here("config", "show").text.splitlines()]
    assert ["threads", "7", "NIF_THREADS", "NIF_THREADS"] in [row[:4] for row in rows]


def test_a_bad_setting_stops_every_command(tmp_path: Path) -> None:
    (tmp_path / "nif.toml").write_text("efort = 3")
    run = nif("encode", "x.png", folder=tmp_path)
    assert run.code == 2
    assert "nif.toml: unknown setting 'efort'" in run.stderr


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert nif_here("--version").text == f"nif {project['version']}\n"
    assert nifcore.__version__ == project["version"]


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("nif imp", "import-published"),
        ("nif encode --eff", "--effort"),
        ("nif encode --preset paper-celeba-2", "paper-celeba-2_97"),
    ],
)
def test_the_shell_completes(tmp_path: Path, line: str, completed: str) -> None:
    words = line.split()
    env = {
        "_NIF_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    run = nif(folder=tmp_path, env=env)
    assert run.text.split() == [completed]


def test_help_is_tiered() -> None:
    text = nif_here("encode", "--help").text
    panels = [text.index(name) for name in ("Options", "Target", "Advanced")]
    assert panels == sorted(panels)
    assert text.index("--effort") < panels[1] < text.index("--bpp") < panels[2]
    assert text.index("--checkpoint") > panels[2]


def test_json_is_one_line(coded: Coded) -> None:
    (line,) = nif_here("info", coded.file, "--json").text.splitlines()
    assert json.loads(line)["schema_version"] == 1
