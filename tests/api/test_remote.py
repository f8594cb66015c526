"""``nif remote`` against the running service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.running import GOLDEN, Running, picture, working


class Program:
    """Runs ``nif remote`` in a folder, as one tenant."""

    def __init__(self, running: Running, tenant: str, folder: Path) -> None:
        self._environment = dict(os.environ) | {
            "NIF_REMOTE_URL": running.url,
            "NIF_API_KEY": running.key(tenant),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.folder = folder

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script that calls ``nif``."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nifcore", "remote", *arguments],
            cwd=self.folder,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def nif(running: Running, tenant: str, tmp_path: Path) -> Program:
    (tmp_path / "photo.png").write_bytes(picture(sum(tenant.encode())))
    return Program(running, tenant, tmp_path)


def test_submit_waits_and_downloads(running: Running, nif: Program) -> None:
    with working(running):
        run = nif("submit", "photo.png", "--wait", "--effort", "2", "--bpp", "0.5")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("photo.nif: ")
    assert "0.500 bpp, 30.00 dB" in run.stdout
    assert (nif.folder / "photo.nif").read_bytes() == GOLDEN.read_bytes()
    again = nif("submit", "photo.png", "--wait", "-n")
    assert again.returncode == 2


def test_a_job_is_followed_step_by_step(running: Running, nif: Program) -> None:
    run = nif("submit", "photo.png", "--priority", "9")
    assert run.returncode == 0, run.stderr
    job_id = run.stdout.strip()
    assert nif("status", job_id).stdout.startswith(f"{job_id}: queued, place ")
    early = nif("download", job_id)
    assert (early.returncode, "no_result" in early.stderr) == (7, True)
    late = nif("wait", job_id, "--timeout", "0.2")
    assert (late.returncode, "did not end" in late.stderr) == (7, True)
    running.succeed(job_id)
    waited = nif("wait", job_id, "--json")
    assert json.loads(waited.stdout)["job"]["state"] == "succeeded"
    assert nif("download", job_id, "out.nif").returncode == 0
    assert (nif.folder / "out.nif").read_bytes() == GOLDEN.read_bytes()
    listed = nif("list", "--state", "succeeded", "--most", "5")
    assert job_id in listed.stdout
    assert "photo.png" in listed.stdout
    refused = nif("cancel", job_id)
    assert (refused.returncode, "wrong_state" in refused.stderr) == (7, True)


def test_cancelled_jobs_have_no_result(nif: Program) -> None:
    job_id = nif("submit", "photo.png").stdout.strip()
    assert nif("cancel", job_id).stdout == f"{job_id}: cancelled\n"
    assert nif("wait", job_id).returncode == 7


def test_each_of_several_is_tried(running: Running, nif: Program) -> None:
    (nif.folder / "text.png").write_text("no picture")
    run = nif("submit", "text.png", "missing.png", "photo.png", "--json")
    first, second, third = (json.loads(line) for line in run.stdout.splitlines())
    assert run.returncode == 7
    assert first["error"]["type"] == "Refused"
    assert second["error"]["exit_code"] == 3
    assert third["input"] == "photo.png"
    assert running.service.store.exists(third["job"]["id"])


def test_what_cannot_be_reached_is_said(nif: Program) -> None:
    run = nif("list", "--url", "ftp://example.org")
    assert (run.returncode, run.stdout) == (7, "")
    wrong = nif("list", NIF_API_KEY="nif_" + "x" * 43)
    assert (wrong.returncode, "unauthenticated" in wrong.stderr) == (7, True)


def test_the_examples_of_the_page_run(running: Running, nif: Program) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not here")
    (nif.folder / "other.jpg").write_bytes(picture(771, kind="JPEG"))
    (nif.folder / "results").mkdir()
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```sh\n(.*?)^```", page.partition("## nif remote")[2], re.M | re.S)
    with working(running):
        run = nif.shell(script)
    assert run.returncode == 0, run.stderr
    assert "succeeded" in run.stdout
    for name in ("photo.nif", "results/photo.nif", "results/other.nif"):
        assert (nif.folder / name).read_bytes() == GOLDEN.read_bytes()
