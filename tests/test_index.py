"""What a directory holds, from how little of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
from helpers import sha1
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv.format.naming import is_entry_name
from ds4kv.store import index as index_module
from ds4kv.store.entry import read_entry
from ds4kv.store.index import Index
from ds4kv.store.lookup import longest_prefix

HOUR_AGO = time.time() - 3600


def put(directory: Path, text: bytes = b"text", *, upper: bool = False, **fields: object) -> Path:
    """A checkpoint that was written an hour ago, so that its stamp can be trusted."""
    sha = sha1(text).upper() if upper else sha1(text)
    path = directory / f"{sha}.kv"
    path.write_bytes(reference.build(b"payload", **{"text": text, "codec": 0, "chunk_size": 0, **fields}))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were opened."""
    names: list[str] = []
    real = os.open

    def note(path: str, *arguments: int) -> int:
        names.append(os.path.basename(path))
        return real(path, *arguments)

    monkeypatch.setattr(index_module.os, "open", note)
    return names


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as older than the clock's tick."""
    monkeypatch.setattr(index_module, "_COARSEST_TICK_NS", -(10**12))


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system of which the kernel doesn't know all changes."""

    def refuse(directory: str) -> None:
        raise OSError("none")

    monkeypatch.setattr(index_module, "Watch", refuse)


@pytest.fixture(params=["watched", "unwatched"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "unwatched":
        request.getfixturevalue("unwatched")
    else:
        request.getfixturevalue("monkeypatch").setattr(index_module, "_LOOKS_BEFORE_WATCH", 0)


@pytest.mark.parametrize(
    ("name", "is_entry"),
    [
        (f"{'0123456789abcdef' * 2}01234567.kv", True),
        (f"{'0123456789ABCDEF' * 2}01234567.kv", True),
        (f"{'0' * 40}.KV", False),
        (f"{'0' * 39}.kv", False),
        (f"{'0' * 41}.kv", False),
        (f"{'0' * 39}g.kv", False),
        (f"{'0' * 39}\u0660.kv", False),  # a digit, in Arabic
        (f"{'0' * 40}.kv.tmp.12", False),
        ("sysprompt.kv", False),
        (".ds4kv.lock", False),
    ],
)
def test_names(tmp_path: Path, name: str, is_entry: bool) -> None:
    assert is_entry_name(name) is is_entry
    (tmp_path / name).write_bytes(reference.build(b"p", text=b"", codec=0, chunk_size=0))
    assert len(Index(str(tmp_path)).scan()) == is_entry


def test_an_entry(tmp_path: Path) -> None:
    path = put(tmp_path, b"hello", upper=True, tokens=700, ctx_size=4096, quant_bits=4, ext_flags=6, trailer=b"xyz")
    (entry,) = Index(str(tmp_path)).scan()
    assert (entry.sha, entry.path) == (sha1(b"hello"), str(path))
    assert (entry.file_size, entry.text_bytes) == (path.stat().st_size, 5)
    assert (entry.tokens, entry.ctx_size, entry.quant_bits, entry.ext_flags) == (700, 4096, 4, 6)
    assert entry.header == ds4kv.read_header(path)
    assert entry == read_entry(str(path))


@pytest.mark.parametrize("model_id", [0, 1, 2, 200])
@pytest.mark.parametrize("build", [reference.build_checked, reference.build_mid])
def test_an_entry_of_another_layout(tmp_path: Path, build: Callable[..., bytes], model_id: int) -> None:
    """Of some of them 48 bytes don't tell the layout: the entry remembers it."""
    path = tmp_path / f"{sha1(b'text')}.kv"
    path.write_bytes(build(b"DSV4" + bytes(range(96)), text=b"text", model_id=model_id, payload_abi=2, trailer=b"xyz"))
    (entry,) = Index(str(tmp_path)).scan()
    assert entry.header == ds4kv.read_header(path)
    assert entry.header.pack() == entry.head == path.read_bytes()[:48]
    assert (entry.layout, entry.header.model_id, entry.header.payload_abi) == (entry.header.layout, model_id, 2)
    assert entry.layout == f"v2-{build.__name__.removeprefix('build_')}"


@pytest.mark.usefixtures("either")
def test_what_is_no_checkpoint_is_left_out_and_left_alone(tmp_path: Path) -> None:
    good = put(tmp_path, b"good")
    whole = good.read_bytes()
    bad = {
        b"1": b"",
        b"2": whole[:51],
        b"3": whole[:-1],
        b"4": b"KVX" + whole[3:],
        b"5": whole[:4] + b"\x03" + whole[5:],
        b"6": whole[:8] + bytes(4) + whole[12:],
        b"7": whole[:3] + b"\x03" + whole[4:],
        b"8": whole[:40] + b"\xff" * 8 + whole[48:],
    }
    for key, data in bad.items():
        (tmp_path / f"{sha1(key)}.kv").write_bytes(data)
    (tmp_path / f"{'a' * 40}.kv").mkdir()
    os.mkfifo(tmp_path / f"{'b' * 40}.kv")
    (tmp_path / f"{'c' * 40}.kv").symlink_to("nowhere")
    (tmp_path / f"{'d' * 40}.kv").symlink_to(f"{'d' * 40}.kv")
    before = sorted(os.listdir(tmp_path))
    assert [entry.path for entry in Index(str(tmp_path)).scan()] == [str(good)]
    assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(ds4kv.CorruptError) as caught:
        read_entry(str(tmp_path / f"{sha1(b'4')}.kv"))
    assert caught.value.path == str(tmp_path / f"{sha1(b'4')}.kv")


@pytest.mark.usefixtures("either")
def test_unchanged_files_are_not_opened_again(tmp_path: Path, opened: list[str], settled: None) -> None:
    good, bad = put(tmp_path, b"good"), put(tmp_path, b"bad")
    bad.write_bytes(b"no checkpoint")
    index = Index(str(tmp_path))
    assert len(index.scan()) == 1
    assert sorted(opened) == sorted([good.name, bad.name])
    opened.clear()
    assert len(index.scan()) == 1
    assert opened == []
    new = put(tmp_path, b"new")
    assert len(index.scan()) == 2
    assert opened == [new.name]


@pytest.mark.usefixtures("either")
def test_changes_are_seen(tmp_path: Path, opened: list[str], settled: None) -> None:
    path, other = put(tmp_path, b"one", tokens=700), put(tmp_path, b"two")
    index = Index(str(tmp_path))
    index.scan()
    opened.clear()
    data = bytearray(path.read_bytes())
    data[8:10] = (701).to_bytes(2, "little")
    with open(path, "r+b") as fp:  # in place: the same inode and size
        fp.write(data)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert {entry.tokens for entry in index.scan() if entry.path == str(path)} == {701}
    assert opened == [path.name]
    other.unlink()
    assert [entry.path for entry in index.scan()] == [str(path)]
    put(tmp_path, b"two", tokens=900)
    assert {entry.tokens for entry in index.scan()} == {701, 900}


@pytest.mark.usefixtures("unwatched")
def test_a_change_with_the_same_stamp_is_seen_while_the_clock_may_not_have_ticked(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path)
    index = Index(str(tmp_path))
    index.scan()
    index.scan()
    assert opened == [path.name] * 2
    monkeypatch.setattr(index_module, "_COARSEST_TICK_NS", -(10**12))  # it has, since
    index.scan()
    index.scan()
    assert opened == [path.name] * 3


def test_two_spellings_of_one_key_are_two_entries(tmp_path: Path) -> None:
    lower, upper = put(tmp_path, b"text"), put(tmp_path, b"text", upper=True)
    entries = Index(str(tmp_path)).scan()
    assert {entry.path for entry in entries} == {str(lower), str(upper)}
    assert {entry.sha for entry in entries} == {sha1(b"text")}
    for order in (entries, entries[::-1]):
        assert longest_prefix(order, b"text", lambda entry: True).path == str(lower)
        assert longest_prefix(order, b"text", lambda entry: entry.path != str(lower)).path == str(upper)
    put(tmp_path, b"text", upper=True, tokens=99999)
    assert longest_prefix(Index(str(tmp_path)).scan(), b"text", lambda entry: True).path == str(upper)


@pytest.mark.usefixtures("either")
def test_a_file_that_can_not_be_read_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    index = Index(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(index_module.os, "open", lambda *arguments: (_ for _ in ()).throw(OSError(5, "I/O error")))
        assert index.scan() == []
    assert len(index.scan()) == 1


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Index(str(tmp_path / "none")).scan()


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """The beginning of a file, near the edges of the rules."""
    number = st.sampled_from([0, 1, 2, 3, 4, 20, 64, 1 << 24, 1 << 26, (1 << 26) + 1])
    data = bytearray(b"KVC" + draw(st.binary(min_size=65, max_size=65)))
    data[3] = draw(st.sampled_from([0, 1, 2, 3]))
    data[4] = draw(st.sampled_from([0, 2, 3, 4]))
    data[7] = draw(st.sampled_from([0, 1, 2, 3, 255]))
    data[8:12] = draw(st.sampled_from([0, 1, 1 << 31])).to_bytes(4, "little")
    data[20:24] = draw(number | st.integers(0, (1 << 32) - 1)).to_bytes(4, "little")
    if draw(st.booleans()):
        data[21:24] = draw(st.integers(0, 3)), draw(st.integers(0, 28)), draw(st.sampled_from([0, 0, 0, 1]))
    data[40:48] = draw(number).to_bytes(8, "little")
    data[48:52] = draw(number).to_bytes(4, "little")
    data[64:68] = draw(number | st.integers(0, (1 << 32) - 1)).to_bytes(4, "little")
    return bytes(data) + bytes(draw(st.integers(0, 100)))


@given(data=heads())
@example(data=reference.build(b"payload" * 9, text=b"text", codec=0, chunk_size=0))
@example(data=reference.build(b"payload" * 9, text=b"text", codec=0, chunk_size=0, version=1))
@example(data=reference.build_checked(b"payload" * 9, text=b"text", model_id=0))
@example(data=reference.build_checked(b"payload" * 9, text=b"text", model_id=1))
@example(data=reference.build_mid(b"payload" * 9, text=b"text", model_id=3))
@settings(deadline=None)
def test_an_index_says_what_a_header_says(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("head") / f"{'0' * 40}.kv"
    path.write_bytes(data)
    try:
        header, text_bytes, is_good = ds4kv.read_header(path), int.from_bytes(data[48:52], "little"), True
    except ds4kv.Ds4kvError:
        is_good = False
    found = Index(str(path.parent)).scan()
    assert len(found) == is_good
    if is_good:
        assert (found[0].header, found[0].text_bytes) == (header, text_bytes)
        assert (found[0].tokens, found[0].ctx_size, found[0].quant_bits, found[0].ext_flags) == (
            header.tokens,
            header.ctx_size,
            header.quant_bits,
            header.ext_flags,
        )


def test_v2_crc_is_left_out(tmp_path: Path) -> None:
    """It looks like ``v2`` with codec none, but for its checksum."""
    head = bytearray(64)
    head[:9] = b"KVC\x02\x02\x01\x00\x00\x09"
    head[40:48] = (7).to_bytes(8, "little")
    length = (4).to_bytes(4, "little")
    head[48:52] = reference.crc32c(bytes(head) + length).to_bytes(4, "little")
    path = tmp_path / f"{'0' * 40}.kv"
    path.write_bytes(bytes(head) + length + b"textpayload")
    assert Index(str(tmp_path)).scan() == []
    with pytest.raises(ds4kv.UnsupportedError):
        read_entry(str(path))


# ------------------------------------------------------------------------------ the longest prefix


@given(
    texts=st.sets(st.text("ab", max_size=6).map(str.encode), max_size=12),
    prompt=st.text("ab", max_size=8).map(str.encode),
    refused=st.sets(st.text("ab", max_size=6).map(str.encode), max_size=6),
)
@settings(deadline=None)
def test_longest_prefix(
    tmp_path_factory: pytest.TempPathFactory, texts: set[bytes], prompt: bytes, refused: set[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("texts")
    for text in texts:
        put(directory, text)
    shas = {sha1(text) for text in refused}
    found = longest_prefix(Index(str(directory)).scan(), prompt, lambda entry: entry.sha not in shas)
    expected = max((text for text in texts - refused if prompt.startswith(text)), key=len, default=None)
    assert (found.sha if found else None) == (None if expected is None else sha1(expected))


def test_a_name_is_only_a_claim(tmp_path: Path) -> None:
    """A file under the SHA-1 of the prompt, with a text of another size, is not what the prompt begins with."""
    wrong = put(tmp_path, b"te").rename(tmp_path / f"{sha1(b'text')}.kv")
    put(tmp_path, b"tezt")
    scan = Index(str(tmp_path)).scan
    assert longest_prefix(scan(), b"text", lambda entry: True) is None
    right = put(tmp_path, b"text", upper=True)
    assert longest_prefix(scan(), b"text", lambda entry: True).path == str(right)
    assert wrong.exists()
