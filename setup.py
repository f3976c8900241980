"""What pyproject.toml cannot say: verified vendored sources, the C extension, one wheel for all CPythons."""

import os
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

CSRC = Path("csrc")
LZ4 = Path("vendor/lz4")
XXHASH = Path("vendor/xxhash")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BuildExtension(build_ext):
    """Says what to install where the compiler would only say what it did not find, and makes libds4kv.a as well."""

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
        package = Path("ds4kv") if self.inplace else Path(self.build_lib, "ds4kv")
        self.copy_headers(package / "include")
        self.make_library(package / "lib" / "libds4kv.a")

    def copy_headers(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for header in sorted(CSRC.glob("ds4kv*.h")):
            self.copy_file(str(header), str(folder / header.name))

    def make_library(self, library: Path) -> None:
        """What csrc/Makefile does, without make: one object, in which lz4 and all else that is hidden is local."""
        objcopy = os.environ.get("OBJCOPY", "objcopy")
        if shutil.which(objcopy) is None:
            self.warn(f"no {objcopy}: libds4kv.a, for C programs, is left out")
            return
        objects = self.compiler.compile(
            [str(path) for path in [*sorted(CSRC.glob("*.c")), LZ4 / "lz4.c", LZ4 / "lz4hc.c"]],
            output_dir=str(Path(self.build_temp, "library")),
            macros=[("LZ4LIB_VISIBILITY", "")],
            include_dirs=[str(CSRC), str(LZ4), str(XXHASH)],
            # -fno-lto: CPython's own flags may ask for it, and objcopy could not see what such objects hold.
            extra_postargs=["-O3", "-std=c11", "-pthread", "-fPIC", "-fvisibility=hidden", "-g0", "-fno-lto"],
        )
        whole = str(Path(self.build_temp, "library", "ds4kv.o"))
        self.spawn([os.environ.get("LD", "ld"), "-r", "-o", whole, *objects])
        self.spawn([objcopy, "--localize-hidden", whole])
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)
        self.spawn([os.environ.get("AR", "ar"), "rcs", str(library), whole])


# Before setup(), because every command needs them: sdist ships the sources, build_ext compiles them.
vendored = runpy.run_path("vendor/lz4/fetch.py")
try:
    for directory in (LZ4, XXHASH):
        vendored["fetch"](directory)
except vendored["VendorError"] as error:
    sys.exit(f"error: {error}")

setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension},
    # cffi compiles for the limited API by itself, except on a free-threaded CPython, which has none
    # before 3.15: there the wheel is for that one version.
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
