"""Why an encode failed: from errors to codes, and what follows from a code.

:data:`CAUSES` is the only list of codes; ``docs/api.md`` shows it, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from nifcore import errors


@dataclass(frozen=True)
class Cause:
    """One reason for which an attempt can fail.

    Attributes:
        code: stable name, for programs.
        final: the job fails at once, because the same would happen again. Any other is a strike:
            the job is tried again, a little later and perhaps elsewhere, until it is ``poisoned``.
        meaning: what happened and what to do about it.
    """

    code: str
    final: bool
    meaning: str


OUT_OF_MEMORY = "out_of_memory"
TIME_LIMIT = "time_limit"
INPUT_LOST = "input_lost"
INPUT_DAMAGED = "input_damaged"
UNEXPECTED = "unexpected"
CRASHED = "crashed"

_CAUSES = (
    Cause("bad_parameters", True, "Parameters that the codec cannot work with together."),
    Cause(
        "impossible_target",
        True,
        "The asked size, rate or PSNR is out of reach; `message` says what is in reach.",
    ),
    Cause("unknown_preset", True, "The workers' version of the codec has no preset of this name."),
    Cause("unreadable_image", True, "The picture cannot be read."),
    Cause(
        "not_an_image", True, "The picture turns out to be damaged, or none, when it is decoded."
    ),
    Cause("unsupported_image", True, "A kind of picture that is refused, such as animations."),
    Cause("limit_exceeded", True, "More pixels, or a longer side, than are accepted."),
    Cause("fit_diverged", True, "The fit broke down again and again; another seed may work."),
    Cause("codec_error", True, "Anything else that the codec refuses; `message` says what."),
    Cause(OUT_OF_MEMORY, True, "The encoder needs more memory than it may have."),
    Cause(TIME_LIMIT, True, "The attempt took longer than `NIF_JOB_TIME_LIMIT_SECONDS`."),
    Cause(INPUT_LOST, True, "The stored picture is gone while the storage itself is well."),
    Cause(INPUT_DAMAGED, True, "The stored picture is not the one that was accepted."),
    Cause("device_error", False, "The device of the worker fails, or is not there."),
    Cause("output_error", False, "The worker cannot write its files: a full disk, mostly."),
    Cause(UNEXPECTED, False, "A mistake of the encoder; the worker's log has its last words."),
    Cause(CRASHED, False, "The encoder was killed or ended without a result."),
)

CAUSES: dict[str, Cause] = {cause.code: cause for cause in _CAUSES}
"""Every code and what it means."""

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

FINAL = frozenset(cause.code for cause in _CAUSES if cause.final)
"""Codes with which the job fails at once."""


CROWDED = frozenset({OUT_OF_MEMORY, TIME_LIMIT})
"""Codes that, beside others, say nothing of the job itself: it is tried again alone."""


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
