"""Vendored C sources: exactly the bytes that lock.toml names, or an error that says what to do.

The sources are not in git. Where they are absent they come from the folder that the lock's
environment variable names, or else out of a source distribution that pip downloads. No byte is put
in place before its hash is right, and the hashes are compared again at every build.

    python3 vendor/lz4/fetch.py             fetch what is absent, then verify
    python3 vendor/lz4/fetch.py --verify    verify only

Nothing here is about lz4: another folder with a lock.toml is fetched by naming it.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Lock = dict[str, Any]


class VendorError(Exception):
    """The vendored sources are not the locked ones, or cannot be had."""


def read_lock(directory: Path = HERE) -> Lock:
    return tomllib.loads((directory / "lock.toml").read_text(encoding="utf-8"))


def verify(directory: Path = HERE) -> None:
    """Raise VendorError unless every file in `directory` is the one its lock names."""
    lock = read_lock(directory)
    command = f"python3 {os.path.relpath(__file__)}"
    if directory.resolve() != HERE:
        command += f" {directory}"
    remedy = f"vendored sources are never edited: delete the file and run `{command}`"
    for name, expected in lock["files"].items():
        path = directory / name
        if not path.exists():
            raise VendorError(f"{path} is absent: run `{command}`")
        _check(lock, str(path), path.read_bytes(), expected, remedy)


def fetch(directory: Path = HERE) -> None:
    """Put the files that are absent from `directory` in place, verify them all, and set their licence beside them."""
    lock = read_lock(directory)
    absent = [name for name in lock["files"] if not (directory / name).exists()]
    if absent:
        folder = os.environ.get(lock["source_variable"])
        sources = _from_folder(lock, Path(folder)) if folder else _from_sdist(lock)
        for name in absent:
            # Renamed into place, so that a build killed here leaves no half-written source.
            part = directory / f".{name}.{os.getpid()}.part"
            part.write_bytes(sources[name])
            part.replace(directory / name)
    verify(directory)
    head, _, _ = (directory / lock["notice"]).read_text(encoding="utf-8").partition("*/")
    lines = [line.removeprefix(" ").removeprefix("*").strip() for line in head.removeprefix("/*").splitlines()]
    (directory / "LICENSE").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


def _from_folder(lock: Lock, folder: Path) -> dict[str, bytes]:
    variable = lock["source_variable"]
    sources = {}
    for name, expected in lock["files"].items():
        path = folder / name
        if not path.is_file():
            raise VendorError(
                f"{variable}={folder} has no file {name}: it must hold {_names(lock)}, "
                f"as released in {lock['name']} {lock['version']}"
            )
        sources[name] = path.read_bytes()
        _check(lock, str(path), sources[name], expected, f"{variable} must name that release")
    return sources


def _from_sdist(lock: Lock) -> dict[str, bytes]:
    sdist = lock["sdist"]
    requirement = sdist["requirement"]
    with tempfile.TemporaryDirectory(prefix="ds4kv-vendor-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sdist['sha256']}\n")
        pip = [sys.executable, "-m", "pip", "download", "--no-input", "--retries", "2"]
        pip += ["--no-deps", "--no-binary", requirement.partition("==")[0]]
        pip += ["--require-hashes", "--requirement", str(requirements), "--dest", scratch]
        run = subprocess.run(
            pip,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if run.returncode:
            tail = "".join(f"\n    {line}" for line in run.stdout.splitlines()[-8:])
            raise VendorError(
                f"the sources of {lock['name']} {lock['version']} are not here, and pip could not "
                f"download them in {requirement}. With a network, try again; without one, set "
                f"{lock['source_variable']} to a folder that holds {_names(lock)} of that release."
                f" pip said:{tail}"
            )
        # Members are read by their full names and never unpacked: no path in the archive matters.
        with tarfile.open(Path(scratch, sdist["archive"])) as archive:
            sources = {name: archive.extractfile(f"{sdist['path']}/{name}").read() for name in lock["files"]}
    for name, expected in lock["files"].items():
        where = f"{name} in {sdist['archive']}"
        _check(lock, where, sources[name], expected, "lock.toml contradicts itself: correct it")
    return sources


def _check(lock: Lock, where: str, content: bytes, expected: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise VendorError(
            f"{where} is not the file of {lock['name']} {lock['version']}: "
            f"expected SHA-256 {expected}, found {found}; {remedy}"
        )


def _names(lock: Lock) -> str:
    *first, last = lock["files"]
    return f"{', '.join(first)} and {last}" if first else last


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and verify vendored C sources.")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE, help="holds lock.toml")
    parser.add_argument("--verify", action="store_true", help="verify only, fetch nothing")
    options = parser.parse_args()
    try:
        (verify if options.verify else fetch)(options.directory)
    except VendorError as error:
        sys.exit(f"error: {error}")
    lock = read_lock(options.directory)
    print(f"{lock['name']} {lock['version']}: every file is the locked one")


if __name__ == "__main__":
    main()
