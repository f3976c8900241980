"""Payload streams: every split of every payload gives the reference's bytes, over anything that is a file object."""

from __future__ import annotations

import array
import errno
import gc
import io
import mmap
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import text_like, thread_count
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import status_of_fork

import ds4kv
from ds4kv import Codec, PayloadReader, PayloadWriter, RawReader, RawWriter

WORKERS = [0, 1, 2, 8]


def assert_threads_end(before: int) -> None:
    """A thread that was joined may be listed by the kernel for a moment more."""
    deadline = time.monotonic() + 10
    while thread_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert thread_count() == before


def region_of(payload: bytes, **how: object) -> bytes:
    fp = io.BytesIO()
    with PayloadWriter(fp, **how) as writer:
        writer.write(payload)
    return fp.getvalue()


class Pipe(io.RawIOBase):
    """A file object that can't seek, and gives and takes a few bytes at a time."""

    def __init__(self, data: bytes = b"", step: int = 1000) -> None:
        self.data, self.step = bytearray(data), step

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, b: memoryview) -> int:
        n = min(len(b), self.step, len(self.data))
        b[:n] = self.data[:n]
        del self.data[:n]
        return n

    def write(self, b: memoryview) -> int:
        self.data += b[: self.step]
        return min(len(b), self.step)


payloads = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 5000).map(text_like),
    st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 70_000)),
)
chunk_sizes = st.one_of(st.integers(1, 70), st.integers(71, 8192), st.just(1 << 24), st.just(1 << 26))


@given(
    payload=payloads,
    chunk_size=chunk_sizes,
    workers=st.sampled_from([*WORKERS, 3, 64]),
    splits=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    reads=st.lists(st.integers(1, 9000), min_size=1, max_size=8),
    known=st.booleans(),
    pipe=st.booleans(),
)
@settings(deadline=None)
def test_any_split_any_workers(payload, chunk_size, workers, splits, reads, known, pipe) -> None:
    if len(payload) > 3000 * chunk_size:  # a chunk a byte is slow, and says no more when it is long
        payload = payload[: 3000 * chunk_size]
    fp = Pipe() if known and pipe else io.BytesIO()
    with PayloadWriter(fp, chunk_size=chunk_size, workers=workers, raw_total=len(payload) if known else None) as out:
        position = turn = 0
        while position < len(payload):
            n = splits[turn % len(splits)]
            assert out.write(payload[position : position + n]) == len(payload[position : position + n])
            position, turn = position + n, turn + 1
            assert out.tell() == min(position, len(payload))
    region = bytes(fp.data) if isinstance(fp, Pipe) else fp.getvalue()
    assert out.region_bytes == len(region)
    assert reference.decode_region(region, chunk_size) == (payload, False)
    assert region == region_of(payload, chunk_size=chunk_size, workers=0)

    source = Pipe(region + b"more") if pipe else io.BytesIO(region + b"more")
    with PayloadReader(source, len(region), chunk_size=chunk_size, workers=workers) as reader:
        assert reader.raw_total == len(payload)
        read = bytearray()
        turn = 0
        while piece := reader.read(reads[turn % len(reads)]):
            read += piece
            turn += 1
        assert read == payload
        assert reader.read(1) == b""
    assert source.read(4) == b"more"  # not a byte too many was read


@given(
    payload=payloads.filter(len),
    chunk_size=st.integers(1, 3000),
    workers=st.sampled_from(WORKERS),
    moves=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1.2), st.integers(0, 4000)), max_size=8),
)
@settings(deadline=None)
def test_seeking_reads_what_a_bytes_io_reads(payload, chunk_size, workers, moves) -> None:
    payload = payload[: 2000 * chunk_size]
    region = region_of(payload, chunk_size=chunk_size, workers=0)
    model = io.BytesIO(payload)
    fp = io.BytesIO(b"ahead" + region)
    fp.seek(5)
    with PayloadReader(fp, len(region), chunk_size=chunk_size, workers=workers) as reader:
        assert reader.seekable()
        for whence, share, n in moves:
            offset = int(share * len(payload)) - (len(payload) if whence == 2 else model.tell() if whence == 1 else 0)
            assert reader.seek(offset, whence) == model.seek(offset, whence)
            assert reader.read(n) == model.read(n)
            assert reader.tell() == model.tell()


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("raw_total", [None, 3_000_000])
def test_large_writes_are_lent_and_large_reads_aimed(workers: int, raw_total: int | None) -> None:
    payload = text_like(3_000_000)
    region = region_of(payload, chunk_size=65536, workers=workers, raw_total=raw_total)
    assert reference.decode_region(region, 65536)[0] == payload
    for size in (len(payload), 65536, 1_000_000, 200_000):
        with PayloadReader(io.BytesIO(region), len(region), chunk_size=65536, workers=workers) as reader:
            read = bytearray(size + 7)
            got = b""
            while n := reader.readinto(memoryview(read)[:size]):
                got += read[:n]
            assert got == payload
            assert read[size:] == bytes(7)  # nothing was written past the room given


def test_the_caller_may_reuse_what_it_wrote() -> None:
    payload = bytearray(text_like(1_000_000))
    want = region_of(bytes(payload) * 2, chunk_size=4096, workers=2)
    fp = io.BytesIO()
    with PayloadWriter(fp, chunk_size=4096, workers=2) as writer:
        for _ in range(2):
            piece = bytearray(payload)
            writer.write(piece)
            piece[:] = bytes(len(piece))
    assert fp.getvalue() == want


def buffers(data: bytes) -> Iterator[object]:
    yield data
    yield bytearray(data)
    yield memoryview(data)
    yield array.array("d", data)
    yield np.frombuffer(data, dtype=np.float32).reshape(2, -1)
    yield np.frombuffer(data, dtype=">u2")
    yield np.frombuffer(data, dtype=[("a", "<u4"), ("b", "<f4")])
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    yield mapping


def test_any_c_contiguous_buffer_goes_in_and_out() -> None:
    data = text_like(40_000)
    region = region_of(data, chunk_size=5000)
    for buffer in buffers(data):
        assert region_of(buffer, chunk_size=5000) == region
    for room in (
        bytearray(40_000),
        np.zeros((100, 100), np.float32),
        array.array("q", bytes(40_000)),
        mmap.mmap(-1, 40_000),
    ):
        with PayloadReader(io.BytesIO(region), len(region), chunk_size=5000) as reader:
            assert reader.readinto(room) == 40_000
        assert memoryview(room).cast("B") == data if not isinstance(room, np.ndarray) else room.tobytes() == data


@pytest.mark.parametrize("bad", [np.zeros((8, 8))[:, ::2], "text", 5, None, memoryview(b"abcdef")[::2]])
def test_what_is_no_c_contiguous_buffer_is_refused(bad: object) -> None:
    with PayloadWriter(io.BytesIO()) as writer:
        with pytest.raises((TypeError, ValueError, BufferError)):
            writer.write(bad)
        assert writer.write(b"good") == 4  # and the stream is as it was


def test_reading_into_read_only_memory_is_refused() -> None:
    region = region_of(b"payload")
    with PayloadReader(io.BytesIO(region), len(region), chunk_size=1 << 24) as reader:
        with pytest.raises((TypeError, BufferError)):
            reader.readinto(b"1234567")
        assert reader.read() == b"payload"


def test_under_buffered_streams() -> None:
    payload = text_like(500_000)
    fp = io.BytesIO()
    with io.BufferedWriter(PayloadWriter(fp, chunk_size=10_000, workers=2)) as out:
        for i in range(0, len(payload), 7):
            out.write(payload[i : i + 7])
    region = fp.getvalue()
    assert region == region_of(payload, chunk_size=10_000)
    fp.seek(0)
    with io.BufferedReader(PayloadReader(fp, len(region), chunk_size=10_000, workers=2)) as reader:
        assert reader.read(3) == payload[:3]
        assert reader.peek(1)[:1] == payload[3:4]
        reader.seek(123_456)
        assert reader.read() == payload[123_456:]


def test_under_copyfileobj() -> None:
    payload = text_like(500_000)
    packed, unpacked = io.BytesIO(), io.BytesIO()
    with PayloadWriter(packed, chunk_size=10_000) as writer:
        shutil.copyfileobj(io.BytesIO(payload), writer)
    region = packed.getvalue()
    packed.seek(0)
    with PayloadReader(packed, len(region), chunk_size=10_000) as reader:
        shutil.copyfileobj(reader, unpacked)
    assert unpacked.getvalue() == payload


def test_through_a_socket() -> None:
    payload = text_like(2_000_000)
    ours, theirs = socket.socketpair()
    region_bytes = len(region_of(payload, chunk_size=100_000))

    def send() -> None:
        with ours, ours.makefile("wb", buffering=0) as fp:
            with PayloadWriter(fp, chunk_size=100_000, workers=2, raw_total=len(payload)) as writer:
                for i in range(0, len(payload), 30_000):
                    writer.write(payload[i : i + 30_000])

    sender = threading.Thread(target=send)
    sender.start()
    with theirs, theirs.makefile("rb", buffering=0) as fp:
        with PayloadReader(fp, region_bytes, chunk_size=100_000, workers=2) as reader:
            assert reader.raw_total == len(payload)
            assert not reader.seekable()
            with pytest.raises(io.UnsupportedOperation):
                reader.seek(0)
            assert reader.read() == payload
    sender.join()


def test_a_file_object_with_read_alone_will_do() -> None:
    class OnlyRead:
        def __init__(self, data: bytes) -> None:
            self.read = io.BytesIO(data).read

        def seekable(self) -> bool:
            return False

    region = region_of(b"payload" * 1000, chunk_size=100)
    with PayloadReader(OnlyRead(region), len(region), chunk_size=100) as reader:
        assert reader.read() == b"payload" * 1000


def test_a_writer_that_cannot_go_back_wants_the_size() -> None:
    with pytest.raises(io.UnsupportedOperation, match="raw_total"):
        PayloadWriter(Pipe())
    pipe = Pipe()
    with PayloadWriter(pipe, raw_total=3) as writer:
        writer.write(b"abc")
    assert reference.decode_region(bytes(pipe.data), 1 << 24)[0] == b"abc"


def test_raw_total_is_held_to() -> None:
    with pytest.raises(ValueError, match="too many"), PayloadWriter(Pipe(), raw_total=3) as writer:
        writer.write(b"abcd")
    writer = PayloadWriter(Pipe(), raw_total=3)
    writer.write(b"ab")
    with pytest.raises(ValueError, match="2 were written"):
        writer.close()
    assert writer.closed
    assert not writer.complete


def test_empty_payload() -> None:
    assert region_of(b"") == bytes(12)
    assert region_of(b"", raw_total=0) == bytes(12)
    with PayloadReader(io.BytesIO(bytes(12)), 12, chunk_size=1) as reader:
        assert (reader.raw_total, reader.chunk_count, reader.read()) == (0, 0, b"")


def test_the_file_object_stays_open_behind_the_region() -> None:
    fp = io.BytesIO(b"ahead")
    fp.seek(5)
    with PayloadWriter(fp) as writer:
        writer.write(b"payload")
    assert fp.tell() == 5 + writer.region_bytes
    fp.write(b"behind")
    fp.seek(5)
    with PayloadReader(fp, writer.region_bytes, chunk_size=1 << 24) as reader:
        assert reader.read() == b"payload"
    assert fp.read() == b"behind"


@pytest.mark.slow
@pytest.mark.parametrize("level", range(1, 13))
def test_every_level_loads(level: int) -> None:
    payload = text_like(300_000)
    for codec in (Codec.LZ4, Codec.LZ4HC):
        region = region_of(payload, chunk_size=100_000, codec=codec, level=level)
        assert level < 9 or len(region) < len(region_of(payload, chunk_size=100_000))
        assert reference.decode_region(region, 100_000)[0] == payload


def test_level_defaults() -> None:
    payload = text_like(100_000)
    assert region_of(payload, level=0) == region_of(payload)
    assert region_of(payload, codec=Codec.LZ4HC) == region_of(payload, codec=Codec.LZ4, level=9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_size": 0},
        {"chunk_size": (1 << 26) + 1},
        {"workers": -1},
        {"workers": 65},
        {"level": 13},
        {"level": -1},
        {"codec": Codec.LZ4HC, "level": 0},
        {"codec": Codec.NONE},
        {"raw_total": -1},
        {"chunk_size": 1, "raw_total": 1 << 32},
    ],
    ids=str,
)
def test_arguments_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PayloadWriter(io.BytesIO(), **wrong)
    gc.collect()  # and no complaint of an unfinished stream comes from what never began


@pytest.mark.parametrize(
    "wrong", [{"chunk_size": 0}, {"chunk_size": 1 << 27}, {"workers": 65}, {"region_bytes": -1}], ids=str
)
def test_reader_arguments_out_of_range(wrong: dict[str, int]) -> None:
    region = region_of(b"payload")
    good = {"region_bytes": len(region), "chunk_size": 1 << 24}
    PayloadReader(io.BytesIO(region), **good).close()
    with pytest.raises(ValueError):
        PayloadReader(io.BytesIO(region), **good | wrong)


class Full(io.BytesIO):
    """A disk that is full after so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, b: memoryview) -> int:
        if self.tell() + len(b) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(b)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("lent", [False, True])
def test_a_full_disk_is_an_os_error_and_the_stream_stays_broken(workers: int, lent: bool) -> None:
    payload = text_like(1_000_000)
    before = thread_count()
    writer = PayloadWriter(Full(50_000), chunk_size=10_000, workers=workers)
    step = len(payload) if lent else 10_000
    with pytest.raises(OSError, match="No space"):
        for i in range(0, len(payload), step):
            writer.write(payload[i : i + step])
    assert_threads_end(before)
    with pytest.raises(ds4kv.Ds4kvError, match="broken"):
        writer.write(b"more")
    with pytest.raises(ds4kv.Ds4kvError, match="broken"):
        writer.close()
    assert writer.closed
    writer.close()


@pytest.mark.parametrize("says", [0, -1, 1 << 40])
def test_a_file_object_that_lies_is_an_os_error(says: int) -> None:
    class Liar(io.BytesIO):
        def write(self, b: memoryview) -> int:
            super().write(b)
            return says

        def readinto(self, b: memoryview) -> int:
            super().readinto(b)
            return says

    with pytest.raises(OSError, match="says that it took"), PayloadWriter(Liar(), raw_total=4) as writer:
        writer.write(b"abcd")
    region = region_of(b"abcd")
    kind = ds4kv.TruncatedError if says == 0 else OSError
    with pytest.raises(kind), PayloadReader(Liar(region), len(region), chunk_size=1 << 24) as reader:
        reader.read()


def test_a_file_object_that_keeps_a_record_finds_it_released() -> None:
    class Keeper(io.BytesIO):
        kept: list[memoryview] = []  # noqa: RUF012

        def write(self, b: memoryview) -> int:
            self.kept.append(b)
            return super().write(b)

    with PayloadWriter(Keeper(), raw_total=4) as writer:
        writer.write(b"abcd")
    with pytest.raises(ValueError, match="released"):
        bytes(Keeper.kept[-1])


def test_two_readers_may_share_a_file_object() -> None:
    first, second = text_like(100_000, seed=1), text_like(100_000, seed=2)
    regions = [region_of(payload, chunk_size=1000) for payload in (first, second)]
    fp = io.BytesIO(b"".join(regions))
    readers = []
    for start, region in zip((0, len(regions[0])), regions, strict=True):
        fp.seek(start)
        readers.append(PayloadReader(fp, len(region), chunk_size=1000, workers=1))
    got = [b"", b""]
    for _ in range(100):
        for i, reader in enumerate(readers):
            got[i] += reader.read(1000)
    assert got == [first, second]
    for reader in readers:
        reader.close()


def test_append_mode_cannot_go_back(tmp_path: Path) -> None:
    with open(tmp_path / "a", "ab") as fp:
        with pytest.raises(io.UnsupportedOperation, match="raw_total"):
            PayloadWriter(fp)
        with PayloadWriter(fp, raw_total=4) as writer:
            writer.write(b"abcd")
    assert reference.decode_region((tmp_path / "a").read_bytes(), 1 << 24)[0] == b"abcd"


def test_short_reads_are_not_the_end() -> None:
    class Dribble(io.BytesIO):
        def readinto(self, b: memoryview) -> int:
            return super().readinto(memoryview(b)[:3])

    payload = text_like(10_000)
    region = region_of(payload, chunk_size=1000)
    with PayloadReader(Dribble(region), len(region), chunk_size=1000) as reader:
        reader.seek(5500)
        assert reader.read() == payload[5500:]


def test_errors_of_the_source_pass_through_and_can_be_tried_again() -> None:
    payload = text_like(100_000)
    region = region_of(payload, chunk_size=1000)

    class Failing(io.BytesIO):
        fails = False

        def readinto(self, b: memoryview) -> int:
            if self.fails:
                raise OSError(5, "Input/output error")
            return super().readinto(b)

    fp = Failing(region)
    with PayloadReader(fp, len(region), chunk_size=1000, workers=2) as reader:
        assert reader.read(5000) == payload[:5000]
        fp.fails = True
        with pytest.raises(OSError, match="Input/output"):
            reader.read()
        assert reader.tell() == 5000
        fp.fails = False
        assert reader.read() == payload[5000:]


def test_a_pipe_cannot_be_tried_again() -> None:
    region = region_of(text_like(100_000), chunk_size=1000)
    with PayloadReader(Pipe(region[:20_000]), len(region), chunk_size=1000) as reader:
        with pytest.raises(ds4kv.TruncatedError):
            reader.read()
        with pytest.raises(ds4kv.Ds4kvError, match="earlier read"):
            reader.read()


def test_corrupt_chunks_do_not_hide_the_others() -> None:
    payload = text_like(10_000)
    region = bytearray(region_of(payload, chunk_size=1000, workers=0))
    with PayloadReader(io.BytesIO(region), len(region), chunk_size=1000) as reader:
        reader.seek(5000)
        offset = reader.decoder.offset_of(5)
    region[offset + 8] ^= 0xF0
    with PayloadReader(io.BytesIO(region), len(region), chunk_size=1000) as reader:
        assert reader.read(4000) == payload[:4000]
        with pytest.raises(ds4kv.CorruptError) as caught:
            reader.read()
        assert (caught.value.offset, caught.value.field) == (offset + 8, "block")
        reader.seek(6000)
        assert reader.read() == payload[6000:]


# ---- ends


def test_leaving_by_an_exception_abandons() -> None:
    fp = io.BytesIO()
    with pytest.raises(KeyError), PayloadWriter(fp, chunk_size=10) as writer:
        writer.write(bytes(100))
        raise KeyError
    assert writer.closed
    assert not writer.complete
    with pytest.raises(reference.Bad):
        reference.decode_region(fp.getvalue(), 10)


def test_abandon_and_close_may_come_twice() -> None:
    writer = PayloadWriter(io.BytesIO())
    writer.abandon()
    writer.abandon()
    writer.close()
    assert not writer.complete
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_garbage_is_not_a_finished_save() -> None:
    fp = io.BytesIO()
    writer = PayloadWriter(fp, chunk_size=10, workers=2)
    writer.write(bytes(100))
    with pytest.warns(ResourceWarning, match="neither closed nor abandoned"):
        del writer
    with pytest.raises(reference.Bad):
        reference.decode_region(fp.getvalue(), 10)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_threads_end_with_the_stream(workers: int) -> None:
    before = thread_count()
    payload = text_like(200_000)
    fp = io.BytesIO()
    writer = PayloadWriter(fp, chunk_size=1000, workers=workers)
    writer.write(payload[:100_000])
    assert before < thread_count() <= before + workers
    writer.write(payload[100_000:])
    writer.close()
    assert_threads_end(before)
    fp.seek(0)
    reader = PayloadReader(fp, writer.region_bytes, chunk_size=1000, workers=workers)
    reader.read(50_000)
    assert before < thread_count() <= before + workers
    reader.close()
    assert_threads_end(before)


def test_one_chunk_needs_no_thread() -> None:
    before = thread_count()
    payload = text_like(100_000)
    fp = io.BytesIO()
    with PayloadWriter(fp, workers=8) as writer:
        writer.write(payload[:50_000])
        writer.write(payload[50_000:])
        assert thread_count() == before
    fp.seek(0)
    with PayloadReader(fp, writer.region_bytes, chunk_size=1 << 24, workers=8) as reader:
        assert reader.read() == payload
        assert thread_count() == before


def test_two_threads_in_one_stream_are_refused() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def write(self, b: memoryview) -> int:
            entered.set()
            leave.wait(10)
            return super().write(b)

    writer = PayloadWriter(Slow(), chunk_size=10, workers=1)
    thread = threading.Thread(target=writer.write, args=(bytes(1000),))
    thread.start()
    assert entered.wait(10)
    for use in (lambda: writer.write(b"x"), writer.close):
        with pytest.raises(RuntimeError, match="one thread at a time"):
            use()
    leave.set()
    thread.join()
    writer.close()
    assert writer.complete


def test_a_forked_child_cannot_use_the_stream_and_does_it_no_harm() -> None:
    payload = text_like(100_000)
    fp = io.BytesIO()
    writer = PayloadWriter(fp, chunk_size=1000, workers=2)
    writer.write(payload[:50_000])

    def use() -> None:
        with pytest.raises(RuntimeError):
            writer.write(b"x")
        writer.abandon()

    assert status_of_fork(use) == 0
    writer.write(payload[50_000:])
    writer.close()
    assert reference.decode_region(fp.getvalue(), 1000)[0] == payload


def test_a_forked_child_does_not_write_raw_payload_either() -> None:
    writer = RawWriter(io.BytesIO())

    def use() -> None:
        with pytest.raises(RuntimeError):
            writer.write(b"x")
        writer.abandon()

    assert status_of_fork(use) == 0
    writer.abandon()


def test_fork_of_a_reader() -> None:
    payload = text_like(100_000)
    region = region_of(payload, chunk_size=1000)
    reader = PayloadReader(io.BytesIO(region), len(region), chunk_size=1000, workers=2)
    assert reader.read(10) == payload[:10]

    def use() -> None:
        with pytest.raises(RuntimeError):
            reader.read(10)
        reader.close()

    assert status_of_fork(use) == 0
    assert reader.read() == payload[10:]
    reader.close()


# ---- codec none


def test_raw_streams() -> None:
    payload = text_like(10_000)
    fp = io.BytesIO(b"ahead")
    fp.seek(5)
    with RawWriter(fp, raw_total=10_000) as writer:
        writer.write(payload[:1])
        writer.write(np.frombuffer(payload[1:], np.uint8))
    assert (writer.region_bytes, writer.complete) == (10_000, True)
    assert fp.getvalue() == b"ahead" + payload
    fp.write(b"behind")
    fp.seek(5)
    with RawReader(fp, 10_000) as reader:
        assert reader.raw_total == 10_000
        assert reader.read(10) == payload[:10]
        reader.seek(-10, 2)
        assert reader.read(20) == payload[-10:]
    fp.seek(5)
    with RawReader(fp, 20_000) as reader, pytest.raises(ds4kv.TruncatedError) as caught:
        reader.read()
    assert caught.value.offset == 5 + 10_000 + 6


def test_raw_writer_is_abandoned_and_broken_like_the_other() -> None:
    with pytest.raises(OSError, match="No space"), RawWriter(Full(10)) as writer:
        writer.write(bytes(11))
    assert not writer.complete
    with pytest.raises(ValueError, match="were written"):
        RawWriter(io.BytesIO(), raw_total=1).close()


def test_files_on_disk(tmp_path: Path) -> None:
    payload = text_like(300_000)
    path = tmp_path / "region"
    for buffering in (0, -1):
        with open(path, "wb", buffering=buffering) as fp, PayloadWriter(fp, chunk_size=7000) as writer:
            writer.write(payload)
        with (
            open(path, "rb", buffering=buffering) as fp,
            PayloadReader(fp, writer.region_bytes, chunk_size=7000) as out,
        ):
            assert out.read() == payload


def test_an_error_lets_go_of_the_buffer() -> None:
    region = region_of(bytes(5000), chunk_size=1000)
    room = bytearray(5000)
    held = memoryview(room)
    with PayloadReader(io.BytesIO(region[:-1]), len(region), chunk_size=1000) as reader:
        try:
            reader.readinto(held)
        except ds4kv.TruncatedError as error:
            kept = error  # and with it the frames of its traceback, in a cycle with this one
    held.release()
    room.clear()  # BufferError if anything still held it
    with PayloadWriter(Full(0)) as writer:
        writer.write(bytes(10))
        with pytest.raises(OSError, match="No space") as caught:
            writer.close()
    del kept, caught
    gc.collect()


# ---- how they are shown ----


@pytest.mark.parametrize("kind", [PayloadWriter, RawWriter])
def test_a_writer_shows_its_file_and_its_state(kind: type, tmp_path: Path) -> None:
    path = str(tmp_path / "region")
    with open(path, "wb") as fp:
        writer = kind(fp)
        name = f"<{kind.__name__} to {path!r}: "
        assert repr(writer) == f"{name}open, 0 bytes written>"
        writer.write(b"seven77")
        assert repr(writer) == f"{name}open, 7 bytes written>"
        writer.close()
        assert repr(writer) == f"{name}complete, 7 bytes written>"
        other = kind(fp)
        other.abandon()
        assert repr(other) == f"{name}abandoned, 0 bytes written>"


def test_a_writer_whose_file_object_failed_is_shown_as_broken() -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, b: memoryview) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "no space")

    full = Full()
    writer = RawWriter(full)
    with pytest.raises(OSError, match="no space"):
        writer.write(b"x")
    assert repr(writer) == f"<RawWriter to {full!r}: broken, 0 bytes written>"
    writer.abandon()


def test_a_reader_shows_its_file_and_its_place() -> None:
    data = io.BytesIO(region_of(bytes(5000), chunk_size=1000, workers=0))
    reader = PayloadReader(data, len(data.getvalue()), chunk_size=1000)
    reader.read(1234)
    assert repr(reader) == f"<PayloadReader of {data!r}: open, at 1234 of 5000 bytes>"
    reader.close()
    assert repr(reader) == f"<PayloadReader of {data!r}: closed, at 1234 of 5000 bytes>"
    buffer = io.BufferedReader(io.BytesIO(bytes(10)))  # type: ignore[arg-type]
    raw = RawReader(buffer, 10)
    buffer.detach()
    assert repr(raw) == f"<RawReader of {buffer!r}: open, at 0 of 10 bytes>"
