"""The worked example in FORMAT.md is a real file: both decoders load it, and ds4kv writes it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import reference

import ds4kv

PAGE = Path(__file__).parent.parent / "FORMAT.md"
LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )+) +\S.*")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(page: str) -> bytes:
    (dump,) = re.findall(r"```hexdump\n(.*?)```", page, re.DOTALL)
    data = b""
    for line in dump.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        assert int(match[1], 16) == len(data), line
        data += bytes.fromhex(match[2])
    return data


@pytest.fixture(scope="module")
def name(page: str) -> str:
    (name,) = re.findall(r"`([0-9a-f]{40}\.kv)`", page)
    return name


def test_prose_and_bytes_agree(page: str, example: bytes) -> None:
    (size,) = re.findall(r"checkpoint of (\d+) bytes", page)
    assert len(example) == int(size)


def test_both_decoders_load_it(example: bytes, name: str, tmp_path: Path) -> None:
    payload = b"DSV4" + struct.pack("<9f", *[1.5] * 9)
    path = tmp_path / name
    path.write_bytes(example)
    loaded = ds4kv.load(path)
    parsed = reference.parse(example, name)
    assert bytes(loaded.payload) == parsed.payload == payload
    assert loaded.text == parsed.text == b"Time? <tool_calls>now()</tool_calls>"
    assert loaded.trailer == parsed.trailer
    assert loaded.header.pack() == example[:48]
    assert reference.lint(example) == []


def test_every_byte_matters_or_is_free(example: bytes, name: str, tmp_path: Path) -> None:
    """Each single-byte change is refused or read alike by both decoders."""
    path = tmp_path / name
    for at in range(len(example)):
        data = bytearray(example)
        data[at] ^= 0x55
        path.write_bytes(data)
        try:
            expected = reference.parse(bytes(data), name).payload
        except reference.Bad:
            with pytest.raises((ds4kv.CorruptError, ds4kv.UnsupportedError)):
                ds4kv.load(path)
        else:
            assert bytes(ds4kv.load(path).payload) == expected


def test_ds4kv_writes_it(example: bytes, tmp_path: Path) -> None:
    parsed = reference.parse(example)
    path = tmp_path / "again.kv"
    ds4kv.dump(
        path,
        parsed.payload,
        text=parsed.text,
        trailer=parsed.trailer,
        ext_flags=parsed.ext_flags,
        tokens=parsed.tokens,
        ctx_size=parsed.ctx_size,
        quant_bits=parsed.quant_bits,
        reason="cold",
        chunk_size=parsed.chunk_size,
        created_at=parsed.created_at,
        last_used=parsed.last_used,
    )
    assert path.read_bytes() == example
