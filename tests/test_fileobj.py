"""File objects as programs have them: each with the few methods that it has."""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ds4kv
from ds4kv import PayloadReader, PayloadWriter, RawReader, RawWriter

PAYLOAD = bytes(range(256)) * 200
CHUNK_SIZE = 1000


def region() -> bytes:
    fp = io.BytesIO()
    with PayloadWriter(fp, chunk_size=CHUNK_SIZE) as writer:
        writer.write(PAYLOAD)
    return fp.getvalue()


class ReadOnly:
    """read(), and nothing else."""

    def __init__(self, data: bytes) -> None:
        self._fp = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._fp.read(min(size, 777))


class Sink:
    """write(), and nothing else; it says nothing of how much it took."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, b: Any) -> None:
        self.data += bytes(b)


class Sought(Sink):
    """The same, with seek() and tell()."""

    def __init__(self) -> None:
        self.fp = io.BytesIO()
        self.seek, self.tell = self.fp.seek, self.fp.tell

    def write(self, b: Any) -> None:
        self.fp.write(b)


def test_read_alone_will_do() -> None:
    for reader in (
        PayloadReader(ReadOnly(region()), len(region()), chunk_size=CHUNK_SIZE),
        RawReader(ReadOnly(PAYLOAD), len(PAYLOAD)),
    ):
        with reader:
            assert not reader.seekable()
            assert reader.read() == PAYLOAD


def test_write_alone_will_do() -> None:
    sink = Sink()
    with PayloadWriter(sink, chunk_size=CHUNK_SIZE, raw_total=len(PAYLOAD)) as writer:
        writer.write(PAYLOAD)
    assert sink.data == region()
    with pytest.raises(io.UnsupportedOperation, match="give raw_total"):
        PayloadWriter(Sink(), chunk_size=CHUNK_SIZE)
    sink = Sink()
    with RawWriter(sink) as raw:
        raw.write(PAYLOAD)
    assert sink.data == PAYLOAD


def test_seek_and_tell_are_enough_to_go_back() -> None:
    sink = Sought()
    with PayloadWriter(sink, chunk_size=CHUNK_SIZE) as writer:
        writer.write(PAYLOAD)
    assert sink.fp.getvalue() == region()


def test_nothing_said_is_eagain_of_a_raw_file_object() -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, b: Any, /) -> None:
            return None

    writer = RawWriter(Full())
    with pytest.raises(BlockingIOError):
        writer.write(b"x")
    writer.abandon()


def test_mmap(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(3) + region() + bytes(100))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped.seek(3)
        with PayloadReader(mapped, len(region()), chunk_size=CHUNK_SIZE) as reader:
            reader.seek(1234)
            assert reader.read() == PAYLOAD[1234:]
        assert mapped.tell() == 3 + len(region())
        mapped.seek(0)
        with PayloadWriter(mapped, chunk_size=CHUNK_SIZE) as writer:
            writer.write(PAYLOAD)
        assert mapped[: len(region())] == region()


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_descriptor_that_appends_cannot_go_back(tmp_path: Path, buffering: int) -> None:
    fd = os.open(tmp_path / "region", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with open(fd, "r+b", buffering=buffering) as fp:
        assert "a" not in fp.mode
        with pytest.raises(io.UnsupportedOperation, match="give raw_total"):
            PayloadWriter(fp, chunk_size=CHUNK_SIZE)
        with PayloadWriter(fp, chunk_size=CHUNK_SIZE, raw_total=len(PAYLOAD)) as writer:
            writer.write(PAYLOAD)
    assert (tmp_path / "region").read_bytes() == region()


def test_a_spooled_file_stays_in_memory() -> None:
    with tempfile.SpooledTemporaryFile() as fp:
        with PayloadWriter(fp, chunk_size=CHUNK_SIZE) as writer:
            writer.write(PAYLOAD)
        assert not fp._rolled  # type: ignore[attr-defined]
        fp.seek(0)
        assert fp.read() == region()


def test_a_pipe_that_failed_is_not_read_on() -> None:
    """Some bytes are gone: the next would be taken for them."""

    class Fails(ReadOnly):
        fails_at = 2

        def read(self, size: int) -> bytes:
            self.fails_at -= 1
            if self.fails_at == 0:
                raise OSError("once")
            return super().read(size)

    for reader in (
        RawReader(Fails(PAYLOAD), len(PAYLOAD)),
        PayloadReader(Fails(region()), len(region()), chunk_size=CHUNK_SIZE),
    ):
        with reader:
            with pytest.raises(OSError, match="once"):
                reader.read()
            with pytest.raises(ds4kv.Ds4kvError, match="an earlier read failed"):
                reader.read()


# ---- the caller's memory ----


@pytest.mark.parametrize("kind", ["payload", "raw"])
def test_readinto_exactly(kind: str) -> None:
    data = region() if kind == "payload" else PAYLOAD
    how = {"chunk_size": CHUNK_SIZE} if kind == "payload" else {}
    with (PayloadReader if kind == "payload" else RawReader)(io.BytesIO(data), len(data), **how) as reader:
        size = len(PAYLOAD)
        for wrong in (0, size - 1, size + 1):
            with pytest.raises(ValueError, match=f"into is {wrong} bytes, the payload has {size} left"):
                reader.readinto_exactly(bytearray(wrong))
        assert reader.tell() == 0, "nothing is read"
        into = bytearray(size)
        assert reader.readinto_exactly(into) is None
        assert into == PAYLOAD
        reader.readinto_exactly(bytearray())
        reader.seek(size - 5)
        with pytest.raises(ValueError, match=f"into is {size} bytes, the payload has 5 left"):
            reader.readinto_exactly(into)
        rest = np.zeros(5, np.uint8)
        reader.readinto_exactly(rest)
        assert rest.tobytes() == PAYLOAD[-5:]
        reader.seek(size + 10)
        with pytest.raises(ValueError, match="has 0 left"):
            reader.readinto_exactly(into)
        reader.seek(0)
        reader.as_file()
        with pytest.raises(io.UnsupportedOperation):
            reader.readinto_exactly(into)


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
@pytest.mark.parametrize("written", [0, 999])
def test_an_announced_size_holds_in_every_layout(layout: str, written: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=f"raw_total is 1000 bytes, but {written} were written"),
        ds4kv.create(tmp_path / "a.kv", text=b"a", tokens=1, ctx_size=2, layout=layout, raw_total=1000) as checkpoint,
    ):
        checkpoint.payload.write(bytes(written))
    assert os.listdir(tmp_path) == []
