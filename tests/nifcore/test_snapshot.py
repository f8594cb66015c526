"""Snapshots of an encode: read again as written, refused where they are of no use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nifcore.snapshot import Snapshot, SnapshotUnreadable
from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep

_TILE = [
    QuantisedTensor(np.array([[3, -1], [0, 2]], np.int32), UniformStep(17)),
    QuantisedTensor(np.array([5, 0], np.int32), PublishedStep(8, 0x3F80)),
]
_SNAPSHOT = Snapshot(
    fingerprint="abc",
    seconds=12.5,
    passes=3.25,
    tried=[(100.0, 31.5, b"file\x00")],
    asked_bytes=90.0,
    header=b"\x01\x02",
    tiles={1: _TILE},
    fits={0: {"params": [torch.arange(3.0)], "cursor": {"done": 7, "loss": None}}},
)


def test_a_snapshot_is_read_as_it_was_written() -> None:
    found = Snapshot.read(_SNAPSHOT.to_bytes(), "abc")

    assert found is not None
    assert (found.seconds, found.passes, found.asked_bytes) == (12.5, 3.25, 90.0)
    assert found.tried == [(100.0, 31.5, b"file\x00")]
    assert found.header == b"\x01\x02"
    for tensor, written in zip(found.tiles[1], _TILE, strict=True):
        assert tensor.step == written.step
        np.testing.assert_array_equal(tensor.symbols, written.symbols)
    assert found.fits[0]["cursor"] == {"done": 7, "loss": None}
    assert torch.equal(found.fits[0]["params"][0], torch.arange(3.0))


def test_a_snapshot_of_another_encode_is_none() -> None:
    assert Snapshot.read(_SNAPSHOT.to_bytes(), "abd") is None


@pytest.mark.parametrize("keep", [0, 1, 100, -20])
def test_what_is_cut_off_cannot_be_read(keep: int) -> None:
    with pytest.raises(SnapshotUnreadable):
        Snapshot.read(_SNAPSHOT.to_bytes()[:keep], "abc")


def test_what_is_no_snapshot_cannot_be_read() -> None:
    with pytest.raises(SnapshotUnreadable):
        Snapshot.read(b"P6 1 1 255 abc", "abc")
