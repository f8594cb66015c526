"""The public surface of the library: a change here is a change for every user."""

import inspect

import nifcore

SURFACE = {
    "BitstreamError",
    "Cancelled",
    "Checkpoint",
    "Control",
    "CorruptBitstream",
    "DeviceError",
    "Encoded",
    "FitDiverged",
    "Header",
    "ImpossibleTarget",
    "InputError",
    "LimitExceeded",
    "Limits",
    "NifError",
    "NotAnImage",
    "NotNif",
    "OutputError",
    "ProgressEvent",
    "RemoteError",
    "Report",
    "UnknownPreset",
    "UnsupportedImage",
    "UnsupportedVersion",
    "UsageError",
    "decode",
    "encode",
    "is_nif",
    "read_header",
}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_exported_names():
    assert set(nifcore.__all__) == SURFACE
    assert all(getattr(nifcore, name) is not None for name in SURFACE)


def test_the_signatures():
    assert parameters(nifcore.encode) == [
        "image",
        "preset",
        "effort",
        "quality",
        "psnr",
        "bpp",
        "max_bytes",
        "device",
        "kernel",
        "seed",
        "progress",
        "checkpoint",
        "control",
        "keep_icc",
        "limits",
    ]
    assert parameters(nifcore.decode) == [
        "data",
        "size",
        "scale",
        "region",
        "device",
        "kernel",
        "limits",
    ]
    assert parameters(nifcore.read_header) == ["data", "limits"]
    assert parameters(nifcore.is_nif) == ["prefix"]


def test_every_error_has_its_documented_exit_code():
    codes = {
        name: getattr(nifcore, name).exit_code
        for name in SURFACE
        if inspect.isclass(getattr(nifcore, name))
        and issubclass(getattr(nifcore, name), nifcore.NifError)
    }

    assert codes == {
        "NifError": 1,
        "UsageError": 2,
        "UnknownPreset": 2,
        "ImpossibleTarget": 2,
        "InputError": 3,
        "NotAnImage": 3,
        "UnsupportedImage": 3,
        "BitstreamError": 4,
        "NotNif": 4,
        "CorruptBitstream": 4,
        "UnsupportedVersion": 4,
        "LimitExceeded": 5,
        "DeviceError": 6,
        "RemoteError": 7,
        "OutputError": 1,
        "FitDiverged": 1,
        "Cancelled": 130,
    }


def test_public_things_say_what_they_are():
    for name in SURFACE:
        assert inspect.getdoc(getattr(nifcore, name)), f"{name} has no docstring"
