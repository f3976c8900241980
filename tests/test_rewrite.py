"""What is changed in place: the last use and the trailer, and nothing else, whenever the process is killed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv.file import inplace as rewrite
from ds4kv.file.inplace import identity, rewrite_trailer, touch
from ds4kv.format.toolmap import pack_tool_map, unpack_tool_map

PAYLOAD = b"DSV4" + bytes(range(256)) * 40
REGION = reference.encode_region(PAYLOAD, 4096)
MAX_HITS = (1 << 32) - 1
OLD_MAP = pack_tool_map({b"call_1": b"<tool_calls>one</tool_calls>"})
NEW_MAP = pack_tool_map({b"call_1": b"<tool_calls>two, and longer</tool_calls>"})


def v2(**fields: object) -> bytes:
    return reference.build(REGION, **{"text": b"text", "chunk_size": 4096, **fields})


def v1(**fields: object) -> bytes:
    return reference.build(PAYLOAD, **{"text": b"text", "version": 1, "codec": 0, "chunk_size": 0, **fields})


def checked(**fields: object) -> bytes:
    return reference.build_checked(PAYLOAD, **{"text": b"text", "log2": 12, "model_id": 2, "payload_abi": 3, **fields})


def mid(**fields: object) -> bytes:
    return reference.build_mid(PAYLOAD, **{"text": b"text", "log2": 12, "model_id": 7, "payload_abi": 3, **fields})


def packed(**fields: Any) -> bytes:
    options = {"layout": "packed", "chunk_size": 4096, "model_id": 2, "payload_abi": 3, "text": b"text"}
    options |= {"reason": fields.pop("reason_code", 1), "created_at": 5, "last_used": 6, **fields}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.kv"
        ds4kv.dump(path, PAYLOAD, tokens=600, ctx_size=9, **options)
        return path.read_bytes()


def stored(trailer: bytes, make: Callable[..., bytes]) -> int:
    """Bytes of the file that it takes."""
    return len(trailer) + (8 if trailer and make is packed else 0)


LAYOUTS = pytest.mark.parametrize("make", [v1, v2, checked, mid, packed])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.kv"


def changed(before: bytes, after: bytes) -> set[int]:
    assert len(before) == len(after)
    return {at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


@LAYOUTS
def test_touch_changes_hits_and_last_used_alone(path: Path, make: Callable[..., bytes]) -> None:
    path.write_bytes(make(reason_code=200, ext_flags=0xF8, hits=5, created_at=7, last_used=9))
    before = bytearray(path.read_bytes())
    if make is v1:
        before[7] = 77  # a model id, and a payload ABI: a newer engine's, to be kept
        before[20] = 3
        path.write_bytes(before)
    assert touch(str(path), last_used=0x1122334455667788)
    after = path.read_bytes()
    assert changed(before, after) <= {12, *range(32, 40)}
    header = ds4kv.read_header(path)
    assert (header.hits, header.last_used, header.reason_code) == (6, 0x1122334455667788, 200)


def test_hits_are_given_or_counted_and_stop_at_their_largest(path: Path) -> None:
    path.write_bytes(v2(hits=MAX_HITS - 1))
    for _ in range(2):
        touch(str(path), last_used=1)
        assert ds4kv.read_header(path).hits == MAX_HITS
    touch(str(path), last_used=1, hits=3)
    assert ds4kv.read_header(path).hits == 3


@pytest.mark.parametrize("numbers", [{"hits": -1}, {"hits": MAX_HITS + 1}, {"last_used": -1}, {"last_used": 1 << 64}])
def test_numbers_that_no_header_holds_change_nothing(path: Path, numbers: dict[str, int]) -> None:
    path.write_bytes(v2())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=next(iter(numbers))):
        touch(str(path), **{"last_used": 1, **numbers})
    assert path.read_bytes() == before
    assert touch(str(path), last_used=1)


def test_what_is_no_checkpoint_is_not_written_to(path: Path) -> None:
    whole = v2()
    for bad, error in [
        (b"not a checkpoint", ds4kv.CorruptError),
        (b"KVC\x03" + whole[4:], ds4kv.UnsupportedError),
        (whole[:-1], ds4kv.TruncatedError),
    ]:
        path.write_bytes(bad)
        with pytest.raises(error):
            touch(str(path), last_used=1)
        with pytest.raises(error):
            rewrite_trailer(str(path), NEW_MAP, last_used=1)
        assert path.read_bytes() == bad


def test_another_file_of_the_name_is_left_alone(path: Path) -> None:
    path.write_bytes(v2())
    file = identity(path.stat())
    other = path.with_name("other")
    other.write_bytes(v2())
    before = other.read_bytes()
    other.replace(path)
    assert not touch(str(path), last_used=1, file=file)
    assert not rewrite_trailer(str(path), NEW_MAP, last_used=1, file=file)
    assert path.read_bytes() == before
    assert touch(str(path), last_used=1, file=identity(path.stat()))


@LAYOUTS
@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("old", [b"", OLD_MAP, OLD_MAP + NEW_MAP, b"junk without a flag"])
def test_a_trailer_is_replaced(path: Path, make: Callable[..., bytes], old: bytes, fsync: bool) -> None:
    flags = 0xF0 | (old.startswith(b"KTM"))
    path.write_bytes(make(trailer=old, ext_flags=flags, hits=5, reason_code=99))
    before = path.read_bytes()
    assert rewrite_trailer(str(path), NEW_MAP, last_used=44, fsync=fsync)
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.trailer == NEW_MAP
        assert checkpoint.payload.read() == PAYLOAD
        header = checkpoint.header
    assert (header.ext_flags, header.hits, header.last_used, header.reason_code) == (0xF1, 5, 44, 99)
    after = path.read_bytes()[: -stored(NEW_MAP, make)]
    assert changed(before[: len(before) - stored(old, make)], after) <= {6, *range(32, 40)}


def test_under_a_seal_no_trailer_has_no_flag(path: Path) -> None:
    path.write_bytes(packed(trailer=OLD_MAP, ext_flags=0xF1))
    for trailer, flags in ((b"", 0xF0), (NEW_MAP, 0xF1), (b"", 0xF0), (b"", 0xF0)):
        assert rewrite_trailer(str(path), trailer, last_used=44)
        with ds4kv.open(path) as checkpoint:
            assert (checkpoint.trailer, checkpoint.header.ext_flags) == (trailer, flags)
            assert checkpoint.verify() is ds4kv.Verdict.OK


class Killed(BaseException):
    pass


@given(
    make=st.sampled_from([v2, packed]),
    old=st.sampled_from([b"", OLD_MAP, OLD_MAP * 9, NEW_MAP]),
    new=st.sampled_from([NEW_MAP, NEW_MAP * 9]),
    calls=st.integers(0, 9),
    part=st.integers(0, 200),
)
@settings(deadline=None)
def test_killed_between_any_two_calls_the_file_verifies(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[..., bytes],
    old: bytes,
    new: bytes,
    calls: int,
    part: int,
) -> None:
    """Also within a write: of ``part`` bytes of it."""
    path = tmp_path_factory.mktemp("killed") / "a.kv"
    path.write_bytes(make(trailer=old, ext_flags=1 if old else 0))
    left = calls

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            nonlocal left
            if left == 0:
                if call is os.pwrite:
                    fd, data, at = arguments
                    call(fd, data[:part], at)
                raise Killed
            left -= 1
            return call(*arguments)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("pwrite", "ftruncate", "posix_fallocate"):
            patch.setattr(rewrite.os, name, counted(getattr(os, name)))
        try:
            rewrite_trailer(str(path), new, last_used=5)
        except Killed:
            finished = False
        else:
            finished = True
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.payload.read() == PAYLOAD
        if finished:
            assert checkpoint.trailer == new
        if checkpoint.header.ext_flags & 1:
            # Behind an old map there may be zeros, which no reader looks at.
            assert unpack_tool_map(checkpoint.trailer) in (unpack_tool_map(old), unpack_tool_map(new))
        if make is packed:  # where there are none
            assert checkpoint.trailer in (b"", old, new)
            checkpoint.verify()


@pytest.mark.parametrize("make", [v2, packed])
def test_for_want_of_space_the_old_trailer_stays(
    path: Path, make: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(make(trailer=OLD_MAP, ext_flags=1))
    before = path.read_bytes()

    def full(fd: int, offset: int, size: int) -> None:
        os.pwrite(fd, b"\0", offset)  # some of it was to be had
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(rewrite.os, "posix_fallocate", full)
        with pytest.raises(OSError, match="space"):
            rewrite_trailer(str(path), NEW_MAP * 9, last_used=5)
    assert path.read_bytes() == before
    assert rewrite_trailer(str(path), NEW_MAP * 9, last_used=5)


def test_the_same_trailer_is_not_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(v2(trailer=OLD_MAP, ext_flags=1))
    written = []
    pwrite = os.pwrite
    monkeypatch.setattr(rewrite.os, "pwrite", lambda fd, data, at: written.append(at) or pwrite(fd, data, at))
    rewrite_trailer(str(path), OLD_MAP, last_used=5)
    assert written == [32]
    rewrite_trailer(str(path), NEW_MAP, last_used=5)
    assert len(written) > 2
