"""``docs/operations.md`` against the service: settings, metrics, commands, and the backup drill."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from jobs import COUNTERS, HISTOGRAMS, RedisServer, Settings, WorkerInfo, load_settings
from jobs.counters import observations
from nifcore.cli.app import app as program
from tests.api.asking import submit
from tests.api.running import ADMIN_KEY, GOLDEN, Running, picture, serving, settings_in
from worker.failures import CAUSES

ROOT = Path(__file__).parents[1]
PAGE = re.sub(
    # What is said of the containers is tested where they are, in tests/deploy.
    r"^## Containers\n.*?(?=^## )",
    "",
    (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"),
    flags=re.M | re.S,
)


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, f"docs/operations.md has no section {title!r}"
    return found[1]


def examples(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def blocks() -> list[str]:
    """Return everything on the page that is typed into a terminal."""
    return re.findall(r"^```(?:sh)?\n(.*?)^```", PAGE, re.M | re.S)


def test_every_setting_is_on_the_page_with_default_and_meaning() -> None:
    def shown(default: object) -> str:
        return "none" if default is None else "empty" if default == "" else f"`{default}`"

    rows = re.findall(r"^\| `(NIF_\w+)` \| (.*?) \| (.*) \|$", section("Settings"), re.M)
    assert rows == [
        (f"NIF_{name.upper()}", shown(each.default), each.description)
        for name, each in Settings.model_fields.items()
    ]


def test_every_variable_that_is_named_is_a_setting() -> None:
    known = {f"NIF_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bNIF_[A-Z0-9_]+", PAGE)) - {"NIF_"}
    assert named <= known


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = settings_in(tmp_path_factory.mktemp("service"))
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        yield found


METRICS = {
    name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning)
    for name, kind, labels, meaning in re.findall(
        r"^\| `(nif_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", section("Metrics"), re.M
    )
}


def test_every_metric_is_on_the_page(running: Running) -> None:
    with running.client(running.key("counted")) as client:
        job_id = submit(client, picture(701)).json()["id"]
        running.succeed(job_id)
        client.get(f"/v1/jobs/{job_id}/image")
        assert client.get("/v1/jobs/job_none").status_code == 404
        text = client.get("/metrics").text
    told: dict[str, tuple[str, str]] = {}
    for family in text_string_to_metric_families(text):
        # The parser takes off what the text has.
        name = family.name if f"\n# TYPE {family.name} " in text else f"{family.name}_total"
        if name.endswith("_created"):
            continue  # Prometheus' own, beside every counter and histogram of a process
        told[name] = (family.type, family.documentation)
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        for each in labels:
            assert each == set(METRICS[name][1]), name
    assert told == {name: (kind, meaning) for name, (kind, _, meaning) in METRICS.items()}


def test_the_page_has_the_labels_of_what_redis_counts() -> None:
    for each in COUNTERS:
        assert METRICS[f"nif_{each.name}"][1] == each.labels
    for histogram in HISTOGRAMS:
        assert METRICS[f"nif_{histogram.name}"] == ("histogram", (), histogram.help)


def test_everything_that_redis_counts_is_declared() -> None:
    counted: dict[str, tuple[str, ...]] = {}
    for path in (ROOT / "jobs" / "lua").glob("*.lua"):
        for call in re.findall(r"(?<!function )\bcount\((.*)", path.read_text(encoding="utf-8")):
            labels = tuple(re.findall(r"[{,](\w+)=", call))
            counted |= dict.fromkeys(re.findall(r"'([a-z_]+)", call), labels)
    for path in (ROOT / "jobs").glob("*.py"):
        for name, label in re.findall(
            r"""counters\[f?["'](\w+)\{+(\w+)=""", path.read_text(encoding="utf-8")
        ):
            counted[name] = (label,)
    assert len(counted) >= 9
    report = {"seconds": 1.0, "bpp": 1.0, "psnr_db": 30.0, "width": 2, "height": 2}
    histograms = {each.name for each in HISTOGRAMS}
    for name in (sample.partition("{")[0] for sample in observations(None, report, 1)):
        if re.sub(r"_(bucket|sum)$", "", name) not in histograms:
            counted[name] = ()
    counted.pop("none", None)  # a label's value
    declared = {each.name: each.labels for each in COUNTERS}
    assert declared == counted | {"bytes_in": ()}  # counted where the record is at hand


def test_the_examples_run(running: Running) -> None:
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not here")
    running.service.workers.beat(
        WorkerInfo(
            id="worker-1",
            host=socket.gethostname(),
            pid=1,
            device="cpu",
            queues=("encode",),
            started_at=datetime.now(UTC),
        )
    )
    found = [each for each in examples(PAGE) if "$URL" in each]
    assert len(found) == 3
    for script in found:
        run = shell(script, ROOT, URL=running.url, KEY=ADMIN_KEY)
        assert run.returncode == 0, f"{script}\n{run.stdout}\n{run.stderr}"


def shell(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_backup_of_the_storage_is_enough(tmp_path: Path) -> None:
    """The drill of the page, with its own commands: back up, lose everything, restore."""
    backup, restore = examples(section("Backup and restore"))
    if shutil.which("tar") is None:
        pytest.skip("tar is not here")
    (tmp_path / "old").mkdir()
    settings = settings_in(tmp_path / "old")
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as before:
        key = before.key("careful")
        with before.client(key) as client:
            done = submit(client, picture(711)).json()["id"]
            before.succeed(done)
            waiting = submit(client, picture(712), metadata='{"a": "b"}').json()["id"]
        run = shell(backup, tmp_path, NIF_DATA_DIR=str(tmp_path / "old"))
        assert run.returncode == 0, run.stderr
    shutil.rmtree(tmp_path / "old")

    run = shell(restore, tmp_path, NIF_DATA_DIR=str(tmp_path / "new"))
    assert run.returncode == 0, run.stderr
    assert "2 jobs in the storage: 2 brought back" in run.stdout
    assert "1 keys brought back" in run.stdout
    settings = settings_in(tmp_path / "new")
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as after:
        with after.client(key) as client:
            assert client.get(f"/v1/jobs/{done}/result").content == GOLDEN.read_bytes()
            job = client.get(f"/v1/jobs/{waiting}").json()
            assert (job["state"], job["metadata"]) == ("queued", {"a": "b"})
        # Beside the running service it uses that one's Redis.
        again = shell("nif admin reconcile --json", tmp_path, NIF_DATA_DIR=str(tmp_path / "new"))
        assert again.returncode == 0, again.stderr
        assert '"jobs": 2, "imported": 0' in again.stdout
        assert after.service.store.get(waiting).state.value == "queued"
        after.service.database.client.flushall()
        third = shell("nif admin reconcile", tmp_path, NIF_DATA_DIR=str(tmp_path / "new"))
        assert "2 brought back" in third.stdout, third.stderr
        with after.client(key) as client:
            assert len(client.get("/v1/jobs").json()["items"]) == 2


def test_reconcile_says_what_is_in_the_way(tmp_path: Path) -> None:
    run = shell(
        "nif admin reconcile", tmp_path, NIF_REDIS_URL=f"unix://{tmp_path}/none", NIF_BLOBS="s3"
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert "NIF_BLOBS=s3 needs NIF_S3_BUCKET" in run.stderr


def test_every_python_command_and_its_options_exist() -> None:
    lines = [line for block in blocks() for line in block.splitlines()]
    lines += re.findall(r"`(python -m [^`]+)`", PAGE)
    commands = [re.search(r"python -m (\S+)(.*)", line) for line in lines]
    found = {(each[1], each[2].strip()) for each in commands if each is not None}
    assert {module for module, _ in found} == {
        "api.serve",
        "uvicorn",
        "worker",
        "worker.supervisor",
    }
    helps: dict[tuple[str, ...], str] = {}
    for module, arguments in sorted(found):
        if module == "api.serve":
            assert arguments == ""
            assert (ROOT / "api" / "serve.py").exists()
            continue
        words = arguments.split()
        verb = (words[0],) if words and not words[0].startswith("-") else ()
        if (module, *verb) not in helps:
            run = subprocess.run(
                [sys.executable, "-m", module, *verb, "--help"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            helps[module, *verb] = run.stdout
        for option in re.findall(r"--[a-z-]+", arguments):
            assert re.search(rf"{option}\b", helps[module, *verb]), f"{module} {option}"
        if module == "uvicorn":
            assert "api.app:create_app" in words


def test_everything_else_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`([^`\n]+)`", PAGE)) + "\n".join(blocks())
    for target in re.findall(r"\bmake ([a-z]+)\b", code):
        assert re.search(rf"^{target}:", makefile, re.M), target

    commands = typer.main.get_command(program).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"\bnif ([a-z-]+)(?: ([a-z]+))?", code))
    assert ("admin", "reconcile") in named
    for group, command in named:
        assert group in commands
        assert not command or command in commands[group].commands

    paths = create_app(load_settings()).openapi()["paths"]
    for method, path in re.findall(r"(GET|POST|DELETE) (/[\w/{}]+)", code):
        if path not in ("/docs", "/openapi.json"):
            assert method.lower() in paths[path], f"{method} {path}"

    for link in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_what_the_table_of_troubles_names_exists() -> None:
    text = section("Trouble")
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for room in ("api", "jobs", "worker")
        for path in (ROOT / room).rglob("*.py")
    )
    for code in ("out_of_memory", "time_limit"):
        assert f"`{code}`" in text
        assert code in CAUSES
    for metric in re.findall(r"`(nif_\w+)`", text):
        assert metric in METRICS, metric
    messages = re.findall(r"`((?!nif )[a-z]+(?:,? [a-z]+)+)`", text)
    assert len(messages) >= 6
    for message in messages:
        assert f'"{message}' in sources, message
