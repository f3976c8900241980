"""Power cuts: what a disk may hold when the power goes, built from a record of what was written and what was synced.

The shim records every change below a directory. At any place in the record the power may go. What was synced before is
on the disk. Of the rest, what a journalling file system may do is done:

- names, sizes and times (all that the journal has) come in order, and any number of the last ones is missing;
- bytes that were not synced are there or not, page by page, whatever their order; a file that grew ends early, or has
  zeros. So a header that was changed in place may be old where the time is new, and new where the time is old.

The next boot opens the directory: the boot's id is another, and every file is shown with the inode and birth that it
had. A checkpoint whose bytes are all there has to load, and stays. One that lost bytes may be refused.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.points import Points
from faults.scenario import MAPS, NEW, A, C, is_stores_own, payload_of, save, store_of
from faults.shim import Event, read_record

import ds4kv
from ds4kv.file.note import Verdict
from ds4kv.store.upgrade import Upgrade

PAGE = 4096
PREFIX = 52


class Session(NamedTuple):
    """What is done until the power goes."""

    layout: str
    fsync: bool

    def __str__(self) -> str:
        return f"{self.layout}{' with fsync' if self.fsync else ''}"

    def act(self, directory: Path) -> None:
        with store_of(directory, layout=self.layout, fsync=self.fsync) as store:
            for text in (A, C):
                save(store, text)
            for text in (C, A):
                load(store, text)
            save(store, A, tool_map=MAPS[2])
            load(store, A)
            save(store, NEW)
            entry = store.find(C, ctx_size=2000, quant_bits=2)
            assert entry is not None
            store.remove(entry)
        if self.layout != "v2-checked":
            for outcome in Upgrade(directory, workers=1).run():
                assert outcome.error is None, outcome
        with store_of(directory, layout=self.layout, fsync=self.fsync) as store:
            load(store, A)


SESSIONS = [Session("v2", False), Session("v2", True), Session("v1", False)]
SESSIONS += [Session("v2-checked", True), Session("packed", True), Session("packed", False)]


def load(store: ds4kv.Store, text: bytes) -> None:
    entry = store.find(text, ctx_size=2000, quant_bits=2)
    assert entry is not None
    with store.load(entry) as checkpoint:
        assert checkpoint.payload.read() == payload_of(text)


class File:
    """A file of the record: what it was after each change, and when it got its name."""

    def __init__(self, event: Event) -> None:
        self.inode, self.birth_ns = event.inode, event.birth_ns
        self.content = bytearray()
        self.versions: list[bytes] = []  # since it has a checkpoint's name

    def publish(self) -> None:
        self.versions.append(bytes(self.content))

    def is_whole(self, content: bytes) -> bool:
        """Whether a disk that has this of the file has all of it, but perhaps the last hits, and the trailer; under a
        seal, a trailer that is flagged is a part of it.
        """
        if not self.versions:
            return False
        was = self.versions[0]
        end = PREFIX + int.from_bytes(was[48:52], "little") + int.from_bytes(was[40:48], "little")
        heads = {version[:48] for version in self.versions}
        if was[3] == ord("K") and content[6:7] == b"\1" and content[end:] not in {v[end:] for v in self.versions}:
            return False
        return content[48:end] == was[48:end] and content[:48] in heads and len(content) >= end


def is_checkpoint(path: str) -> bool:
    name = os.path.basename(path)
    return is_stores_own(name) and len(name) == 43


class Kept(NamedTuple):
    """What the disk has. Of ``settled`` changes it has names, sizes and times. ``pages`` says of a page, by inode and
    number, up to which change it has what was not synced; with ``zeros`` a file is as long as it was, without that."""

    name: str
    settled: int
    pages: Callable[[int, int], int]
    zeros: bool = False


class Record:
    """A session, as it was recorded."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self._file_of: list[File | None] = []
        by_inode: dict[int, File] = {}
        names: dict[str, File] = {}
        for event in events:
            file = None
            if event.what == "created":
                if event.path not in names:
                    names[event.path] = by_inode[event.inode] = File(event)
                file = names[event.path]
            elif event.what == "renamed":
                file = names[event.target] = names.pop(event.path)
            elif event.what == "unlinked":
                names.pop(event.path, None)
            else:
                file = by_inode.get(event.inode)
            if file is not None:
                _change(file.content, event)
                if any(found is file and is_checkpoint(name) for name, found in names.items()):
                    file.publish()
            self._file_of.append(file)
        # Until which change a file's bytes are on the disk, for each place in the record.
        self.synced_until: list[dict[int, int]] = [{}]
        self.last_sync = [0]
        for place, (event, file) in enumerate(zip(events, self._file_of, strict=True)):
            self.synced_until.append(dict(self.synced_until[-1]))
            self.last_sync.append(self.last_sync[-1])
            if event.what == "synced":
                self.last_sync[-1] = place + 1
                if file is not None:
                    self.synced_until[-1][id(file)] = place

    def cuts(self, rng: random.Random) -> Iterator[tuple[int, Kept]]:
        for cut in range(1, len(self.events) + 1):
            last = self.last_sync[cut]
            yield cut, Kept("all is there", cut, lambda inode, page, cut=cut: cut)
            yield cut, Kept("no bytes are", cut, lambda inode, page: 0)
            yield cut, Kept("zeros are", cut, lambda inode, page: 0, zeros=True)
            yield cut, Kept("bytes are, names and times not", last, lambda inode, page, cut=cut: cut)
            yield cut, Kept("nothing is", last, lambda inode, page: 0)
            for _ in range(2):
                seed = rng.random()
                yield (
                    cut,
                    Kept(
                        f"some is, {seed}",
                        rng.randint(last, cut),
                        lambda inode, page, cut=cut, seed=seed: random.Random(f"{seed} {inode} {page}").randint(0, cut),
                        zeros=rng.random() < 0.5,
                    ),
                )

    def disk(self, cut: int, kept: Kept) -> tuple[dict[str, tuple[File, bytes, int]], list[str]]:
        """The files by path, with their bytes and times, and the folders."""
        contents: dict[int, bytearray] = {}
        times: dict[int, int] = {}
        names: dict[str, File] = {}
        folders = []
        synced = self.synced_until[cut]
        for place, (event, file) in enumerate(zip(self.events[:cut], self._file_of, strict=False)):
            is_settled = place < kept.settled
            if file is not None and event.what in ("written", "truncated", "reserved", "created"):
                content = contents.setdefault(id(file), bytearray())
                is_synced = place <= synced.get(id(file), -1)
                if event.what == "written":
                    _write(content, event, place, kept, is_synced)
                elif is_settled or is_synced:
                    _change(content, event)
            if not is_settled:
                continue
            if file is not None and event.mtime_ns:
                times[id(file)] = event.mtime_ns
            if event.what == "created" and file is not None:
                names[event.path] = file
            elif event.what == "renamed" and event.path in names:
                names[event.target] = names.pop(event.path)
            elif event.what == "unlinked":
                names.pop(event.path, None)
            elif event.what == "made":
                folders.append(event.path)
        return {
            path: (file, bytes(contents.get(id(file), b"")), times.get(id(file), 0)) for path, file in names.items()
        }, folders


def _change(content: bytearray, event: Event) -> None:
    if event.what == "written":
        content.extend(bytes(max(event.offset - len(content), 0)))
        content[event.offset : event.offset + len(event.data)] = event.data
    elif event.what == "truncated":
        del content[event.size :]
        content.extend(bytes(event.size - len(content)))
    elif event.what == "reserved":
        content.extend(bytes(max(event.offset + event.size - len(content), 0)))
    elif event.what == "created" and event.truncates:
        content.clear()


def _write(content: bytearray, event: Event, place: int, kept: Kept, is_synced: bool) -> None:
    end = event.offset + len(event.data)
    for page in range(event.offset // PAGE, -(-end // PAGE)):
        start, stop = max(event.offset, page * PAGE), min(end, (page + 1) * PAGE)
        if is_synced or place < kept.pages(event.inode, page):
            piece = event.data[start - event.offset : stop - event.offset]
            _change(content, event._replace(offset=start, data=piece))
    if kept.zeros and place < kept.settled:
        content.extend(bytes(max(end - len(content), 0)))


class Cuts:
    """Cuts the power, in the folder of these points."""

    def __init__(self, points: Points, folder: Path) -> None:
        self._points = points
        self._folder = folder
        self._directory = folder / "cut" / "d"

    def record(self, session: Session) -> Record:
        self._fresh()
        log = self._folder / "record"

        def act() -> dict[str, object]:
            self._points.shim.record(self._directory, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            session.act(self._directory)
            return {"done": True}

        ended, told = self._points.forked(act)
        assert ended == 0 and told, (self._folder / "log").read_text()
        return Record(read_record(log))

    def _fresh(self) -> None:
        shutil.rmtree(self._directory.parent, ignore_errors=True)
        self._directory.mkdir(parents=True)

    def cut(self, record: Record, cut: int, kept: Kept, session: Session) -> dict[str, list[str]]:
        """What is wrong afterwards; and under ``lost``, what was lost and loads all the same, which nothing tells."""
        self._fresh()
        files, folders = record.disk(cut, kept)
        for folder in folders:
            Path(folder).mkdir(exist_ok=True)
        boot_id = self._folder / "boot id"
        boot_id.write_text(str(hashlib.md5(b"the next boot").hexdigest()) + "\n")
        aliases, wholes = [], {}
        for path, (file, content, mtime_ns) in files.items():
            Path(path).write_bytes(content)
            os.utime(path, ns=(mtime_ns, mtime_ns))
            aliases.append((os.stat(path).st_ino, file.inode, file.birth_ns))
            if is_checkpoint(path):
                wholes[os.path.basename(path)] = file.is_whole(content)

        def look() -> dict[str, object]:
            for alias in aliases:
                self._points.shim.alias(*alias)
            self._points.shim.boot_id(boot_id)
            return look_at(self._directory, wholes, is_durable=session.fsync)

        ended, told = self._points.forked(look)
        if ended is None:
            return {"problems": ["hang: of the next boot"]}
        if not told:
            return {"problems": [f"crash: of the next boot; {(self._folder / 'log').read_text()[-1500:]}"]}
        return told


def look_at(directory: Path, wholes: dict[str, bool], *, is_durable: bool) -> dict[str, object]:
    """What the next boot finds: ``wholes`` says of each checkpoint whether all its bytes are there."""
    problems, lost = [], []
    with store_of(directory) as store:
        left = [name for name in os.listdir(directory) if ".tmp." in name and is_stores_own(name)]
        if left:
            problems.append(f"temporaries left: {left}")
        for entry in store.entries():
            name = os.path.basename(entry.path)
            if store.verify(entry) is Verdict.DAMAGED and wholes[name]:
                problems.append(f"condemned: {name} is damaged, by verify")
            try:
                with store.load(entry) as checkpoint:
                    text = checkpoint.text
                    payload = checkpoint.payload.read()
                    tool_map = checkpoint.tool_map if wholes[name] else {}
            except ds4kv.Ds4kvError as error:
                if wholes[name]:
                    problems.append(f"condemned: {name}: {error}")
            else:
                if payload != payload_of(text):
                    lost.append(f"{name} is not whole, and loads")
                    if wholes[name] or is_durable:
                        problems.append(f"wrong bytes: {name}")
                if tool_map not in MAPS:
                    lost.append(f"{name} has a tool map of which a part is lost")
        for name, is_whole in wholes.items():
            if is_whole and not (directory / name).exists():
                problems.append(f"condemned: {name} is gone")
            if is_durable and not is_whole:
                problems.append(f"lost: {name} was published, and not all of it is there")
    return {"problems": problems, "lost": lost}
