"""Builds the fused kernel beside the Python sources where a C++ compiler is there.

Everything else about the package is in ``pyproject.toml``. Without a compiler the installation goes
on; the kernel is then compiled at first use if one has appeared, or another kernel computes.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("nifcore", "kernels")
kernel = runpy.run_path(str(FOLDER / "build.py"))


class BuildKernel(build_ext):
    """Compile with the kernel's own flags, one set per instruction set."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], kernel["LIBRARY"]))

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            kernel["compile_library"](target)
        except kernel["BuildFailed"] as error:
            self.warn(f"the fused kernel was not built, others will compute: {error}")


setup(
    cmdclass={"build_ext": BuildKernel},
    ext_modules=[
        Extension(
            "nifcore.kernels.native",
            sources=sorted(str(path) for path in FOLDER.glob("native/*.cpp")),
            depends=sorted(str(path) for path in FOLDER.glob("native/*.h")),
            optional=True,
        )
    ],
)
