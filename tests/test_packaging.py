"""What is promised about the package itself: the vendored bytes, the symbols, the wheel, the import."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import is_editable
from processes import DEADLINE

import ds4kv

ROOT = Path(__file__).resolve().parent.parent
VENDORED = ROOT / "vendor" / "lz4"
SOURCES = ["lz4.c", "lz4.h", "lz4hc.c", "lz4hc.h"]

vendor = SimpleNamespace(**runpy.run_path(str(VENDORED / "fetch.py")))


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A folder with the four sources, named by DS4KV_LZ4_SOURCE; pip reaches no index."""
    vendor.fetch(VENDORED)
    folder = tmp_path / "lz4-1.10.0"
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(VENDORED / name, folder)
    monkeypatch.setenv("DS4KV_LZ4_SOURCE", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.mark.parametrize("name", ["lz4", "xxhash"])
def test_what_is_compiled_is_what_is_locked(name):
    vendor.verify(VENDORED.parent / name)


def test_xxhash_is_fetched_and_verified_as_lz4_is(tmp_path, monkeypatch):
    origin = VENDORED.parent / "xxhash"
    ignore = shutil.ignore_patterns("*.h", "LICENSE")
    clone = Path(shutil.copytree(origin, tmp_path / "xxhash", ignore=ignore))
    monkeypatch.setenv("DS4KV_XXHASH_SOURCE", str(tmp_path))
    with pytest.raises(
        vendor.VendorError, match=r"DS4KV_XXHASH_SOURCE=.* has no file xxhash\.h: it must hold xxhash\.h,"
    ):
        vendor.fetch(clone)
    monkeypatch.setenv("DS4KV_XXHASH_SOURCE", str(origin))
    vendor.fetch(clone)
    assert "BSD 2-Clause License" in (clone / "LICENSE").read_text()
    with (clone / "xxhash.h").open("ab") as fp:
        fp.write(b"\n")
    with pytest.raises(vendor.VendorError, match=r"expected SHA-256 .*, found .*"):
        vendor.verify(clone)


@pytest.fixture
def clone(tmp_path):
    """vendor/lz4 as git has it: without the sources."""
    ignore = shutil.ignore_patterns("*.c", "*.h", "LICENSE", "__pycache__")
    return Path(shutil.copytree(VENDORED, tmp_path / "clone", ignore=ignore))


def found_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_sources_come_from_a_folder_without_a_network(sources, clone):
    tracked = found_in(clone)
    vendor.fetch(clone)
    assert found_in(clone) == sorted([*tracked, *SOURCES, "LICENSE"])
    vendor.verify(clone)
    licence = (clone / "LICENSE").read_text()
    assert licence.startswith("LZ4 - Fast LZ compression algorithm\nCopyright (C)")
    assert "BSD 2-Clause License" in licence


def test_files_that_are_there_are_not_fetched_again(sources, clone, monkeypatch):
    vendor.fetch(clone)
    monkeypatch.setenv("DS4KV_LZ4_SOURCE", "nowhere")
    vendor.fetch(clone)


@pytest.mark.parametrize("name", SOURCES)
def test_a_changed_byte_is_refused(sources, clone, name):
    vendor.fetch(clone)
    path = clone / name
    good = path.read_bytes()
    path.write_bytes(good.replace(b"LZ4", b"LZ5", 1))
    for check in vendor.verify, vendor.fetch:
        with pytest.raises(vendor.VendorError, match=r"expected SHA-256 .*, found .*") as refusal:
            check(clone)
        assert str(path) in str(refusal.value)
        assert "never edited" in str(refusal.value)
    path.write_bytes(good)
    vendor.verify(clone)


def test_an_absent_file_is_not_verified(sources, clone):
    vendor.fetch(clone)
    (clone / "lz4.h").unlink()
    with pytest.raises(vendor.VendorError, match=r"lz4\.h is absent: run `python3 .*fetch\.py .*clone`"):
        vendor.verify(clone)


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_that_lacks_a_file_is_refused(sources, clone, name):
    before = found_in(clone)
    (sources / name).unlink()
    with pytest.raises(vendor.VendorError) as refusal:
        vendor.fetch(clone)
    assert f"DS4KV_LZ4_SOURCE={sources} has no file {name}" in str(refusal.value)
    assert "lz4.c, lz4.h, lz4hc.c and lz4hc.h" in str(refusal.value)
    assert found_in(clone) == before


def test_a_folder_with_a_wrong_file_is_refused_before_anything_is_in_place(sources, clone):
    before = found_in(clone)
    path = sources / "lz4hc.h"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(vendor.VendorError, match=r"expected SHA-256 .*, found .*DS4KV_LZ4_SOURCE"):
        vendor.fetch(clone)
    assert found_in(clone) == before


@pytest.mark.slow
def test_no_network_is_one_error_that_says_what_to_do(sources, clone, monkeypatch):
    monkeypatch.delenv("DS4KV_LZ4_SOURCE")
    before = found_in(clone)
    run = subprocess.run([sys.executable, clone / "fetch.py"], capture_output=True, text=True, timeout=DEADLINE)
    assert run.returncode == 1
    assert run.stderr.startswith("error: the sources of lz4 1.10.0 are not here")
    assert "set DS4KV_LZ4_SOURCE to a folder that holds lz4.c, lz4.h, lz4hc.c and lz4hc.h" in run.stderr
    assert "Traceback" not in run.stderr
    assert found_in(clone) == before


def output_of(command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout


def test_the_core_is_compiled_with_the_locked_lz4():
    from ds4kv.core import _native

    assert _native.ffi.string(_native.lib.ds4kv_lz4_version()).decode() == vendor.read_lock()["version"]


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="needs binutils' nm")
def test_the_library_shows_the_host_program_nothing_but_its_own_names():
    import ds4kv

    nm = output_of(["nm", "-g", "--defined-only", ds4kv.get_library()])
    names = {line.split()[-1] for line in nm.splitlines() if len(line.split()) == 3}
    assert {"ds4kv_writer_new", "ds4kv_fopen_reader", "ds4kv_checkpoint_open"} <= names
    assert [name for name in names if not name.startswith("ds4kv_")] == []


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="needs binutils' nm")
def test_the_extension_exports_its_init_function_alone():
    from ds4kv.core import _native

    nm = output_of(["nm", "-D", "--defined-only", _native.__file__])
    assert [line.split()[-1] for line in nm.splitlines()] == ["PyInit__native"]


@pytest.mark.skipif(is_editable(), reason="an editable install has its files in the source folder")
def test_what_is_installed():
    distribution = importlib.metadata.distribution("ds4kv")
    installed = [str(path) for path in distribution.files]
    assert "ds4kv/py.typed" in installed
    assert "ds4kv/core/_native.pyi" in installed
    headers = {f"ds4kv/include/{name}" for name in ("ds4kv.h", "ds4kv_stdio.h", "ds4kv_file.h")}
    assert {path for path in installed if path.endswith((".c", ".h", ".o", ".a"))} == headers | {"ds4kv/lib/libds4kv.a"}
    assert {path.split("/")[0] for path in installed if path.endswith(".py")} == {"ds4kv", "ds4kv_command.py"}
    licences = [path for path in installed if path.endswith("LICENSE")]
    assert len(licences) == 3, "ds4kv's own, and those of lz4 and xxHash, whose code the wheel carries"


MADE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "include", "lib", "engine")


def version_of(package):
    try:
        return int(importlib.metadata.version(package).partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(version_of("setuptools") < 77, reason="needs setuptools 77")
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_an_editable_install_is_the_source_folder_and_leaves_nothing_in_a_wheel(tmp_path):
    source = tmp_path / "ds4kv"
    shutil.copytree(ROOT, source, ignore=MADE)
    shutil.copy(ROOT / ".gitignore", source)
    venv.create(tmp_path / "venv", symlinks=True)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    for path in Path(importlib.metadata.distribution("setuptools").locate_file("")).iterdir():
        if "ds4kv" not in path.name and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)

    def run(*command):
        ran = subprocess.run(
            command, cwd=source, capture_output=True, text=True, timeout=250, env={**os.environ, "PIP_NO_INDEX": "1"}
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def status():
        return run("git", "status", "--porcelain")

    def lz4():
        return run(python, "-c", "from ds4kv.core import _native as n; print(n.ffi.string(n.lib.ds4kv_lz4_version()))")

    python = tmp_path / "venv" / "bin" / "python"
    run("git", "init", "--quiet")
    run("git", "add", "--all")
    run("git", "-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--message", "all")
    run(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", ".")
    assert status() == ""
    where = run(python, "-c", "import ds4kv; print(ds4kv.__file__, ds4kv.get_include(), ds4kv.get_library())").split()
    package = source / "ds4kv"
    assert where == [str(package / name) for name in ("__init__.py", "include", "lib/libds4kv.a")]
    assert {path.name for path in (package / "include").iterdir()} == {p.name for p in source.glob("csrc/ds4kv*.h")}

    # One command takes up a change in C.
    [core] = [path for path in source.glob("csrc/*.c") if "return LZ4_versionString();" in path.read_text()]
    text = core.read_text()
    core.write_text(text.replace("return LZ4_versionString();", 'return "changed";'))
    run(python, "setup.py", "build_ext", "--inplace")
    assert "changed" in lz4()
    core.write_text(text)

    # What is built there afterwards carries nothing of all that.
    for folder in (source / "build").glob("lib*/ds4kv"):
        (folder / "gone.py").touch()
    (source / "dist").mkdir()
    for what in ("sdist", "wheel"):
        run(python, "-c", f"from setuptools.build_meta import *; build_{what}('dist')")
    [sdist], [wheel] = source.glob("dist/*.tar.gz"), source.glob("dist/*.whl")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert "csrc/ring.c" in shipped
    assert [name for name in shipped if name.endswith((".so", ".a", ".o")) or "include" in name] == []
    modules = {str(path.relative_to(source)) for path in package.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("ds4kv/")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert len([name for name in names if name.endswith(".so")]) == 1
    assert status() == ""


def test_importing_ds4kv_needs_nothing_but_cffi():
    script = "import sys; before = set(sys.modules); import ds4kv; print(*set(sys.modules) - before)"
    run = output_of([sys.executable, "-I", "-c", script])
    packages = {name.partition(".")[0] for name in run.split()}
    assert "ds4kv" in packages
    assert packages - sys.stdlib_module_names <= {"ds4kv", "cffi", "_cffi_backend"}
    # Each of these would take as long to import as all of ds4kv, which is to cost 20 ms at most.
    assert packages.isdisjoint({"argparse", "dataclasses", "hashlib", "inspect", "logging", "secrets"})


def test_every_public_name_is_there():
    for name in ds4kv.__all__:
        assert getattr(ds4kv, name).__doc__
        assert name in dir(ds4kv)
    with pytest.raises(AttributeError, match="no attribute 'store_everything'"):
        ds4kv.store_everything  # noqa: B018
