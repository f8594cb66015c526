"""What the program accepts is documented: every command, option, setting and exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import typer

from nifcore import errors
from nifcore.cli.app import app
from nifcore.config import Settings, environment_variable
from nifcore.presets import EFFORTS, PRESETS

ROOT = Path(__file__).parents[1]
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def commands(command: Any, path: str = "nif") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name; groups too."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))
LEAVES = {path: each for path, each in COMMANDS.items() if not hasattr(each, "commands")}


def section(path: str) -> str:
    """Return the text under the heading that is exactly ``path``."""
    found = re.search(rf"^(#+) {re.escape(path)}\n(.*?)(?=^#|\Z)", CLI_PAGE, re.M | re.S)
    assert found is not None, f"docs/cli.md has no section {path!r}"
    return found[2]


def options(command: Any) -> set[str]:
    names: set[str] = set()
    for parameter in command.params:
        if parameter.param_type_name == "option":
            names |= {*parameter.opts, *parameter.secondary_opts}
    return names - {"--help", "-h"}


def test_the_program_has_the_commands_it_should() -> None:
    assert set(LEAVES) == {
        "nif encode",
        "nif decode",
        "nif info",
        "nif verify",
        "nif compare",
        "nif import-published",
        "nif presets",
        "nif bench ladder",
        "nif bench calibrate",
        "nif bench estimate",
        "nif bench encode",
        "nif bench decode",
        "nif bench kernels",
        "nif remote submit",
        "nif remote status",
        "nif remote wait",
        "nif remote download",
        "nif remote cancel",
        "nif remote list",
        "nif admin reconcile",
        "nif config show",
    }


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_is_documented(path: str) -> None:
    text = section(path)
    missing = {name for name in options(LEAVES[path]) if not re.search(rf"`{name}[ `]", text)}
    assert not missing


@pytest.mark.parametrize("path", LEAVES)
def test_every_documented_option_exists(path: str) -> None:
    mentioned = set(re.findall(r"`(--?[a-z][a-z-]*)", section(path), re.I))
    everywhere = set().union(*(options(each) for each in LEAVES.values()))
    assert mentioned <= everywhere, "an option of no command"
    rows = set(re.findall(r"^\| `(--[a-z-]+)", section(path), re.M))
    assert rows <= options(LEAVES[path])


def test_the_options_of_the_program_itself_are_documented() -> None:
    for name in options(COMMANDS["nif"]):
        assert f"{name}`" in CLI_PAGE


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_explains_itself(path: str) -> None:
    assert LEAVES[path].help
    for parameter in LEAVES[path].params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"


def test_every_setting_is_documented_with_its_default() -> None:
    for name, default in asdict(Settings()).items():
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        row = f"| `{name}` | `{environment_variable(name)}` | {shown} |"
        assert row in section("nif config show")


def test_no_other_setting_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `NIF_", section("nif config show"), re.M)
    assert rows == [each.name for each in fields(Settings)]


def test_every_exit_code_is_documented_with_its_errors() -> None:
    table = dict(re.findall(r"^\| (\d+) \|(.*)\|$", section("Exit codes"), re.M))
    raised = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.NifError)
    ]
    assert len(raised) > 10
    assert {str(each.exit_code) for each in raised} | {"0"} == set(table)
    for each in raised:
        if each is not errors.NifError:
            assert f"`{each.__name__}`" in table[str(each.exit_code)]


def test_the_quality_scale_in_help_is_the_one_in_use() -> None:
    from nifcore.plan import bpp_of_quality

    (quality,) = (each for each in LEAVES["nif encode"].params if each.name == "quality")
    for text in (quality.help, section("nif encode")):
        anchors = re.findall(r"(\d+) means ([\d.]*\d)", text)
        assert len(anchors) == 5
        for level, rate in anchors:
            assert bpp_of_quality(int(level)) == pytest.approx(float(rate))


README = (ROOT / "README.md").read_text(encoding="utf-8")
PRESETS_PAGE = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")


def table_rows(first_cell: str, page: str = PRESETS_PAGE) -> list[list[str]]:
    """Return the rows of a page's tables whose first cell matches, as lists of cells."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if re.fullmatch(first_cell, row[0])]


def kept(name: str) -> Any:
    """Return what ``benchmarks/results/<name>.json`` holds."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def test_the_effort_table_is_what_runs() -> None:
    found = {int(row[0]): (row[1], row[2], row[-1]) for row in table_rows(r"\d")}
    expected = {
        level: (str(recipe.stages[0].length), str(recipe.stages[1].length), recipe.summary)
        for level, recipe in EFFORTS.items()
    }
    assert found == expected


def test_the_effort_table_is_what_was_measured() -> None:
    levels = kept("ladder-kodak-3")["levels"]
    measured = {
        each["effort"]: [
            *(str(length) for length in each["iterations"]),
            f"{each['psnr_db']:.2f}",
            f"{each['seconds']:.1f}",
            f"{each['seconds_per_megapixel']:.1f}",
        ]
        for each in levels
    }
    assert {int(row[0]): row[1:-1] for row in table_rows(r"\d")} == measured


@pytest.mark.parametrize("effort", [1, 5, 9])
def test_the_numbers_of_the_readme_are_those_of_the_results(effort: int) -> None:
    means = kept(f"kodak-24-effort-{effort}")["means"]
    measured = [
        [
            f"{mean['bytes']:,.0f}",
            f"{mean['bpp']:.3f}",
            f"{mean['psnr_db']:.2f} dB",
            f"{mean['ms_ssim']:.4f}",
            f"{mean['seconds']:.{0 if mean['seconds'] > 100 else 1}f} s",
        ]
        for mean in means
    ]
    rows = table_rows(rf"effort {effort}\b.*", README)
    assert [[*row[1:5], row[5].removesuffix(" on one core")] for row in rows] == measured


@pytest.mark.parametrize("effort", [5, 9])
def test_the_bd_rates_of_the_readme_are_those_of_the_results(effort: int) -> None:
    bd = kept(f"kodak-24-effort-{effort}")["bd"]
    measured = {each["codec"]: f"{each['bd_rate_percent']:+.1f} %" for each in bd}
    [(_, *codecs)] = table_rows("BD-rate against", README)
    [(_, *quoted)] = table_rows(rf"of effort {effort}\b.*", README)
    assert dict(zip(codecs, quoted, strict=True)) == {name: measured[name] for name in codecs}


def test_the_table_of_published_presets_is_what_runs() -> None:
    found = {
        name: (row[1], row[2])
        for row in table_rows(r"`paper-.*")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    expected = {
        name: (
            f"{recipe.stages[0].steps} x {recipe.stages[0].length} passes",
            f"{recipe.stages[1].steps} x {recipe.stages[1].length} passes",
        )
        for name, recipe in PRESETS.items()
    }
    assert found == expected
