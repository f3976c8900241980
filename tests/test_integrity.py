"""The ledger: damage that the layouts can't tell is told by it, and whatever becomes of it, saves and loads go on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from processes import DEADLINE, started, status_of_fork

import ds4kv
from ds4kv.core import native as _core
from ds4kv.file import database as database_module
from ds4kv.file.ledger import DATABASE_NAME, DIRECTORY_NAME, Ledger
from ds4kv.file.note import Note, Verdict
from ds4kv.format.header import Form
from ds4kv.format.toolmap import pack_tool_map
from ds4kv.store.store import Store
from ds4kv.stream.sums import region_sums

CHUNK = 4096
PAYLOAD = b"".join(struct.pack("<f", i / 7) for i in range(3 * CHUNK // 4)) + bytes(100)  # three chunks and a bit
TEXT = b"a prompt and what the model made of it"
TOOL_MAP = {b"call_1": b"<tool_calls>ls</tool_calls>"}
CHAT = b"Q" + TOOL_MAP[b"call_1"] + b"A"
TRAILER = pack_tool_map(TOOL_MAP)
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
PROMPT: dict[str, Any] = {"ctx_size": 32768, "quant_bits": 2}
WRITTEN = [("v1", "none"), ("v2", "none"), ("v2", "lz4"), ("v2", "lz4hc"), ("v2-checked", "lz4")]
HITS, LAST_USED, EXT_FLAGS = range(12, 16), range(32, 40), 6


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "kv", workers=1) as store:
        yield store


def save(store: Store, text: bytes = TEXT, **options: Any) -> Path:
    return Path(store.save_buffer(text, PAYLOAD, **(SAVE | options)).path)


def find(store: Store, prompt: bytes = TEXT) -> Any:
    return store.find(prompt, **PROMPT)


def verdict(store: Store, text: bytes = TEXT) -> Verdict:
    return store.verify(find(store, text))


def database(store: Store) -> Path:
    return Path(store.directory, DIRECTORY_NAME, DATABASE_NAME)


def load(store: Store, prompt: bytes = TEXT) -> bytes:
    with store.load(find(store, prompt)) as checkpoint:
        return checkpoint.payload.read()


def dump_noted(path: Path, layout: str, codec: str, **options: Any) -> None:
    with contextlib.closing(Ledger(str(path.parent))) as ledger:
        given = {"text": TEXT, "trailer": TRAILER, "ext_flags": 1, "layout": layout, "codec": codec, "ledger": ledger}
        if codec != "none":
            given["chunk_size"] = CHUNK
        with ds4kv.create(path, **(SAVE | given | options)) as checkpoint:
            if options.get("raw_total") != 0:
                checkpoint.payload.write(PAYLOAD)


@contextlib.contextmanager
def unwritten(path: Path) -> Iterator[Any]:
    """The file, to be changed as a disk does it: nobody writes, and the mtime stays."""
    status = path.stat()
    with open(path, "r+b", buffering=0) as fp:
        yield fp
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rot(path: Path, offset: int, mask: int = 1) -> None:
    with unwritten(path) as fp:
        old = os.pread(fp.fileno(), 1, offset)[0]
        os.pwrite(fp.fileno(), bytes([old ^ mask]), offset)


def rewrite_as_ds4(path: Path, trailer: bytes | None = None) -> None:
    """A hit, or a trailer and its use: all of the header is written back, as far as ds4 knows it."""
    with open(path, "r+b") as fp:
        head = bytearray(fp.read(52))
        if trailer is not None:
            end = 52 + int.from_bytes(head[48:52], "little") + int.from_bytes(head[40:48], "little")
            fp.truncate(end)
            fp.seek(end)
            fp.write(trailer)
            head[EXT_FLAGS] |= 1
        else:
            head[12:16] = (int.from_bytes(head[12:16], "little") + 1).to_bytes(4, "little")
        head[32:40] = (1_900_000_000).to_bytes(8, "little")
        if head[3] == 1 or (head[7] == 0 and head[21] != 2):
            head[3], head[7], head[20:24] = 2, 0, bytes(4)
        if head[5] > 6:
            head[5] = 0
        fp.seek(0)
        fp.write(head[:48])


# ------------------------------------------------------------------------------ what is noted


@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_save_is_noted_and_its_bytes_are_those_of_any_other(
    tmp_path: Path, layout: str, codec: str, workers: int
) -> None:
    with Store(tmp_path / "kv", layout=layout, codec=codec, workers=workers, clock=lambda: 1000) as store:
        path = save(store, CHAT, tool_map=TOOL_MAP)
        assert verdict(store, CHAT) is Verdict.OK
        options = {"text": CHAT, "trailer": TRAILER, "ext_flags": 1, "layout": layout, "codec": codec}
        ds4kv.dump(tmp_path / "plain.kv", PAYLOAD, created_at=1000, **(SAVE | options))
        assert path.read_bytes() == (tmp_path / "plain.kv").read_bytes()
        assert stat_mode(database(store).parent) == 0o700
    with contextlib.closing(Ledger(store.directory)) as ledger:
        note = ledger.get(path.name)
    assert note.head == path.read_bytes()[:52]
    assert (note.device, note.inode) == (path.stat().st_dev, path.stat().st_ino)
    assert note.text_sum == _core.hash64(CHAT)
    assert (note.trailer_bytes, note.trailer_sum) == (len(TRAILER), _core.hash64(TRAILER))
    header = ds4kv.read_header(path)
    with open(path, "rb") as fp:
        fp.seek(52 + len(CHAT))
        chunk_size = header.chunk_size or 1 << 24
        sums = region_sums(fp, header.payload_bytes, chunk_size=chunk_size, form=header.form)
    assert note.region_sums == sums
    assert len(sums) == 1


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
def test_sums_are_the_same_for_any_workers(tmp_path: Path, layout: str, codec: str) -> None:
    notes = []
    for workers in (0, 1, 2):
        dump_noted(tmp_path / f"{workers}.kv", layout, codec, workers=workers)
        with contextlib.closing(Ledger(str(tmp_path))) as ledger:
            notes.append(ledger.get(f"{workers}.kv"))
        assert ds4kv.load(tmp_path / f"{workers}.kv", workers=workers).payload == PAYLOAD
    assert notes[0].region_sums == notes[1].region_sums == notes[2].region_sums
    assert len(notes[0].region_sums) == (1 if codec == "none" else 4)


def test_an_empty_payload_is_noted(tmp_path: Path) -> None:
    for layout, codec in WRITTEN:
        path = tmp_path / f"{layout} {codec}.kv"
        dump_noted(path, layout, codec, raw_total=0)
        assert ds4kv.open(path).verify() is Verdict.OK
        rewrite_as_ds4(path)
        assert ds4kv.open(path).verify() is Verdict.OK
        rot(path, 53)
        with contextlib.suppress(ds4kv.CorruptError):  # of a compressed one the frame is the same still
            assert ds4kv.open(path).verify() is Verdict.UNKNOWN


def test_saves_in_the_background_are_noted(store: Store) -> None:
    texts = [b"%d" % number for number in range(8)]
    for future in [store.save_async(text, PAYLOAD, **SAVE) for text in texts]:
        future.result()
    assert [verdict(store, text) for text in texts] == [Verdict.OK] * 8


def test_threads_share_a_ledger(store: Store) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            text = b"%d %d" % (number, turn)
            save(store, text)
            verdicts.append(verdict(store, text))

    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.OK] * 20


def test_a_note_is_packed_and_unpacked(tmp_path: Path) -> None:
    dump_noted(tmp_path / "a.kv", "v2", "lz4")
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        note = ledger.get("a.kv")
    stored = note.pack(b"a.kv")
    assert Note.unpack(b"a.kv", stored) == note
    assert Note.unpack(b"b.kv", stored) is None
    assert Note.unpack(b"a.kv", b"") is None
    for at in range(len(stored)):
        assert Note.unpack(b"a.kv", stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :]) is None


# ------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("noted")
    paths = {written: folder / f"{'-'.join(written)}.kv" for written in WRITTEN}
    for (layout, codec), path in paths.items():
        dump_noted(path, layout, codec)
    return paths


def everything(path: Path) -> tuple[object, ...]:
    with ds4kv.open(path, workers=1) as checkpoint:
        payload = checkpoint.payload.read()
        return checkpoint.header, checkpoint.text, payload, checkpoint.trailer


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.sampled_from(WRITTEN),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    near_start=st.booleans(),
)
def test_no_wrong_byte_is_delivered(
    noted: dict[tuple[str, str], Path], written: tuple[str, str], places: list[tuple[float, int]], near_start: bool
) -> None:
    path = noted[written]
    good = path.read_bytes()
    control = everything(path)
    size = min(len(good), 160) if near_start else len(good)
    changed = bytearray(good)
    for place, mask in places:
        changed[int(place * size)] ^= mask
    assume(changed != good)
    with unwritten(path) as fp:
        fp.write(changed)
    try:
        with pytest.raises(ds4kv.CorruptError) as refused:
            everything(path)
        assert refused.value.path == str(path)
        assert refused.value.offset is not None
        assert refused.value.field
    finally:
        with unwritten(path) as fp:
            fp.write(good)
    assert everything(path) == control


def test_what_still_decodes_is_told_by_its_sum(store: Store) -> None:
    path = save(store, bytes(range(200)))
    start = 52 + 200 + 12 + 8
    with store.load(find(store, bytes(range(200)))) as checkpoint:
        assert checkpoint.payload.read() == PAYLOAD
    # A literal of the block: every reader takes it.
    data = path.read_bytes()
    for at in range(start, len(data)):
        rot(path, at)
        with contextlib.suppress(ds4kv.CorruptError):
            if ds4kv.load(path, verify=False).payload != PAYLOAD:
                break
        rot(path, at)
    with pytest.raises(ds4kv.CorruptError, match="have changed"):
        ds4kv.load(path)
    assert store.verify(find(store, bytes(range(200)))) is Verdict.DAMAGED
    assert path.exists()


@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
@pytest.mark.parametrize("place", ["tokens", "text", "region", "trailer"])
def test_damage_is_set_aside_and_the_next_best_found(tmp_path: Path, layout: str, codec: str, place: str) -> None:
    with Store(tmp_path, layout=layout, codec=codec, workers=1) as store:
        shorter = save(store, CHAT[:-1])
        path = save(store, CHAT, tool_map=TOOL_MAP)
        entry = find(store, CHAT)
        assert entry.path == str(path)
        rot(
            path, {"tokens": 8, "text": 53, "region": 52 + len(CHAT) + 40, "trailer": len(path.read_bytes()) - 1}[place]
        )
        with pytest.raises(ds4kv.CorruptError), store.load(entry) as checkpoint:
            checkpoint.payload.read()
            assert checkpoint.tool_map == TOOL_MAP
        assert os.listdir(tmp_path / "quarantine") == [path.name]
        assert find(store, CHAT).path == str(shorter)
        assert load(store, CHAT) == PAYLOAD
        assert store._directory.ledger.names() == {shorter.name}


def test_a_trailer_that_nobody_reads_is_checked_before_the_hit(store: Store) -> None:
    path = save(store, CHAT, tool_map=TOOL_MAP)
    assert load(store, CHAT) == PAYLOAD
    rot(path, path.stat().st_size - 1)
    assert load(store, CHAT) == PAYLOAD
    assert find(store, CHAT) is None
    assert os.listdir(Path(store.directory, "quarantine")) == [path.name]


def test_a_damaged_tool_map_is_not_imported(store: Store) -> None:
    path = save(store, CHAT, tool_map=TOOL_MAP)
    assert store.import_tool_maps(TOOL_MAP) == TOOL_MAP
    rot(path, path.stat().st_size - 1)
    assert store.import_tool_maps(TOOL_MAP) == {}
    rot(path, path.stat().st_size - 1)
    rot(path, 8)
    assert store.import_tool_maps(TOOL_MAP) == {}
    rot(path, 8)
    assert store.import_tool_maps(TOOL_MAP) == TOOL_MAP


def test_a_system_without_birth_times_proves_nothing_by_a_header(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "file_birth", lambda fd: 0)
    path = save(store)
    assert verdict(store) is Verdict.OK
    rot(path, 24)
    assert verdict(store) is Verdict.UNKNOWN


# ------------------------------------------------------------------------------ what ds4 changes


@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
@pytest.mark.parametrize("reason", [1, 77])
def test_a_hit_and_a_tool_map_by_ds4_spoil_nothing(tmp_path: Path, layout: str, codec: str, reason: int) -> None:
    with Store(tmp_path, layout=layout, codec=codec, workers=1) as store:
        path = save(store, CHAT, tool_map=TOOL_MAP, reason=reason)
        rewrite_as_ds4(path)
        assert verdict(store, CHAT) is Verdict.OK
        assert load(store, CHAT) == PAYLOAD
        assert verdict(store, CHAT) is Verdict.OK
        other = pack_tool_map({b"call_2": TOOL_MAP[b"call_1"], b"call_3": TOOL_MAP[b"call_1"]})
        rewrite_as_ds4(path, other)
        assert verdict(store, CHAT) is Verdict.UNKNOWN  # of the trailer
        with store.load(find(store, CHAT)) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
            assert checkpoint.trailer == other
            assert len(checkpoint.tool_map) == 2
        rot(path, 52 + len(CHAT) + 40)
        assert verdict(store, CHAT) is Verdict.DAMAGED
        rot(path, 52 + len(CHAT) + 40)
        assert verdict(store, CHAT) is Verdict.UNKNOWN


def test_hits_and_tool_maps_of_the_store_are_noted(store: Store) -> None:
    path = save(store, CHAT, tool_map=TOOL_MAP)
    for _ in range(2):
        assert load(store, CHAT) == PAYLOAD
        assert verdict(store, CHAT) is Verdict.OK
    assert save(store, CHAT, tool_map={b"call_7": TOOL_MAP[b"call_1"]}) == path
    assert verdict(store, CHAT) is Verdict.OK
    assert load(store, CHAT) == PAYLOAD
    for at in (14, 33, EXT_FLAGS, path.stat().st_size - 1):
        rot(path, at)
        assert verdict(store, CHAT) is Verdict.DAMAGED
        rot(path, at)
        assert verdict(store, CHAT) is Verdict.OK


def test_a_trailer_by_ds4_right_after_a_save_is_no_damage(store: Store) -> None:
    for number in range(20):
        text = b"%d" % number
        path = save(store, text)
        rewrite_as_ds4(path, TRAILER)  # within the same tick of the clock, more often than not
        with store.load(find(store, text)) as checkpoint:
            assert checkpoint.trailer == TRAILER
        rewrite_as_ds4(path, TRAILER * 2)
        with store.load(find(store, text)) as checkpoint:
            assert checkpoint.trailer == TRAILER * 2


def test_a_hit_that_ds4_has_rewritten_the_trailer_of_is_not_noted(store: Store) -> None:
    path = save(store, CHAT, tool_map=TOOL_MAP)
    rewrite_as_ds4(path, TRAILER * 2)
    assert load(store, CHAT) == PAYLOAD
    assert verdict(store, CHAT) is Verdict.UNKNOWN
    assert path.read_bytes().endswith(TRAILER * 2)


def test_replaced_by_another_program(store: Store) -> None:
    path = save(store)
    other = b"other" * 1000
    ds4kv.dump(path, other, text=TEXT, created_at=5, **SAVE)
    assert verdict(store) is Verdict.UNKNOWN
    assert load(store) == other


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_copied_directory_is_verified(store: Store, tmp_path: Path, keep_times: bool) -> None:
    path = save(store, CHAT, tool_map=TOOL_MAP)
    store.close()
    copier = shutil.copy2 if keep_times else shutil.copy
    shutil.copytree(store.directory, tmp_path / "copy", copy_function=copier)
    with Store(tmp_path / "copy", workers=1) as copy:
        assert verdict(copy, CHAT) is Verdict.OK
        rot(tmp_path / "copy" / path.name, 52 + len(CHAT) + 40)
        assert verdict(copy, CHAT) is Verdict.DAMAGED
        rot(tmp_path / "copy" / path.name, 52 + len(CHAT) + 40)
        rot(tmp_path / "copy" / path.name, path.stat().st_size - 1)
        assert verdict(copy, CHAT) is Verdict.UNKNOWN  # a copy may be of a moment when it was written
        rot(tmp_path / "copy" / path.name, path.stat().st_size - 1)
        assert load(copy, CHAT) == PAYLOAD


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
def test_a_header_that_reads_a_copy_otherwise(tmp_path: Path, layout: str, codec: str) -> None:
    """Each bit of the header of a file that is not the one that was noted, but has its bytes."""
    origin, copy = tmp_path / "kv", tmp_path / "copy"
    origin.mkdir()
    dump_noted(origin / "a.kv", layout, codec)
    shutil.copytree(origin, copy)
    path = copy / "a.kv"
    good = path.read_bytes()
    assert bytes(ds4kv.load(path).payload) == PAYLOAD
    for at in range(52):
        for bit in range(8):
            changed = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            path.write_bytes(changed)
            with contextlib.suppress(ds4kv.Ds4kvError):
                assert bytes(ds4kv.load(path).payload) == PAYLOAD, (at, bit)
    path.write_bytes(good)
    assert bytes(ds4kv.load(path).payload) == PAYLOAD


# ------------------------------------------------------------------------------ what becomes of the ledger


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_nobody_pays_for_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    ds4kv.dump(tmp_path / "a.kv", PAYLOAD, text=TEXT, **SAVE)
    assert os.listdir(tmp_path) == ["a.kv"]
    code = "import sys, ds4kv; ds4kv.load(sys.argv[1]); sys.exit('sqlite3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.kv")], check=True, timeout=DEADLINE)
    assert os.listdir(tmp_path) == ["a.kv"]


def test_the_ledger_is_no_checkpoint(store: Store) -> None:
    path = save(store)
    assert database(store).exists()
    assert [entry.path for entry in store.entries()] == [str(path)]
    assert [victim.entry.path for victim in store.plan_eviction(0)] == [str(path)]


@pytest.mark.parametrize("while_open", [True, False])
def test_deleted(tmp_path: Path, while_open: bool) -> None:
    store = Store(tmp_path, workers=1)
    save(store)
    if not while_open:
        store.close()
    shutil.rmtree(tmp_path / DIRECTORY_NAME)
    assert verdict(store) is Verdict.UNKNOWN
    assert load(store) == PAYLOAD
    save(store, b"another")
    assert verdict(store, b"another") is Verdict.OK
    assert verdict(store) is Verdict.UNKNOWN
    store.close()


def spoil(path: Path, how: str) -> None:
    if how == "garbage":
        path.write_bytes(os.urandom(5000))
    elif how == "short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            if how == "schema":
                connection.execute("CREATE INDEX more ON notes (note)")
            else:
                connection.execute("ALTER TABLE notes RENAME TO others")


@pytest.mark.parametrize("how", ["garbage", "short", "schema", "table"])
def test_a_database_that_is_no_ledger_is_made_anew(store: Store, how: str, caplog: pytest.LogCaptureFixture) -> None:
    save(store)
    store.close()
    spoil(database(store), how)
    assert verdict(store) is Verdict.UNKNOWN
    assert load(store) == PAYLOAD
    assert len(warnings_of(caplog)) == 1
    save(store, b"another")
    assert verdict(store, b"another") is Verdict.OK
    assert verdict(store) is Verdict.UNKNOWN
    assert len(warnings_of(caplog)) == 2
    assert Path(f"{database(store)}.damaged").exists()


def test_a_rotten_note_condemns_no_file(store: Store) -> None:
    path = save(store)
    store.close()
    data = database(store).read_bytes()
    with contextlib.closing(Ledger(store.directory)) as ledger:
        sum_at = data.index(ledger.get(path.name).region_sums.tobytes())
    rot(database(store), sum_at)
    assert verdict(store) is Verdict.UNKNOWN
    assert load(store) == PAYLOAD
    store.close()
    rot(database(store), sum_at)
    assert load(store) == PAYLOAD
    assert verdict(store) is Verdict.OK


def test_a_file_in_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DIRECTORY_NAME).touch()
    with Store(tmp_path, workers=1) as store:
        for text in (b"1", b"2"):
            save(store, text)
            assert load(store, text) == PAYLOAD
            assert verdict(store, text) is Verdict.UNKNOWN
    assert len(warnings_of(caplog)) == 1


def test_locked_by_another(store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(database_module, "_TIMEOUT", 0.01)
    save(store)
    store.close()
    fd = os.open(database(store).parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        save(store, b"2")
        save(store, b"3")
        assert load(store, b"2") == PAYLOAD
        assert len(warnings_of(caplog)) == 1
        assert "locked" in caplog.text
    finally:
        os.close(fd)
    assert verdict(store, b"2") is Verdict.UNKNOWN
    assert verdict(store) is Verdict.OK
    save(store, b"4")
    assert verdict(store, b"4") is Verdict.OK


def test_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store)
    real = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith("INSERT"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: real(*a, factory=Full, **o))
    store.close()
    save(store, b"2")
    assert load(store, b"2") == PAYLOAD
    assert verdict(store, b"2") is Verdict.UNKNOWN
    assert verdict(store) is Verdict.OK


def test_a_python_without_sqlite(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store)
    store.close()
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    save(store, b"2")
    assert load(store, b"2") == PAYLOAD
    assert verdict(store) is Verdict.UNKNOWN


def test_a_directory_that_is_not_ours_to_write() -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        with Store(Path(top, "kv"), workers=1) as store:
            path, damaged = save(store), save(store, CHAT)
        rot(damaged, 52 + len(CHAT) + 40)
        for name in (store.directory, os.path.join(store.directory, DIRECTORY_NAME)):
            os.chmod(name, 0o555)
        for file in (path, damaged, database(store)):
            os.chmod(file, 0o444)

        def work() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            with ds4kv.open(path, workers=1) as checkpoint:
                assert checkpoint.note is not None
                assert checkpoint.payload.read() == PAYLOAD
                assert checkpoint.verify() is Verdict.OK
            with pytest.raises(ds4kv.CorruptError):
                ds4kv.load(damaged, workers=1)
            with contextlib.closing(Ledger(store.directory)) as ledger:
                ledger.put("a", ledger.get(path.name))
                assert ledger.get("a") is None

        assert status_of_fork(work) == 0
        for name in (store.directory, os.path.join(store.directory, DIRECTORY_NAME)):
            os.chmod(name, 0o700)


def test_a_fork(store: Store) -> None:
    save(store)

    def work() -> None:
        assert verdict(store) is Verdict.OK
        save(store, b"child")
        assert verdict(store, b"child") is Verdict.OK

    assert status_of_fork(work) == 0
    assert verdict(store, b"child") is Verdict.OK
    save(store, b"parent")
    assert verdict(store, b"parent") is Verdict.OK
    assert status_of_fork(work) == 0
    store.close()
    assert verdict(store, b"parent") is Verdict.OK


def test_two_processes(store: Store) -> None:
    save(store)
    code = (
        "import sys; from ds4kv.store.store import Store\n"
        "with Store(sys.argv[1], workers=1) as store:\n"
        "    entry = store.find(b'0', ctx_size=32768, quant_bits=2)\n"
        "    for number in range(20):\n"
        "        store.save_buffer(b'other %d' % number, bytes(5000), tokens=600, ctx_size=32768)\n"
    )
    with started([sys.executable, "-c", code, store.directory]) as other:
        for number in range(20):
            save(store, b"%d" % number)
        assert other.finish() == (b"", b"")
    assert other.returncode == 0
    assert {store.verify(entry) for entry in store.entries()} == {Verdict.OK}
    assert len(store.entries()) == 41


# ------------------------------------------------------------------------------ what is forgotten, what is noted later


def test_what_goes_is_forgotten(tmp_path: Path) -> None:
    with Store(tmp_path, workers=1, consume=True, cold_max_tokens=1000) as store:
        ledger = store._directory.ledger
        save(store)
        save(store, b"long", tokens=2000)
        save(store, b"kept")
        assert len(ledger.names()) == 3
        assert load(store, b"long") == PAYLOAD
        assert len(ledger.names()) == 2
        assert store.remove(find(store))
        assert ledger.names() == {f"{hashlib.sha1(b'kept').hexdigest()}.kv"}
        path = save(store, b"unlinked by another")
        path.unlink()
    with Store(tmp_path, budget_bytes=1) as store:
        assert store.entries() == []
        assert store._directory.ledger.names() == set()


def test_only_absent_files_are_forgotten(store: Store) -> None:
    path = save(store)
    save(store, b"2").unlink()
    with Store(store.directory) as again:
        assert again._directory.ledger.names() == {path.name}
        assert verdict(again) is Verdict.OK


@pytest.mark.parametrize(("layout", "codec"), WRITTEN)
def test_rebuilt(tmp_path: Path, layout: str, codec: str) -> None:
    with Store(tmp_path, layout=layout, codec=codec, workers=1) as store:
        save(store)
        save(store, CHAT, tool_map=TOOL_MAP)
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.kv")}
        notes = [store._directory.ledger.get(name).region_sums for name in before]
        assert store.rebuild_integrity() == []
        shutil.rmtree(tmp_path / DIRECTORY_NAME)
        assert {entry.path for entry in store.rebuild_integrity()} == {str(tmp_path / name) for name in before}
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.kv")} == before
        assert [store._directory.ledger.get(name).region_sums for name in before] == notes
        for text in (TEXT, CHAT):
            assert verdict(store, text) is Verdict.OK
            rot(Path(find(store, text).path), 52 + len(text) + 40)
            assert verdict(store, text) is Verdict.DAMAGED


def test_what_does_not_decode_is_not_noted(store: Store) -> None:
    path = save(store)
    good = save(store, b"good")
    shutil.rmtree(Path(store.directory, DIRECTORY_NAME))
    with unwritten(path) as fp:
        os.pwrite(fp.fileno(), b"\xff" * 40, 52 + len(TEXT) + 12 + 8)
    assert [entry.path for entry in store.rebuild_integrity()] == [str(good)]
    assert os.listdir(Path(store.directory, "quarantine")) == [path.name]
    assert store._directory.ledger.names() == {good.name}


def test_files_of_other_programs_are_noted_by_a_rebuild(store: Store) -> None:
    path = Path(store.directory, f"{hashlib.sha1(TEXT).hexdigest()}.kv")
    ds4kv.dump(path, PAYLOAD, text=TEXT, layout="v1", model_id=3, payload_abi=5, reason=77, **SAVE)
    assert verdict(store) is Verdict.UNKNOWN
    assert len(store.rebuild_integrity()) == 1
    assert verdict(store) is Verdict.OK
    rewrite_as_ds4(path)
    assert verdict(store) is Verdict.OK
    assert ds4kv.read_header(path).model_id == 0


def test_a_rebuild_tells_what_is_noted_not_what_should_be(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(store)
    shutil.rmtree(Path(store.directory, DIRECTORY_NAME))
    Path(store.directory, DIRECTORY_NAME).touch()
    assert store.rebuild_integrity() == []
    assert len(warnings_of(caplog)) == 1
    Path(store.directory, DIRECTORY_NAME).unlink()
    assert len(store.rebuild_integrity()) == 1


def test_sessions_are_noted(tmp_path: Path) -> None:
    sessions = ds4kv.Sessions(tmp_path, workers=1)
    for text in (b"a", b"ab"):
        with sessions.save(text, **SAVE) as checkpoint:
            checkpoint.payload.write(PAYLOAD)
    with sessions.save_sysprompt(b"system", **SAVE) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        assert ledger.names() == {f"{hashlib.sha1(b'ab').hexdigest()}.kv", "sysprompt.kv"}
    path = tmp_path / "sysprompt.kv"
    rot(path, path.stat().st_size - 1)
    with sessions.load_sysprompt(b"system", quant_bits=2) as checkpoint, pytest.raises(ds4kv.CorruptError):
        checkpoint.payload.read()
    rot(path, path.stat().st_size - 1)
    with sessions.load_sysprompt(b"system", quant_bits=2) as checkpoint:
        assert checkpoint.verify() is Verdict.OK


def test_v2_mid_is_verified_once_it_is_noted(store: Store) -> None:
    payload = b"DSV4" + PAYLOAD
    path = Path(store.directory, f"{hashlib.sha1(TEXT).hexdigest()}.kv")
    ds4kv.dump(path, payload, text=TEXT, chunk_size=CHUNK, **SAVE)
    with open(path, "r+b") as fp:  # as v2-mid spells the same region
        fp.seek(7)
        fp.write(b"\0")
        fp.seek(20)
        fp.write(bytes([0, 1, 12, 0]))
    assert ds4kv.read_header(path).layout == "v2-mid"
    assert ds4kv.open(path).form is Form.PLAIN
    assert len(store.rebuild_integrity()) == 1
    assert verdict(store) is Verdict.OK
    rot(path, path.stat().st_size - 1)
    assert verdict(store) is Verdict.DAMAGED


def test_a_dump_in_the_place_of_a_noted_file(store: Store) -> None:
    """Of the same facts, to the second, and the same size: nobody takes it for the old one, damaged."""
    path = save(store)
    old = ds4kv.load(path)
    facts = {"tokens": old.header.tokens, "ctx_size": old.header.ctx_size, "created_at": old.header.created_at}
    facts |= {"last_used": old.header.last_used, "layout": old.header.layout, "codec": old.header.codec}
    assert verdict(store) is Verdict.OK
    other = bytes(byte ^ 1 for byte in old.payload)
    ds4kv.dump(path, other, text=old.text, trailer=old.trailer, **facts)
    assert bytes(ds4kv.load(path).payload) == other
    assert verdict(store) is Verdict.UNKNOWN
