"""The compose file: all that it says exists in the code, and no service may do more than it needs.

There is no Docker engine where the tests run: what Compose would do with the file is checked by the
schema of the Compose specification and, where its client is at hand, by ``config``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api.app import create_app
from jobs import redis_server
from jobs.settings import Settings, load_settings
from tests.deploy.files import (
    COMPOSE,
    ENV_EXAMPLE,
    ROOT,
    command_of,
    compose,
    compose_text,
    environment_lines,
    health_of,
    image_environment,
    interpolated,
    last,
    lineage,
    ours,
    project,
    services,
    variables,
)
from tests.deploy.test_dockerfile import PINNED

ALL, OURS = sorted(services()), sorted(ours())
ENV = environment_lines(ENV_EXAMPLE.read_text("utf-8"))
DOCUMENT = (ROOT / "docs" / "operations.md").read_text("utf-8")
SECTION = re.search(r"^## Containers\n(.*?)(?=^## )", DOCUMENT, re.M | re.S)
ONE_SHOT = "bucket"


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables that `docker/make-env.sh` prints."""
    done = subprocess.run(
        ["sh", ROOT / "docker" / "make-env.sh"], check=True, capture_output=True, text=True
    )
    return environment_lines(done.stdout)


@pytest.fixture(scope="session")
def running(filled: dict[str, str]) -> dict[str, Any]:
    """Return the compose file with the variables of a filled .env in it."""
    found: dict[str, Any] = interpolated(compose(), filled)
    return found


def modules(command: list[str]) -> list[str]:
    """Return the modules that a command of Python runs or imports."""
    found = [command[at + 1] for at, word in enumerate(command) if word == "-m"]
    return found + [word.partition(":")[0] for word in command if re.fullmatch(r"[\w.]+:\w+", word)]


# The file as Compose reads it


def test_it_is_what_the_compose_specification_allows(running: dict[str, Any]) -> None:
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    schema = schemas.get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(running, schema)
    broken = {**running, "services": {"api": {"imagee": "x"}}}
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(broken, schema)


def test_the_compose_client_accepts_it(filled: dict[str, str]) -> None:
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]) is None:
            continue
        told = subprocess.run([*client, "version", "--short"], capture_output=True, text=True)
        if told.returncode == 0 and told.stdout.strip().lstrip("v") >= "2.24":
            break
    else:
        pytest.skip("no Compose client of version 2.24 or newer is here")
    done = subprocess.run(
        [*client, "--file", COMPOSE, "--profile", "cpu", "--profile", "gpu", "config", "--quiet"],
        env={"PATH": os.environ["PATH"], **filled},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_variables_are_those_of_the_example() -> None:
    found = variables(compose_text())
    assert {each.name for each in found} == set(ENV)
    assert {each.name for each in found if each.needed} == {
        name for name, value in ENV.items() if not value and not name.startswith("TORCH_INDEX")
    }
    assert all(each.needed or each.default is not None for each in found)


def test_defaults_are_those_of_the_example() -> None:
    for each in variables(compose_text()):
        assert each.needed or each.default == ENV[each.name], each.name


def test_an_empty_secret_stops_compose() -> None:
    with pytest.raises(KeyError):
        interpolated(compose(), ENV)


def test_the_filled_secrets_are_secret(filled: dict[str, str]) -> None:
    secrets = {name: filled[name] for name, value in ENV.items() if filled[name] != value}
    assert set(secrets) == {each.name for each in variables(compose_text()) if each.needed}
    assert len(set(secrets.values())) == len(secrets)
    for name, value in secrets.items():
        start = "nif_" if name == "NIF_ADMIN_KEY" else ""
        assert re.fullmatch(start + "[0-9a-f]{64}", value)


# The settings


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_settings_that_are_accepted(
    name: str, running: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = running["services"][name]
    given = image_environment(service["build"]["target"]) | service["environment"]
    ours = {key: value for key, value in given.items() if key.startswith("NIF_")}
    known = {f"NIF_{field.upper()}" for field in Settings.model_fields}
    assert set(ours) <= known
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert settings.blobs == "s3"
    assert settings.redis_url == (
        f"redis://:{running['services']['redis']['environment']['REDIS_PASSWORD']}@redis:6379/0"
    )
    wait = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert wait is not None
    assert int(wait[1]) > settings.stop_seconds + 5, "killed before it kept its state"


def test_the_processes_share_what_they_must(running: dict[str, Any]) -> None:
    seen = [running["services"][name]["environment"] for name in OURS]
    for setting in compose()["x-settings"]:
        assert len({each[setting] for each in seen}) == 1
    only = {name for name in OURS if "NIF_ADMIN_KEY" in services()[name]["environment"]}
    assert only == {"api"}


@pytest.mark.parametrize("name", OURS)
def test_threads_do_not_outnumber_processors(name: str, running: dict[str, Any]) -> None:
    service = running["services"][name]
    if "cpus" not in service:
        assert "NIF_CHILD_THREADS" not in service["environment"]
        return
    assert service["cpus"] == service["environment"]["NIF_CHILD_THREADS"]


def test_the_key_of_the_storage_is_the_one_it_knows(running: dict[str, Any]) -> None:
    server = running["services"]["s3"]["environment"]
    client = running["services"]["api"]["environment"]
    assert server["AWS_ACCESS_KEY_ID"] == client["NIF_S3_ACCESS_KEY"]
    assert server["AWS_SECRET_ACCESS_KEY"] == client["NIF_S3_SECRET_KEY"]


# What runs


@pytest.mark.parametrize("name", OURS)
def test_commands_name_what_exists(name: str) -> None:
    service = services()[name]
    command = command_of(service)
    assert command[0] == "python"
    for module in modules(command):
        assert importlib.util.find_spec(module) is not None, module
    for word in [*command, *(health_of(service) or ())]:
        if word.startswith("/opt/nif/"):
            copies = " ".join(
                text for each in lineage(service["build"]["target"]) for text in each.all("COPY")
            )
            assert f"docker/{Path(word).name}" in copies.split()
            assert (ROOT / "docker" / Path(word).name).is_file()


def test_there_is_a_worker_of_every_kind() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "worker", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    kinds = re.search(r"\{([\w,]+)\}", told)
    assert kinds is not None
    commands = [command_of(services()[name]) for name in OURS if name.startswith("worker")]
    assert all(each[:3] == ["python", "-m", "worker"] for each in commands)
    assert {each[3] for each in commands} == set(kinds[1].split(","))


def test_the_gpu_worker_asks_for_its_gpu(running: dict[str, Any]) -> None:
    service = running["services"]["worker-gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert image_environment("worker-gpu")["NIF_DEVICE"] == "cuda"
    assert (service["profiles"], services()["worker-cpu"]["profiles"]) == (["gpu"], ["cpu"])


@pytest.mark.parametrize("name", ALL)
def test_files_that_are_mounted_exist(name: str) -> None:
    for volume in services()[name].get("volumes", ()):
        source = volume.partition(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert volume.endswith(":ro")
        else:
            assert source in compose()["volumes"]


@pytest.mark.parametrize("name", ALL)
def test_it_waits_only_for_what_says_when_it_is_ready(name: str) -> None:
    for other, how in services()[name].get("depends_on", {}).items():
        if how["condition"] == "service_completed_successfully":
            assert other == ONE_SHOT
        else:
            assert how["condition"] == "service_healthy"
            assert health_of(services()[other]) is not None


# Addresses


def hosts(text: str) -> set[tuple[str, int]]:
    return {(host, int(port)) for host, port in re.findall(r"(?:https?://|@)([\w.-]+):(\d+)", text)}


LISTENS = {"api": 8000, "redis": 6379, "s3": 8333, "prometheus": 9090, "grafana": 3000}


def test_ports_are_those_that_the_programs_listen_on() -> None:
    api = command_of(services()["api"])
    assert api[api.index("--port") + 1] == str(LISTENS["api"])
    assert api[api.index("--host") + 1] == "0.0.0.0"
    assert last("api", "EXPOSE") == str(LISTENS["api"])
    assert f"-s3.port={LISTENS['s3']}" in services()["s3"]["command"]
    redis = (ROOT / "docker" / "redis" / "redis.conf").read_text("utf-8")
    assert f"\nport {LISTENS['redis']}\n" in redis


@pytest.mark.parametrize("name", ALL)
def test_addresses_of_other_services_are_theirs(name: str, running: dict[str, Any]) -> None:
    service = running["services"][name]
    public = ("NIF_PUBLIC_URL", "NIF_S3_PUBLIC_ENDPOINT")
    texts = [str(each) for key, each in service.get("environment", {}).items() if key not in public]
    for host, port in hosts(" ".join(texts)):
        assert LISTENS[host] == port
        assert set(service["networks"]) & set(running["services"][host]["networks"])
    for host, port in hosts(" ".join(health_of(service) or ())):
        assert (host, port) == ("127.0.0.1", LISTENS[name])


def test_the_health_check_of_the_api_is_one_of_its_routes() -> None:
    (path,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", " ".join(health_of(services()["api"]) or ()))
    assert path in create_app(load_settings()).openapi()["paths"]


def test_only_doors_for_people_and_links_are_published(running: dict[str, Any]) -> None:
    published = {
        name: each["ports"] for name, each in running["services"].items() if "ports" in each
    }
    assert set(published) == {"api", "grafana", "s3"}
    for name, ports in published.items():
        (port,) = ports
        assert re.fullmatch(rf"127\.0\.0\.1:\d+:{LISTENS[name]}", port)
        assert "front" in running["services"][name]["networks"]
    own = running["services"]["api"]["environment"]
    assert own["NIF_PUBLIC_URL"].endswith(published["api"][0].rpartition(":")[0])
    assert own["NIF_S3_PUBLIC_ENDPOINT"].endswith(published["s3"][0].rpartition(":")[0])


def test_encode_workers_and_redis_reach_nothing_outside() -> None:
    internal = {name for name, each in compose()["networks"].items() if each.get("internal")}
    for name in ("redis", "prometheus", ONE_SHOT, "worker-cpu", "worker-gpu"):
        assert set(services()[name]["networks"]) <= internal


def test_of_the_storage_only_the_door_with_keys_is_open() -> None:
    command = services()["s3"]["command"]
    assert "-ip.bind=127.0.0.1" in command
    assert "-s3.ip.bind=0.0.0.0" in command


# What a container may do


@pytest.mark.parametrize("name", ALL)
def test_containers_may_do_little(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    # An init that stays root, without capabilities, can send no signal to another user's process.
    assert service["init"] is ("x-root-because" not in service)
    assert "/tmp" in service["tmpfs"]
    assert service["mem_limit"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)


@pytest.mark.parametrize("name", ALL)
def test_containers_are_not_root_without_a_reason(name: str) -> None:
    service = services()[name]
    user = service.get("user") or (
        last(service["build"]["target"], "USER") if "build" in service else None
    )
    if user is None:
        assert len(service["x-root-because"]) > 20
        return
    assert int(user.partition(":")[0]) > 0
    assert "cap_add" not in service


@pytest.mark.parametrize("name", ALL)
def test_containers_tell_whether_they_are_well(name: str) -> None:
    assert (health_of(services()[name]) is None) == (name == ONE_SHOT)


@pytest.mark.parametrize("name", ALL)
def test_images_are_pinned(name: str) -> None:
    service = services()[name]
    assert PINNED.match(service["image"])
    if "build" in service:
        assert service["image"].rpartition(":")[2] == project()["project"]["version"]
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_one_image_is_built_in_one_way() -> None:
    made: dict[str, Any] = {}
    for service in ours().values():
        assert made.setdefault(service["image"], service["build"]) == service["build"]


def test_no_secret_is_written_down() -> None:
    secret = re.compile(r"PASSWORD|SECRET|_KEY\b|ACCESS_KEY")
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if secret.search(key):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), f"{name}: {key}"
    assert re.findall(r"redis://:([^@]*)@", compose_text()) == [
        "${REDIS_PASSWORD:?see .env.example}"
    ]


# Redis


def test_redis_keeps_as_much_as_the_one_that_the_service_starts() -> None:
    def directives(text: str) -> dict[str, str]:
        lines = (line for line in text.splitlines() if line and line[0] != "#")
        return {name: value for name, _, value in (line.partition(" ") for line in lines)}

    own = directives(redis_server._CONFIGURATION)
    given = directives((ROOT / "docker" / "redis" / "redis.conf").read_text("utf-8"))
    place = {"port", "dir", "unixsocket", "unixsocketperm", "maxmemory"}
    assert {name: value for name, value in given.items() if name not in place} == {
        name: value for name, value in own.items() if name not in place
    }
    assert (given["appendfsync"], given["maxmemory-policy"]) == ("always", "noeviction")


# The document


def test_the_document_explains_every_variable() -> None:
    assert SECTION is not None
    missing = {name for name in ENV if f"`{name}`" not in SECTION[1]}
    assert not missing


def test_the_document_shows_commands_that_exist() -> None:
    assert SECTION is not None
    text = SECTION[1]
    for path in re.findall(r"\bsh (\S+\.sh)", text):
        assert (ROOT / path).is_file()
    profiles = {each for service in services().values() for each in service.get("profiles", ())}
    assert set(re.findall(r"--profile (\w+)", text)) == profiles
    for name in re.findall(r"--scale ([\w-]+)=", text):
        assert name in services()
        assert "ports" not in services()[name], "two containers cannot have one port"


def test_the_file_for_more_gpus_is_what_the_specification_allows(running: dict[str, Any]) -> None:
    assert SECTION is not None
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", SECTION[1], re.M | re.S)
    assert "!override" in block, "Compose would add the GPU to the one that is there"
    added = yaml.safe_load(block.replace("!override", ""))
    jsonschema.validate(added, schemas.get_builtin_schema("vendor.compose-spec"))
    for service in added["services"].values():
        assert service["extends"]["service"] in running["services"]
        assert service["extends"]["file"] == COMPOSE.name
