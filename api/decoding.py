"""Rendering .nif files as pictures, in child processes under limits."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from anyio.to_thread import run_sync

from api import settings as fixed
from api.children import child_environment, finished
from api.problems import Problem, retry_after
from jobs import Settings
from nifcore import Limits, read_header


class ImageFormat(StrEnum):
    """Formats that the service writes."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


@dataclass(frozen=True)
class View:
    """How a file is rendered.

    Attributes:
        format: of the picture.
        width, height: of the whole picture in pixels; None follows from the other.
        region: x, y, width, height in pixels of that picture, or None for all of it.
    """

    format: ImageFormat = ImageFormat.PNG
    width: int | None = None
    height: int | None = None
    region: tuple[int, int, int, int] | None = None

    @property
    def name(self) -> str:
        """A file name that says all of this."""
        size = f"{self.width or ''}x{self.height or ''}"
        part = "" if self.region is None else "-" + "_".join(str(each) for each in self.region)
        return f"{size}{part}.{self.format}"


def checked(view: View, header: bytes, settings: Settings) -> View:
    """Return ``view`` with both sides filled in from the file's header.

    Args:
        view: what was asked for.
        header: the file, or as much of its beginning as holds the header.

    Raises:
        Problem: ``invalid_parameter`` or ``too_many_pixels``.
        BitstreamError: the file is no .nif file, or its header is damaged.
    """
    limits = Limits(max_pixels=settings.max_pixels, max_file_bytes=settings.max_upload_bytes)
    found = read_header(header, limits)
    width, height = view.width, view.height
    if width is None and height is None:
        width, height = found.width, found.height
    elif width is None:
        assert height is not None
        width = max(1, round(found.width * height / found.height))
    elif height is None:
        height = max(1, round(found.height * width / found.width))
    box = view.region or (0, 0, width, height)
    if box[2] < 1 or box[3] < 1 or box[0] + box[2] > width or box[1] + box[3] > height:
        raise Problem(
            "invalid_parameter",
            f"region: {','.join(map(str, box))} is not within {width}x{height} pixels",
        )
    if max(width, height) > limits.max_side or box[2] * box[3] > limits.max_pixels:
        raise Problem(
            "too_many_pixels",
            f"{box[2]}x{box[3]} of {width}x{height} pixels were asked for; {limits.max_pixels} "
            f"pixels and {limits.max_side} a side are accepted",
        )
    return View(view.format, width, height, view.region)


class Decoder:
    """Runs a few decoding children at a time.

    Args:
        settings: limits on pictures.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(fixed.DECODERS)
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Let one request at a time work on ``name``; the others then find it in the cache."""
        lock, waiting = self._locks.setdefault(name, (asyncio.Lock(), []))
        waiting.append(None)
        try:
            async with lock:
                yield
        finally:
            waiting.pop()
            if not waiting:
                del self._locks[name]

    async def render(self, write: Callable[[Path], None], view: View) -> BinaryIO:
        """Render a .nif file.

        Args:
            write: writes the file to a path, in a thread. It is called when there is a turn: what
                waits for one holds nothing.
            view: with both sides given (see :func:`checked`).

        Returns:
            The picture, open at its beginning. Nothing else refers to the file, so that it is gone
            when the caller closes it.

        Raises:
            Problem: ``corrupt_nif``, ``too_many_pixels``, ``invalid_parameter``, or
                ``decoder_busy`` if it gets no turn, too long, or out of memory.
        """
        try:
            await asyncio.wait_for(self._turns.acquire(), fixed.DECODE_WAIT_SECONDS)
        except TimeoutError:
            raise _busy("too many pictures are being decoded") from None
        try:
            return await self._render(write, view)
        finally:
            self._turns.release()

    async def _render(self, write: Callable[[Path], None], view: View) -> BinaryIO:
        with tempfile.TemporaryDirectory(prefix="nif-decode-") as folder:
            source, target = Path(folder, "in.nif"), Path(folder, f"out.{view.format}")
            # Not asyncio's thread, which goes on when the request is given up and the folder gone.
            await run_sync(write, source)
            arguments = [str(source), str(target), "--size", f"{view.width}x{view.height}"]
            if view.region is not None:
                arguments += ["--region", ",".join(str(each) for each in view.region)]
            arguments += ["--max-pixels", str(self._settings.max_pixels)]
            arguments += ["--device", "cpu", "--threads", "1", "--json"]
            code, said = await self._run("decode", *arguments, folder=folder)
            if code == 0:
                return await run_sync(target.open, "rb")
        raise _refusal(code, said)

    async def _run(self, *arguments: str, folder: str) -> tuple[int, bytes]:
        limits = (fixed.DECODE_SECONDS, fixed.DECODE_MEMORY_BYTES, fixed.MAX_IMAGE_BYTES)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "api.decode_child",
            *(str(math.ceil(each)) for each in limits),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env=child_environment(),
            start_new_session=True,
        )
        try:
            said, _ = await finished(child, fixed.DECODE_SECONDS * 1.5)
        except TimeoutError:
            raise _busy("decoding took too long") from None
        assert child.returncode is not None
        return child.returncode, said


def _busy(detail: str) -> Problem:
    return Problem("decoder_busy", detail, headers=retry_after(10))


def _refusal(code: int, said: bytes) -> Problem:
    try:
        message = str(json.loads(said.splitlines()[-1])["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = "the decoder ended without a word"
    kinds: dict[int, Any] = {2: "invalid_parameter", 4: "corrupt_nif", 5: "too_many_pixels"}
    if code in kinds:
        # The child names its temporary file, which is nobody's business.
        return Problem(kinds[code], message.rpartition("in.nif: ")[2])
    return _busy("the decoder ran out of memory or time")
