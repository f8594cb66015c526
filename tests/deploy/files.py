"""The files that deploy the service, read: compose file, Dockerfile, variables."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
ENV_EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Z_][A-Z0-9_]*)(?:(?P<how>:-|:\?)(?P<rest>[^}]*))?\})"
)


@dataclass(frozen=True)
class Variable:
    """A variable of the compose file: ``${NAME:?message}`` is needed, ``${NAME:-default}`` not."""

    name: str
    needed: bool
    default: str | None


@cache
def compose_text() -> str:
    return COMPOSE.read_text("utf-8")


def variables(text: str) -> set[Variable]:
    """Return the variables of the compose file."""
    without_comments = "\n".join(line.partition("# ")[0] for line in text.splitlines())
    return {
        Variable(each["name"], each["how"] == ":?", each["rest"] if each["how"] == ":-" else None)
        for each in _VARIABLE.finditer(without_comments)
        if each["name"]
    }


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """Return ``value`` with variables replaced as Compose does it.

    Raises:
        KeyError: a variable that is needed is not set, or is empty.
    """
    if isinstance(value, dict):
        return {key: interpolated(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, environment) for each in value]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        given = environment.get(found["name"], "")
        if given:
            return given
        if found["how"] != ":-":
            raise KeyError(found["name"])
        return found["rest"]

    return _VARIABLE.sub(replace, value)


@cache
def compose() -> dict[str, Any]:
    """Return the compose file, anchors resolved, variables as written."""
    found: dict[str, Any] = yaml.safe_load(compose_text())
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def ours() -> dict[str, dict[str, Any]]:
    """Return the services that run an image of ours."""
    return {name: each for name, each in services().items() if "build" in each}


def environment_lines(text: str) -> dict[str, str]:
    """Return what a .env file sets."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@dataclass
class Stage:
    """One stage of a Dockerfile: its base, and its instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [text for kind, text in self.instructions if kind == name]


@cache
def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if line[:1] != "#"]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base)
        else:
            assert stage is not None, f"{line} is in no stage"
            stage.instructions.append((kind, rest.strip()))
    return found


def lineage(target: str) -> Iterator[Stage]:
    """Yield a stage and those that it is based on, the nearest first."""
    name = target
    while name in stages():
        yield stages()[name]
        name = stages()[name].base


def last(target: str, kind: str) -> str | None:
    """Return the instruction of this kind that holds for an image, or None."""
    return next((each.all(kind)[-1] for each in lineage(target) if each.all(kind)), None)


def image_environment(target: str) -> dict[str, str]:
    """Return the variables that an image sets."""
    found: dict[str, str] = {}
    for stage in lineage(target):
        for text in stage.all("ENV"):
            found = dict(re.findall(r"(\w+)=(\S+)", text)) | found
    return found


def command_of(service: Mapping[str, Any]) -> list[str]:
    """Return what a service of ours runs: its own command, else the image's."""
    if "command" in service:
        return list(service["command"])
    text = last(service["build"]["target"], "CMD")
    assert text is not None, f"neither {service['build']['target']} nor its service has a command"
    command: list[str] = json.loads(text)
    return command


def health_of(service: Mapping[str, Any]) -> list[str] | None:
    """Return the words of a service's health check, None if it has none."""
    own = service.get("healthcheck")
    if own is not None:
        return None if own.get("disable") else list(own["test"])[1:]
    if "build" not in service:
        return None
    text = last(service["build"]["target"], "HEALTHCHECK")
    if text is None:
        return None
    words: list[str] = json.loads(text.partition("CMD ")[2])
    return words


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return found
