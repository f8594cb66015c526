"""Settings and where each came from: flag > ``NIF_*`` > ``./nif.toml`` > user config > default.

This is the only module that reads the environment or a configuration file. The settings
themselves are listed once, as the fields of :class:`Settings`; ``docs/cli.md`` is tested
against them. Imports nothing heavy, because every command loads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nifcore.errors import UsageError
from nifcore.limits import Limits

Value = int | str | bool

PROJECT_FILE = "nif.toml"
ENVIRONMENT_PREFIX = "NIF_"

_LIMITS = Limits()


def _setting(
    default: Value,
    meaning: str,
    *,
    low: int | None = None,
    high: int | None = None,
    secret: bool = False,
) -> Any:
    """Declare a field of Settings: its meaning, the range of a number, whether it is shown."""
    return field(
        default=default, metadata={"meaning": meaning, "low": low, "high": high, "secret": secret}
    )


@dataclass(frozen=True)
class Settings:
    """What can be set outside the command line. Each field says its meaning in its metadata."""

    effort: int = _setting(5, "how long to fit, when no preset is asked for", low=1, high=9)
    quality: int = _setting(75, "quality, when no other target is asked for", low=1, high=100)
    device: str = _setting("auto", "where to compute: auto, cpu, cuda, cuda:1, ...")
    kernel: str = _setting("auto", "which kernel computes: auto, or a name of nif info --system")
    threads: int = _setting(0, "CPU threads; 0 leaves the choice to torch", low=0, high=1024)
    max_pixels: int = _setting(_LIMITS.max_pixels, "largest width times height accepted", low=1)
    max_side: int = _setting(_LIMITS.max_side, "longest side accepted, in pixels", low=1)
    max_file_bytes: int = _setting(
        _LIMITS.max_file_bytes, "largest input file accepted, in bytes", low=1
    )
    remote_url: str = _setting("http://127.0.0.1:8000", "where the compression service is")
    api_key: str = _setting("", "API key of the service, nif_...; never shown", secret=True)
    debug: bool = _setting(False, "show the traceback of an error")

    def limits(self) -> Limits:
        """Return the limits on inputs and files that these settings amount to."""
        return Limits(
            max_pixels=self.max_pixels,
            max_side=self.max_side,
            max_file_bytes=self.max_file_bytes,
        )


@dataclass(frozen=True)
class Configuration:
    """Settings in force, and for each by name the place its value came from."""

    settings: Settings
    sources: Mapping[str, str]


def load(
    flags: Mapping[str, Value | None] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Configuration:
    """Gather the settings from every place, the strongest last.

    Args:
        flags: values given on the command line, by setting name; None means not given.
        environ: the environment, by default that of the process.
        folder: where to look for ``nif.toml``, by default the current folder.

    Raises:
        UsageError: a file is not TOML, a name is unknown, or a value is not accepted.
    """
    environ = os.environ if environ is None else environ
    known = {each.name: each for each in fields(Settings)}
    values: dict[str, Any] = asdict(Settings())
    sources = dict.fromkeys(known, "default")

    project = PROJECT_FILE if folder is None else str(folder / PROJECT_FILE)
    for path in (user_file(environ), Path(project)):
        for name, value in _read_toml(path).items():
            if name not in known:
                raise UsageError(
                    f"{path}: unknown setting {name!r}; accepted are {', '.join(known)}"
                )
            values[name] = _checked(known[name], value, f"{path}: {name}")
            sources[name] = str(path)
    for name, each in known.items():
        variable = environment_variable(name)
        if text := environ.get(variable):
            values[name] = _checked(each, _parsed(each, text, variable), variable)
            sources[name] = variable
        if flags is not None and (flag := flags.get(name)) is not None:
            option = "--" + name.replace("_", "-")
            values[name] = _checked(each, flag, option)
            sources[name] = option
    return Configuration(Settings(**values), sources)


def environment_variable(name: str) -> str:
    """Return the environment variable of a setting: ``max_pixels`` -> ``NIF_MAX_PIXELS``."""
    return ENVIRONMENT_PREFIX + name.upper()


def debugging() -> bool:
    """Tell whether tracebacks are wanted, even when the settings themselves are at fault."""
    try:
        return load().settings.debug
    except UsageError:
        return False


def user_file(environ: Mapping[str, str] | None = None) -> Path:
    """Return the path of the user's configuration file, whether or not it exists."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "nif" / "config.toml"


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder for what can be made again, whether or not it exists."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache")) / "nif"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    # Imported where a file exists: it costs start-up time that most calls need not pay.
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error


def _parsed(setting: Field[Any], text: str, origin: str) -> Value:
    """Turn the text of an environment variable into the setting's type."""
    if isinstance(setting.default, bool):
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise UsageError(f"{origin} is {text!r}; accepted are 1, true, yes, 0, false, no")
        return words[text.lower()]
    if isinstance(setting.default, int):
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{origin} is {text!r}; a whole number is accepted") from None
    return text


def _checked(setting: Field[Any], value: object, origin: str) -> Value:
    """Return ``value`` if its type and range are those of the setting."""
    expected = type(setting.default)
    # bool is a subclass of int, and "effort = true" is a mistake.
    if type(value) is not expected:
        kind = {int: "a whole number", str: "a text", bool: "true or false"}[expected]
        raise UsageError(f"{origin} is {value!r}; {kind} is accepted")
    if isinstance(value, int) and not isinstance(value, bool):
        low, high = setting.metadata["low"], setting.metadata["high"]
        if value < low or (high is not None and value > high):
            accepted = f"{low} and more" if high is None else f"{low} to {high}"
            raise UsageError(f"{origin} is {value}; {accepted} is accepted")
    assert isinstance(value, (int, str))
    return value
