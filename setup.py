"""What pyproject.toml cannot say: verified vendored sources, the C extension, one wheel for all CPythons."""

import hashlib
import os
import runpy
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import PlatformError
from setuptools.modified import newer_group

CSRC = Path("csrc")
LZ4 = Path("vendor/lz4")
XXHASH = Path("vendor/xxhash")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BuildPackage(build_py):
    """Leaves nothing of an earlier build in a wheel: a module that has moved would still be in build/lib."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "ds4kv"), ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Compiles the C core once, for the extension and for libds4kv.a.

    Says what to install where the compiler would only say what it did not find.
    """

    def run(self) -> None:
        in_place = self.inplace  # setuptools hides it from build_extensions, and copies only what it built itself
        super().run()
        if in_place:
            for name in ("include", "lib"):
                shutil.rmtree(Path("ds4kv", name), ignore_errors=True)
                if (built := Path(self.build_lib, "ds4kv", name)).exists():
                    shutil.copytree(built, Path("ds4kv", name))

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
        objects = self.compile_core()
        core = Path(self.build_temp, "core.a")
        self.archive(core, objects)
        for extension in self.extensions:
            extension.extra_objects = extension.depends = [str(core)]
        super().build_extensions()
        package = Path(self.build_lib, "ds4kv")
        self.copy_headers(package / "include")
        self.make_library(package / "lib" / "libds4kv.a", objects)

    def compile_core(self) -> list[str]:
        """The objects of csrc and lz4. Made anew: those older than their source or a header; all, for other flags."""
        # -fno-lto: CPython's own flags may ask for it, and objcopy could not see what such objects hold.
        # -g0: they ask for debug information too, which would be most of the wheel.
        flags = ["-O3", "-std=c11", "-pthread", "-fPIC", "-fvisibility=hidden", "-g0", "-fno-lto"]
        key = hashlib.sha256(repr([self.compiler.compiler_so, flags]).encode()).hexdigest()[:16]
        folder = str(Path("build", "core-" + key))  # pip has another build_temp for each editable install
        headers = [str(path) for path in [*CSRC.glob("*.h"), *LZ4.glob("*.h"), *XXHASH.glob("*.h"), Path("setup.py")]]

        def compiled(source: Path) -> str:
            [made] = self.compiler.object_filenames([str(source)], output_dir=folder)
            if self.force or newer_group([str(source), *headers], made):
                self.compiler.compile(
                    [str(source)],
                    output_dir=folder,
                    macros=[("LZ4LIB_VISIBILITY", "")],
                    include_dirs=[str(CSRC), str(LZ4), str(XXHASH)],
                    extra_postargs=flags,
                )
            return made

        # lz4 first: it takes most of the time.
        sources = [LZ4 / "lz4hc.c", LZ4 / "lz4.c", *sorted(CSRC.glob("*.c"))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compiled, sources))

    def copy_headers(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for header in sorted(CSRC.glob("ds4kv*.h")):
            self.copy_file(str(header), str(folder / header.name))

    def make_library(self, library: Path, objects: list[str]) -> None:
        """What csrc/Makefile does, without make: one object, in which lz4 and all else that is hidden is local."""
        objcopy = os.environ.get("OBJCOPY", "objcopy")
        if shutil.which(objcopy) is None:
            self.warn(f"no {objcopy}: libds4kv.a, for C programs, is left out")
            return
        whole = str(Path(self.build_temp, "ds4kv.o"))
        self.spawn([os.environ.get("LD", "ld"), "-r", "-o", whole, *objects])
        self.spawn([objcopy, "--localize-hidden", whole])
        self.archive(library, [whole])

    def archive(self, library: Path, objects: list[str]) -> None:
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)
        self.spawn([os.environ.get("AR", "ar"), "rcs", str(library), *objects])


# Before setup(), because every command needs them: sdist ships the sources, build_ext compiles them.
vendored = runpy.run_path("vendor/lz4/fetch.py")
try:
    for directory in (LZ4, XXHASH):
        vendored["fetch"](directory)
except vendored["VendorError"] as error:
    sys.exit(f"error: {error}")

setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage},
    # cffi compiles for the limited API by itself, except on a free-threaded CPython, which has none
    # before 3.15: there the wheel is for that one version.
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
