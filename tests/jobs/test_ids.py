"""Ids sort by time, are unique, and cannot be mistaken."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from jobs.errors import Invalid
from jobs.ids import (
    check_job_id,
    check_tenant,
    new_batch_id,
    new_job_id,
    new_key_id,
    new_upload_id,
    new_worker_id,
)


def test_ids_sort_by_creation_and_never_repeat() -> None:
    ids = [new_job_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_of_many_threads_are_unique() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend([new_job_id() for _ in range(500)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 2000


def test_the_first_ten_characters_are_the_time() -> None:
    before = time.time_ns() // 1_000_000
    text = new_job_id().removeprefix("job_")[:10]
    # Crockford's alphabet, decoded here without the module's own table.
    value = 0
    for letter in text:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter)
    assert before <= value <= time.time_ns() // 1_000_000 + 1


def test_each_kind_has_its_prefix() -> None:
    makers = {"job_": new_job_id, "upl_": new_upload_id, "bat_": new_batch_id, "key_": new_key_id}
    for prefix, make in makers.items():
        assert make().startswith(prefix)
        assert len(make()) == 30


def test_own_ids_and_uuids_are_accepted() -> None:
    own = new_job_id()
    assert check_job_id(own) == own
    chosen = uuid.uuid4()
    assert check_job_id(str(chosen)) == str(chosen)
    assert check_job_id(str(chosen).upper()) == str(chosen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "job_",
        "job_01J",
        "../../etc/passwd",
        "job_" + "U" * 26,
        "JOB_01M823S3575T392NHED6FNB9C3",
        "{12345678-1234-5678-1234-567812345678}",
        "12345678123456781234567812345678",
        "urn:uuid:12345678-1234-5678-1234-567812345678",
        "12345678-1234-5678-1234-567812345678\n",
        "job_01M823S3575T392NHED6FNB9C3\n",
    ],
)
def test_other_job_ids_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        check_job_id(text)


@pytest.mark.parametrize("text", ["a", "acme", "acme-2", "0", "a" * 63])
def test_tenants(text: str) -> None:
    assert check_tenant(text) == text


@pytest.mark.parametrize("text", ["", "A", "-a", "a_b", "a/b", "_system", "a" * 64, "a\n", "é"])
def test_bad_tenants(text: str) -> None:
    with pytest.raises(Invalid):
        check_tenant(text)


def test_worker_ids_carry_the_host() -> None:
    assert new_worker_id("gpu-1.example").startswith("gpu-1.example-")
    assert new_worker_id("a b/c").startswith("a-b-c-")
    assert new_worker_id("x") != new_worker_id("x")
