"""Upgrades in place: nothing is lost, whoever uses, replaces or removes files meanwhile, and however it ends."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import store_worker
from helpers import damage_quietly, state
from processes import DEADLINE, started

import ds4kv
from ds4kv.cli import main
from ds4kv.file import draft
from ds4kv.file.inplace import rewrite_trailer, touch
from ds4kv.file.ledger import DIRECTORY_NAME
from ds4kv.file.lock import LOCK_NAME, locked
from ds4kv.file.note import Verdict
from ds4kv.format.toolmap import unpack_tool_map
from ds4kv.store import upgrade as upgrade_module
from ds4kv.store.store import Store
from ds4kv.store.upgrade import Outcome, Upgrade

BAD = Path(__file__).parent / "golden" / "bad"
TARGET = "v2-checked"
TRAILER = b"KTM\1\0\0\0\0"
PAYLOAD = b"".join(bytes([i]) * 100 for i in range(256))


@pytest.fixture
def kv(tmp_path: Path) -> Path:
    directory = tmp_path / "kv-\u00fc"
    directory.mkdir()
    return directory


def put(kv: Path, text: bytes = b"text", payload: bytes = PAYLOAD, **options: Any) -> Path:
    """A raw checkpoint with a tool map, used three times, last changed in 2001."""
    path = kv / f"{hashlib.sha1(text).hexdigest()}.kv"
    options = {
        "layout": "v1",
        "trailer": TRAILER,
        "ext_flags": 0xF1,
        "hits": 3,
        "created_at": 5,
        "last_used": 6,
        **options,
    }
    ds4kv.dump(path, payload, tokens=600, ctx_size=9, text=text, **options)
    os.utime(path, ns=(999_999_999_123_456_789, 1_000_000_000_123_456_789))
    return path


def upgraded(kv: Path, **options: Any) -> list[Outcome]:
    return list(Upgrade(kv, **{"layout": TARGET, **options}).run())


def actions(kv: Path, **options: Any) -> list[str]:
    return [outcome.action for outcome in upgraded(kv, **options)]


def content(path: Path) -> Any:
    """All that must stay, whatever the layout."""
    found = ds4kv.load(path)
    header = found.header._replace(layout="", codec=0, chunk_size=0, payload_bytes=0)
    return header, found.text, bytes(found.payload), found.trailer


def names(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name not in (LOCK_NAME, DIRECTORY_NAME))


# ---------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_but_the_layout_stays(workers: int, kv: Path) -> None:
    paths = [put(kv, text, PAYLOAD * (i + 1), quant_bits=4) for i, text in enumerate((b"a", b"b", b""))]
    before = {path: (content(path), path.stat()) for path in paths}
    outcomes = upgraded(kv, workers=workers)
    assert [outcome.path for outcome in outcomes] == sorted(map(str, paths))
    for path, action, size_before, size_after, *rest in outcomes:
        was, status = before[Path(path)]
        now = os.stat(path)
        assert (action, rest) == ("upgraded", [None, None])
        assert ds4kv.read_header(path).layout == TARGET
        assert content(Path(path)) == was
        assert (size_before, size_after) == (status.st_size, now.st_size)
        assert size_after < size_before
        assert (now.st_mtime_ns, now.st_mode) == (status.st_mtime_ns, status.st_mode)
    assert names(kv) == sorted(path.name for path in paths)
    after = state(kv)
    assert actions(kv) == ["current"] * 3
    assert state(kv) == after


def test_there_and_back_again(kv: Path) -> None:
    path = put(kv)
    before = path.read_bytes()
    for layout in ("v2", "v2-checked", "packed", "v2", "packed", "v2-checked", "v1", "packed", "v2-checked", "v1"):
        assert actions(kv, layout=layout) == ["upgraded"]
        assert ds4kv.read_header(path).layout == layout
    assert path.read_bytes() == before


def test_v2_that_is_raw_is_compressed(kv: Path) -> None:
    path = put(kv, layout="v2", codec="none")
    assert actions(kv, layout="v2", level=9) == ["upgraded"]
    assert ds4kv.read_header(path).codec is ds4kv.Codec.LZ4
    assert actions(kv, layout="v2") == ["current"]


def test_owner_and_mode_stay(kv: Path) -> None:
    path = put(kv)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    assert actions(kv) == ["upgraded"]
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_model_id_is_never_lost(kv: Path) -> None:
    path = kv / f"{hashlib.sha1(b'').hexdigest()}.kv"
    path.write_bytes(reference.build(b"payload", version=1, codec=3, chunk_size=4))
    before = path.read_bytes()
    [outcome] = upgraded(kv, layout="v2")
    assert outcome.action == "failed"
    assert "model_id" in str(outcome.error)
    assert path.read_bytes() == before
    assert names(kv) == [path.name]

    path.write_bytes(reference.build(bytes(1000), version=1, codec=3, chunk_size=4))
    assert actions(kv, layout="v2-checked") == ["upgraded"]
    header = ds4kv.read_header(path)
    assert (header.model_id, header.payload_abi) == (3, 4)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("payload", [random.Random(1).randbytes(100_000), b""], ids=["noise", "empty"])
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_what_would_not_shrink_is_kept(layout: str, payload: bytes, dry_run: bool, kv: Path) -> None:
    put(kv, payload=payload, layout=layout)
    before = state(kv)
    [outcome] = upgraded(kv, layout="v2-checked", dry_run=dry_run)
    assert (outcome.action, outcome.before) == ("kept", outcome.after)
    assert {**state(kv), str(kv): ()} == {**before, str(kv): ()}


def test_a_dry_run_writes_nothing_and_says_what_it_would_give(kv: Path) -> None:
    for text in (b"a", b"b"):
        put(kv, text)
    before = state(kv)
    dry = upgraded(kv, dry_run=True)
    assert state(kv) == before
    assert upgraded(kv) == dry
    assert [outcome.action for outcome in dry] == ["upgraded"] * 2


@pytest.mark.parametrize("dry_run", [False, True])
def test_damaged_files_are_left_alone(dry_run: bool, kv: Path) -> None:
    good = put(kv, b"good")
    name = "98c044f03a738db8e3c14d5ab82f7a954d2c18a1.kv"
    bad = kv / name
    for file, kind in [
        ("flip_token.kv", ds4kv.CorruptError),
        ("payload_trunc_mid_chunk.kv", ds4kv.TruncatedError),
        ("codec_7.kv", ds4kv.UnsupportedError),
    ]:
        shutil.copyfile(BAD / file, bad)
        before = state(kv)
        outcomes = {outcome.path: outcome for outcome in upgraded(kv, layout="v1", dry_run=dry_run)}
        assert outcomes[str(bad)].action == "failed"
        assert type(outcomes[str(bad)].error) is kind
        assert outcomes[str(good)].action == "current"
        assert {**state(kv), str(kv): ()} | {str(kv / LOCK_NAME): ()} == {**before, str(kv): ()} | {
            str(kv / LOCK_NAME): ()
        }
    shutil.copyfile(BAD / "ok_control.kv", bad)
    assert sorted(actions(kv, layout="v1", dry_run=dry_run)) == ["current", "upgraded"]


def test_what_is_no_checkpoint_is_not_looked_at(kv: Path) -> None:
    path = put(kv)
    for name in ("sysprompt.kv", "notes.txt", "1234.kv", f"{'0' * 40}.kv.tmp.1.x"):
        shutil.copyfile(path, kv / name)
    assert actions(kv) == ["upgraded"]


def test_links_stay_and_lead_where_they_led(kv: Path, tmp_path: Path) -> None:
    target = Path(shutil.move(put(kv), tmp_path))
    link = kv / target.name
    link.symlink_to(target)
    (kv / f"{'0' * 40}.kv").symlink_to(tmp_path / "nowhere")
    before = state(tmp_path)
    assert actions(kv) == ["skipped"] * 2
    assert state(tmp_path) == before


def test_a_name_in_capitals_stays(kv: Path) -> None:
    path = put(kv)
    path = path.rename(kv / f"{path.stem.upper()}.kv")
    assert actions(kv) == ["upgraded"]
    assert names(kv) == [path.name]


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "v3"},
        {"layout": "v1", "level": 1},
        {"layout": "v1", "chunk_size": 4096},
        {"layout": "v2", "level": -1},
        {"level": 13},
        {"level": -2},
        {"chunk_size": 1000},
        {"nice": 20},
    ],
)
def test_what_cannot_be_written_is_said_at_once(options: dict[str, Any], kv: Path) -> None:
    put(kv)
    with pytest.raises(ValueError):
        Upgrade(kv, **{"layout": TARGET, **options})
    Upgrade(kv, layout=TARGET, level=12, chunk_size=4096, nice=19)  # the control
    Upgrade(kv, layout=TARGET, level=-1)


def test_chunks_of_another_size(kv: Path) -> None:
    """They are no reason to write a file again, unless the size is asked for."""
    path = put(kv)
    assert actions(kv) == ["upgraded"]
    assert ds4kv.read_header(path).chunk_size == 1 << 20
    payload = bytes(ds4kv.load(path).payload)
    for chunk_size, action in ((None, "current"), (1 << 20, "current"), (4096, "upgraded"), (4096, "current")):
        assert actions(kv, chunk_size=chunk_size) == [action]
    assert actions(kv) == ["current"]
    assert ds4kv.read_header(path).chunk_size == 4096
    assert ds4kv.load(path).payload == payload
    assert main(["upgrade", str(kv), "--chunk-size", "8192", "--level", "-1"]) == 0
    assert ds4kv.read_header(path).chunk_size == 8192
    assert actions(kv, layout="v2") == ["upgraded"]
    assert ds4kv.read_header(path).chunk_size == 1 << 24


# -------------------------------------------------------------------------------------- layout packed


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("payload", [random.Random(1).randbytes(100_000), b"", b"x"], ids=["noise", "empty", "byte"])
def test_packed_takes_every_payload(payload: bytes, dry_run: bool, kv: Path) -> None:
    path = put(kv, payload=payload)
    before = content(path)
    [outcome] = upgraded(kv, layout="packed", dry_run=dry_run)
    head_bytes = 40 + (20 if payload else 0) + 8
    assert (outcome.action, outcome.after) == ("upgraded", outcome.before + head_bytes)
    assert content(path) == before
    assert path.stat().st_size == (outcome.before if dry_run else outcome.after)


@pytest.mark.parametrize("level", [None, -1, 9])
def test_from_packed_to_the_very_file_of_v2(level: int | None, kv: Path) -> None:
    path = put(kv, layout="v2")
    before = path.read_bytes()
    assert actions(kv, layout="packed", level=level) == ["upgraded"]
    assert actions(kv, layout="packed") == ["current"]
    assert verdict(path) is Verdict.OK
    assert actions(kv, layout="v2") == ["upgraded"]
    assert path.read_bytes() == before
    assert verdict(path) is Verdict.OK  # noted now, as it was proven before


@pytest.mark.parametrize("trailer", [TRAILER + b"and more" * 100, b""])
@pytest.mark.parametrize("layouts", [("v1", "packed"), ("packed", "v1"), ("packed", "v2-checked")])
def test_a_tool_map_meanwhile_is_kept_with_its_sum(
    layouts: tuple[str, str], trailer: bytes, kv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(kv, trailer=b"KTM old", ext_flags=0xF1, layout=layouts[0])
    meanwhile(monkeypatch, lambda: rewrite_trailer(str(path), trailer, last_used=77))
    [outcome] = upgraded(kv, layout=layouts[1])
    found = ds4kv.load(path)
    flags = 0xF1 if trailer else 0xF0
    assert (found.header.layout, found.header.ext_flags, found.header.last_used) == (layouts[1], flags, 77)
    assert (found.payload, found.trailer) == (PAYLOAD, trailer)
    assert outcome.after == path.stat().st_size


def test_a_flag_without_a_tool_map_is_left_out_of_packed(kv: Path) -> None:
    path = put(kv, trailer=b"", ext_flags=0xF1)
    assert actions(kv, layout="packed") == ["upgraded"]
    assert ds4kv.read_header(path).ext_flags == 0xF0
    assert verdict(path) is Verdict.OK


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("offset", [9, 55, 70, 1000, -3], ids=["header", "text", "frame", "payload", "trailer"])
def test_what_is_no_proof_of_itself_is_left_alone(offset: int, dry_run: bool, kv: Path) -> None:
    path = put(kv, layout="packed", payload=random.Random(1).randbytes(5000))
    damage_quietly(path, offset)
    before = path.read_bytes()
    [outcome] = upgraded(kv, layout="v2", dry_run=dry_run)
    assert outcome.action == "failed"
    assert isinstance(outcome.error, ds4kv.CorruptError)
    assert path.read_bytes() == before


# ------------------------------------------------------------------------ others at the same time


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], times: int = 1) -> None:
    """Has something happen when the new file is ready, and before the lock is taken."""
    left = [times]

    def lock_late(directory: str, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act()
        return locked(directory, **options)

    monkeypatch.setattr(upgrade_module, "locked", lock_late)


def test_a_hit_meanwhile_is_kept(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    meanwhile(monkeypatch, lambda: touch(str(path), last_used=77))
    assert actions(kv) == ["upgraded"]
    header = ds4kv.read_header(path)
    assert (header.layout, header.hits, header.last_used, header.created_at) == (TARGET, 4, 77, 5)
    assert ds4kv.load(path).payload == PAYLOAD


@pytest.mark.parametrize("trailer", [TRAILER + b"and more" * 100, b"", b"KTM"])
def test_a_tool_map_meanwhile_is_kept(trailer: bytes, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv, trailer=b"KTM old", ext_flags=0xF0)
    meanwhile(monkeypatch, lambda: rewrite_trailer(str(path), trailer, last_used=77))
    [outcome] = upgraded(kv)
    found = ds4kv.load(path)
    assert (found.header.layout, found.header.ext_flags, found.header.last_used) == (TARGET, 0xF1, 77)
    assert (found.payload, found.trailer) == (PAYLOAD, trailer)
    assert outcome.after == path.stat().st_size


def test_a_hit_between_the_last_looks_is_kept(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    look_like = upgrade_module._Candidate._look_like
    left = [2]

    def touch_late(self: Any, status: Any) -> None:
        look_like(self, status)
        if left[0]:
            left[0] -= 1
            touch(str(path), last_used=70 + left[0])

    monkeypatch.setattr(upgrade_module._Candidate, "_look_like", touch_late)
    assert actions(kv) == ["upgraded"]
    header = ds4kv.read_header(path)
    assert (header.layout, header.hits, header.last_used) == (TARGET, 5, 70)


def test_a_file_that_was_replaced_once_is_upgraded_then(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    meanwhile(monkeypatch, lambda: put(kv, payload=b"another payload" * 100))
    assert actions(kv) == ["upgraded"]
    assert ds4kv.load(path).payload == b"another payload" * 100
    assert names(kv) == [path.name]


def test_a_file_that_is_replaced_again_and_again_is_left_alone(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    meanwhile(monkeypatch, lambda: put(kv, payload=os.urandom(50) * 10), times=9)
    [outcome] = upgraded(kv)
    assert outcome.action == "skipped"
    assert outcome.why is not None and "replaced" in outcome.why
    assert len(ds4kv.load(path).payload) == 500
    assert names(kv) == [path.name]


def test_a_file_that_was_replaced_by_a_current_one_stays(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    meanwhile(monkeypatch, lambda: put(kv, payload=b"another payload", layout="v2"))
    assert actions(kv, layout="v2") == ["current"]
    assert ds4kv.load(path).payload == b"another payload"


def test_a_file_that_was_removed_is_not_brought_back(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    meanwhile(monkeypatch, path.unlink)
    [outcome] = upgraded(kv)
    assert outcome.action == "skipped"
    assert names(kv) == []


@pytest.mark.parametrize(("kind", "action"), [(errno.ESTALE, "skipped"), (errno.EIO, "failed")])
def test_a_file_that_is_being_written_is_skipped(
    kind: int, action: str, kv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(kv)
    before = path.read_bytes()

    def fail(source: Any, payload: Any) -> bytes:
        raise OSError(kind, "the file was changed while it was read", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(upgrade_module, "_copy", fail)
        assert actions(kv) == actions(kv, dry_run=True) == [action]
    assert names(kv) == [path.name]
    assert path.read_bytes() == before
    assert actions(kv) == ["upgraded"]


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_upgrades_without_locks_leave_nothing_open(kind: int, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)

    def none(fd: int, how: int) -> None:
        raise OSError(kind, os.strerror(kind))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", none)
    for layout in ("v2", "v1", "v2"):
        upgraded(kv, layout=layout)
    assert len(os.listdir("/proc/self/fd")) == before
    assert names(kv) == [path.name]


def test_what_opened_the_old_file_reads_on(kv: Path) -> None:
    path = put(kv, payload=PAYLOAD * 100)
    with ds4kv.open(path) as old:
        begun = old.payload.read(1000)
        assert actions(kv) == ["upgraded"]
        assert begun + old.payload.read() == PAYLOAD * 100
        assert old.trailer == TRAILER


def test_a_store_that_opens_meanwhile_leaves_the_new_file_alone(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    pid = os.getpid()
    seen = []

    def open_store() -> None:
        # As from a container, where this process can't be seen to live.
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        monkeypatch.setattr("ds4kv.file.leftovers._is_alive", lambda pid: False)
        Store(kv).close()
        monkeypatch.undo()
        seen.extend(name for name in names(kv) if ".tmp." in name)

    meanwhile(monkeypatch, open_store)
    assert actions(kv) == ["upgraded"]
    assert len(seen) == 1
    assert names(kv) == [path.name]


@pytest.mark.slow
def test_beside_an_engine(tmp_path: Path) -> None:
    """One that saves, loads, evicts and rewrites tool maps, in another process, and checks every byte."""
    kv = tmp_path / "store"
    upgrades = 0
    for seed in range(3):
        command = [sys.executable, store_worker.__file__, kv, str(seed), "1"]
        with started(command) as engine:
            while (line := engine.line()) != b"ready\n":
                assert line.startswith(b"remove ")  # as it opens: what was converted to v1 has outgrown the budget
            layouts = ["v2-checked", "packed", "v2", "v1"]
            while engine.is_running():
                outcomes = upgraded(kv, layout=layouts[0], workers=1)
                assert [outcome for outcome in outcomes if outcome.action == "failed"] == []
                upgrades += sum(outcome.action == "upgraded" for outcome in outcomes)
                layouts.append(layouts.pop(0))
            out, errors = engine.finish()
        assert engine.returncode == 0, errors.decode()
        assert out.endswith(b"done\n")
        assert whole(kv)
    assert upgrades > 0


def whole(kv: Path) -> int:
    """How many checkpoints there are, each proven whole; there is nothing else."""
    count = 0
    for name in names(kv):
        assert store_worker.is_file_name(name), name
        found = ds4kv.load(kv / name)
        assert found.payload == store_worker.payload_of(found.text)
        if found.header.ext_flags & ds4kv.Ext.TOOL_MAP:
            assert unpack_tool_map(found.trailer) in store_worker.TOOL_MAPS[1:]
        count += 1
    return count


# ------------------------------------------------------------------- what a store has noted of a file


CALL = b"<tool_calls>one</tool_calls>"


def noted(kv: Path, text: bytes = b"text") -> Path:
    """A raw checkpoint with a tool map that a store has saved and noted."""
    with Store(kv, layout="v1") as store:
        entry = store.save_buffer(text + CALL, PAYLOAD, tokens=600, ctx_size=9, tool_map={b"call_1": CALL})
    assert entry is not None
    return Path(entry.path)


def verdict(path: Path) -> Verdict:
    with ds4kv.open(path) as checkpoint:
        return checkpoint.verify()


@pytest.mark.parametrize("age", [0, 100])
@pytest.mark.parametrize("layout", ["v2", "v2-checked", "packed"])
def test_the_new_file_is_noted(layout: str, age: int, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noted(kv)
    aged = path.stat().st_mtime_ns - age * 10**9
    os.utime(path, ns=(aged, aged))
    meanwhile(monkeypatch, lambda: touch(str(path), last_used=77))
    assert actions(kv, layout=layout) == ["upgraded"]
    assert ds4kv.read_header(path).layout == layout
    assert verdict(path) is Verdict.OK
    content = path.read_bytes()
    for offset in (55, len(content) // 2):
        damage_quietly(path, offset)
        with pytest.raises(ds4kv.CorruptError):
            verdict(path)
        path.write_bytes(content)


@pytest.mark.parametrize("trailer", [b"KTM another", b""])
def test_a_tool_map_meanwhile_is_noted(trailer: bytes, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noted(kv)

    def rewrite() -> None:
        rewrite_trailer(str(path), trailer, last_used=77)
        os.utime(path, ns=(10**18, 10**18))

    meanwhile(monkeypatch, rewrite)
    assert actions(kv) == ["upgraded"]
    assert ds4kv.load(path).trailer == trailer
    assert verdict(path) is Verdict.OK
    if trailer:
        damage_quietly(path, path.stat().st_size - 2)
        with pytest.raises(ds4kv.CorruptError):
            verdict(path)


def test_a_store_goes_on_with_upgraded_files(kv: Path) -> None:
    path = noted(kv)
    assert actions(kv) == ["upgraded"]
    with Store(kv, layout="v1") as store:
        entry = store.find(b"text" + CALL, ctx_size=9, quant_bits=2)
        assert entry is not None
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
            assert checkpoint.tool_map == {b"call_1": CALL}
    assert ds4kv.read_header(path).hits == 1
    assert verdict(path) is Verdict.OK


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("offset", [9, 55, 1000, -3], ids=["header", "text", "payload", "trailer"])
def test_what_is_not_what_was_noted_is_left_alone(offset: int, dry_run: bool, kv: Path) -> None:
    path = noted(kv)
    with ds4kv.open(path) as checkpoint:
        if offset == 9 and not checkpoint.note.birth_ns:
            pytest.skip("this file system doesn't say when a file came into being")
    damage_quietly(path, offset)
    before = path.read_bytes()
    [outcome] = upgraded(kv, dry_run=dry_run)
    assert outcome.action == "failed"
    assert isinstance(outcome.error, ds4kv.CorruptError)
    assert path.read_bytes() == before
    assert names(kv) == [path.name]


def test_what_nobody_has_noted_is_not_noted(kv: Path) -> None:
    path = put(kv)
    assert actions(kv) == ["upgraded"]
    assert verdict(path) is Verdict.UNKNOWN
    assert not (kv / DIRECTORY_NAME).exists()


# ------------------------------------------------------------------------------------ how it may end


def fill(kv: Path) -> int:
    for text in store_worker.TEXTS:
        put(kv, text, store_worker.payload_of(text), trailer=b"", ext_flags=0)
    return len(store_worker.TEXTS)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    kv = tmp_path / "store"
    kv.mkdir()
    count = fill(kv)
    rng = random.Random(1)
    layouts = ["v2", "v2-checked", "packed", "v1"]
    left = 0
    for _ in range(12):
        command = [sys.executable, "-c", _FOREVER, str(kv), *layouts]
        with started(command) as child:
            assert child.line() == b"ready\n"
            time.sleep(rng.uniform(0, 0.1))
        left += len(names(kv)) - count
        Store(kv).close()
        assert whole(kv) == count
        for name in names(kv):
            header = ds4kv.read_header(kv / name)
            assert (header.hits, header.last_used) == (3, 6)
            assert (kv / name).stat().st_mtime_ns == 1_000_000_000_123_456_789
    assert left > 0  # some were killed with a file half written


_FOREVER = """
import sys
from ds4kv.store.upgrade import Upgrade
print("ready", flush=True)
while True:
    for layout in sys.argv[2:]:
        for outcome in Upgrade(sys.argv[1], layout=layout, workers=0).run():
            pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_nothing_half_done(number: signal.Signals, tmp_path: Path) -> None:
    kv = tmp_path / "store"
    kv.mkdir()
    path = put(kv, payload=random.Random(1).randbytes(1 << 20) * 64)
    argv = ["upgrade", str(kv), "--layout", "v2", "--level", "12", "--threads", "1"]
    with started([sys.executable, "-m", "ds4kv", *argv]) as child:
        while not any(temporary.stat().st_size > 1 << 16 for temporary in kv.glob("*.tmp.*")):
            assert child.is_running()
            time.sleep(0.005)
        child.process.send_signal(number)
        assert child.finish()[1] == b""
    assert child.returncode == 128 + number
    assert names(kv) == [path.name]
    assert ds4kv.read_header(path).layout == "v1"


@pytest.mark.parametrize("after", [0, 60, 1000])
def test_a_full_disk_costs_nothing(
    after: int, kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(kv)
    before = path.read_bytes()
    write = draft.OutputFile.write

    def fill_up(self: Any, b: Any, /) -> int:
        if self.tell() + memoryview(b).nbytes > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, b)

    monkeypatch.setattr(draft.OutputFile, "write", fill_up)
    [outcome] = upgraded(kv, layout="v2")
    assert outcome.action == "failed"
    assert isinstance(outcome.error, OSError) and outcome.error.errno == errno.ENOSPC
    assert main(["upgrade", str(kv), "--layout", "v2"]) == 1
    assert capsys.readouterr().out.startswith(f"{path}: failed: No space left on device\n")
    assert names(kv) == [path.name]
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert actions(kv) == ["upgraded"]


def test_a_disk_that_is_full_for_the_new_tool_map(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)

    def fill_up(fd: int, data: Any, offset: int) -> int:
        if len(data) == 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    take_over = upgrade_module._Candidate.take_over

    def full(self: Any, source: Any) -> int:
        rewrite_trailer(str(path), bytes(1000), last_used=78)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fill_up)
            return take_over(self, source)

    monkeypatch.setattr(upgrade_module._Candidate, "take_over", full)
    [outcome] = upgraded(kv)
    assert outcome.action == "failed"
    found = ds4kv.load(path)
    assert (found.header.layout, found.trailer) == ("v1", bytes(1000))
    assert names(kv) == [path.name]


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES])
def test_a_directory_that_is_read_only(kind: int, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    before = state(kv)

    def refuse(path: str, flags: int) -> int:
        raise OSError(kind, os.strerror(kind), path)

    monkeypatch.setattr(draft, "_open_private", refuse)
    [outcome] = upgraded(kv)
    assert outcome.action == "failed"
    assert isinstance(outcome.error, OSError) and outcome.error.filename == str(path)
    assert state(kv) == before
    assert actions(kv, dry_run=True) == ["upgraded"]


def test_a_directory_whose_lock_cannot_be_had(kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    monkeypatch.setattr("ds4kv.file.lock._TIMEOUT", 0.01)
    with locked(str(kv)):
        [outcome] = upgraded(kv)
    assert outcome.action == "failed"
    assert isinstance(outcome.error, TimeoutError)
    assert ds4kv.read_header(path).layout == "v1"
    assert names(kv) == [path.name]


@pytest.mark.parametrize("offset", [10, 53, 80, -1])
def test_what_reads_back_wrong_is_never_published(offset: int, kv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(kv)
    before = path.read_bytes()
    check = upgrade_module._Candidate.check

    def rot(self: Any, *args: Any) -> None:
        with open(self._draft.path, "r+b") as fp:
            at = fp.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            byte = fp.read(1)[0]
            fp.seek(at)
            fp.write(bytes([byte ^ 4]))
        check(self, *args)

    monkeypatch.setattr(upgrade_module._Candidate, "check", rot)
    [outcome] = upgraded(kv)
    assert outcome.action == "failed"
    assert isinstance(outcome.error, OSError) and outcome.error.errno == errno.EIO
    assert path.read_bytes() == before
    assert names(kv) == [path.name]


def test_what_a_killed_one_left_is_cleaned_up(kv: Path) -> None:
    path = put(kv)
    stale = kv / f"{path.name}.tmp.999999999.00000000"
    stale.touch()
    assert actions(kv, dry_run=True) == ["upgraded"]
    assert stale.exists()
    assert actions(kv) == ["upgraded"]
    assert names(kv) == [path.name]


# ------------------------------------------------------------------------------------------- command


def test_the_command_says_what_it_won(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(kv)
    put(kv, b"current", layout=TARGET)
    before = path.stat().st_size
    total = sum(file.stat().st_size for file in kv.iterdir())
    argv = ["upgrade", str(kv), "--layout", TARGET]
    assert main([*argv, "--dry-run"]) == 0
    dry = capsys.readouterr().out.splitlines()
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    after = path.stat().st_size
    won = before - after
    assert dry[0] == f"{path}: {before:,} bytes would become {after:,}, {won:,} won"
    assert lines[0] == f"{path}: {before:,} bytes became {after:,}, {won:,} won"
    assert lines[1] == (
        f"2 checkpoints: 1 upgraded, 1 current; {total / 2**20:,.1f} MiB before,"
        f" {(total - won) / 2**20:,.1f} MiB after, {won:,} won"
    )
    assert dry[1] == f"dry run: {lines[1]}"
    assert len(lines) == len(dry) == 2
    assert main([*argv[:-1], "v1"]) == 0
    assert f"{path}: {after:,} bytes became {before:,}, {won:,} more" in capsys.readouterr().out


def test_the_command_as_json(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(kv)
    bad = kv / "98c044f03a738db8e3c14d5ab82f7a954d2c18a1.kv"
    shutil.copyfile(BAD / "payload_trunc_mid_chunk.kv", bad)
    before = path.stat().st_size
    assert main(["upgrade", str(kv), "--layout", TARGET, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    files = {file.pop("path"): file for file in told.pop("files")}
    after = path.stat().st_size
    assert files[str(path)] == {"action": "upgraded", "before": before, "after": after, "why": None}
    assert (told["directory"], told["layout"], told["dry_run"]) == (str(kv), TARGET, False)
    assert files[str(bad)].pop("why").startswith("a region of 4472 bytes is claimed")
    assert files[str(bad)]["action"] == "failed"
    size = bad.stat().st_size
    assert (told["before"], told["after"]) == (before + size, after + size)


def test_the_command_tells_damaged_files(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = kv / "98c044f03a738db8e3c14d5ab82f7a954d2c18a1.kv"
    shutil.copyfile(BAD / "flip_token.kv", bad)
    assert main(["upgrade", str(kv), "--layout", "v1"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{bad}: failed: corrupt: chunk 1: ")
    assert last.startswith("1 checkpoint: 0 upgraded, 1 failed; ")
    shutil.copyfile(BAD / "ok_control.kv", bad)
    assert main(["upgrade", str(kv), "--layout", "v1"]) == 0


def test_bad_use_of_the_command(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, message in [
        ([], 2, "DIR"),
        ([str(kv), "--layout", "v2-mid"], 2, "choose from"),
        ([str(kv), "--layout", "v1", "--level", "1"], 2, "no levels"),
        ([str(kv), "--level", "13"], 2, "from -1 to 12"),
        ([str(kv), "--level", "-2"], 2, "from -1 to 12"),
        ([str(kv), "--layout", "v2", "--level", "-1"], 2, "level is -1"),
        ([str(kv), "--chunk-size", "1000"], 2, "power of two"),
        ([str(kv), "--chunk-size", "0"], 2, "from 1 to 67108864"),
        ([str(kv), "--layout", "v1", "--chunk-size", "4096"], 2, "no chunks"),
        ([str(kv), "--nice", "20"], 2, "from 0 to 19"),
        ([str(kv / "missing")], 1, "No such file"),
    ]:
        assert main(["upgrade", *argv]) == code
        err = capsys.readouterr().err
        assert err.startswith("ds4kv: error: ") and message in err and err.count("\n") == 1
    assert names(kv) == []


def test_the_command_lets_others_go_first(kv: Path) -> None:
    code = f"""
import os
from ds4kv.cli import main
before = os.nice(0)
assert main(["upgrade", {str(kv)!r}, "--nice", "7"]) == 0
assert os.nice(0) == min(before + 7, 19)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE)
