"""Where settings come from, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nifcore.config import Settings, environment_variable, load, user_file
from nifcore.errors import UsageError
from nifcore.limits import Limits


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_where_nothing_is_set(tmp_path: Path) -> None:
    found = load(environ={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)
    assert found.settings == Settings()
    assert set(found.sources.values()) == {"default"}


def test_each_place_is_stronger_than_the_next(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    places = [("default", 5)]

    def check(flags: dict[str, int] | None = None) -> None:
        found = load(flags, environ=environ, folder=tmp_path)
        assert (found.sources["effort"], found.settings.effort) == places[-1]
        assert found.sources["quality"] == "default"

    check()
    user = write(tmp_path / "home" / "nif" / "config.toml", "effort = 2")
    places.append((str(user), 2))
    check()
    project = write(tmp_path / "nif.toml", "effort = 3")
    places.append((str(project), 3))
    check()
    environ["NIF_EFFORT"] = "4"
    places.append(("NIF_EFFORT", 4))
    check()
    places.append(("--effort", 6))
    check({"effort": 6})


def test_a_flag_not_given_changes_nothing(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "NIF_DEVICE": "cuda:1"}
    found = load({"device": None}, environ=environ, folder=tmp_path)
    assert found.settings.device == "cuda:1"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "NIF_EFFORT": ""}
    assert load(environ=environ, folder=tmp_path).settings.effort == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("effort", "9", 9), ("debug", "yes", True), ("debug", "0", False), ("kernel", "x", "x")],
)
def test_variables_take_the_type_of_the_setting(
    tmp_path: Path, name: str, text: str, value: object
) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), environment_variable(name): text}
    assert getattr(load(environ=environ, folder=tmp_path).settings, name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("efort = 3", "unknown setting 'efort'; accepted are effort, quality, device"),
        ("effort = 10", "effort is 10; 1 to 9 is accepted"),
        ("effort = true", "effort is True; a whole number is accepted"),
        ("effort = 5.5", r"effort is 5\.5; a whole number is accepted"),
        ("device = 1", "device is 1; a text is accepted"),
        ("debug = 1", "debug is 1; true or false is accepted"),
        ("max_pixels = 0", "max_pixels is 0; 1 and more is accepted"),
        ("effort = ", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "nif.toml", text)
    with pytest.raises(UsageError, match=message) as caught:
        load(environ={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nif.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        load(environ={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        ("NIF_EFFORT", "fast", "a whole number is accepted"),
        ("NIF_EFFORT", "0", "1 to 9 is accepted"),
        ("NIF_DEBUG", "maybe", "accepted are 1, true, yes, 0, false, no"),
    ],
)
def test_a_bad_variable_is_refused_by_name(
    tmp_path: Path, variable: str, text: str, accepted: str
) -> None:
    with pytest.raises(UsageError, match=accepted) as caught:
        load(environ={"XDG_CONFIG_HOME": str(tmp_path), variable: text}, folder=tmp_path)
    assert str(caught.value).startswith(f"{variable} is ")


def test_a_flag_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-pixels is -1"):
        load({"max_pixels": -1}, environ={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)


def test_limits_follow_the_settings() -> None:
    assert Settings().limits() == Limits()
    limits = Settings(max_pixels=7, max_side=6, max_file_bytes=5).limits()
    assert (limits.max_pixels, limits.max_side, limits.max_file_bytes) == (7, 6, 5)


def test_the_user_file_lies_where_the_desktop_puts_configuration() -> None:
    assert user_file({"XDG_CONFIG_HOME": "/x"}) == Path("/x/nif/config.toml")
    assert user_file({}) == Path("~/.config/nif/config.toml").expanduser()
