"""Encoding: a picture in, a .nif file and an honest report out."""

from __future__ import annotations

import time

import torch

from nifcore.devices import describe_device, resolve_device
from nifcore.errors import DeviceError
from nifcore.events import Checkpoint, ControlFunction, ProgressFunction
from nifcore.limits import Limits
from nifcore.picture import PictureSource, read_picture
from nifcore.presets import DEFAULT_EFFORT, find_recipe
from nifcore.report import Encoded
from nifcore.session import Session
from nifcore.target import make_target


def encode(
    image: PictureSource,
    *,
    preset: str | None = None,
    effort: int | None = None,
    quality: float | None = None,
    psnr: float | None = None,
    bpp: float | None = None,
    max_bytes: int | None = None,
    device: str = "auto",
    kernel: str | None = None,
    seed: int = 0,
    progress: ProgressFunction | None = None,
    checkpoint: Checkpoint | None = None,
    control: ControlFunction | None = None,
    keep_icc: bool = False,
    limits: Limits | None = None,
) -> Encoded:
    """Fit small networks to a picture and return them as a .nif file.

    Args:
        image: path, bytes, binary file, PIL image, or uint8 array (H, W) or (H, W, 1..4).
        preset: a published recipe by name (its size is fixed, so no target may be given).
        effort: 1 (seconds) to 9 (very long), default 5.
        quality: 1 to 100, default 75: bits per pixel on the scale of
            :data:`nifcore.plan.QUALITY_RATES`.
        psnr: least PSNR in dB; a few sizes may be tried.
        bpp: most bits per pixel of the whole file.
        max_bytes: most bytes of the whole file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        kernel: name of a kernel, or None for the best: on a CUDA device the Triton programs, for
            all tiles at once, and where they fail another with a note in the report.
        seed: repeats an encode exactly on the same device and software.
        progress: called with a :class:`ProgressEvent` at most ten times a second. This and the next
            two may be called from other threads than the caller's, never two at once.
        checkpoint: where to keep the state; an interrupted encode of the same picture and
            parameters goes on from it.
        control: asked before every iteration whether to go on, finish now or cancel.
        keep_icc: keep the ICC profile in the file instead of converting to sRGB.
        limits: bounds on the input.

    Raises:
        UsageError: parameters out of range or contradictory; UnknownPreset, ImpossibleTarget.
        InputError: no readable picture. LimitExceeded: too large a picture.
        DeviceError: device missing or out of memory. FitDiverged: no finite state.
        Cancelled: ``control`` asked for it.
    """
    began = time.monotonic()
    recipe = find_recipe(preset, effort)
    target = make_target(preset, quality, psnr, bpp, max_bytes)
    where = resolve_device(device)
    bounds = limits or Limits()
    kernel_name = None if kernel in (None, "auto") else kernel
    picture = read_picture(image, bounds, keep_icc)
    session = session_kind(where, kernel_name)(
        picture, recipe, where, kernel_name, seed, progress, control, checkpoint, target, began
    )
    try:
        data = session.run()
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"{describe_device(where)} ran out of memory: {error}") from error
    except MemoryError as error:
        raise DeviceError("not enough memory for this picture and rate") from error
    return Encoded(data, session.report(data, preset, effort or DEFAULT_EFFORT))


def session_kind(device: torch.device, kernel: str | None) -> type[Session]:
    """Return what encodes on a device: on CUDA all tiles together, unless the kernel is another's.

    Args:
        kernel: the name that was asked for, None for the best.
    """
    if device.type == "cuda" and kernel in (None, "triton"):
        from nifcore.gpu.batch_encode import BatchSession

        return BatchSession
    return Session
