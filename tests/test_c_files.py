"""Payload streams as a FILE *: C writes and reads by them what Python does. What goes wrong there is told to both: to C
by an errno, to Python by the exception."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import io
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cffi import FFI
from processes import DEADLINE, status_of_fork
from test_stream import Pipe, region_of, text_like

import ds4kv
from ds4kv import PayloadReader, PayloadWriter, RawReader, RawWriter

CHUNK = 20_000
PIECES = [1, 4, 4, 4, 100, 65_536, 3_000_000, 7, 1 << 20, 4]
PAYLOAD = text_like(sum(PIECES))


class Ctypes:
    """C's stdio by ctypes, where a FILE * is an address."""

    def __init__(self, library: type[ctypes.CDLL] = ctypes.CDLL) -> None:
        self.c = library(None, use_errno=True)
        for name in ("fwrite", "fread"):
            getattr(self.c, name).restype = ctypes.c_size_t
            getattr(self.c, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
        for name in ("ferror", "feof", "fflush"):
            getattr(self.c, name).argtypes = [ctypes.c_void_p]

    def file(self, stream: PayloadWriter | PayloadReader | RawWriter | RawReader) -> int:
        return stream.as_file()

    def write(self, file: int, data: bytes) -> int:
        ctypes.set_errno(0)
        return self.c.fwrite(data, 1, len(data), file)

    def read(self, file: int, n: int) -> bytes:
        ctypes.set_errno(0)
        data = ctypes.create_string_buffer(n)
        n = self.c.fread(data, 1, n, file)
        return data.raw[:n]

    def errno(self) -> int:
        return ctypes.get_errno()

    def __getattr__(self, name: str) -> Callable[..., int]:
        return getattr(self.c, name)


class Cffi:
    """The same by an ffi of the engine's own."""

    def __init__(self) -> None:
        self.ffi = FFI()
        self.ffi.cdef("""
            size_t fwrite(const void *, size_t, size_t, FILE *);
            size_t fread(void *, size_t, size_t, FILE *);
            int ferror(FILE *);
            int feof(FILE *);
            int fflush(FILE *);
        """)
        self.c = self.ffi.dlopen(None)

    def file(self, stream: PayloadWriter | PayloadReader | RawWriter | RawReader) -> FFI.CData:
        return stream.as_file(self.ffi)

    def write(self, file: FFI.CData, data: bytes) -> int:
        self.ffi.errno = 0
        return self.c.fwrite(self.ffi.from_buffer(data), 1, len(data), file)

    def read(self, file: FFI.CData, n: int) -> bytes:
        self.ffi.errno = 0
        data = self.ffi.new("char[]", n)
        n = self.c.fread(data, 1, n, file)
        return bytes(self.ffi.buffer(data, n))

    def errno(self) -> int:
        return self.ffi.errno

    def __getattr__(self, name: str) -> Callable[..., int]:
        return getattr(self.c, name)


@pytest.fixture(params=[Ctypes, Cffi, lambda: Ctypes(ctypes.PyDLL)], ids=["ctypes", "cffi", "ctypes with the GIL"])
def c(request: pytest.FixtureRequest) -> Ctypes | Cffi:
    return request.param()


class Failing(io.BytesIO):
    """Raises once it holds more than so many bytes."""

    def __init__(self, limit: int, error: BaseException) -> None:
        super().__init__()
        self.limit, self.error = limit, error

    def write(self, b: memoryview) -> int:
        if self.tell() + len(b) > self.limit:
            raise self.error
        return super().write(b)


def write_pieces(c: Ctypes | Cffi, file: object) -> None:
    at = 0
    for piece in PIECES:
        assert c.write(file, PAYLOAD[at : at + piece]) == piece
        at += piece


def writer_of(kind: type, fp: io.IOBase, **how: int) -> PayloadWriter | RawWriter:
    return PayloadWriter(fp, chunk_size=CHUNK, **how) if kind is PayloadWriter else RawWriter(fp, **how)


def reader_of(kind: type, payload: bytes) -> PayloadReader | RawReader:
    if kind is RawReader:
        return RawReader(io.BytesIO(payload), len(payload))
    region = region_of(payload, chunk_size=CHUNK)
    return PayloadReader(io.BytesIO(region), len(region), chunk_size=CHUNK)


# ---- what goes through ----


@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
@pytest.mark.parametrize("raw_total", [None, len(PAYLOAD)])
def test_c_writes_what_python_writes(c: Ctypes | Cffi, kind: type, raw_total: int | None) -> None:
    expected, fp = io.BytesIO(), io.BytesIO() if raw_total is None else Pipe(step=50_000)
    with writer_of(kind, expected) as writer:
        writer.write(PAYLOAD)
    with writer_of(kind, fp, raw_total=raw_total) as writer:
        write_pieces(c, c.file(writer))
    assert writer.complete
    assert writer.tell() == len(PAYLOAD)
    assert (fp.data if isinstance(fp, Pipe) else fp.getvalue()) == expected.getvalue()


@pytest.mark.parametrize("kind", [PayloadReader, RawReader])
def test_c_reads_what_python_reads(c: Ctypes | Cffi, kind: type) -> None:
    with reader_of(kind, PAYLOAD) as reader:
        file = c.file(reader)
        at = 0
        for piece in PIECES:
            assert c.read(file, piece) == PAYLOAD[at : at + piece]
            at += piece
        assert not c.feof(file)
        assert c.read(file, 1) == b""
        assert c.feof(file) and not c.ferror(file)


def test_c_reads_from_a_pipe_and_from_a_file(c: Ctypes | Cffi, tmp_path: Path) -> None:
    region = region_of(PAYLOAD, chunk_size=CHUNK)
    path = tmp_path / "region"
    path.write_bytes(region)
    with path.open("rb") as file:
        for fp in (Pipe(region, step=70_000), file):
            with PayloadReader(fp, len(region), chunk_size=CHUNK) as reader:
                assert c.read(c.file(reader), len(PAYLOAD) + 1) == PAYLOAD


def test_an_empty_payload(c: Ctypes | Cffi) -> None:
    fp = io.BytesIO()
    with PayloadWriter(fp) as writer:
        assert c.write(c.file(writer), b"") == 0
    assert fp.getvalue() == region_of(b"")
    with reader_of(PayloadReader, b"") as reader:
        file = c.file(reader)
        assert c.read(file, 5) == b""
        assert c.feof(file)


def test_c_and_python_write_in_turns(c: Ctypes | Cffi) -> None:
    fp = io.BytesIO()
    with RawWriter(fp) as writer:
        writer.write(b"one ")
        file = c.file(writer)
        c.write(file, b"two ")
        writer.write(b"three ")
        c.write(file, b"four ")
        assert writer.tell() == 19
        assert fp.getvalue() == b"one two three four "
        c.write(file, b"five")
        writer.flush()
        assert fp.getvalue() == b"one two three four five"
        c.write(file, b", six")
    assert fp.getvalue() == b"one two three four five, six"


def test_c_goes_on_where_python_has_read_to_and_reads_alone_from_there(c: Ctypes | Cffi) -> None:
    with reader_of(PayloadReader, PAYLOAD) as reader:
        assert reader.read(10) == PAYLOAD[:10]
        reader.seek(100)
        file = c.file(reader)
        for use in (lambda: reader.read(1), lambda: reader.readinto(bytearray(1)), lambda: reader.seek(0)):
            with pytest.raises(io.UnsupportedOperation, match="C reads this stream"):
                use()
        reader.flush()
        assert c.read(file, 20) == PAYLOAD[100:120]


def test_it_is_one_file(c: Ctypes | Cffi) -> None:
    with RawWriter(io.BytesIO()) as writer, RawWriter(io.BytesIO()) as other:
        assert c.file(writer) == c.file(writer) != c.file(other)
        ffi = FFI()
        assert ffi.typeof(writer.as_file(ffi)) is ffi.typeof("FILE *")
        assert int(ffi.cast("uintptr_t", writer.as_file(ffi))) == writer.as_file()


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_closed_stream_is_no_file(end: str) -> None:
    writer = RawWriter(io.BytesIO())
    writer.as_file()
    getattr(writer, end)()
    with pytest.raises(ValueError, match="closed"):
        writer.as_file()
    reader = reader_of(RawReader, b"1234")
    reader.as_file()
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.as_file()


# ---- what goes wrong ----


@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("of no number"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ZeroDivisionError(), errno.EIO),
        (KeyboardInterrupt(), errno.EIO),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_of_the_file_object_reaches_both(
    c: Ctypes | Cffi, kind: type, error: BaseException, number: int
) -> None:
    payload = os.urandom(3_000_000)
    writer = writer_of(kind, Failing(100_000, error))
    file = c.file(writer)
    assert c.write(file, payload) < len(payload)
    assert (c.errno(), bool(c.ferror(file))) == (number, True)
    assert c.write(file, payload) < len(payload)
    assert c.errno() == number
    with pytest.raises(type(error)) as raised:
        writer.close()
    assert raised.value is error
    assert writer.closed and not writer.complete

    writer = writer_of(kind, Failing(4_000_000, error))  # control
    assert c.write(c.file(writer), payload) == len(payload)
    writer.close()
    assert writer.complete


@pytest.mark.parametrize("use", ["flush", "tell", "write"])
def test_the_next_use_from_python_raises_it_and_the_stream_stays_broken(c: Ctypes | Cffi, use: str) -> None:
    writer = RawWriter(Failing(10, OSError(errno.EDQUOT, "quota")))
    file = c.file(writer)
    assert c.write(file, b"gathered, so far") == 16
    with pytest.raises(OSError, match="quota"):
        getattr(writer, use)(*([b"more"] if use == "write" else []))
    assert c.write(file, bytes(3_000_000)) < 3_000_000
    with pytest.raises(ds4kv.Ds4kvError, match="an earlier write failed"):
        writer.close()
    assert not writer.complete


def test_more_than_was_announced_breaks_the_stream(c: Ctypes | Cffi) -> None:
    for announced in (16, 17):  # 17: control
        writer = RawWriter(io.BytesIO(), raw_total=announced)
        c.write(c.file(writer), b"gathered, so far.")
        if announced == 17:
            writer.close()
            continue
        with pytest.raises(ValueError, match="raw_total is 16"):
            writer.flush()
        with pytest.raises(ds4kv.Ds4kvError, match="an earlier write failed"):
            writer.close()


def test_a_write_of_which_python_says_nothing_is_an_error_too(
    c: Ctypes | Cffi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there is no memory to make the call from C, nor to keep what it raised."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    fp = io.BytesIO()
    writer = RawWriter(fp)
    file = c.file(writer)
    c.write(file, b"control")
    writer.flush()
    with monkeypatch.context() as patch:
        patch.setattr("ds4kv.core.c_file._CFile.write", no_memory)
        patch.setattr("ds4kv.core.c_file._CFile.keep", no_memory)
        patch.setattr("sys.unraisablehook", lambda _: None)
        assert c.write(file, PAYLOAD) < len(PAYLOAD)
        assert c.errno() == errno.EIO
    with pytest.raises(OSError, match="what C has written could not be passed on"):
        writer.flush()
    with pytest.raises(ds4kv.Ds4kvError, match="an earlier write failed"):
        writer.close()
    assert fp.getvalue() == b"control"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(c: Ctypes | Cffi) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = RawWriter(full)
        assert c.write(c.file(writer), PAYLOAD) < len(PAYLOAD)
        assert c.errno() == errno.ENOSPC
        with pytest.raises(OSError) as raised:
            writer.close()
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("told_by", ["close", "read", "flush"])
@pytest.mark.parametrize(
    ("damage", "kind", "number"),
    [
        (None, None, 0),
        (lambda region: region[:-5], ds4kv.TruncatedError, errno.ENODATA),
        (lambda region: region[:12] + b"\xff" + region[13:], ds4kv.CorruptError, errno.EBADMSG),
    ],
    ids=["control", "truncated", "corrupt"],
)
def test_bad_regions(
    c: Ctypes | Cffi,
    damage: Callable[[bytes], bytes] | None,
    kind: type[Exception] | None,
    number: int,
    told_by: str,
) -> None:
    region = region_of(PAYLOAD, chunk_size=CHUNK)
    bad = region if damage is None else damage(region)
    reader = PayloadReader(io.BytesIO(bad), len(region), chunk_size=CHUNK)
    file = c.file(reader)
    read = c.read(file, len(PAYLOAD))
    assert PAYLOAD.startswith(read)
    assert (c.errno(), bool(c.ferror(file)), bool(c.feof(file))) == (number, number != 0, False)
    if kind is None:
        assert read == PAYLOAD
        reader.close()
        return
    assert len(read) < len(PAYLOAD)
    with pytest.raises(kind) as raised:
        getattr(reader, told_by)()
    assert type(raised.value) is kind and raised.value.offset is not None
    reader.close()


def test_an_error_is_told_once_and_can_be_tried_again(c: Ctypes | Cffi) -> None:
    class Bad(io.BytesIO):
        broken = True

        def readinto(self, b: memoryview) -> int:
            if self.broken:
                raise OSError(errno.EREMOTEIO, "gone")
            return super().readinto(b)

    reader = RawReader(Bad(b"payload"), 7)
    file = c.file(reader)
    assert (c.read(file, 7), c.errno()) == (b"", errno.EREMOTEIO)
    with pytest.raises(OSError, match="gone"):
        reader.flush()
    reader._fp.broken = False
    assert c.read(file, 7) == b"payload"
    reader.close()


# ---- how it ends ----


@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
def test_abandon_drops_what_c_has_written(c: Ctypes | Cffi, kind: type) -> None:
    fp = io.BytesIO()
    with pytest.raises(ZeroDivisionError), writer_of(kind, fp) as writer:
        file = c.file(writer)
        c.write(file, PAYLOAD)
        c.write(file, b"gathered")
        written = fp.getvalue()
        raise ZeroDivisionError
    assert fp.getvalue() == written
    assert writer.closed and not writer.complete


def test_abandon_tells_no_error(c: Ctypes | Cffi) -> None:
    writer = RawWriter(Failing(10, OSError(errno.ENOSPC, "full")))
    c.write(c.file(writer), PAYLOAD)
    writer.abandon()
    assert writer.closed


@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
def test_garbage_is_not_a_finished_save(c: Ctypes | Cffi, kind: type) -> None:
    fp = io.BytesIO()
    writer = writer_of(kind, fp)
    gone = weakref.ref(writer)
    c.write(c.file(writer), PAYLOAD)
    written = fp.getvalue()
    gc.disable()  # it goes by itself: no cycle holds it
    try:
        with pytest.warns(ResourceWarning, match="neither closed nor abandoned"):
            del writer
        assert gone() is None
    finally:
        gc.enable()
    assert fp.getvalue() == written


def test_a_reader_that_is_dropped_ends_at_once(c: Ctypes | Cffi) -> None:
    reader = reader_of(PayloadReader, PAYLOAD)
    gone = weakref.ref(reader)
    c.read(c.file(reader), 10)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


def test_from_another_thread(c: Ctypes | Cffi) -> None:
    fp = io.BytesIO()
    with PayloadWriter(fp, chunk_size=CHUNK) as writer:
        thread = threading.Thread(target=write_pieces, args=(c, c.file(writer)))
        thread.start()
        thread.join()
    with PayloadReader(io.BytesIO(fp.getvalue()), len(fp.getvalue()), chunk_size=CHUNK) as reader:
        read: list[bytes] = []
        file = c.file(reader)
        thread = threading.Thread(target=lambda: read.append(c.read(file, len(PAYLOAD))))
        thread.start()
        thread.join()
    assert read == [PAYLOAD]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
@pytest.mark.parametrize("end", ["close", "abandon", "flush"])
def test_a_forked_child_does_no_harm(c: Ctypes | Cffi, tmp_path: Path, kind: type, end: str) -> None:
    expected = io.BytesIO()
    with writer_of(kind, expected) as writer:
        writer.write(PAYLOAD)
    region = expected.getvalue()
    with open(tmp_path / "region", "wb+", buffering=0) as fp, writer_of(kind, fp) as writer:
        reader = reader_of(PayloadReader, PAYLOAD)
        file, reading = c.file(writer), c.file(reader)
        c.write(file, PAYLOAD[:100])
        assert c.read(reading, 100) == PAYLOAD[:100]

        def end_it() -> None:
            if end == "flush":
                c.fflush(file)
            with contextlib.nullcontext() if end == "abandon" else pytest.raises(RuntimeError):
                getattr(writer, end)()

        assert status_of_fork(end_it) == 0
        assert c.write(file, PAYLOAD[100:]) == len(PAYLOAD) - 100
        assert c.read(reading, len(PAYLOAD)) == PAYLOAD[100:]
        reader.close()
    assert (tmp_path / "region").read_bytes() == region


LEAKED = """
import ctypes, io, sys
import ds4kv
class Nowhere(io.RawIOBase):
    def write(self, b):
        print("written", flush=True)
        return len(b)
writer = ds4kv.RawWriter(Nowhere())
c = ctypes.CDLL(None)
c.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
c.fputs(b"gathered", writer.as_file())
ctypes.pythonapi.Py_IncRef(ctypes.py_object(writer))  # never collected, so it is open when C's exit() flushes
exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("end", "written"),
    [("pass", b""), ("sys.exit()", b""), ("writer.flush()", b"written\n"), ("c.exit(0)", b"written\n")],
)
def test_a_stream_that_is_open_when_the_process_ends(end: str, written: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", LEAKED, end], capture_output=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout, done.stderr) == (0, written, b"")


# ---- whole files ----


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_checkpoints(c: Ctypes | Cffi, tmp_path: Path, codec: str) -> None:
    how = {"tokens": 5, "ctx_size": 4096, "codec": codec, "chunk_size": CHUNK, "created_at": 1}
    ds4kv.dump(tmp_path / "python.kv", PAYLOAD, **how)
    with ds4kv.create(tmp_path / "c.kv", **how) as checkpoint:
        write_pieces(c, c.file(checkpoint.payload))
    assert (tmp_path / "c.kv").read_bytes() == (tmp_path / "python.kv").read_bytes()
    with ds4kv.open(tmp_path / "c.kv") as checkpoint:
        assert c.read(c.file(checkpoint.payload), len(PAYLOAD) + 1) == PAYLOAD
    with pytest.raises(ZeroDivisionError), ds4kv.create(tmp_path / "c.kv", **how) as checkpoint:
        c.write(c.file(checkpoint.payload), b"half")
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.kv", "python.kv"]
    assert bytes(ds4kv.load(tmp_path / "c.kv").payload) == PAYLOAD


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_a_store(c: Ctypes | Cffi, tmp_path: Path, codec: str) -> None:
    payload = np.random.default_rng(1).bytes(3_000_000)
    with ds4kv.Store(tmp_path, budget_mb=100, codec=codec) as store:
        for _ in range(2):  # the second one is dropped
            with store.save(b"text", tokens=1000, ctx_size=4096, quant_bits=2) as save:
                assert c.write(c.file(save.payload), payload) == len(payload)
        entry = store.find(b"text", ctx_size=4096, quant_bits=2)
        with store.load(entry) as checkpoint:
            assert c.read(c.file(checkpoint.payload), len(payload)) == payload
        assert store.find(b"text", ctx_size=4096, quant_bits=2).header.hits == 1


def test_what_c_finds_corrupt_is_set_aside_by_the_store(c: Ctypes | Cffi, tmp_path: Path) -> None:
    with ds4kv.Store(tmp_path, budget_mb=100) as store:
        with store.save(b"text", tokens=1000, ctx_size=4096, quant_bits=2) as save:
            c.write(c.file(save.payload), PAYLOAD)
        entry = store.find(b"text", ctx_size=4096, quant_bits=2)
        with open(entry.path, "r+b") as file:
            file.seek(52 + 4 + 12)
            file.write(b"\xff\xff")
        with pytest.raises(ds4kv.CorruptError) as raised, store.load(entry) as checkpoint:
            assert c.read(c.file(checkpoint.payload), len(PAYLOAD)) == b""
            assert c.errno() == errno.EBADMSG
        checkpoint.close()
        assert raised.value.path == entry.path and raised.value.offset is not None
        assert store.find(b"text", ctx_size=4096, quant_bits=2) is None
        assert [path.name for path in (tmp_path / "quarantine").glob("*.kv")] == [os.path.basename(entry.path)]
