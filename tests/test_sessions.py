"""ds4-agent's sessions: what a save removes, what a prefix of a name opens, and the system prompt's file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import sha1

import ds4kv
from ds4kv.store.directory import Directory
from ds4kv.store.sessions import Sessions

SYSTEM = "<\uff5cbegin\u2581of\u2581sentence\uff5c>be brief".encode()
PAYLOAD = bytes(range(256)) * 16


def turn(words: str) -> bytes:
    return f"<\uff5cUser\uff5c>{words}<\uff5cAssistant\uff5c>".encode()


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "kvcache", clock=lambda: 1_000_000.7)


def save(sessions: Sessions, text: bytes, **options: Any) -> None:
    with sessions.save(text, **{"tokens": 600, "ctx_size": 32768, **options}) as checkpoint:
        checkpoint.payload.write(PAYLOAD)


def names(sessions: Sessions) -> set[str]:
    return {name for name in os.listdir(sessions.directory) if name.endswith(".kv")}


def test_the_default_directory_is_the_agent_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Sessions().directory == str(tmp_path / ".ds4" / "kvcache")
    assert (tmp_path / ".ds4" / "kvcache").stat().st_mode & 0o777 == 0o700
    monkeypatch.chdir(tmp_path)
    for home in ("", None):
        if home is None:
            monkeypatch.delenv("HOME")
        else:
            monkeypatch.setenv("HOME", home)
        assert Sessions().directory == str(tmp_path / ".ds4" / "kvcache")


def test_a_saved_session(sessions: Sessions) -> None:
    text = SYSTEM + turn("hello")
    save(sessions, text, quant_bits=4)
    (name,) = names(sessions)
    parsed = reference.parse(Path(sessions.directory, name).read_bytes(), name)
    assert (parsed.text, parsed.payload, parsed.trailer) == (text, PAYLOAD, b"")
    assert (parsed.reason_code, parsed.ext_flags, parsed.hits, parsed.quant_bits) == (6, 0, 0, 4)
    assert (parsed.created_at, parsed.last_used) == (1_000_000, 1_000_000)


def test_a_save_removes_all_beginnings_of_its_text_and_nothing_else(sessions: Sessions) -> None:
    first, other = SYSTEM + turn("one"), SYSTEM + turn("two")
    longer = first + b"answer" + turn("more")
    ds4kv.dump(Path(sessions.directory, f"{sha1(SYSTEM)}.kv"), b"a server's", text=SYSTEM, tokens=1, ctx_size=1)
    save(sessions, first)
    assert names(sessions) == {f"{sha1(first)}.kv"}
    save(sessions, other)
    save(sessions, longer)
    assert names(sessions) == {f"{sha1(other)}.kv", f"{sha1(longer)}.kv"}
    save(sessions, first)  # a shorter one removes none that is longer
    assert names(sessions) == {f"{sha1(text)}.kv" for text in (first, other, longer)}


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
@pytest.mark.parametrize("raw_total", [None, 0])
def test_nothing_written_is_nothing_saved(layout: str, raw_total: int | None, tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, layout=layout)
    save(sessions, SYSTEM)
    before = names(sessions)
    for end in ("leave", "close the payload"):
        with (
            pytest.raises(ValueError, match="nothing was written"),
            sessions.save(SYSTEM + turn("x"), tokens=600, ctx_size=32768, raw_total=raw_total) as checkpoint,
        ):
            if end == "close the payload" and layout != "v2-checked":
                checkpoint.payload.close()
    with pytest.raises(ValueError, match="nothing was written"):
        sessions.save_sysprompt(SYSTEM, tokens=600, ctx_size=32768, raw_total=raw_total).close()
    assert names(sessions) == before
    assert not [name for name in os.listdir(tmp_path) if ".tmp." in name]
    save(sessions, SYSTEM + turn("x"))  # the control: one that is written replaces the shorter one
    assert names(sessions) == {f"{sha1(SYSTEM + turn('x'))}.kv"}


def test_a_save_that_fails_removes_nothing(sessions: Sessions) -> None:
    save(sessions, SYSTEM)
    with (
        pytest.raises(ZeroDivisionError),
        sessions.save(SYSTEM + turn("x"), tokens=600, ctx_size=32768) as checkpoint,
    ):
        checkpoint.payload.write(PAYLOAD)
        raise ZeroDivisionError
    assert set(os.listdir(sessions.directory)) == {f"{sha1(SYSTEM)}.kv", ".ds4kv", ".ds4kv.lock"}


def test_what_can_not_be_removed_is_passed_over(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(sessions, b"a")
    save(sessions, b"b")
    save(sessions, b"c")

    def refuse(self: Directory, path: str, file: tuple[int, int]) -> bool:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(Directory, "unlink", refuse)
    save(sessions, b"ab")
    assert len(names(sessions)) == 4
    assert f"could not remove shorter session {sessions.directory}/{sha1(b'a')}.kv" in caplog.text


def test_the_same_text_is_written_again(sessions: Sessions) -> None:
    save(sessions, SYSTEM, tokens=600)
    save(sessions, SYSTEM, tokens=700)
    (session,) = sessions.list()
    assert session.entry.tokens == 700


def test_list(tmp_path: Path) -> None:
    now = [0.0]
    sessions = Sessions(tmp_path, clock=lambda: now[0])
    long = "ein langes Gespr\u00e4ch " * 9
    for now[0], words in enumerate(["  first\n turn ", long]):
        save(sessions, SYSTEM + turn(words) + turn("later"))
    now[0] = -5.0
    save(sessions, b"no user turn")
    listed = sessions.list()
    assert [session.title for session in listed][1:] == ["first turn", ""]
    assert len(listed[0].title.encode()) in (69, 70)
    assert long.startswith(listed[0].title)
    assert [session.entry.header.last_used for session in listed] == [1, 0, 0]


def test_switch(sessions: Sessions) -> None:
    text = SYSTEM + turn("hello")
    save(sessions, text)
    path = Path(sessions.directory, f"{sha1(text)}.kv")
    before = path.read_bytes()
    for prefix in (sha1(text)[:1], sha1(text)[:8].upper(), sha1(text)):
        with sessions.switch(prefix, quant_bits=2) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="quant_bits 2"):
        sessions.switch(sha1(text), quant_bits=4)
    upper = path.with_name(f"{sha1(text).upper()}.kv")
    upper.write_bytes(before)  # the same session
    sessions.switch(sha1(text), quant_bits=2).close()


@pytest.mark.parametrize("prefix", ["", "g", "12 ", "0" * 41, "\u0660"])
def test_what_is_no_prefix(sessions: Sessions, prefix: str) -> None:
    with pytest.raises(ValueError, match="1 to 40 hex digits"):
        sessions.switch(prefix, quant_bits=2)


def test_a_prefix_of_none_and_of_several(sessions: Sessions) -> None:
    texts = [b"%d" % n for n in range(17)]  # two of which begin alike
    for text in texts:
        ds4kv.dump(Path(sessions.directory, f"{sha1(text)}.kv"), PAYLOAD, text=text, tokens=9, ctx_size=9)
    digits = [sha1(text)[0] for text in texts]
    double = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(LookupError, match=f"sessions begin with {double}: "):
        sessions.switch(double, quant_bits=2)
    with pytest.raises(LookupError, match="no session"):
        sessions.switch("0123456789", quant_bits=2)


def test_a_damaged_session_is_an_error_and_stays(sessions: Sessions) -> None:
    save(sessions, SYSTEM)
    path = Path(sessions.directory, f"{sha1(SYSTEM)}.kv")
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(ds4kv.CorruptError):
        sessions.switch(sha1(SYSTEM), quant_bits=2)
    assert path.read_bytes() == data


def test_the_system_prompt(sessions: Sessions) -> None:
    assert sessions.load_sysprompt(SYSTEM, quant_bits=2) is None
    with sessions.save_sysprompt(SYSTEM, tokens=600, ctx_size=32768) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
    path = Path(sessions.directory, "sysprompt.kv")
    assert ds4kv.read_header(path).reason is ds4kv.Reason.AGENT_SYSTEM
    before = path.read_bytes()
    assert sessions.matches_sysprompt(SYSTEM, quant_bits=2)
    with sessions.load_sysprompt(SYSTEM, quant_bits=2) as checkpoint:
        assert checkpoint.payload.read() == PAYLOAD
        assert checkpoint.header.tokens == 600
    assert path.read_bytes() == before
    for text, quant_bits in [(SYSTEM + b".", 2), (SYSTEM[:-1], 2), (SYSTEM, 4)]:
        assert not sessions.matches_sysprompt(text, quant_bits=quant_bits)
    save(sessions, SYSTEM + turn("x"))  # whose text begins with it
    assert sessions.list()[0].entry.sha == sha1(SYSTEM + turn("x"))
    assert len(sessions.list()) == 1
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    assert not sessions.matches_sysprompt(SYSTEM, quant_bits=2)
    with sessions.save_sysprompt(SYSTEM + b".", tokens=601, ctx_size=32768) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
    assert sessions.matches_sysprompt(SYSTEM + b".", quant_bits=2)
