"""Small pictures of running encodes: in Redis for a while, for whoever watches."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from redis.client import NEVER_DECODE

from jobs.database import Database, translated
from jobs.errors import Invalid, StaleLease, StoreUnavailable
from jobs.record import Lease

log = logging.getLogger(__name__)

MEDIA_TYPE = "image/webp"
MAX_PREVIEW_BYTES = 32 * 1024
MAX_PREVIEW_SIDE = 256


@dataclass(frozen=True)
class Preview:
    """How a picture looks so far.

    Attributes:
        data: WebP, at most 32 KiB.
        width, height: in pixels, 1 to 256.
        iteration, iterations: optimiser iterations done and planned.
        psnr_db: the estimate of that moment, or None.

    Raises:
        Invalid: the data is no WebP or too large, or a side is.
    """

    data: bytes
    width: int
    height: int
    iteration: int
    iterations: int
    psnr_db: float | None

    def __post_init__(self) -> None:
        if self.data[:4] != b"RIFF" or self.data[8:12] != b"WEBP":
            raise Invalid(f"a preview must be WebP; it begins with {self.data[:12]!r}")
        if len(self.data) > MAX_PREVIEW_BYTES:
            raise Invalid(f"a preview may have {MAX_PREVIEW_BYTES} bytes; got {len(self.data)}")
        if not (1 <= self.width <= MAX_PREVIEW_SIDE and 1 <= self.height <= MAX_PREVIEW_SIDE):
            size = f"{self.width} x {self.height}"
            raise Invalid(f"a preview's sides may be 1 to {MAX_PREVIEW_SIDE}; got {size}")


class Previews:
    """The previews of all jobs. Each is announced by a ``job.preview`` event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, lease: Lease, preview: Preview) -> int | None:
        """Keep a preview of a running job and return its number, 1 for the job's first.

        None means that Redis did not answer: nothing is lost but this picture, go on.

        Raises:
            StaleLease: the job is no longer the caller's.
        """
        data = {
            "width": preview.width,
            "height": preview.height,
            "size": len(preview.data),
            "iteration": preview.iteration,
            "iterations": preview.iterations,
            "psnr_db": preview.psnr_db,
        }
        arguments = (lease.attempt, lease.nonce, preview.data, json.dumps(data))
        try:
            status, value = self._database.run("preview", lease.job_id, *arguments)
        except StoreUnavailable as error:
            log.warning("preview of %s not kept: %s", lease.job_id, error)
            return None
        if status != "ok":
            raise StaleLease(lease.job_id, value)
        return int(value)

    def get(self, job_id: str, number: int) -> bytes | None:
        """Return a preview's data, or None if there was none or it is no longer kept.

        Raises:
            StoreUnavailable.
        """
        key = self._database.key("job", job_id, "previews")
        options: dict[str, Any] = {NEVER_DECODE: True}
        command: Any = self._database.client.execute_command
        with translated():
            found = command("HGET", key, str(number), **options)
        return None if found is None else bytes(found)
