"""``python -m api.demo``: the whole service, started, used and stopped before your eyes.

::

    start ─► photo ─POST─► job ─poll─► progress ─► .nif ─► decode here ─► compare ─► picture ─► stop

Everything is real: the service is the one of ``make serve``, with a data folder of its own; the
photo goes in over HTTP, and what comes out is decoded and measured by this process, which then
holds it against JPEG and WebP in as many bytes.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.embedded import EmbeddedService, NotStarted
from nifcore.client import Client, RemoteJob
from nifcore.errors import NifError

CODECS = ("JPEG", "WEBP")
LINE_SECONDS = 2.0
"""How often progress is told where it cannot be shown in place."""
_SAME_DB = 0.05
"""The service measured the same file on the same decoder; devices may round differently."""


class DemoFailed(Exception):
    """Something did not go as it must; the message says what."""


class Progress:
    """Shows a running job: in place on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._phase = ""
        self._told_at = float("-inf")

    def __call__(self, job: RemoteJob) -> None:
        progress = job.progress if job.state == "running" else None
        phase = job.state if progress is None else str(progress["phase"])
        now = time.monotonic()
        if not self._in_place and phase == self._phase and now - self._told_at < LINE_SECONDS:
            return
        self._phase, self._told_at = phase, now
        text = "  ".join(["  " + phase.ljust(9), *_numbers(progress)]).rstrip()
        if self._in_place:
            # Back to the beginning of the line, and clear what was on it.
            print(f"\r\x1b[K{text}", end="", flush=True)
        else:
            print(text, flush=True)

    def end(self) -> None:
        """Leave the line that was shown in place."""
        if self._in_place:
            print("\r\x1b[K", end="", flush=True)


def _numbers(progress: Any) -> list[str]:
    if progress is None:
        return []
    found = []
    if progress["iterations"]:
        found.append(f"{progress['iteration'] / progress['iterations']:4.0%}")
    for name, text in (
        ("psnr_db", "PSNR {:.2f} dB"),
        ("bpp", "about {:.3f} bpp"),
        ("eta_seconds", "{:.0f} s left"),
    ):
        if progress[name] is not None:
            found.append(text.format(progress[name]))
    return found


def run(photo: Path | None, folder: Path, *, effort: int | None, bpp: float) -> None:
    """Do everything; the files go to ``folder``.

    Args:
        photo: the picture; None for the sample photo of scikit-image.
        folder: gets photo.png (or a copy of the photo), photo.nif, decoded.png, side-by-side.png
            and service.log; while the service runs, its data too.
        effort: how long to fit, 1 to 9; None for the service's default.
        bpp: most bits per pixel of the file.

    Raises:
        DemoFailed, NotStarted, NifError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = _sample(folder) if photo is None else _copied(photo, folder)
    with tempfile.TemporaryDirectory(prefix="service-", dir=folder) as data:
        began = time.monotonic()
        print("Starting the service: Redis, two workers, API ...", flush=True)
        with EmbeddedService(Path(data), folder / "service.log") as service:
            print(f"  ready at {service.url} after {time.monotonic() - began:.1f} s", flush=True)
            with Client(service.url, service.key) as client:
                encoded, told_db = _through(client, picture, effort=effort, bpp=bpp)
        if service.status != 0:
            raise DemoFailed(
                f"the service ended with status {service.status}{service.last_words()}"
            )
    print("Service stopped.", flush=True)
    (folder / "photo.nif").write_bytes(encoded)
    _judge(picture, encoded, told_db, folder)


def _sample(folder: Path) -> Path:
    from PIL import Image
    from skimage import data

    target = folder / "photo.png"
    Image.fromarray(data.astronaut()).save(target)  # type: ignore[no-untyped-call]
    return target


def _copied(photo: Path, folder: Path) -> Path:
    target = folder / f"photo{photo.suffix.lower()}"
    if photo.resolve() != target.resolve():
        shutil.copyfile(photo, target)
    return target


def _through(
    client: Client, picture: Path, *, effort: int | None, bpp: float
) -> tuple[bytes, float]:
    """Send the picture through the service; return the file and the PSNR that the service told."""
    began = time.monotonic()
    job = client.submit(picture, effort=effort, bpp=bpp)
    size = picture.stat().st_size
    print(f"Sent {picture.name} ({size:,} bytes), accepted as {job.id}", flush=True)
    show = Progress()
    try:
        job = client.wait(job.id, progress=show)
    finally:
        show.end()
    if job.state != "succeeded":
        why = "" if job.failure is None else f": {job.failure['code']}, {job.failure['message']}"
        raise DemoFailed(f"the job {job.state}{why}")
    data = client.result(job.id)
    seconds = time.monotonic() - began
    print(f"Downloaded {len(data):,} bytes, {seconds:.1f} s after sending", flush=True)
    report = client.report(job.id)
    return data, float(report["psnr_db"])


def _judge(picture: Path, encoded: bytes, told_db: float, folder: Path) -> None:
    """Decode the file here, measure it, and hold it against what other codecs make of the size."""
    import numpy as np

    from nifcore.compare import equal_size, side_by_side
    from nifcore.decoder import decode
    from nifcore.limits import Limits
    from nifcore.metrics import psnr
    from nifcore.picture import read_picture

    original = read_picture(str(picture), Limits()).pixels
    image = decode(encoded)
    image.save(folder / "decoded.png")
    decoded = np.asarray(image).reshape(original.shape)
    here_db = psnr(original, decoded)
    if abs(here_db - told_db) > _SAME_DB:
        raise DemoFailed(
            f"the file decodes to {here_db:.2f} dB here, the service told {told_db:.2f} dB"
        )
    pixels = original.shape[0] * original.shape[1]
    rows = [("NIF", len(encoded), here_db, "")]
    for other in equal_size(original, len(encoded), CODECS):
        note = "cannot be made smaller" if other.larger else ""
        rows.append((other.codec, other.bytes, other.psnr_db, note))
    print(f"{'':6}{'bytes':>9}{'bpp':>8}{'PSNR':>11}")
    for name, size, quality_db, note in rows:
        line = f"{name:6}{size:9,}{8 * size / pixels:8.3f}{quality_db:8.2f} dB"
        print(f"{line}  {note}".rstrip())
    target = folder / "side-by-side.png"
    side_by_side(original, decoded).save(target)
    print(f"Side by side: {target}", flush=True)


class _Stopped(BaseException):
    """SIGTERM; like Ctrl-C, nothing that handles errors may swallow it."""


def _on_term(number: int, _: object) -> None:
    raise _Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0, 1 for a failure, 130 for Ctrl-C, 143 for SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m api.demo",
        description="Start the whole service, send a photo through it, and show what came out.",
    )
    parser.add_argument("--photo", type=Path, help="the picture; a sample photo by default")
    parser.add_argument("--bpp", type=float, default=0.3, help="bits per pixel (0.3)")
    parser.add_argument("--effort", type=int, help="1 to 9; the service's default if not given")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for the files (demo)")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _on_term)
    try:
        run(given.photo, given.folder, effort=given.effort, bpp=given.bpp)
    except (DemoFailed, NotStarted, NifError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted, everything is stopped", file=sys.stderr)
        return 130
    except _Stopped:
        print("\ndemo: told to end, everything is stopped", file=sys.stderr)
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
