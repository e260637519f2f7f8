"""
The part of the build that is not plain data: the extension `sandboxlib._native`.

Everything else is in pyproject.toml.
"""

import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildExt(build_ext):
    """Builds against our own declarations of the stable ABI where Python's headers are not installed."""

    def finalize_options(self) -> None:
        """Choose the headers."""
        super().finalize_options()
        # Distributions put Python.h into a package of its own (python3-dev), which must not be
        # needed here: see _native/abi3/Python.h.
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            self.include_dirs.append("_native/abi3")


setup(
    cffi_modules=["_native/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
