"""Workers measure their machine while they are idle, and publish it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import load_settings
from jobs.workers import CALIBRATION
from nifcore.calibration import ASSUMED, calibration_file, identity_of, save
from tests.worker.conftest import Bed, descendants, wait_for
from worker.calibrator import Calibrator, cache_folder

KNOWN = replace(ASSUMED, identity=identity_of("cpu", None, 1), seconds=1.25)


def measuring() -> list[int]:
    """Return the processes below this one that measure."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"calibrate" in words:
            found.append(pid)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Calibrator]]:
    made: list[Calibrator] = []

    def start(found: Callable[[Mapping[str, Any]], None], **more: Any) -> Calibrator:
        settings = load_settings(data_dir=tmp_path, device="cpu", child_threads=1, **more)
        made.append(Calibrator(settings, found, idle_seconds=0.05))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.close()
    assert not measuring()


def keep_known(folder: Path) -> None:
    """Have a calibration of this machine in a service's data folder, as an earlier start left."""
    cache = cache_folder(load_settings(data_dir=folder)) / "nif"
    save(calibration_file(cache, "cpu", None, 1), KNOWN)


def test_a_worker_publishes_what_is_known_of_its_machine(
    make_bed: Callable[..., Bed], tmp_path: Path
) -> None:
    keep_known(tmp_path)
    bed = make_bed(calibrate=True)
    worker = bed.start_worker()

    def published() -> Any:
        status = worker.status(bed.service)
        return None if status is None else status.info.facts.get(CALIBRATION)

    assert wait_for(published) == KNOWN.to_dict()


def test_a_job_ends_the_measurement_which_begins_anew_afterwards(
    make: Callable[..., Calibrator],
) -> None:
    found: list[Mapping[str, Any]] = []
    calibrator = make(found.append)
    (first,) = wait_for(measuring)
    calibrator.busy()
    wait_for(lambda: not Path(f"/proc/{first}").exists())
    assert not found
    calibrator.idle()
    (second,) = wait_for(measuring)
    assert second != first


def test_nothing_is_measured_beside_a_job(make: Callable[..., Calibrator], tmp_path: Path) -> None:
    keep_known(tmp_path)
    found: list[Mapping[str, Any]] = []
    calibrator = make(found.append)
    calibrator.busy()
    wait_for(lambda: not measuring())
    calibrator.idle()
    wait_for(lambda: found)
    assert found == [KNOWN.to_dict()]


def test_a_measurement_that_fails_is_given_up(
    make: Callable[..., Calibrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIF_KERNEL", "nonesuch")
    found: list[Mapping[str, Any]] = []
    calibrator = make(found.append)
    wait_for(lambda: not calibrator._thread.is_alive())
    assert found == []
