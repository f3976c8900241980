"""The worked examples in FORMAT.md are real files: both decoders load them, and ds4kv writes them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import reference

import ds4kv

PAGE = Path(__file__).parent.parent / "FORMAT.md"
LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )+) +\S.*")


TEXT = PAGE.read_text(encoding="utf-8")


def bytes_of(dump: str) -> bytes:
    data = b""
    for line in dump.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        assert int(match[1], 16) == len(data), line
        data += bytes.fromhex(match[2])
    return data


NAMES = re.findall(r"`([0-9a-f]{40}\.kv)`", TEXT)
EXAMPLES = [bytes_of(dump) for dump in re.findall(r"```hexdump\n(.*?)```", TEXT, re.DOTALL)]
PAYLOADS = [
    b"DSV4" + struct.pack("<9f", *[1.5] * 9),
    b"DSV4" + struct.pack("<31f", *[1.5] * 31),
    struct.pack("<512f", *[2 ** (i % 32) for i in range(512)]) + b"rest!",
]
TEXTS = [b"Time? <tool_calls>now()</tool_calls>", b"Hi", b"Time? <tool_calls>now()</tool_calls>"]
LAYOUTS = ["v2", "v2-checked", "packed"]

examples = pytest.mark.parametrize(("name", "example"), list(zip(NAMES, EXAMPLES, strict=True)), ids=LAYOUTS)


def test_prose_and_bytes_agree() -> None:
    sizes = re.findall(r"`(v2\S*|packed)` checkpoint of (\d+) bytes", TEXT)
    assert sizes == [(layout, str(len(data))) for layout, data in zip(LAYOUTS, EXAMPLES, strict=True)]


@pytest.mark.parametrize("number", range(3), ids=LAYOUTS)
def test_both_decoders_load_it(number: int, tmp_path: Path) -> None:
    name, example = NAMES[number], EXAMPLES[number]
    payload = PAYLOADS[number]
    path = tmp_path / name
    path.write_bytes(example)
    loaded = ds4kv.load(path)
    parsed = reference.parse(example, name)
    assert bytes(loaded.payload) == parsed.payload == payload
    assert loaded.text == parsed.text == TEXTS[number]
    assert loaded.trailer == parsed.trailer
    assert loaded.header.pack() == example[:48]
    assert loaded.header.layout == parsed.layout == LAYOUTS[number]
    assert reference.lint(example) == []


@pytest.mark.slow
@examples
def test_every_byte_matters_or_is_free(name: str, example: bytes, tmp_path: Path) -> None:
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


@examples
def test_ds4kv_writes_it(name: str, example: bytes, tmp_path: Path) -> None:
    parsed = reference.parse(example)
    path = tmp_path / name
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
        layout=parsed.layout,
        level=None if parsed.layout == "v2" else 0,
        chunk_size=parsed.chunk_size,
        created_at=parsed.created_at,
        last_used=parsed.last_used,
        model_id=parsed.model_id,
        payload_abi=parsed.payload_abi,
    )
    assert path.read_bytes() == example
