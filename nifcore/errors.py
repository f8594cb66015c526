"""The exceptions of the codec, as one tree.

Each class carries the exit code that the command line uses for it; ``docs/cli.md`` has the table.

::

    NifError                    1   anything that went wrong in the codec
    ├── UsageError              2   a parameter is wrong (also a ValueError)
    │   ├── UnknownPreset       2
    │   └── ImpossibleTarget    2   no network can meet the asked rate or quality
    ├── InputError              3   the picture cannot be read
    │   ├── NotAnImage          3
    │   └── UnsupportedImage    3
    ├── BitstreamError          4   the file cannot be decoded
    │   ├── NotNif              4   does not begin with the magic
    │   ├── CorruptBitstream    4   truncated, flipped or hostile
    │   └── UnsupportedVersion  4   needs a newer decoder
    ├── LimitExceeded           5   larger than the limits in force
    ├── DeviceError             6   device missing, or out of memory
    ├── RemoteError             7   the service did not answer as it should
    ├── OutputError             1   the result cannot be written
    ├── FitDiverged             1   no usable state was ever reached
    └── Cancelled             130   the caller asked to stop
"""


class NifError(Exception):
    """Base of every error that the codec raises on purpose."""

    exit_code = 1


class UsageError(NifError, ValueError):
    """A parameter is out of range, unknown, or contradicts another."""

    exit_code = 2


class UnknownPreset(UsageError):
    """The named preset does not exist; the message lists those that do."""


class ImpossibleTarget(UsageError):
    """The asked size, rate or quality is out of reach; the message says what is in reach."""


class InputError(NifError):
    """The picture cannot be used as input."""

    exit_code = 3


class NotAnImage(InputError):
    """The input is no picture in any readable format, or a damaged one."""


class UnsupportedImage(InputError):
    """The input is a picture of a kind that is refused (animated, zero-sized, ...)."""


class BitstreamError(NifError):
    """The .nif data cannot be decoded."""

    exit_code = 4


class NotNif(BitstreamError):
    """The data does not begin with the .nif magic."""


class CorruptBitstream(BitstreamError):
    """The data begins like a .nif file but is truncated, altered or inconsistent."""


class UnsupportedVersion(BitstreamError):
    """The file needs a newer decoder: another version, or an unknown critical block."""


class LimitExceeded(NifError):
    """The input or file is larger than the limits in force allow."""

    exit_code = 5


class DeviceError(NifError):
    """The asked device does not exist or ran out of memory."""

    exit_code = 6


class RemoteError(NifError):
    """The compression service refused a request or could not be reached."""

    exit_code = 7


class OutputError(NifError):
    """The result cannot be written: no permission, no such folder, disk full."""


class FitDiverged(NifError):
    """Fitting produced no finite state, even after restarts with smaller steps."""


class Cancelled(NifError):
    """The caller's control function asked to cancel; nothing was written."""

    exit_code = 130
