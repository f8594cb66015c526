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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nifcore.errors import Cancelled, NifError
from nifcore.events import Control, ControlFunction, ProgressEvent
from nifcore.limits import Limits
from nifcore.output import write_atomically
from worker import lifeline, messages, rlimits
from worker.failures import code_of

if TYPE_CHECKING:
    from nifcore.report import Encoded

PROGRESS_SECONDS = 0.5

_PREVIEW_QUALITIES = (75, 50, 25)


class Teller(Protocol):
    """Tells the parent of one task."""

    def send(self, event: str, **values: Any) -> None: ...


class Channel:
    """The way to the parent. Takes standard output for itself: what libraries print goes to
    standard error instead and cannot be mistaken for a message."""

    def __init__(self) -> None:
        self._file: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._turn = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Send one message; from any thread."""
        with self._turn:
            self._file.write(messages.line({"event": event, **values}))


class MemberChannel:
    """The way to the parent for one task of a group."""

    def __init__(self, channel: Channel, member: int) -> None:
        self._channel, self._member = channel, member

    def send(self, event: str, **values: Any) -> None:
        """Send one message."""
        self._channel.send(event, member=self._member, **values)


class Orders:
    """Listens to the parent while the codec works, and is the control function of one task."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._latest: dict[int | None, messages.Order] = {}
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        for text in self._source:
            values = json.loads(text)
            self._latest[values.get("member")] = messages.Order(values["order"])
        os._exit(1)  # the parent is gone: nobody would take the result

    def __call__(self, member: int | None = None) -> Control:
        """Return what is wanted of the only task, or of a member of the group."""
        match self._latest.get(member):
            case messages.Order.FINISH:
                return Control.FINISH
            case messages.Order.STOP | messages.Order.DROP:
                return Control.CANCEL  # the codec saves a checkpoint on its way out
        return Control.CONTINUE


class FileCheckpoint:
    """The codec's checkpoint in a file; the parent is told of every new one.

    Attributes:
        interval_seconds: how often the codec is to save.
    """

    def __init__(self, path: Path, interval_seconds: float, channel: Teller) -> None:
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

    def __init__(self, channel: Teller, previews: int, preview_bytes: int) -> None:
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


def work(task: messages.Task, channel: Teller, control: ControlFunction) -> None:
    """Encode and write the file.

    Raises:
        NifError: anything that the codec refuses.
    """
    from nifcore.devices import resolve_device
    from nifcore.encoder import encode

    device = resolve_device(task.device)
    rlimits.apply(bounds_of(task, cpu=device.type == "cpu"))
    encoded = encode(
        task.input,
        **task.parameters,
        device=str(device),
        kernel=os.environ.get("NIF_KERNEL") or None,  # one of those that the parent hands on
        progress=Reporter(channel, task.previews, task.preview_bytes),
        control=control,
        checkpoint=FileCheckpoint(Path(task.checkpoint), task.checkpoint_seconds, channel),
        limits=limits_of(task),
    )
    hand_over(task, encoded, channel)


def work_together(tasks: Sequence[messages.Task], channel: Channel, orders: Orders) -> None:
    """Encode the pictures of a group; each is told of, and fails, by itself."""
    from nifcore.devices import resolve_device
    from nifcore.gpu.batch_encode import Job, encode_many

    device = resolve_device(tasks[0].device)
    rlimits.apply(bounds_of(tasks[0], cpu=device.type == "cpu"))
    jobs, channels = [], []
    for member, task in enumerate(tasks):
        own = MemberChannel(channel, member)
        channels.append(own)
        jobs.append(
            Job(
                task.input,
                **task.parameters,
                progress=Reporter(own, task.previews, task.preview_bytes),
                control=partial(orders, member),
                checkpoint=FileCheckpoint(Path(task.checkpoint), task.checkpoint_seconds, own),
                limits=limits_of(task),
            )
        )

    def tell(member: int, result: Encoded | Exception) -> None:
        own = channels[member]
        if isinstance(result, Exception):
            tell_error(result, own)
            return
        try:
            hand_over(tasks[member], result, own)
        except Exception as error:
            # The other pictures' results are still to come.
            tell_error(error, own)

    encode_many(jobs, device=str(device), on_result=tell)


def work_group(tasks: Sequence[messages.Task], channel: Channel, orders: Orders) -> None:
    """Do a group; one that only one was left of is encoded as it would be alone."""
    if len(tasks) > 1:
        work_together(tasks, channel, orders)
        return
    own = MemberChannel(channel, 0)
    try:
        work(tasks[0], own, partial(orders, 0))
    except Exception as error:
        tell_error(error, own)


def limits_of(task: messages.Task) -> Limits:
    """Return the limits on a task's picture."""
    return Limits(max_pixels=task.max_pixels, max_file_bytes=task.max_file_bytes)


def hand_over(task: messages.Task, encoded: Encoded, channel: Teller) -> None:
    """Write the file and tell that it is there."""
    write_atomically(task.output, encoded.data)
    channel.send("done", report=asdict(encoded.report))


def tell_error(error: Exception, channel: Teller) -> int:
    """Tell how a task ended that was not done, and return the exit code that goes with it."""
    if isinstance(error, Cancelled):
        channel.send("stopped")
        return Cancelled.exit_code
    if not isinstance(error, (NifError, MemoryError)):
        # The parent keeps the end of standard error with the failure.
        sys.excepthook(type(error), error, error.__traceback__)
    exit_code = error.exit_code if isinstance(error, NifError) else 1
    message = (str(error) or type(error).__name__)[: messages.LONGEST_MESSAGE]
    channel.send("error", code=code_of(error), message=message, exit_code=exit_code)
    return exit_code


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
    task = messages.read_tasks(text)
    orders = Orders(sys.stdin.buffer)
    try:
        if isinstance(task, messages.Task):
            work(task, channel, orders)
        else:
            work_group(task, channel, orders)
    except Exception as error:
        faulthandler.disable()
        return tell_error(error, channel)
    return 0


if __name__ == "__main__":
    code = main()
    # Not sys.exit: threads of torch and of the orders need no orderly end.
    sys.stderr.flush()
    os._exit(code)
