"""What pyproject.toml cannot say: verified vendored sources, the C extension, one wheel for all CPythons."""

import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BuildExtension(build_ext):
    """Says what to install where the compiler would only say what it did not find."""

    def build_extensions(self) -> None:
        compiler = self.compiler.compiler_so[0]
        if shutil.which(compiler) is None:
            raise PlatformError(
                f"no C compiler: ds4kv has a C core, and {compiler!r} is not on this machine. Install"
                " gcc (Debian: apt-get install gcc libc6-dev) or clang, or name one in CC"
            )
        headers = Path(sysconfig.get_path("include"))
        if not (headers / "Python.h").exists():
            raise PlatformError(
                f"no Python headers: {headers} has no Python.h. Install your Python's development"
                " package (Debian: apt-get install python3-dev)"
            )
        super().build_extensions()


# Before setup(), because every command needs them: sdist ships the sources, build_ext compiles them.
vendored = runpy.run_path("vendor/lz4/fetch.py")
try:
    vendored["fetch"]()
except vendored["VendorError"] as error:
    sys.exit(f"error: {error}")

setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension},
    # cffi compiles for the limited API by itself, except on a free-threaded CPython, which has none
    # before 3.15: there the wheel is for that one version.
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
