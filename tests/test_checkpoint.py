"""Whole files: what goes in comes out, publishing is all or nothing, and what nobody may write is refused."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import hashlib
import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import text_like, thread_count
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import DEADLINE, forked, started, status_of_fork

import ds4kv
from ds4kv import Codec, Layout

FACTS = {"tokens": 640, "ctx_size": 4096, "created_at": 1_700_000_000}


PAYLOAD = text_like(200_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.kv"


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


@given(
    payload=st.integers(0, 20_000).map(text_like),
    text=st.binary(max_size=100),
    trailer=st.binary(max_size=100),
    how=st.sampled_from([("v1", "none"), ("v2", "none"), ("v2", "lz4"), ("v2", "lz4hc")]),
    chunk_size=st.integers(1, 9000) | st.just(1 << 24),
    workers=st.sampled_from([None, 0, 1, 2, 8]),
    quant_bits=st.sampled_from([2, 4]),
    numbers=st.lists(st.integers(0, 255), min_size=5, max_size=5),
)
@settings(deadline=None)
def test_round_trip(tmp_path_factory, payload, text, trailer, how, chunk_size, workers, quant_bits, numbers) -> None:
    path = tmp_path_factory.getbasetemp() / "round.kv"
    layout, codec = how
    tokens, ctx_size, ext_flags, hits, reason = numbers
    payload = payload[: 1000 * chunk_size]
    facts = {
        "tokens": tokens + 1,
        "ctx_size": ctx_size,
        "ext_flags": ext_flags,
        "hits": hits,
        "created_at": 7,
        "last_used": 8,
        "quant_bits": quant_bits,
    }
    header = ds4kv.dump(
        path,
        payload,
        text=text,
        trailer=trailer,
        layout=layout,
        codec=codec,
        chunk_size=chunk_size,
        workers=workers,
        reason=reason,
        **facts,
    )
    checkpoint = ds4kv.load(path, workers=workers)
    assert (checkpoint.text, checkpoint.payload, checkpoint.trailer) == (text, payload, trailer)
    assert checkpoint.header == header == ds4kv.read_header(path)
    assert {name: getattr(header, name) for name in facts} == facts
    assert (header.layout, header.codec.name.lower(), header.reason_code) == (layout, codec, reason)
    parsed = reference.parse(path.read_bytes())
    assert (parsed.text, parsed.payload, parsed.trailer) == (text, payload, trailer)
    into = bytearray(len(payload))
    assert ds4kv.load(path, into=into, workers=workers).payload == into == payload
    with ds4kv.open(path, workers=workers) as opened:
        assert (opened.text, opened.payload.read(), opened.trailer) == (text, payload, trailer)
        assert (opened.text_bytes, opened.trailer_bytes) == (len(text), len(trailer))
        assert opened.file_size == path.stat().st_size


def test_defaults(path: Path) -> None:
    before = int(time.time())
    header = ds4kv.dump(path, PAYLOAD, tokens=640, ctx_size=4096)
    assert (header.layout, header.codec, header.chunk_size) == (Layout.V2, Codec.LZ4, 1 << 24)
    assert (header.quant_bits, header.reason, header.ext_flags, header.hits) == (2, ds4kv.Reason.COLD, 0, 0)
    assert before <= header.created_at == header.last_used <= time.time()
    assert header.payload_bytes == path.stat().st_size - 52
    assert ds4kv.load(path).text == b""
    assert ds4kv.dump(path, PAYLOAD, tokens=1, ctx_size=1, created_at=5).last_used == 5
    assert ds4kv.dump(path, PAYLOAD, tokens=1, ctx_size=1, layout="v1").codec is Codec.NONE


def test_create_streams_and_takes_a_late_trailer(path: Path) -> None:
    with ds4kv.create(path, text=b"text", chunk_size=1000, **FACTS) as checkpoint:
        for i in range(0, len(PAYLOAD), 999):
            checkpoint.payload.write(PAYLOAD[i : i + 999])
        checkpoint.trailer = b"KTM..."
        assert not path.exists()
    streamed = path.read_bytes()
    assert checkpoint.header == ds4kv.read_header(path)
    ds4kv.dump(path, PAYLOAD, text=b"text", trailer=b"KTM...", chunk_size=1000, **FACTS)
    assert path.read_bytes() == streamed


def test_load_gives_memory_that_lives_by_itself(path: Path) -> None:
    for size in (0, 1, 200_000, 5_000_000):
        payload = text_like(size)
        for codec in ("none", "lz4"):
            ds4kv.dump(path, payload, codec=codec, **FACTS)
            got = ds4kv.load(path).payload
            gc.collect()
            assert got == payload
            assert not got.readonly
            room = bytearray(size)
            got = ds4kv.load(path, into=room).payload
            assert got == payload
            if size:
                got[0] ^= 1
                assert room[0] == payload[0] ^ 1


def test_into_a_numpy_array(path: Path) -> None:
    array = np.arange(50_000, dtype=np.float32).reshape(100, 500)
    ds4kv.dump(path, array, **FACTS)
    room = np.zeros_like(array)
    ds4kv.load(path, into=room)
    assert (room == array).all()


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("size", [0, len(PAYLOAD) - 1, len(PAYLOAD) + 1])
def test_into_of_the_wrong_size_is_refused_untouched(path: Path, codec: str, size: int) -> None:
    ds4kv.dump(path, PAYLOAD, codec=codec, **FACTS)
    room = bytearray(size)
    with pytest.raises(ValueError, match="200000"):
        ds4kv.load(path, into=room)
    assert room == bytes(size)
    with pytest.raises((TypeError, BufferError)):
        ds4kv.load(path, into=bytes(len(PAYLOAD)))


def test_names_that_are_a_key(tmp_path: Path) -> None:
    key = hashlib.sha1(b"text").hexdigest()
    for name in (f"{key}.kv", f"{key.upper()}.kv"):
        ds4kv.dump(tmp_path / name, PAYLOAD, text=b"text", **FACTS)
        assert ds4kv.load(tmp_path / name).text == b"text"
        with pytest.raises(ValueError, match="isn't the text's"):
            ds4kv.dump(tmp_path / name, PAYLOAD, text=b"other", **FACTS)
        assert ds4kv.load(tmp_path / name).text == b"text"
    wrong = tmp_path / f"{'0' * 40}.kv"
    wrong.write_bytes((tmp_path / f"{key}.kv").read_bytes())
    for read in (ds4kv.load, ds4kv.open):
        with pytest.raises(ds4kv.CorruptError, match=key) as caught:
            read(wrong)
        assert (caught.value.path, caught.value.offset, caught.value.field) == (str(wrong), 52, "text")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"ctx_size": -1},
        {"quant_bits": 8},
        {"reason": "warm"},
        {"reason": 256},
        {"layout": "v3"},
        {"layout": "v2-mid"},
        {"layout": "v1", "codec": "lz4"},
        {"codec": "zstd"},
        {"codec": "none", "level": 1},
        {"level": 13},
        {"chunk_size": 0},
        {"chunk_size": (1 << 26) + 1},
        {"workers": 65},
        {"ext_flags": 256},
        {"hits": 2**32},
        {"created_at": -1},
        {"codec": 3},
    ],
    ids=str,
)
def test_arguments_out_of_range_leave_nothing_behind(path: Path, wrong: dict[str, object]) -> None:
    ds4kv.dump(path, b"before", **FACTS)
    with pytest.raises(ValueError):
        ds4kv.dump(path, PAYLOAD, **FACTS | wrong)
    assert ds4kv.load(path).payload == b"before"
    assert names(path) == ["a.kv"]


@pytest.mark.parametrize("wrong", [{"text": "text"}, {"text": 5}, {"trailer": "text"}, {"payload": "text"}], ids=str)
def test_what_is_not_bytes_is_refused(path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        ds4kv.dump(path, **{"payload": PAYLOAD} | FACTS | wrong)
    assert names(path) == []


# ---- publishing


def test_the_temporary_file_is_private_and_beside(path: Path) -> None:
    with ds4kv.create(path, **FACTS) as checkpoint:
        checkpoint.payload.write(b"x")
        [name] = names(path)
        assert name.startswith("a.kv.tmp.")
        assert (path.parent / name).stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path) == ["a.kv"]


@pytest.mark.parametrize("raised", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_publishes_nothing(path: Path, raised: type[BaseException]) -> None:
    ds4kv.dump(path, b"before", **FACTS)
    with pytest.raises(raised), ds4kv.create(path, chunk_size=1000, **FACTS) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
        raise raised
    assert names(path) == ["a.kv"]
    assert ds4kv.load(path).payload == b"before"


def test_an_abandoned_payload_is_not_published(path: Path) -> None:
    checkpoint = ds4kv.create(path, **FACTS)
    checkpoint.payload.write(b"x")
    checkpoint.payload.abandon()
    with pytest.raises(ds4kv.Ds4kvError, match="abandoned"):
        checkpoint.close()
    assert names(path) == []


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked", "packed"])
@pytest.mark.parametrize("written", [b"", b"1234"])
def test_a_payload_shorter_than_announced_is_not_published(layout: str, written: bytes, path: Path) -> None:
    checkpoint = ds4kv.create(path, raw_total=5, layout=layout, **FACTS)
    checkpoint.payload.write(written)
    with pytest.raises(ValueError, match=f"{len(written)} were written"):
        checkpoint.close()
    assert names(path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_garbage_is_not_published(path: Path) -> None:
    checkpoint = ds4kv.create(path, **FACTS)
    checkpoint.payload.write(b"x")
    with pytest.warns(ResourceWarning, match="neither closed nor abandoned"):
        del checkpoint
    assert names(path) == []


def test_a_full_disk_leaves_nothing_behind(path: Path) -> None:
    code = f"""
        import errno, os, resource, signal
        import ds4kv
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        for how in ({{}}, {{"codec": "none"}}, {{"workers": 0}}, {{"text": bytes(60_000)}}):
            try:
                ds4kv.dump({str(path)!r}, os.urandom(1 << 20), tokens=1, ctx_size=1, chunk_size=10_000, **how)
            except OSError as error:
                assert error.errno == errno.EFBIG
            else:
                raise AssertionError("it fitted")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=DEADLINE)
    assert names(path) == []


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    for use in (lambda p: ds4kv.dump(p, b"x", **FACTS), ds4kv.load, ds4kv.open, ds4kv.read_header):
        with pytest.raises(FileNotFoundError, match=r"a\.kv'$"):
            use(tmp_path / "no" / "a.kv")


def test_a_killed_writer_never_publishes(path: Path) -> None:
    ds4kv.dump(path, b"before", **FACTS)
    code = f"""
        import sys
        import ds4kv
        with ds4kv.create({str(path)!r}, chunk_size=1000, tokens=1, ctx_size=1) as checkpoint:
            print("begun", flush=True)
            while True:
                checkpoint.payload.write(bytes(100_000))
    """
    with started([sys.executable, "-c", textwrap.dedent(code)]) as child:
        assert child.line() == b"begun\n"
        time.sleep(0.05)
        child.process.kill()
        child.finish()
    assert ds4kv.load(path).payload == b"before"


def test_ctrl_c_removes_the_temporary_file(path: Path) -> None:
    code = f"""
        import ds4kv
        with ds4kv.create({str(path)!r}, chunk_size=1000, tokens=1, ctx_size=1) as checkpoint:
            print("begun", flush=True)
            while True:
                checkpoint.payload.write(bytes(100_000))
    """
    with started([sys.executable, "-c", textwrap.dedent(code)]) as child:
        assert child.line() == b"begun\n"
        time.sleep(0.05)
        child.process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in child.finish()[1]
    assert names(path) == []


def refused(use: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError):
        use()


def test_a_forked_child_leaves_the_parents_file_alone(path: Path) -> None:
    with ds4kv.create(path, chunk_size=1000, workers=2, **FACTS) as checkpoint:
        checkpoint.payload.write(PAYLOAD[:100_000])
        assert status_of_fork(lambda: refused(checkpoint.close)) == 0
        checkpoint.payload.write(PAYLOAD[100_000:])
    assert ds4kv.load(path).payload == PAYLOAD
    assert names(path) == ["a.kv"]


def test_fsync_is_asked_for_file_and_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    ds4kv.dump(path, PAYLOAD, **FACTS)
    assert synced == []
    ds4kv.dump(path, PAYLOAD, fsync=True, **FACTS)
    assert [".tmp." in name for name in synced] == [True, False]
    assert synced[1] == str(path.parent)


def test_a_path_may_be_text_bytes_or_pathlike(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spelled in (path, str(path), os.fsencode(path)):
        ds4kv.dump(spelled, PAYLOAD, **FACTS)
        assert ds4kv.load(spelled).payload == PAYLOAD
    monkeypatch.chdir(path.parent)
    ds4kv.dump("b.kv", PAYLOAD, fsync=True, **FACTS)
    assert ds4kv.load("b.kv").payload == PAYLOAD


# ---- reading what changes under our hands


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_a_file_that_shrinks_meanwhile(path: Path, codec: str) -> None:
    ds4kv.dump(path, PAYLOAD, codec=codec, chunk_size=10_000, trailer=b"more", **FACTS)
    with ds4kv.open(path) as opened:
        os.truncate(path, 20_000)
        with pytest.raises(OSError, match="changed while it was read") as caught:
            opened.payload.read()
        assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(path))
        assert (opened.trailer, opened.trailer_bytes) == (b"", 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux has a regular file that can't be read")
def test_a_disk_that_fails_is_not_a_corrupt_file() -> None:
    """The first page of a process is nowhere, and reading it fails as a disk does."""
    for read in (ds4kv.load, ds4kv.open, ds4kv.read_header):
        with pytest.raises(OSError, match="Input/output error") as failure:
            read("/proc/self/mem")
        assert failure.value.errno == errno.EIO


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_a_file_cut_short_at_any_moment_of_a_load_is_an_error_and_not_a_signal(path: Path, codec: str) -> None:
    payload = text_like(8_000_000)
    code = f"""
        import ds4kv
        print("begun", flush=True)
        try:
            while True:
                ds4kv.load({str(path)!r}, workers=2)
        except (ds4kv.TruncatedError, OSError) as error:
            print(error)
    """
    for delay in (0, 0.01, 0.02, 0.03):
        ds4kv.dump(path, payload, codec=codec, chunk_size=100_000, **FACTS)
        with started([sys.executable, "-c", textwrap.dedent(code)]) as child:
            assert child.line() == b"begun\n"
            time.sleep(0.05 + delay)
            os.truncate(path, 300_000)
            assert str(path) in child.finish()[0].decode()
        assert child.returncode == 0


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_forked_children_that_share_an_open_file_do_not_move_each_other(path: Path, codec: str) -> None:
    ds4kv.dump(path, PAYLOAD, codec=codec, chunk_size=1000, **FACTS)
    with ds4kv.open(path) as opened, contextlib.ExitStack() as stack:

        def read(start: int) -> None:
            for turn in range(200):
                position = (start * 7919 + turn * 104729) % len(PAYLOAD)
                opened.payload.seek(position)
                assert opened.payload.read(500) == PAYLOAD[position : position + 500]

        children = [stack.enter_context(forked(functools.partial(read, start))) for start in range(4)]
        assert [child.finish() for child in children] == [0] * 4


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.kv")
    (tmp_path / "dir.kv").mkdir()
    for name, kind in (("fifo.kv", OSError), ("dir.kv", IsADirectoryError)):
        for read in (ds4kv.load, ds4kv.open, ds4kv.read_header):
            with pytest.raises(kind, match="not a regular file"):
                read(tmp_path / name)


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.kv")
    (tmp_path / "dir.kv").mkdir()
    for name in ("fifo.kv", "dir.kv"):
        with pytest.raises(OSError, match="not a regular file"):
            ds4kv.dump(tmp_path / name, PAYLOAD, **FACTS)
    assert stat.S_ISFIFO((tmp_path / "fifo.kv").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["dir.kv", "fifo.kv"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.kv").symlink_to("there/a.kv")
    for payload in (b"first", b"second"):
        ds4kv.dump(tmp_path / "link.kv", payload, **FACTS)
        assert (tmp_path / "link.kv").is_symlink()
        assert ds4kv.load(tmp_path / "there" / "a.kv").payload == payload
    assert os.listdir(tmp_path / "there") == ["a.kv"]


def test_the_working_directory_may_change_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with ds4kv.create("a.kv", **FACTS) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
        os.chdir(tmp_path / "elsewhere")
    assert ds4kv.load(tmp_path / "a.kv").payload == PAYLOAD
    assert sorted(os.listdir(tmp_path)) == ["a.kv", "elsewhere"]


def test_what_holds_threads_or_files_is_not_copied(path: Path) -> None:
    with ds4kv.create(path, **FACTS) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
        for thing in (checkpoint, checkpoint.payload):
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="copied or pickled"):
                    duplicate(thing)
    with ds4kv.open(path) as opened:
        for thing in (opened, opened.payload):
            with pytest.raises(TypeError, match="copied or pickled"):
                copy.copy(thing)


def test_arrays_of_objects_are_refused(path: Path) -> None:
    objects = np.array([[], {}, None], dtype=object)
    with pytest.raises(TypeError, match="references"):
        ds4kv.dump(path, objects, **FACTS)
    ds4kv.dump(path, bytes(objects.nbytes), **FACTS)
    with pytest.raises(TypeError, match="references"):
        ds4kv.load(path, into=objects)
    assert objects[2] is None


# ---- workers and the environment


def threads_used(path: Path, **how: object) -> int:
    with ds4kv.create(path, chunk_size=1000, **FACTS, **how) as checkpoint:
        for i in range(0, len(PAYLOAD), 5000):
            checkpoint.payload.write(PAYLOAD[i : i + 5000])
        return thread_count()


@pytest.mark.parametrize(("value", "workers"), [("3", 3), ("1", 1), ("64", 64)])
def test_workers_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, value: str, workers: int) -> None:
    from ds4kv.core.workers import resolve

    monkeypatch.setenv("DS4_KV_CACHE_COMPRESSION_THREADS", value)
    with monkeypatch.context() as many_cpus:
        many_cpus.setattr(os, "sched_getaffinity", lambda pid: set(range(100)))
        assert resolve(None) == workers
        assert resolve(2) == 2
    idle = thread_count()
    assert threads_used(path) <= idle + workers


@pytest.mark.parametrize("value", ["", "65", "-1", "two", "1.5", "0x2", "9" * 5000])
def test_a_bad_environment_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from ds4kv.core.workers import resolve

    monkeypatch.delenv("DS4_KV_CACHE_COMPRESSION_THREADS", raising=False)
    default = resolve(None)
    assert default == min(8, len(os.sched_getaffinity(0)))
    monkeypatch.setenv("DS4_KV_CACHE_COMPRESSION_THREADS", value)
    assert resolve(None) == default


def test_zero_in_the_environment_makes_codec_none_the_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = ds4kv.dump(path, PAYLOAD, **FACTS)
    monkeypatch.setenv("DS4_KV_CACHE_COMPRESSION_THREADS", "0")
    assert ds4kv.dump(path, PAYLOAD, **FACTS).codec is Codec.NONE
    assert ds4kv.dump(path, PAYLOAD, codec="lz4", **FACTS) == compressed
    assert ds4kv.load(path).payload == PAYLOAD


def test_no_workers_means_no_threads(path: Path) -> None:
    idle = thread_count()
    assert threads_used(path, workers=0) == idle


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked", "packed"])
def test_a_checkpoint_shows_its_path_and_its_state(path: Path, layout: str) -> None:
    with ds4kv.create(path, **FACTS, layout=layout) as writer:
        assert repr(writer) == f"<CheckpointWriter of {str(path)!r}: open, 0 bytes written>"
        assert f"to '{path}.tmp." in repr(writer.payload)
        writer.payload.write(bytes(1000))
        assert repr(writer).endswith(": open, 1000 bytes written>")
    assert repr(writer).endswith(": published, 1000 bytes written>")
    writer = ds4kv.create(path, **FACTS, layout=layout)
    writer.abandon()
    assert repr(writer).endswith(": abandoned, 0 bytes written>")
    with ds4kv.open(path) as reader:
        reader.payload.read(10)
        assert repr(reader) == f"<CheckpointReader of {str(path)!r}: open, at 10 of 1000 bytes>"
        assert f"of {str(path)!r}: open, at 10 of 1000 bytes>" in repr(reader.payload)
    assert repr(reader) == f"<CheckpointReader of {str(path)!r}: closed, at 10 of 1000 bytes>"
