"""Looking at what clients sent: the original as a browser can show it, and its rivals.

Both read a stranger's file, so both happen in a child under limits, and what comes out is kept
beside the job's other files; from there it is sent. No picture is ever held in memory here.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from anyio.to_thread import run_sync

import jobs
from api import settings as fixed
from api.children import ROOT, child_environment, finished
from api.problems import Problem, retry_after
from jobs import BlobInfo, JobRecord, JobService, Settings

_RIVAL_FACTORS = ((1_000_000, (0.5, 1.0, 2.0, 4.0)), (4_000_000, (0.5, 1.0, 2.0)))
"""Sizes at which rivals are tried, in sizes of the result, by pixels; larger pictures: at its own.
"""
RIVAL_SECONDS = 180.0
"""Processor seconds for the classic codecs; AVIF takes nearly all of them."""


MOST_WAITING = 4
"""Requests that may wait for their turn, of each kind; those beyond are asked to come back."""
_BACK_AFTER_ORIGINAL, _BACK_AFTER_RIVALS = 5, 30


class Turns:
    """One at a time, and few who wait for it.

    Args:
        back_after: seconds after which who found no place may ask again.
    """

    def __init__(self, back_after: int) -> None:
        self._back_after = back_after
        self._free = asyncio.Lock()
        self._inside = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for one's turn.

        Raises:
            Problem: ``decoder_busy``: as many as may wait do so already.
        """
        if self._inside > MOST_WAITING:  # one of them does not wait, but works
            said = f"{MOST_WAITING} requests wait already for pictures to be looked at"
            raise Problem("decoder_busy", said, headers=retry_after(self._back_after))
        self._inside += 1
        try:
            async with self._free:
                yield
        finally:
            self._inside -= 1


class Pictures:
    """Shows originals and measures rivals, one at a time.

    Args:
        settings: limits on pictures.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = Turns(_BACK_AFTER_ORIGINAL)
        self._rival_turns = Turns(_BACK_AFTER_RIVALS)

    async def original(self, service: JobService, record: JobRecord) -> BlobInfo:
        """Return where the picture is kept as the codec saw it: upright, 8 bits, sRGB; a PNG.

        Raises:
            Problem: ``damaged_image``, ``too_many_pixels`` or ``decoder_busy``.
            NotFound: the job was deleted meanwhile.
            BlobsUnavailable: it cannot be kept, and so not be sent.
        """
        key = _key(record, "original.png")
        found = await run_sync(_known, service, key)
        if found is None:
            async with self._turns.take():
                found = await run_sync(_known, service, key)
                if found is None:
                    await self._make(
                        service, record, key, "image/png", "original", fixed.DECODE_SECONDS
                    )
                    found = await run_sync(service.blobs.head, key)
        return found

    async def rivals(self, service: JobService, record: JobRecord) -> list[dict[str, Any]]:
        """Return what JPEG, WebP and AVIF make of the picture around the size of the result.

        Args:
            service: of the job.
            record: a job that succeeded.

        Returns:
            Fields of `nifcore.compare.Comparison`, by codec and size.

        Raises:
            Problem: as :meth:`original`.
        """
        assert record.result is not None
        key = _key(record, f"rivals-{record.result.sha256[:16]}.json")
        if await run_sync(_known, service, key) is None:
            async with self._rival_turns.take():
                if await run_sync(_known, service, key) is None:
                    sizes = rival_sizes(record)
                    await self._make(
                        service, record, key, "application/json", "rivals", RIVAL_SECONDS, *sizes
                    )
        found: list[dict[str, Any]] = json.loads(await run_sync(service.blobs.get, key))
        return sorted(found, key=lambda each: (each["codec"], each["bytes"]))

    async def _make(
        self,
        service: JobService,
        record: JobRecord,
        key: str,
        media_type: str,
        work: str,
        seconds: float,
        *more: int,
    ) -> None:
        """Have the child do ``work`` and keep what it wrote, from its file to the store."""
        with tempfile.TemporaryDirectory(prefix="nif-picture-") as folder:
            source, target = Path(folder, "in"), Path(folder, "out")
            await run_sync(_fetch, service, record, source)
            limits = (seconds, fixed.DECODE_MEMORY_BYTES, fixed.MAX_IMAGE_BYTES)
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "api.picture_child",
                *(str(math.ceil(each)) for each in limits),
                work,
                str(source),
                str(target),
                str(self._settings.max_pixels),
                *(str(each) for each in more),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                cwd=ROOT,
                env=child_environment(),
                start_new_session=True,
            )
            try:
                _, said = await finished(child, seconds * 1.5)
            except TimeoutError:
                raise _too_long() from None
            if child.returncode == 0:
                await run_sync(_keep, service, record, key, target, media_type)
                return
        if child.returncode == 5:
            raise Problem("too_many_pixels", _last_line(said))
        if child.returncode in (3, 4):
            raise Problem("damaged_image", "the picture cannot be read")
        raise _too_long()


def rival_sizes(record: JobRecord) -> list[int]:
    """Return how many bytes the rivals of a result may have."""
    assert record.result is not None
    pixels = (record.spec.width or 1) * (record.spec.height or 1)
    factors = next((found for most, found in _RIVAL_FACTORS if pixels <= most), (1.0,))
    return [max(1, round(record.result.size * factor)) for factor in factors]


def _key(record: JobRecord, name: str) -> str:
    # Beside the job's other files, so that it goes when the job goes.
    return f"{record.tenant}/jobs/{record.id}/images/{name}"


def _fetch(service: JobService, record: JobRecord, path: Path) -> None:
    with path.open("wb") as file:
        for part in service.blobs.stream(record.spec.input.key):
            file.write(part)


def _known(service: JobService, key: str) -> BlobInfo | None:
    try:
        return service.blobs.head(key)
    except jobs.BlobNotFound:
        return None


def _keep(service: JobService, record: JobRecord, key: str, path: Path, media_type: str) -> None:
    file: BinaryIO
    with path.open("rb") as file, suppress(jobs.BlobExists):  # another process was faster
        service.blobs.put(key, file, media_type=media_type)
    try:
        service.get(record.tenant, record.id)
    except jobs.NotFound:
        service.blobs.delete(key)  # the job was deleted in the meantime
        raise


def _too_long() -> Problem:
    return Problem("decoder_busy", "looking at the picture took too long", headers=retry_after(10))


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "the picture is too large"
