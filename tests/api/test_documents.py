"""``docs/api.md``, the OpenAPI document and the service say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.app import create_app
from api.problems import CATALOGUE, MEDIA_TYPE
from jobs import load_settings
from tests.api.running import Running, picture, working
from worker import failures
from worker.failures import CAUSES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DOCUMENT: dict[str, Any] = create_app(load_settings()).openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def codes_in(operation: dict[str, Any]) -> set[str]:
    found = set()
    for answer in operation["responses"].values():
        found |= set(answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}))
    return found


def test_every_address_is_on_the_page() -> None:
    rows = re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \|", PAGE, re.M)
    assert rows == list(OPERATIONS)


def test_every_code_is_on_the_page_with_its_status_and_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (.*) \|$", PAGE, re.M)
    assert rows == [(each.code, str(each.status), each.meaning) for each in CATALOGUE.values()]


def test_every_cause_of_failure_is_on_the_page() -> None:
    text = PAGE.partition("## Why a job failed")[2].partition("\n## ")[0]
    finally_, again = text.split("| cause | meaning |")
    for part, final in ((finally_, True), (again, False)):
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", part, re.M)
        assert rows == [
            (each.code, each.meaning) for each in CAUSES.values() if each.final is final
        ]
    # The one code that is the store's, not a worker's.
    lua = (ROOT / "jobs" / "lua" / "common.lua").read_text(encoding="utf-8")
    assert re.findall(r"code = '(\w+)'", lua) == ["poisoned"]
    assert "`poisoned`" in again
    settings = load_settings()
    assert (settings.max_attempts, settings.reaper_seconds) == (3, 10.0)


def test_workers_have_no_other_codes() -> None:
    assert set(failures.CODES.values()) <= set(CAUSES)
    constants = {
        value for name, value in vars(failures).items() if name.isupper() and type(value) is str
    }
    assert len(constants) == 6
    assert constants <= set(CAUSES)
    # Whatever makes a failure names a constant, or passes on what the child said.
    for path in (ROOT / "worker").glob("*.py"):
        made = re.findall(r"\bFailure\(([^,)]+)", path.read_text(encoding="utf-8"))
        assert {each for each in made if not each.startswith("failures.")} <= {"code"}, path


def test_every_code_is_in_the_document() -> None:
    used = set().union(*(codes_in(operation) for operation in OPERATIONS.values()))
    # No operation has these: they are answers to addresses that are none.
    assert set(CATALOGUE) - used == {"method_not_allowed"}
    assert set(DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == set(
        CATALOGUE
    )


def test_every_field_of_a_job_is_on_the_page() -> None:
    schema = DOCUMENT["components"]["schemas"]["UploadedJob"]["properties"]
    text = PAGE.partition("## Submitting")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(schema) - {"upload_id"} == set(rows)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_described(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    problems = {status for status in operation["responses"] if status >= "400"}
    assert problems
    if name != "GET /readyz":
        for status in problems:
            assert set(operation["responses"][status]["content"]) == {MEDIA_TYPE}
    if "/v1/jobs" in name or "/v1/keys" in name or "/v1/webhook" in name:
        assert operation["security"] == [{"apiKey": []}]
        assert {"unauthenticated", "forbidden", "rate_limited"} <= codes_in(operation)


def test_examples_of_the_document_fit_their_schemas() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    checked = 0
    for name, schema in schemas.items():
        for example in [schema["example"]] if "example" in schema else []:
            Draft202012Validator({**schema, "components": {"schemas": schemas}}).validate(example)
            checked += 1
        assert name in str(DOCUMENT["paths"]) + str(schemas), f"{name} is used nowhere"
    assert checked >= 3
    validator = Draft202012Validator(schemas["Problem"])
    for operation in OPERATIONS.values():
        for answer in operation["responses"].values():
            for each in answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).values():
                validator.validate(each["value"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(picture(501))
    (tmp_path / "other.jpg").write_bytes(picture(502, kind="JPEG"))
    return tmp_path


def test_the_shell_examples_run(running: Running, tenant: str, folder: Path) -> None:
    for program in ("bash", "curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    environment = dict(os.environ) | {"URL": running.url, "KEY": running.key(tenant)}
    found = examples("sh")
    assert len(found) >= 8
    with working(running):
        for script in found:
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert run.returncode == 0, f"{script}\n{run.stdout}\n{run.stderr}"
    assert (folder / "photo.nif").read_bytes()[:4] == b"\x8eNIF"
    assert (folder / "small.webp").read_bytes()[8:12] == b"WEBP"
    assert (folder / "part.png").read_bytes()[:4] == b"\x89PNG"


def test_the_python_examples_run(running: Running, tenant: str, folder: Path) -> None:
    found = examples("python")
    assert len(found) == 2
    said = ""
    with working(running):
        for script in found:
            assert '"http://127.0.0.1:8000", "nif_..."' in script
            script = script.replace(
                '"http://127.0.0.1:8000", "nif_..."', f'"{running.url}", "{running.key(tenant)}"'
            )
            run = subprocess.run(
                [sys.executable, "-W", "error", "-c", script],
                cwd=folder,
                env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            said += run.stdout
    assert "bytes of WebP" in said
    assert said.count("succeeded") >= 3
    assert "404 job_not_found" in said
    assert (folder / "from-python.nif").read_bytes()[:4] == b"\x8eNIF"
