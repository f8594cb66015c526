"""Pictures of running encodes: made by the real worker, and true to what it learns."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.worker.conftest import Bed
from worker.encode_child import preview_shares, webp


def photo(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return soft colours with a sharp edge, which a network learns quickly."""
    y, x = np.mgrid[0:height, 0:width]
    parts = [x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 9), 255 * (x > y)]
    return np.stack(parts[:channels], axis=-1).astype(np.uint8)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_a_worker_shows_how_the_picture_comes_into_focus(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(previews_per_job=5)
    bed.start_worker()
    source = photo(400, 300)
    buffer = io.BytesIO()
    Image.fromarray(source).save(buffer, "PNG")
    job_id = bed.submit(buffer.getvalue(), effort=1, bpp=0.5)
    record = bed.wait(job_id)
    assert record.state == "succeeded"
    told = [e for e in bed.service.events.read_job(job_id, limit=500) if e.type == "job.preview"]
    assert 2 <= len(told) <= 5
    assert [event.data["number"] for event in told] == list(range(1, len(told) + 1))
    assert record.previews == len(told)
    iterations = [event.data["iteration"] for event in told]
    assert iterations == sorted(iterations)
    # Every second pixel, so that the longer side has at most 256.
    sampled = source[1::2, 1::2]
    found = []
    for event in told:
        data = bed.service.previews.get(job_id, event.data["number"])
        assert data is not None
        assert len(data) == event.data["size"]
        with Image.open(io.BytesIO(data)) as shown:
            assert (shown.format, shown.size) == ("WEBP", (200, 150))
            assert shown.size == (event.data["width"], event.data["height"])
            found.append(psnr(np.asarray(shown.convert("RGB")), sampled))
    assert found[-1] > 20.0
    assert found[-1] > found[0]
    # Nothing of a picture is in the stream itself.
    assert max(len(str(event.data)) for event in told) < 400


def test_none_are_made_where_none_are_wanted(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(previews_per_job=0)
    bed.start_worker()
    job_id = bed.submit(effort=1)
    assert bed.wait(job_id).previews == 0


def test_they_are_close_together_at_first() -> None:
    shares = list(preview_shares(12))
    steps = np.diff(shares)
    assert len(shares) == 12
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert (np.diff(steps) > 0).all()
    assert list(preview_shares(0)) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_picture_becomes_webp_of_bounded_size(channels: int) -> None:
    pixels = photo(120, 80, 4)[:, :, -channels:].copy()
    data = webp(pixels, 10_000)
    assert data is not None
    assert len(data) <= 10_000
    with Image.open(io.BytesIO(data)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (120, 80))
        assert ("A" in shown.mode) == (channels == 4)
    assert webp(pixels, 10) is None
