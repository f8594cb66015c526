"""Compiling the fused kernel and the optimiser: at installation by ``setup.py``, else at first use.

The library has a plain C interface and links to nothing but the C++ runtime, so one file serves
every version of Python and of torch. Standard library only: ``setup.py`` loads this module by its
path, before any dependency is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
LIBRARY = "libnif_fused.dylib" if sys.platform == "darwin" else "libnif_fused.so"

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # a * b + c in one instruction, in clang too; reassociation stays off
    "-Wno-psabi",
    "-fno-math-errno",  # or square roots are taken one by one
    "-pthread",
)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma")
_WIDE = (*_AVX512, "-mprefer-vector-width=512")
_EXTENSIONS = {
    "amx": (*_WIDE, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    "avx512": _WIDE,
    "avx2": ("-mavx2", "-mfma"),
}
"""Sources for x86-64 alone and the instructions that their code may use."""
_SECONDS = 300


class BuildFailed(Exception):
    """The kernel could not be compiled; the message says why."""


def fingerprint() -> str:
    """Return a hash of the sources, the flags and the kind of machine."""
    digest = hashlib.sha256(repr((_FLAGS, _EXTENSIONS, platform.machine())).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(target: Path, compilers: Sequence[str] = _COMPILERS) -> None:
    """Compile the kernel to ``target``, replaced in one go.

    An instruction set that the compiler does not know is left out.

    Args:
        compilers: commands to try; the first one found is used.

    Raises:
        BuildFailed: there is no compiler here, or it does not accept the sources.
    """
    if sys.platform == "win32":
        raise BuildFailed("no compiler is set up for Windows")
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise BuildFailed(f"no C++ compiler found; looked for {', '.join(compilers)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nif-build-", dir=target.parent) as folder:

        def compiled(name: str, *flags: str) -> list[str]:
            return [
                compiler,
                *_FLAGS,
                *flags,
                "-c",
                str(SOURCES / f"{name}.cpp"),
                "-o",
                made(name),
            ]

        def made(name: str) -> str:
            return f"{folder}/{name}.o"

        extensions = _extensions()
        portable, *refused = _run_together(
            [
                compiled("portable"),
                *(compiled(name, *_EXTENSIONS[name]) for name in extensions),
            ]
        )
        known = [name for name, why in zip(extensions, refused, strict=True) if why is None]
        marks = [
            f'-DNIF_FINGERPRINT="{fingerprint()}"',
            *(f"-DNIF_WITH_{n.upper()}" for n in known),
        ]
        library = f"{folder}/{LIBRARY}"
        objects = [made(name) for name in ("fused", "soap", "portable", *known)]
        for failure in (
            portable,
            *_run_together([compiled("fused", *marks), compiled("soap")]),
            *_run_together([[compiler, "-shared", "-pthread", *objects, "-o", library]]),
        ):
            if failure is not None:
                raise BuildFailed(failure)
        os.replace(library, target)


def _extensions() -> list[str]:
    """Return the instruction sets to try for this kind of machine."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    return [name for name in _EXTENSIONS if name != "amx" or sys.platform == "linux"]


def _run_together(commands: Sequence[Sequence[str]]) -> list[str | None]:
    """Run commands side by side; return for each why it failed, or None."""
    try:
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
    except OSError as error:
        raise BuildFailed(f"cannot run {commands[0][0]}: {error.strerror or error}") from error
    failures: list[str | None] = []
    for process in running:
        try:
            _, said = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        if process.returncode == 0:
            failures.append(None)
            continue
        first = next((line for line in said.splitlines() if "error" in line), said[:200])
        failures.append(f"{commands[0][0]} failed: {first.strip()}")
    return failures
