"""Scenarios of single files: written and read by Python, by commands, and by an engine in C."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from faults.scenario import NEW, A, C, Scenario, in_pieces, payload_of
from faults.shim import Fault, compiler

import ds4kv
import ds4kv.cli

__all__ = ["SCENARIOS", "EngineInC"]


class Dumping(Scenario):
    """A file alone, of a name of its own, in place of one that is there; of many chunks."""

    name = "dump"

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", A, self.layout)

    def run(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", NEW, self.layout)
        checkpoint = ds4kv.load(directory / "out.kv", workers=2)
        assert checkpoint.payload == payload_of(NEW), "wrong bytes"
        with ds4kv.open(directory / "out.kv", workers=2) as reader:
            piece, read = bytearray(1000), b""
            while n := reader.payload.readinto(piece):
                read += piece[:n]
            assert read == payload_of(NEW), "wrong bytes"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, NEW] if failed else [NEW]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        in_pieces(directory / "out.kv", C, self.layout)
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next dump to this name"


class Commanding(Scenario):
    """A command: it ends by an exit code, and says what is wrong in a line."""

    def command(self, *words: object, fails_well: Collection[int] = (1,)) -> str:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = ds4kv.cli.main([str(word) for word in words])
        assert code == 0 or code in fails_well, f"exit code {code}"
        if code:
            assert "Traceback" not in errors.getvalue(), errors.getvalue()
            raise OSError(errors.getvalue())
        return out.getvalue()


class Converting(Commanding):
    name = "convert to"

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", C, self.layout)
        in_pieces(directory / "in.kv", A, "v2")

    def run(self, directory: Path) -> None:
        self.command("convert", directory / "in.kv", directory / "out.kv", "--layout", self.layout, "--threads", 1)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        assert ds4kv.load(directory / "in.kv").payload == payload_of(A), "lost: the source"
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, C] if failed else [A]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        with contextlib.redirect_stdout(io.StringIO()):
            assert ds4kv.cli.main(["convert", str(directory / "in.kv"), str(directory / "out.kv")]) == 0
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next conversion to this name"


class Salvaging(Commanding):
    """A damaged file: it stays to the byte, and what is made of it is a beginning of what it was. What the disk doesn't
    give is lost like what is damaged, and is named with the disk's own words.
    """

    name = "salvage"
    also = ("v2", "v2-checked", "packed")

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "in.kv", A, self.layout)
        damaged = bytearray((directory / "in.kv").read_bytes())
        at = len(damaged) * 2 // 3
        damaged[at : at + 2000] = bytes(2000)
        (directory / "in.kv").write_bytes(damaged)
        (directory.parent / "as it was").write_bytes(damaged)

    def run(self, directory: Path) -> None:
        said = self.command("salvage", directory / "in.kv", directory / "out.kv", "--threads", 1)
        (directory.parent / "said").write_text(said)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        assert (directory / "in.kv").read_bytes() == (directory.parent / "as it was").read_bytes(), "wrong: IN changed"
        if not failed or (directory / "out.kv").exists():
            payload = ds4kv.load(directory / "out.kv").payload
            assert payload == payload_of(A)[: len(payload)], "wrong bytes"
            if not failed and len(payload) <= 4096:
                assert "Input/output error" in (directory.parent / "said").read_text(), "lost: good chunks"


class EngineInC(Scenario):
    """A C engine saves a checkpoint in place of another, and loads it."""

    name = "C engine"
    library: ctypes.CDLL | None = None

    @classmethod
    def build(cls, folder: Path) -> None:
        target = folder / "libds4kv_engine.so"
        words = f"-O1 -shared -fPIC -I {ds4kv.get_include()} {Path(__file__).with_name('engine.c')}".split()
        subprocess.run([compiler(), *words, "-o", target, ds4kv.get_library(), "-pthread"], check=True)
        cls.library = ctypes.CDLL(str(target))

    def prepare(self, directory: Path) -> None:
        self.save(directory, A)

    def run(self, directory: Path) -> None:
        self.save(directory, NEW)
        assert self.load(directory) == payload_of(NEW), "wrong bytes"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, NEW] if failed else [NEW]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        self.save(directory, C)
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next save to this name"

    def save(self, directory: Path, text: bytes) -> None:
        assert self.library is not None
        payload, error = payload_of(text), ctypes.c_int()
        layout = {"v1": 1, "v2": 2, "v2-checked": 4, "packed": 5}[self.layout]
        sizes = ctypes.c_size_t(len(text)), ctypes.c_size_t(len(payload))
        path = os.fsencode(directory / "out.kv")
        self.ended(
            self.library.engine_save(path, layout, text, sizes[0], payload, sizes[1], 0, ctypes.byref(error)), error
        )

    def load(self, directory: Path) -> bytes:
        assert self.library is not None
        payload, read, error = ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(), ctypes.c_int()
        path, size = os.fsencode(directory / "out.kv"), ctypes.c_size_t(1 << 20)
        status = self.library.engine_load(path, payload, size, ctypes.byref(read), ctypes.byref(error))
        self.ended(status, error)
        return payload.raw[: read.value]

    def ended(self, status: int, error: ctypes.c_int) -> None:
        assert self.library is not None
        self.library.ds4kv_trim()  # threads that wait for its next load or save are not left behind
        if status in (-5, -6):  # NOMEM, THREAD
            raise MemoryError
        if status == -8:  # IO
            assert error.value, "an error of the system without its number"
            raise OSError(error.value, os.strerror(error.value))
        assert status != -2, "TRUNCATED"
        assert status == 0, f"condemned: status {status}"


SCENARIOS = [Dumping, Converting, Salvaging, EngineInC]
