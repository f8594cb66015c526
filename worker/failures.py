"""Why an encode failed: from errors to codes, and what follows from a code."""

from __future__ import annotations

from nifcore import errors

CODES: dict[type[errors.NifError], str] = {
    errors.UsageError: "bad_parameters",
    errors.ImpossibleTarget: "impossible_target",
    errors.UnknownPreset: "unknown_preset",
    errors.InputError: "unreadable_image",
    errors.NotAnImage: "not_an_image",
    errors.UnsupportedImage: "unsupported_image",
    errors.LimitExceeded: "limit_exceeded",
    errors.FitDiverged: "fit_diverged",
    errors.DeviceError: "device_error",
    errors.OutputError: "output_error",
    errors.NifError: "codec_error",
}
"""Codes of what the codec raises; the nearest class counts."""

OUT_OF_MEMORY = "out_of_memory"
TIME_LIMIT = "time_limit"
INPUT_LOST = "input_lost"
INPUT_DAMAGED = "input_damaged"
UNEXPECTED = "unexpected"
CRASHED = "crashed"

FINAL = frozenset(CODES.values()) - {"device_error", "output_error"} | {
    OUT_OF_MEMORY,
    TIME_LIMIT,
    INPUT_LOST,
    INPUT_DAMAGED,
}
"""The job fails at once: the same would happen again. Any other code is a strike: the job is tried
again, a little later and perhaps elsewhere, until it is ``poisoned``."""


def code_of(error: BaseException) -> str:
    """Return the code of an exception from the codec or around it."""
    if isinstance(error, errors.DeviceError) and isinstance(error.__cause__, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return OUT_OF_MEMORY
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return UNEXPECTED
