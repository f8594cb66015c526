"""Data keeps its meaning through JSON, and refuses what it cannot mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import BlobRef, IdempotencyClaim, Invalid, JobDraft, JobSpec, Parameters, Progress
from jobs.record import from_milliseconds, to_milliseconds

REF = BlobRef("acme/jobs/x/input-0", 3, "0" * 64, "image/png")
ID = "12345678-1234-5678-1234-567812345678"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)

parameters = st.builds(
    Parameters,
    preset=st.none() | st.just("paper-120"),
    effort=st.none() | st.integers(1, 9),
    quality=st.none() | st.floats(1, 100),
    psnr=st.none() | st.floats(10, 60),
    bpp=st.none() | st.floats(0.01, 8),
    max_bytes=st.none() | st.integers(1, 10**9),
    seed=st.integers(0, 2**31),
    keep_icc=st.booleans(),
)
drafts = st.builds(
    JobDraft,
    id=st.just(ID),
    tenant=st.just("acme"),
    spec=st.builds(
        JobSpec,
        input=st.just(REF),
        parameters=parameters,
        codec=st.just("1.0"),
        width=st.none() | st.integers(1, 9999),
        height=st.none() | st.integers(1, 9999),
        filename=st.none() | st.text(max_size=40),
    ),
    submitted_at=st.just(WHEN),
    priority=st.integers(0, 9),
    metadata=st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=5),
    webhook=st.none() | st.just("https://example.org/hook"),
    batch=st.none() | st.just("bat_1"),
    deduplicate=st.booleans(),
    idempotency=st.none() | st.just(IdempotencyClaim("acme", "d", "n", "f")),
)


@given(drafts)
def test_a_draft_survives_json(draft: JobDraft) -> None:
    assert JobDraft.from_dict(json.loads(json.dumps(draft.to_dict()))) == draft


@given(drafts)
def test_the_body_is_what_the_client_chose(draft: JobDraft) -> None:
    later = replace(
        draft,
        submitted_at=datetime.now(UTC),
        idempotency=None,
        spec=replace(draft.spec, input=replace(REF, key="acme/jobs/x/input-1")),
    )
    assert later.body_digest() == draft.body_digest()
    other = replace(draft, priority=(draft.priority + 1) % 10)
    assert other.body_digest() != draft.body_digest()


def test_equal_work_has_equal_fingerprints() -> None:
    spec = JobSpec(REF, Parameters(effort=3), "1.0", 8, 8, "a.png")
    same = JobSpec(replace(REF, key="elsewhere"), Parameters(effort=3), "1.0", filename="b.png")
    assert spec.fingerprint() == same.fingerprint()
    for other in (
        replace(spec, codec="1.1"),
        replace(spec, parameters=Parameters(effort=4)),
        replace(spec, parameters=Parameters(effort=3, seed=1)),
        replace(spec, input=replace(REF, sha256="1" * 64)),
    ):
        assert other.fingerprint() != spec.fingerprint()


def test_who_asked_to_be_told_is_not_answered_by_a_silent_job() -> None:
    silent = JobDraft(ID, "acme", JobSpec(REF, Parameters(), "1"), WHEN)
    told = replace(silent, webhook="https://example.org")
    assert silent.dedup_digest() != told.dedup_digest()


@pytest.mark.parametrize(
    "values",
    [
        {"effort": "5"},
        {"effort": 5.5},
        {"effort": True},
        {"quality": "high"},
        {"quality": True},
        {"seed": None},
        {"keep_icc": 1},
        {"preset": 120},
        {"max_bytes": 1.5},
    ],
)
def test_parameters_of_the_wrong_type_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=f"Parameters.{next(iter(values))} must be"):
        Parameters(**values)


def test_a_whole_number_is_a_quality_too() -> None:
    assert Parameters(quality=75).quality == 75


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": 10},
        {"priority": -1},
        {"priority": True},
        {"tenant": "Acme"},
        {"id": "1"},
        {"queue": "a b"},
        {"metadata": {"": "x"}},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "x" * 513}},
        {"metadata": {str(i): "" for i in range(33)}},
        {"submitted_at": datetime(2026, 1, 1)},
    ],
)
def test_bad_drafts_are_refused(draft: Callable[..., JobDraft], changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        replace(draft(), **changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("spec"),
        lambda v: v.update(schema=2),
        lambda v: v.update(surprise=1),
        lambda v: v["spec"]["input"].update(size="3"),
        lambda v: v["spec"]["parameters"].update(speed=3),
        lambda v: v.update(submitted_at="yesterday"),
    ],
)
def test_a_damaged_writing_is_refused(
    draft: Callable[..., JobDraft], damage: Callable[[dict[str, Any]], None]
) -> None:
    values = json.loads(json.dumps(draft().to_dict()))
    damage(values)
    with pytest.raises((Invalid, ValueError), match=r".+"):
        JobDraft.from_dict(values)


def test_progress_from_a_newer_worker_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match="Progress has no colour"):
        Progress.from_dict({"phase": "fit", "colour": "red"})


@given(st.integers(0, 4_000_000_000_000))
def test_milliseconds_survive(value: int) -> None:
    assert to_milliseconds(from_milliseconds(value)) == value
