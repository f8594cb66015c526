"""Compiling the fused kernel: at installation by ``setup.py``, else at first use.

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
    "-pthread",
)
_EXTENSIONS = {
    "avx512.cpp": (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ),
    "avx2.cpp": ("-mavx2", "-mfma"),
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
    x86 = platform.machine() in ("x86_64", "AMD64")
    names = ["fused.cpp", "portable.cpp", *(_EXTENSIONS if x86 else ())]
    mark = f'-DNIF_FINGERPRINT="{fingerprint()}"'
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nif-build-", dir=target.parent) as folder:
        objects = [f"{folder}/{name}.o" for name in names]
        common = [compiler, *_FLAGS, mark, "-c"]
        _run_together(
            [
                [*common, *_EXTENSIONS.get(name, ()), str(SOURCES / name), "-o", made]
                for name, made in zip(names, objects, strict=True)
            ]
        )
        library = f"{folder}/{LIBRARY}"
        _run_together([[compiler, "-shared", "-pthread", *objects, "-o", library]])
        os.replace(library, target)


def _run_together(commands: Sequence[Sequence[str]]) -> None:
    """Run commands side by side; raise BuildFailed with what the first failing one said."""
    try:
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
    except OSError as error:
        raise BuildFailed(f"cannot run {commands[0][0]}: {error.strerror or error}") from error
    failures = []
    for process in running:
        try:
            _, said = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        if process.returncode:
            first = next((line for line in said.splitlines() if "error" in line), said[:200])
            failures.append(f"{commands[0][0]} failed: {first.strip()}")
    if failures:
        raise BuildFailed(failures[0])
