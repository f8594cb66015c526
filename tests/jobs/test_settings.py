"""Settings come from one place, and say what is wrong with them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import SecretStr

import jobs
from jobs import Invalid, Settings, load_settings

ROOM = Path(jobs.__file__).parent


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_defaults_are_those_of_the_design() -> None:
    settings = load_settings()
    assert (settings.lease_seconds, settings.heartbeat_seconds) == (30, 5)
    assert (settings.reaper_seconds, settings.max_attempts) == (10, 3)
    assert settings.blobs == "file"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIF_LEASE_SECONDS", "60")
    monkeypatch.setenv("NIF_S3_SECRET_KEY", "")  # empty is as good as not set
    monkeypatch.setenv("NIF_KERNEL", "the codec's own")
    assert load_settings().lease_seconds == 60
    assert load_settings(lease_seconds=90).lease_seconds == 90


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().lease_seconds = 1  # type: ignore[misc]


def test_secrets_are_not_shown() -> None:
    settings = load_settings(
        s3_access_key="me", s3_secret_key="hush-hush", admin_key="nif_" + "x" * 32
    )
    assert "hush-hush" not in repr(settings)
    assert "xxxx" not in repr(settings)
    assert settings.s3_secret_key == SecretStr("hush-hush")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lease_seconds": 0}, "NIF_LEASE_SECONDS"),
        ({"lease_seconds": "soon"}, "NIF_LEASE_SECONDS"),
        ({"lease_seconds": 8}, "at least twice NIF_HEARTBEAT_SECONDS"),
        ({"blobs": "tape"}, "NIF_BLOBS"),
        ({"blobs": "s3"}, "NIF_S3_BUCKET"),
        ({"s3_access_key": "a"}, "together"),
        ({"s3_prefix": "/a"}, "NIF_S3_PREFIX"),
        ({"redis_prefix": "a:b"}, "NIF_REDIS_PREFIX"),
        ({"api_port": 70000}, "NIF_API_PORT"),
        ({"colour": "red"}, "NIF_COLOUR"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        load_settings(**values)


def test_nothing_else_reads_the_environment() -> None:
    for path in ROOM.rglob("*.py"):
        if path.name == "settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("environ", "getenv"), path
