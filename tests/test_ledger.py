"""A ledger that is somebody else's, broken, or an enemy's: saves and loads go on, in bounded time and memory."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import started

import ds4kv
from ds4kv.file.ledger import DATABASE_NAME, DIRECTORY_NAME, Ledger
from ds4kv.file.note import Verdict
from ds4kv.store.store import Store

PAYLOAD = os.urandom(3000)
TEXT = b"a text"
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
SECONDS = 2.0  # for a load and a save; what is wrong with a ledger costs each at most 0.25 s a statement


def saved(folder: Path, text: bytes = TEXT) -> Path:
    with Store(folder, workers=1) as store:
        return Path(store.save_buffer(text, PAYLOAD, **SAVE).path)


def database(folder: Path) -> Path:
    return folder / DIRECTORY_NAME / DATABASE_NAME


@contextlib.contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def replaced_by(view: str) -> Callable[[Path], None]:
    """The table renamed, and a view in its place."""

    def spoil(path: Path) -> None:
        with sqlite(path) as connection:
            connection.execute("ALTER TABLE notes RENAME TO others")
            connection.execute(f"CREATE VIEW notes AS {view}")

    return spoil


def added(*statements: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with sqlite(path) as connection:
            for statement in statements:
                connection.execute(statement)

    return spoil


def schema_byte(value: int) -> Callable[[Path], None]:
    """A byte of the table's name in the schema."""

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.index(b"CREATE TABLE notes") + len(b"CREATE TABLE ")
        data[at] = value
        path.write_bytes(data)

    return spoil


ENDLESS = "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more)"
ENEMIES: dict[str, Callable[[Path], None]] = {
    "a schema byte that is no UTF-8": schema_byte(0xFF),
    "a schema byte of another name": schema_byte(ord("m")),
    "an endless view": replaced_by(f"{ENDLESS} SELECT cast('a' AS blob) AS name, cast(n AS blob) AS note FROM more"),
    "a view of a gigabyte": replaced_by("SELECT cast('a' AS blob) AS name, zeroblob(1000000000) AS note"),
    "an endless trigger": added(
        f"CREATE TRIGGER t BEFORE INSERT ON notes BEGIN SELECT ({ENDLESS} SELECT sum(n) FROM more); END"
    ),
    "an index": added("CREATE INDEX i ON notes (note)"),
    "another table": added("CREATE TABLE more (n)"),
    "a write-ahead log": added("PRAGMA journal_mode=WAL", "DELETE FROM notes"),
    "the first version": lambda path: first_version(path),
    "garbage": lambda path: path.write_bytes(os.urandom(9000)) and None,
    "a text": lambda path: path.write_text("SELECT") and None,
    "a page cut off": lambda path: os.truncate(path, path.stat().st_size - 4096),
    "another's journal": lambda path: hostile_journal(path),
}


def first_version(path: Path) -> None:
    path.unlink()
    with sqlite(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE notes (name BLOB PRIMARY KEY, note BLOB NOT NULL)")
        connection.execute("PRAGMA user_version=1")
        wal = Path(f"{path}-wal").read_bytes()
    Path(f"{path}-wal").write_bytes(wal)
    Path(f"{path}-shm").write_bytes(bytes(32768))


def hostile_journal(path: Path) -> None:
    """One that has SQLite remove a file of its choice, when it undoes what the journal says."""
    victim = os.fsencode(path.parent.parent / "victim")
    head = bytes.fromhex("d9d505f920a163d7") + (1).to_bytes(4, "big") + bytes(4) + (2).to_bytes(4, "big")
    head += (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    tail = bytes(4) + victim + len(victim).to_bytes(4, "big") + sum(victim).to_bytes(4, "big")
    Path(f"{path}-journal").write_bytes(head.ljust(512, b"\0") + tail + bytes.fromhex("d9d505f920a163d7"))


@pytest.mark.parametrize("enemy", ENEMIES)
def test_an_enemy_costs_the_proof_and_no_more(tmp_path: Path, enemy: str, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path)
    (tmp_path / "victim").write_bytes(bytes(100))
    ENEMIES[enemy](database(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    for _ in range(2):
        assert bytes(ds4kv.load(path, workers=1).payload) == PAYLOAD
    with Store(tmp_path, workers=1) as store:
        (entry,) = store.entries()
        assert store.verify(entry) is Verdict.UNKNOWN
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
        assert time.monotonic() - started < SECONDS
        assert len([one for one in caplog.records if "goes without its integrity index" in one.getMessage()]) <= 1
        another = Path(store.save_buffer(b"another", PAYLOAD, **SAVE).path)  # makes it anew
        assert ds4kv.open(another).verify() is Verdict.OK
        assert store.verify(entry) is Verdict.UNKNOWN
    assert time.monotonic() - started < 2 * SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert (tmp_path / "victim").exists()
    assert sorted(name.name for name in database(tmp_path).parent.iterdir()) == [
        DATABASE_NAME,
        f"{DATABASE_NAME}.damaged",
    ]


def test_without_an_enemy_the_proof_holds(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with sqlite(database(tmp_path)) as connection:  # the control: who only looks spoils nothing
        assert len(connection.execute("SELECT * FROM notes").fetchall()) == 1
    assert ds4kv.open(path).verify() is Verdict.OK
    assert os.listdir(database(tmp_path).parent) == [DATABASE_NAME]


@pytest.mark.slow
def test_a_statement_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """Of a database that is ours and has become large."""
    saved(tmp_path)
    with sqlite(database(tmp_path)) as connection:
        connection.execute(
            f"INSERT INTO notes SELECT cast(n AS blob), zeroblob(10) FROM ({ENDLESS} SELECT n FROM more LIMIT 1500000)"
        )
    started = time.monotonic()
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        ledger.names()
    assert time.monotonic() - started < SECONDS


def put_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def put_dangling(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("nowhere")


def put_fifo(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()


@pytest.mark.parametrize("where", ["database", "directory"])
@pytest.mark.parametrize("what", [put_link, put_dangling, put_fifo, put_directory])
def test_what_is_no_file_of_ours_is_left_alone(
    tmp_path: Path, what: Callable[[Path], None], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    if (what, where) == (put_directory, "directory"):
        pytest.skip("a directory is right there")
    path = saved(tmp_path)
    place = database(tmp_path) if where == "database" else database(tmp_path).parent
    what(place)
    state = place.lstat()
    elsewhere = sorted((one, one.lstat().st_mtime_ns) for one in place.with_name("elsewhere").glob("**/*"))
    with Store(tmp_path, workers=1) as store:
        for text in (b"1", b"2"):
            store.save_buffer(text, PAYLOAD, **SAVE)
        with store.load(store.find(TEXT, ctx_size=32768, quant_bits=2)) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
            assert checkpoint.note is None
    assert ds4kv.open(path).verify() is Verdict.UNKNOWN
    assert (place.lstat().st_ino, place.lstat().st_mode) == (state.st_ino, state.st_mode)
    assert elsewhere == sorted((one, one.lstat().st_mtime_ns) for one in place.with_name("elsewhere").glob("**/*"))
    assert not place.with_name("nowhere").exists()
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1  # for all of these objects


def test_it_is_said_once_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
        database(tmp_path / name).write_bytes(b"nothing")
        for _ in range(3):
            with contextlib.closing(Ledger(str(tmp_path / name))) as ledger:
                assert ledger.names() == set()
    said = [one.getMessage() for one in caplog.records if "goes without" in one.getMessage()]
    assert [str(tmp_path / name) in one for name, one in zip("ab", said, strict=True)] == [True, True]


def mapped() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if DATABASE_NAME in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_nothing_is_mapped(tmp_path: Path) -> None:
    """A mapped file that another program cuts short ends the process that reads it, with SIGBUS."""
    path = saved(tmp_path)
    with Store(tmp_path, workers=1) as store:
        (entry,) = store.entries()
        for _ in range(3):
            with store.load(entry) as checkpoint:
                assert mapped() == []
                checkpoint.payload.read()
            assert mapped() == []
            store.save_buffer(b"another", PAYLOAD, **SAVE)
        with sqlite(database(tmp_path)) as other:  # another program turns it into one with a log, while it is open
            other.execute("PRAGMA journal_mode=WAL")
            other.execute("DELETE FROM notes")
            assert bytes(ds4kv.load(path).payload) == PAYLOAD
            store.save_buffer(b"a third", PAYLOAD, **SAVE)
            assert store.verify(entry) is Verdict.UNKNOWN
            assert len(mapped()) == 1  # the control: the other one's
        assert mapped() == []
    for name in database(tmp_path).parent.iterdir():
        os.truncate(name, 10)
    assert bytes(ds4kv.load(path).payload) == PAYLOAD


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What is left is a ledger, or is made anew; never an error, and never a proof that isn't true."""
    code = (
        "import sys, os; from ds4kv.store.store import Store\n"
        "with Store(sys.argv[1], workers=0) as store:\n"
        "    for number in range(10**6):\n"
        "        store.save_buffer(b'%d %d' % (os.getpid(), number), os.urandom(99), tokens=600, ctx_size=32768)\n"
        "        print(number, flush=True)\n"
    )
    for turn in range(6):
        with started([sys.executable, "-c", code, str(tmp_path)]) as child:
            for _ in range(5 + turn):
                assert child.line()
        with Store(tmp_path, workers=0) as store:
            found = [store.verify(entry) for entry in store.entries()]
            assert Verdict.DAMAGED not in found
            assert found.count(Verdict.UNKNOWN) <= turn + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_the_user(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    kv.mkdir()
    os.chown(kv, 12345, 12346)
    saved(kv)
    for made in (database(kv).parent, database(kv)):
        status = made.lstat()
        assert (status.st_uid, status.st_gid) == (12345, 12346)
        assert status.st_mode & 0o077 == 0


def test_a_directory_of_a_group_has_a_ledger_of_the_group(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    kv.mkdir()
    kv.chmod(0o2770)
    saved(kv)
    assert stat.S_IMODE(database(kv).parent.stat().st_mode) & 0o777 == 0o770
    assert stat.S_IMODE(database(kv).stat().st_mode) == 0o660
    alone = tmp_path / "alone"  # the control
    alone.mkdir(mode=0o755)
    saved(alone)
    assert stat.S_IMODE(database(alone).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a b", "50%", "what?", "#1", "\u00e9", "caf\udce9", "'", "file:x"])
def test_directories_of_any_name(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    assert ds4kv.open(path).verify() is Verdict.OK
    assert os.listdir(tmp_path) == [name]
    shutil.copytree(tmp_path / name, tmp_path / "copy")
    os.chdir(tmp_path / name)
    try:
        assert ds4kv.open(path.name).verify() is Verdict.OK
    finally:
        os.chdir("/")
