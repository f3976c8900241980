"""What a note proves and when: every cell of the table in docs/architecture.md, through every door.

A file that is noted is changed as other programs, disks and power cuts change it; then each door has to say the same of
it. ``unknown`` loads, with the bytes that are there; ``damaged`` is refused, and by a store set aside.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, started

import ds4kv
from ds4kv.cli import main
from ds4kv.file import note as note_module
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note, Verdict
from ds4kv.format.naming import NAME_SIZE
from ds4kv.format.toolmap import pack_tool_map, unpack_tool_map
from ds4kv.store.store import Store
from ds4kv.store.upgrade import Upgrade

TOOL_MAP = {b"call_1": b"<tool_calls>ls</tool_calls>"}
TEXT = b"Q" + TOOL_MAP[b"call_1"] + b"A"
TRAILER = pack_tool_map(TOOL_MAP)
OTHER_TRAILER = pack_tool_map({b"call_9": TOOL_MAP[b"call_1"]})
PAYLOAD = b"".join((i * 2654435761 % 2**32).to_bytes(4, "little") for i in range(3000))
OTHER = bytes(byte ^ 0x5A for byte in PAYLOAD)
LAYOUTS = [("v1", "none"), ("v2", "none"), ("v2", "lz4"), ("v2-checked", "lz4")]
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
PREFIX = 52
REGION = PREFIX + len(TEXT)


def saved(folder: Path, layout: str, codec: str, payload: bytes = PAYLOAD, **options: Any) -> Path:
    with Store(folder, workers=1, layout=layout, codec=codec, clock=lambda: 1_800_000_000) as store:
        return Path(store.save_buffer(TEXT, payload, tool_map=TOOL_MAP, **(SAVE | options)).path)


def region_end(data: bytes) -> int:
    return REGION + int.from_bytes(data[40:48], "little")


def with_hit(data: bytes) -> bytes:
    """As a hit of ds4 leaves it."""
    return data[:12] + b"\7\0\0\0" + data[16:32] + (1_900_000_000).to_bytes(8, "little") + data[40:]


def with_tokens(data: bytes) -> bytes:
    """A header that no rewrite in place makes of the old one, and that reads the region as before."""
    return data[:8] + (601).to_bytes(4, "little") + data[12:]


def with_other_region(data: bytes) -> bytes:
    """A region of the same size with nothing in common, that still decodes where it can: of raw layouts, that is."""
    end = region_end(data)
    return data[:REGION] + bytes(byte ^ 0x5A for byte in data[REGION:end]) + data[end:]


def with_rot(data: bytes, at: int | None = None) -> bytes:
    """One byte of the region changed."""
    end = region_end(data)
    place = (REGION + end) // 2 if at is None else at
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def with_other_trailer(data: bytes) -> bytes:
    return data[: region_end(data)] + OTHER_TRAILER


HEADERS = {"same header": lambda data: data, "allowed change": with_hit, "other header": with_tokens}
REGIONS = {
    "same region": lambda data: data,
    "rotten region": with_rot,
    "another region": with_other_region,
}
TRAILERS = {"same trailer": lambda data: data, "other trailer": with_other_trailer}


def expected(is_same: bool, is_noted: bool, is_boot: bool, header: str, region: str, trailer: str) -> str:
    """The table of docs/architecture.md."""
    if is_same and is_noted and is_boot:
        is_all_same = (header, region, trailer) == ("same header", "same region", "same trailer")
        return "ok" if is_all_same else "corrupt"
    if header == "other header" or region == "another region":
        return "unknown"
    if region == "rotten region":
        return "corrupt"
    return "ok" if trailer == "same trailer" else "unknown"


CELLS = list(itertools.product([True, False], [True, False], [True, False], HEADERS, REGIONS, TRAILERS))


def put(path: Path, data: bytes, *, is_same: bool, is_noted: bool) -> None:
    """Has the file hold these bytes: in place or as another one, with the noted mtime or its own."""
    status = path.stat()
    if is_same:
        with open(path, "r+b", buffering=0) as fp:
            fp.write(data)
            fp.truncate()
    else:
        copy = path.with_suffix(".copy")
        copy.write_bytes(data)
        os.replace(copy, path)
    mtime_ns = status.st_mtime_ns if is_noted else status.st_mtime_ns + 1_000_000_007
    os.utime(path, ns=(status.st_atime_ns, mtime_ns))


def verdicts(folder: Path, path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What every door says of the file; of one that loads, after a look at what was loaded."""
    said = {}
    for door in ("load", "open", "cli", "store verify", "store load"):  # the last one may move it
        try:
            said[door] = _through(door, folder, path, data, capsys)
        except ds4kv.CorruptError:
            said[door] = "corrupt"
    return said


def _through(door: str, folder: Path, path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> str:
    if door == "load":
        loaded = ds4kv.load(path, workers=1)
        assert loaded.trailer == data[region_end(data) :]
        return "loads"
    if door == "open":
        with ds4kv.open(path, workers=1) as checkpoint:
            return checkpoint.verify().value
    if door == "cli":
        capsys.readouterr()
        code = main(["verify", str(path)])
        out = capsys.readouterr().out
        if ": corrupt:" in out:
            assert code == 1
            return "corrupt"
        assert code == 0
        return "ok" if "sidecar" in out else "unknown"
    with Store(folder, workers=1) as store:
        (entry,) = store.entries()
        if door == "store verify":
            return store.verify(entry).value
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.readall() is not None
            assert checkpoint.trailer == data[region_end(data) :]
        assert path.exists()
    return "loads"


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "codec"), [("v1", "none"), ("v2", "lz4")])
@pytest.mark.parametrize(("is_same", "is_noted", "is_boot", "header", "region", "trailer"), CELLS)
def test_every_cell(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    codec: str,
    is_same: bool,
    is_noted: bool,
    is_boot: bool,
    header: str,
    region: str,
    trailer: str,
) -> None:
    path = saved(tmp_path, layout, codec)
    good = path.read_bytes()
    data = TRAILERS[trailer](REGIONS[region](HEADERS[header](good)))
    put(path, data, is_same=is_same, is_noted=is_noted)
    if not is_boot:
        boot = note_module.boot()
        monkeypatch.setattr(note_module, "boot", lambda: boot + 1)
    cell = expected(is_same, is_noted, is_boot, header, region, trailer)
    decodes = layout == "v1" or region == "same region"
    said = verdicts(tmp_path, path, data, capsys)
    if cell == "unknown" and not decodes:
        # The blocks are no blocks, or those of another payload: no note is needed to tell the first.
        assert set(said.values()) in ({"corrupt"}, {"unknown", "loads"})
        return
    if cell == "corrupt" and (header, region) == ("same header", "same region"):
        assert said["load"] == "corrupt"  # the trailer alone; who loads by a store may find that out at the hit
        del said["store load"]
    loads = "corrupt" if cell == "corrupt" else "loads"
    assert said == {door: loads if "load" in door else cell for door in said}


def test_every_byte_of_a_region_that_somebody_may_have_written_to(tmp_path: Path) -> None:
    """After a hit of ds4, of a copy, after a power cut: what is rotten in the region is still told."""
    for layout, codec in LAYOUTS:
        path = saved(tmp_path / layout / codec, layout, codec)
        good = with_hit(path.read_bytes())
        for at in range(REGION, region_end(good), 97):
            put(path, with_rot(good, at), is_same=True, is_noted=False)
            with pytest.raises(ds4kv.CorruptError):
                ds4kv.load(path, workers=1)
        put(path, good, is_same=True, is_noted=False)
        assert bytes(ds4kv.load(path, workers=1).payload) == PAYLOAD


def test_a_header_that_reads_the_region_otherwise_is_proven_wrong(tmp_path: Path) -> None:
    path = saved(tmp_path, "v2", "lz4")
    good = path.read_bytes()
    put(path, good[:7] + b"\0" + good[8:], is_same=True, is_noted=False)  # no codec: the blocks would be the payload
    with pytest.raises(ds4kv.CorruptError, match="not true of the one that was saved") as refused:
        ds4kv.load(path)
    assert refused.value.field == "codec"
    data = with_other_region(good[:7] + b"\0" + good[8:])  # of another file it is what it says
    put(path, data, is_same=True, is_noted=False)
    assert bytes(ds4kv.load(path).payload) == data[REGION : region_end(data)]


def test_samples_tell_a_payload_by_its_numbers(tmp_path: Path) -> None:
    """Two payloads with the same beginning and the same zeros at the end are two; one of zeros alone is one."""
    tokens = bytes(range(200)) * 5
    first = tokens + PAYLOAD + bytes(9000)
    path = saved(tmp_path, "v1", "none", first)
    put(path, path.read_bytes().replace(PAYLOAD, OTHER), is_same=False, is_noted=False)
    assert bytes(ds4kv.load(path).payload) == tokens + OTHER + bytes(9000)
    zeros = saved(tmp_path / "zeros", "v1", "none", bytes(20000))
    put(zeros, with_rot(zeros.read_bytes()), is_same=True, is_noted=False)
    with pytest.raises(ds4kv.CorruptError):
        ds4kv.load(zeros)
    for size in (1, 2, 3, 5, 9):
        few = saved(tmp_path / str(size), "v1", "none", PAYLOAD[:size])
        put(few, with_hit(few.read_bytes()), is_same=True, is_noted=False)
        with ds4kv.open(few) as checkpoint:
            assert checkpoint.verify() is Verdict.OK


# ------------------------------------------------------------------------------ copies over a name


def over_with(command: str, source: Path, path: Path) -> None:
    if command == "shutil.copy":
        shutil.copy(source, path)
    elif command == "cat":
        with open(source, "rb") as fp, open(path, "wb") as target:
            subprocess.run(["cat"], stdin=fp, stdout=target, check=True, timeout=DEADLINE)
    elif command == "in place":  # as rsync --inplace does it
        data = source.read_bytes()
        with open(path, "r+b", buffering=0) as target:
            for at in range(0, len(data), 700):
                os.pwrite(target.fileno(), data[at : at + 700], at)
            target.truncate(len(data))
    else:
        subprocess.run([*command.split(), str(source), str(path)], check=True, timeout=DEADLINE)


COPIES = ["cp", "cp -p", "shutil.copy", "cat", "in place", "mv"]
COPIES += ["rsync --inplace --ignore-times"] if shutil.which("rsync") else []


@pytest.mark.slow
@pytest.mark.parametrize("command", COPIES)
@pytest.mark.parametrize(("layout", "codec"), LAYOUTS)
@pytest.mark.parametrize("facts", ["other header", "equal header", "other layout"])
def test_a_good_file_over_a_noted_one_loads(tmp_path: Path, command: str, layout: str, codec: str, facts: str) -> None:
    path = saved(tmp_path / "kv", layout, codec)
    others = {"other header": {"tokens": 700}, "equal header": {}, "other layout": {}}[facts]
    as_layout = ("v1", "none") if facts == "other layout" else (layout, codec)
    source = saved(tmp_path / "other", *as_layout, OTHER, **others)
    over_with(command, source, path)
    with Store(tmp_path / "kv", workers=1) as store:
        (entry,) = store.entries()
        assert store.verify(entry) is Verdict.UNKNOWN
        assert bytes(ds4kv.load(path).payload) == OTHER
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == OTHER
        assert path.exists()
        assert not (tmp_path / "kv" / "quarantine").exists()
        (entry,) = store.entries()
        with store.load(entry) as checkpoint:  # after its hit, too
            assert checkpoint.payload.read() == OTHER
    if facts != "other layout":
        control = saved(tmp_path / "control", layout, codec)
        over_with("in place", control, control)
        assert ds4kv.open(control).verify() is Verdict.OK


@pytest.mark.parametrize(("layout", "codec"), LAYOUTS)
def test_the_same_text_saved_twice_within_a_second(tmp_path: Path, layout: str, codec: str) -> None:
    options = {"text": TEXT, "layout": layout, "codec": codec, "created_at": 1_800_000_000}
    sessions = ds4kv.Sessions(tmp_path, workers=1, layout=layout, codec=codec, clock=lambda: 1_800_000_000)
    for payload in (PAYLOAD, OTHER):
        with sessions.save(TEXT, **SAVE) as checkpoint:
            checkpoint.payload.write(payload)
        (path,) = (name for name in tmp_path.iterdir() if len(name.name) == NAME_SIZE)
        assert bytes(ds4kv.load(path).payload) == payload
        assert ds4kv.open(path).verify() is Verdict.OK
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        stale = ledger.get(path.name)
        with sessions.save(TEXT, **SAVE) as checkpoint:
            checkpoint.payload.write(PAYLOAD)
        ledger.put(path.name, stale)  # the new note was not to be had: the database was locked
    assert bytes(ds4kv.load(path).payload) == PAYLOAD
    plain = tmp_path / "plain.kv"
    ds4kv.dump(plain, OTHER, reason="agent-session", last_used=1_800_000_000, **SAVE | options)
    os.replace(plain, path)
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        ledger.put(path.name, note_of(path, PAYLOAD, stale))
    assert bytes(ds4kv.load(path).payload) == OTHER


def note_of(path: Path, payload: bytes, like: Note) -> Note:
    """A note of the same header about another region."""
    return like._replace(head=path.read_bytes()[:PREFIX], inode=like.inode + 1)


# ------------------------------------------------------------------------------ power cuts


@pytest.mark.parametrize("what", ["hit", "trailer"])
@pytest.mark.parametrize(("layout", "codec"), LAYOUTS)
def test_a_power_cut_condemns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, codec: str, what: str
) -> None:
    """Header page, trailer, mtime and note reach the disk or not, in any combination."""
    path = saved(tmp_path, layout, codec, reason="cold")
    before, old_mtime = path.read_bytes(), path.stat().st_mtime_ns
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        old_note = ledger.get(path.name)
        with Store(tmp_path, workers=1, clock=lambda: 1_900_000_000) as store:
            if what == "hit":
                with store.load(store.entries()[0]) as checkpoint:
                    checkpoint.payload.read()
            else:
                store.save_buffer(TEXT, PAYLOAD, tool_map={b"another": TOOL_MAP[b"call_1"]}, **SAVE)
        after, new_mtime, new_note = path.read_bytes(), path.stat().st_mtime_ns, ledger.get(path.name)
        assert before != after
        assert old_note != new_note
        assert ds4kv.open(path).verify() is Verdict.OK
        boot = note_module.boot()
        for new_boot in (boot, boot + 1):
            monkeypatch.setattr(note_module, "boot", lambda new_boot=new_boot: new_boot)
            for header, trailer, mtime, note in itertools.product(
                (before, after), (before, after), (old_mtime, new_mtime), (old_note, new_note)
            ):
                end = region_end(before)
                data = header[:PREFIX] + before[PREFIX:end] + trailer[end:]
                with open(path, "r+b", buffering=0) as fp:
                    fp.write(data)
                    fp.truncate()
                os.utime(path, ns=(0, mtime))
                ledger.put(path.name, note)
                is_proven = new_boot == boot and mtime == note.mtime_ns
                if is_proven and data != (before if note == old_note else after):
                    with pytest.raises(ds4kv.CorruptError):  # the control: without a power cut that is damage
                        ds4kv.load(path)
                    continue
                assert bytes(ds4kv.load(path).payload) == PAYLOAD
                with ds4kv.open(path) as checkpoint:
                    assert checkpoint.verify() is not Verdict.DAMAGED


def test_a_boot_that_is_not_known_is_no_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert note_module.boot() != 0
    monkeypatch.setattr(note_module, "boot", lambda: 0)
    path = saved(tmp_path, "v1", "none")
    put(path, with_tokens(path.read_bytes()), is_same=True, is_noted=True)
    assert bytes(ds4kv.load(path).payload) == PAYLOAD
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.verify() is Verdict.UNKNOWN


# ------------------------------------------------------------------------------ who reads while another writes


def test_a_file_that_is_changed_while_it_is_read_is_not_judged(tmp_path: Path) -> None:
    for layout, codec in LAYOUTS:
        for is_noted in (True, False):
            path = saved(tmp_path / f"{layout} {codec} {is_noted}", layout, codec)
            if not is_noted:
                shutil.rmtree(path.parent / ".ds4kv")
            good = path.read_bytes()
            with ds4kv.open(path, workers=1) as checkpoint:
                cut = good[: REGION + 20]  # cp has cut it off, and begins
                put(path, cut, is_same=True, is_noted=False)
                for read in (checkpoint.payload.readall, checkpoint.verify):
                    with pytest.raises(OSError, match="was changed while it was read") as refused:
                        read()
                    assert refused.value.errno == errno.ESTALE
                    assert refused.value.filename == str(path)
                put(path, good, is_same=True, is_noted=False)
                checkpoint.payload.seek(0)
                assert checkpoint.payload.read() == PAYLOAD
            put(path, cut, is_same=True, is_noted=False)
            with pytest.raises(ds4kv.TruncatedError):  # the control
                ds4kv.load(path)


def test_a_salvage_does_not_judge_it_either(tmp_path: Path) -> None:
    from ds4kv.file.salvage import Wreck

    path = saved(tmp_path, "v2", "lz4")
    good = path.read_bytes()
    with Wreck(path, workers=0) as wreck:
        put(path, good[: REGION + 20], is_same=True, is_noted=False)
        with pytest.raises(OSError, match="was changed while it was read"):
            wreck.examine()
        put(path, good, is_same=True, is_noted=False)
        assert wreck.examine()[0] == len(PAYLOAD)
    put(path, good[: REGION + 20], is_same=True, is_noted=False)
    assert ds4kv.load(path, salvage=True).damage  # the control


@pytest.mark.slow
@pytest.mark.parametrize("is_noted", [True, False])
def test_a_tool_map_that_is_rewritten_under_a_reader(tmp_path: Path, is_noted: bool) -> None:
    """A reader without the lock sees one tool map or the other, and condemns nothing."""
    path = saved(tmp_path, "v2", "none")
    if not is_noted:
        shutil.rmtree(path.parent / ".ds4kv")
    maps = [{b"call_%d" % n: TOOL_MAP[b"call_1"] for n in range(size)} for size in (1, 40, 7)]
    code = (
        "import sys, itertools; from ds4kv.file.inplace import rewrite_trailer\n"
        "maps = [bytes.fromhex(one) for one in sys.argv[2:]]\n"
        "for trailer in itertools.cycle(maps): rewrite_trailer(sys.argv[1], trailer, last_used=5)\n"
    )
    hexes = [pack_tool_map(mapping).hex() for mapping in maps]
    with started([sys.executable, "-c", code, str(path), *hexes]) as child:
        seen = set()
        deadline = time.monotonic() + 3
        reads = 0
        while time.monotonic() < deadline:
            with ds4kv.open(path, workers=1) as checkpoint:
                trailer = checkpoint.trailer
                assert checkpoint.verify() is not Verdict.DAMAGED
            seen.add(trailer)
            reads += 1
        assert child.is_running()
    # By their maps: the space of a longer one is had before the old one loses its flag, and ends in zeros then.
    found = [unpack_tool_map(trailer) for trailer in seen]
    assert all(mapping in [*maps, TOOL_MAP, {}] for mapping in found) or not is_noted
    assert sum(mapping in found for mapping in maps) >= 2
    assert reads > 50


@pytest.fixture
def short_preads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system that gives a byte or two at a time."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 2 - offset % 2), offset))
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("short_preads")
@pytest.mark.parametrize(("layout", "codec"), LAYOUTS)
def test_short_reads_are_no_ends(tmp_path: Path, layout: str, codec: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, layout, codec)
    with Store(tmp_path, workers=1) as store:
        entry = store.find(TEXT, ctx_size=32768, quant_bits=2)
        assert store.verify(entry) is Verdict.OK
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
            assert checkpoint.tool_map == TOOL_MAP
        assert store.import_tool_maps(TOOL_MAP) == TOOL_MAP
        assert store.save_buffer(TEXT, OTHER, tool_map={b"two": TOOL_MAP[b"call_1"]}, **SAVE).path == str(path)
        (entry,) = store.entries()
        assert store.verify(entry) is Verdict.OK
    assert ds4kv.load(path, salvage=True).damage == ()
    for command in (["ls", str(tmp_path)], ["info", str(path)], ["verify", str(path)]):
        assert main(command) == 0
        assert "corrupt" not in capsys.readouterr().out


def test_a_file_that_is_just_being_copied_is_no_checkpoint_yet(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", "v2", "lz4").read_bytes()
    kv = tmp_path / "kv"
    with Store(kv, workers=1) as store:
        path = kv / next(name.name for name in (tmp_path / "good").iterdir() if len(name.name) == NAME_SIZE)
        for size in [*range(0, 120), len(good) - len(TRAILER) - 1]:
            path.write_bytes(good[:size])
            assert store.entries() == []
            assert store.find(TEXT, ctx_size=32768, quant_bits=2) is None
            assert sorted(kv.iterdir()) == sorted({path, *(name for name in kv.iterdir() if name.name[0] == ".")})
        path.write_bytes(good)
        (entry,) = store.entries()
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD


# ------------------------------------------------------------------------------ names that can't be looked at


def test_a_link_that_leads_to_itself_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, "v2", "lz4")
    prompt = tmp_path.parent / "prompt"
    prompt.write_bytes(TEXT)
    for name in ("loop", "0" * 40 + ".kv", "loop.kv", ".loop"):
        os.symlink(name, tmp_path / name)
    with Store(tmp_path, workers=1) as store:
        assert [entry.path for entry in store.entries()] == [str(path)]
    assert [session.entry.path for session in ds4kv.Sessions(tmp_path).list()] == [str(path)]
    codes = {}
    for command in (
        ["ls", str(tmp_path)],
        ["find", str(tmp_path), "--prompt-file", str(prompt)],
        ["sessions", str(tmp_path)],
        ["verify", str(tmp_path)],
        ["upgrade", str(tmp_path), "--layout", "v1"],
    ):
        codes[command[0]] = main(command)
        shown = capsys.readouterr()
        assert path.name[:8] in shown.out or command[0] in ("verify", "upgrade")
        assert "Traceback" not in shown.err
    assert codes == {"ls": 1, "find": 0, "sessions": 1, "verify": 1, "upgrade": 0}


def test_an_upgrade_leaves_a_file_that_is_being_written_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "v2", "lz4")
    monkeypatch.setattr(sys.modules["ds4kv.stream.regular"].RegularFile, "check_unchanged", _changed)
    put(path, with_rot(path.read_bytes()), is_same=True, is_noted=True)
    (outcome,) = Upgrade(tmp_path, layout="v1").run()
    assert (outcome.action, outcome.why) == ("skipped", "it was changed or replaced meanwhile, again")
    monkeypatch.undo()
    (outcome,) = Upgrade(tmp_path, layout="v1").run()
    assert outcome.action == "failed"  # the control


def _changed(self: Any) -> None:
    raise OSError(errno.ESTALE, "the file was changed while it was read", self.name)
