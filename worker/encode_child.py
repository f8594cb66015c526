"""The child process that meets the picture: ``python -m worker.encode_child PARENT_PID``.

Nobody else in the service decodes what clients send. The child has no secrets, no connection to
Redis or storage, bounds on what it may use, and dies with its parent. It is started before there is
a task, because loading torch takes longer than a small picture.
"""

from __future__ import annotations

import base64
import faulthandler
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nifcore.errors import Cancelled, NifError
from nifcore.events import Control, ProgressEvent
from nifcore.limits import Limits
from nifcore.output import write_atomically
from worker import lifeline, messages, rlimits
from worker.failures import code_of

PROGRESS_SECONDS = 0.5

_PREVIEW_QUALITIES = (75, 50, 25)


class Channel:
    """The way to the parent. Takes standard output for itself: what libraries print goes to
    standard error instead and cannot be mistaken for a message."""

    def __init__(self) -> None:
        self._file: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def send(self, event: str, **values: Any) -> None:
        """Send one message."""
        self._file.write(messages.line({"event": event, **values}))


class Orders:
    """Listens to the parent while the codec works, and is its control function."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.latest: messages.Order | None = None
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        for text in self._source:
            self.latest = messages.Order(json.loads(text)["order"])
        os._exit(1)  # the parent is gone: nobody would take the result

    def __call__(self) -> Control:
        match self.latest:
            case messages.Order.FINISH:
                return Control.FINISH
            case messages.Order.STOP:
                return Control.CANCEL  # the codec saves a checkpoint on its way out
        return Control.CONTINUE


class FileCheckpoint:
    """The codec's checkpoint in a file; the parent is told of every new one.

    Attributes:
        interval_seconds: how often the codec is to save.
    """

    def __init__(self, path: Path, interval_seconds: float, channel: Channel) -> None:
        self._path = path
        self._channel = channel
        self.interval_seconds = interval_seconds

    def load(self) -> bytes | None:
        """Return the state to go on from, if there is one."""
        return self._path.read_bytes() if self._path.exists() else None

    def save(self, data: bytes) -> None:
        """Replace the state."""
        write_atomically(self._path, data)
        self._channel.send("checkpoint", bytes=len(data))


def preview_shares(count: int) -> Iterator[float]:
    """Yield the shares of the work after which a preview is due: close together at first, when
    much changes, and further and further apart."""
    for index in range(count):
        yield ((index + 1) / count) ** 2 if index else 0.0


def webp(pixels: NDArray[np.uint8], most_bytes: int) -> bytes | None:
    """Return a picture as WebP of at most so many bytes, or None if that cannot be had.

    Args:
        pixels: uint8 (height, width, channels); one channel is grey, four have alpha.
        most_bytes: bound on the file.
    """
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    for quality in _PREVIEW_QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= most_bytes:
            return buffer.getvalue()
    return None


class Reporter:
    """Passes the codec's progress on, at most twice a second; a new phase at once.

    Args:
        channel: to the parent.
        previews: most pictures that are wanted.
        preview_bytes: most bytes of each.
    """

    def __init__(self, channel: Channel, previews: int, preview_bytes: int) -> None:
        self._channel = channel
        self._preview_bytes = preview_bytes
        self._last = float("-inf")
        self._phase = ""
        self._due = preview_shares(previews)
        self._next = next(self._due, None)

    def __call__(self, event: ProgressEvent) -> None:
        self._tell(event)
        if event.preview is not None:
            self._show(event, event.preview)

    def _show(self, event: ProgressEvent, pixels: NDArray[np.uint8]) -> None:
        share = event.iteration / max(1, event.iterations)
        if self._next is None or share < self._next:
            return
        while self._next is not None and share >= self._next:
            self._next = next(self._due, None)
        data = webp(pixels, self._preview_bytes)
        if data is not None:
            self._channel.send(
                "preview",
                data=base64.b64encode(data).decode("ascii"),
                width=pixels.shape[1],
                height=pixels.shape[0],
                iteration=event.iteration,
                iterations=event.iterations,
                psnr_db=event.psnr_db,
            )

    def _tell(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        news = event.phase != self._phase or event.message is not None
        if not news and now - self._last < PROGRESS_SECONDS:
            return
        self._last, self._phase = now, event.phase
        values = {
            name: getattr(event, name)
            for name in event.__dataclass_fields__
            if name != "preview" and getattr(event, name) is not None
        }
        self._channel.send("progress", **values)


def bounds_of(task: messages.Task, *, cpu: bool) -> rlimits.Bounds:
    """Return the bounds for a task; the address space is bounded on the CPU only."""
    return rlimits.Bounds(
        memory_bytes=task.memory_bytes if cpu else 0,
        file_bytes=task.output_bytes,
    )


def work(task: messages.Task, channel: Channel, orders: Orders) -> None:
    """Encode and write the file.

    Raises:
        NifError: anything that the codec refuses.
    """
    from nifcore.devices import resolve_device
    from nifcore.encoder import encode

    device = resolve_device(task.device)
    rlimits.apply(bounds_of(task, cpu=device.type == "cpu"))
    limits = Limits(max_pixels=task.max_pixels, max_file_bytes=task.max_file_bytes)
    encoded = encode(
        task.input,
        **task.parameters,
        device=str(device),
        progress=Reporter(channel, task.previews, task.preview_bytes),
        control=orders,
        checkpoint=FileCheckpoint(Path(task.checkpoint), task.checkpoint_seconds, channel),
        limits=limits,
    )
    write_atomically(task.output, encoded.data)
    channel.send("done", report=asdict(encoded.report))


def device_kind() -> str:
    """Load torch and tell what "auto" means here, without touching a device."""
    import torch

    import nifcore.encoder  # noqa: F401  loaded now, so that a task need not wait for it

    return f"cuda ({torch.cuda.device_count()})" if torch.cuda.is_available() else "cpu"


def main() -> int:
    """Load, wait for a task, do it; the exit code is the error's."""
    lifeline.die_with_parent(int(sys.argv[1]))
    lifeline.renounce_privileges()
    rlimits.prefer_as_victim()
    faulthandler.enable()
    channel = Channel()
    channel.send("ready", device=device_kind())
    text = sys.stdin.buffer.readline()
    if not text:
        return 0  # the parent had no use for this child
    task = messages.Task.from_line(text)
    try:
        work(task, channel, Orders(sys.stdin.buffer))
    except Cancelled:
        channel.send("stopped")
        return Cancelled.exit_code
    except Exception as error:
        if not isinstance(error, (NifError, MemoryError)):
            # The parent keeps the end of standard error with the failure.
            faulthandler.disable()
            sys.excepthook(type(error), error, error.__traceback__)
        message = str(error) or type(error).__name__
        exit_code = error.exit_code if isinstance(error, NifError) else 1
        channel.send(
            "error",
            code=code_of(error),
            message=message[: messages.LONGEST_MESSAGE],
            exit_code=exit_code,
        )
        return exit_code
    return 0


if __name__ == "__main__":
    code = main()
    # Not sys.exit: threads of torch and of the orders need no orderly end.
    sys.stderr.flush()
    os._exit(code)
