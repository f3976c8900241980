"""Damaged files, thousands of them: whatever happens to the bytes, ds4kv loads the file as the slow
decoder of reference.py does, or refuses it with the verdict that one gives. It never crashes, hangs
or raises anything else, as a whole file and as a stream.

DS4KV_MUTATIONS=quick|default|deep sets how many files are tried.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reference
from hypothesis import HealthCheck, event, example, given, note, settings
from hypothesis import strategies as st

import ds4kv

EXAMPLES = {"quick": 60, "default": 600, "deep": 20_000}[os.environ.get("DS4KV_MUTATIONS", "default")]
mutating = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORKERS = st.sampled_from([0, 1, 2, 3])
CLASSES = {
    reference.CORRUPT: ds4kv.CorruptError,
    reference.TRUNCATED: ds4kv.CorruptError,  # which of two true reasons comes first is left open
    reference.UNSUPPORTED: ds4kv.UnsupportedError,
}
GOLDEN = [path.read_bytes() for path in sorted((Path(__file__).parent / "golden").rglob("*.kv"))]
EDGES = [0, 1, 2, 3, 4, 6, 7, 8, 11, 12, 13, 15, 16, 20, 23, 24, 26, 27, 63, 64, 65, 127, 128, 255,
         256, 4095, 4096, 4097, 2**16 - 1, 2**24, 2**26, 2**26 + 1, 2**31, 2**32 - 1, 2**63,
         2**64 - 1]  # fmt: skip
FACTS = ["quant_bits", "reason_code", "ext_flags", "codec", "model_id", "payload_abi", "tokens", "hits", "ctx_size",
         "chunk_size", "created_at", "last_used", "payload_bytes"]  # fmt: skip
FIELDS = {3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 4, 12: 4, 16: 4, 20: 4, 21: 1, 22: 1, 23: 1, 24: 8,
          32: 8, 40: 8, 48: 4}  # fmt: skip


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A hang in C holds off every Python signal handler; this one prints the stacks and ends it."""
    faulthandler.dump_traceback_later(120 + EXAMPLES / 5, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoint.kv"


# -------------------------------------------------------------------------- files to start from


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, bytes]:
    """A legal LZ4 block with matches in it, and the size it decodes to."""
    parts: list[tuple[bytes, int, int] | bytes] = []
    size = 0
    lengths = st.integers(0, 40) | st.sampled_from([14, 15, 16, 269, 270, 271])
    for _ in range(draw(st.integers(0, 4))):
        literals = draw(st.binary(min_size=0 if size else 1, max_size=20))
        size += len(literals)
        offset = draw(st.integers(1, size))
        length = 4 + draw(lengths)
        parts.append((literals, offset, length))
        size += length
    parts.append(draw(st.binary(min_size=12, max_size=40)))
    return size + len(parts[-1]), reference.sequences(*parts)


@st.composite
def small_files(
    draw: st.DrawFn, codecs: tuple[int | str, ...] = (0, 0, 1, 1, 2, "checked", "checked", "mid", "packed", "packed")
) -> bytes:
    """A good file of up to a few hundred bytes, of either version and any of these codecs, or of another layout."""
    codec = draw(st.sampled_from(codecs))
    if codec == "packed":
        payload = draw(st.binary(max_size=100)) * draw(st.sampled_from([1, 1, 2, 50]))
        return reference.build_packed(
            payload,
            log2=draw(st.integers(12 if len(payload) > 400 else 2, 13)),
            model_id=draw(st.sampled_from([0, 1, 2, 3, 255])),
            payload_abi=draw(st.sampled_from([0, 2, 255])),
            words=draw(st.sampled_from([[0], [16], [32], [32, 0, 16]])),
            block=draw(st.sampled_from([reference.store, reference.fast, reference.high])),
            text=draw(st.binary(max_size=20)),
            trailer=draw(st.binary(max_size=12)),
            ext_flags=draw(st.sampled_from([0, 0, 6])),
        )
    if isinstance(codec, str):
        build = reference.build_checked if codec == "checked" else reference.build_mid
        return build(
            b"DSV4" + draw(st.binary(max_size=150)),
            log2=draw(st.integers(2, 8)),
            model_id=draw(st.sampled_from([0, 1, 2, 3, 255])),
            payload_abi=draw(st.sampled_from([0, 2, 255])),
            block=draw(st.sampled_from([reference.store, reference.fast, reference.high])),
            text=draw(st.binary(max_size=20)),
            trailer=draw(st.binary(max_size=12)),
        )
    version = 2 if codec else draw(st.sampled_from([1, 2]))
    if codec == 0:
        region, chunk_size = draw(st.binary(max_size=80)), 0
    elif draw(st.booleans()):
        chunk_size = draw(st.integers(1, 70))
        region = reference.encode_region(draw(st.binary(max_size=150)), chunk_size)
    else:
        raw_size, block = draw(blocks())
        full = draw(st.integers(0, 3))
        chunk_size = raw_size if full else raw_size + draw(st.integers(0, 5))
        rest = draw(st.integers(0, raw_size))
        records = [(raw_size, block)] * max(full, 1)
        if full and rest:
            records.append((rest, reference.store(bytes(rest))))
        region = reference.region_of(records)
    return reference.build(
        region,
        version=version,
        codec=codec,
        chunk_size=chunk_size,
        text=draw(st.binary(max_size=20)),
        trailer=draw(st.binary(max_size=12)),
        quant_bits=draw(st.sampled_from([2, 4])),
        reason_code=draw(st.integers(0, 255)),
        ext_flags=draw(st.integers(0, 255)),
        tokens=draw(st.integers(1, 2**32 - 1)),
        hits=draw(st.integers(0, 2**32 - 1)),
        last_used=draw(st.integers(0, 2**64 - 1)),
    )


# ------------------------------------------------------------------------------------- mutations


def positions(data: bytes) -> list[int]:
    """Where numbers are: the header's fields, the frame, every record head and what follows it."""
    found = list(FIELDS)
    if len(data) >= 52:
        at = 52 + struct.unpack_from("<I", data, 48)[0]
        found += [at, at + 4, at + 8]
        is_packed = data[3] == 75
        at += 40 if is_packed else 12
        head_bytes = 20 if is_packed else 12 if data[21] == 2 else 8
        while at + 8 <= len(data) and len(found) < 100:
            found += [at, at + 4, at + 8, at + head_bytes, at + head_bytes + 1, at + head_bytes + 2]
            at += head_bytes + struct.unpack_from("<I", data, at + 4)[0]
    return [at for at in found if at < len(data)] or [0]


@st.composite
def mutated(draw: st.DrawFn, sources: st.SearchStrategy[bytes]) -> bytes:
    data = bytearray(draw(sources))

    def place() -> int:
        return draw(st.sampled_from(positions(bytes(data))) | st.integers(0, len(data) - 1))

    def flip() -> None:
        data[place()] ^= 1 << draw(st.integers(0, 7))

    def byte() -> None:
        data[place()] = draw(st.sampled_from([0, 1, 2, 15, 16, 240, 255]) | st.integers(0, 255))

    def number() -> None:
        at = place()
        width = FIELDS.get(at) or draw(st.sampled_from([4, 8]))
        data.extend(bytes(max(0, at + width - len(data))))
        old = int.from_bytes(data[at : at + width], "little")
        new = draw(st.sampled_from(EDGES) | st.integers(old - 2, old + 2) | st.integers(0, 2**64))
        data[at : at + width] = (new % 2 ** (8 * width)).to_bytes(width, "little")

    def cut() -> None:
        del data[place() :]

    def remove() -> None:
        at = place()
        del data[at : at + draw(st.integers(1, 20))]

    def insert() -> None:
        at = place()
        data[at:at] = draw(st.binary(min_size=1, max_size=20))

    def splice() -> None:
        other = draw(sources)
        data[place() :] = other[draw(st.integers(0, len(other) - 1)) :]

    def repair() -> None:
        """Make payload_bytes true again, so that damage further in is looked at."""
        if len(data) >= 52:
            at = 52 + struct.unpack_from("<I", data, 48)[0]
            struct.pack_into("<Q", data, 40, max(0, len(data) - at))
            if data[3] == 75 and len(data) >= at + 40:  # and seal and frame
                struct.pack_into("<Q", data, at + 16, reference.seal_of(bytes(data)))
                data[at + 32 : at + 40] = reference.sum_of(bytes(data[at : at + 32]))

    steps: list[Callable[[], None]] = [flip, byte, number, number, cut, remove, insert, splice]
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=4)):
        if not data:
            break
        step()
        if (step in (cut, remove, insert, splice) or data[3:4] == b"K") and draw(st.booleans()):
            repair()
    return bytes(data)


# ------------------------------------------------------------------------------------- judgement


def check(data: bytes, path: Path, workers: int) -> None:
    """Whole file and stream against the reference."""
    try:
        expected = reference.parse(data)
        verdict = "ok"
    except reference.Bad as bad:
        expected = None
        verdict = bad.verdict
        note(f"reference: {bad}")
    event(verdict)
    path.write_bytes(data)

    refusal = loaded = None
    try:
        loaded = ds4kv.load(path, workers=workers)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError) as error:
        refusal = error
        note(f"ds4kv: {error!r}")
    is_ambiguous = data[21:22] == b"\1" and isinstance(refusal, ds4kv.UnsupportedError) and refusal.offset == 21
    if expected is None and is_ambiguous:
        assert verdict in (reference.UNSUPPORTED, reference.CORRUPT)  # v2-mid: what is ambiguous is read no further
    elif expected is None:
        assert isinstance(refusal, CLASSES[verdict])
    elif loaded is None:  # a block that LZ4 decoders may take or leave, the one thing left to them
        assert expected.loose
        assert isinstance(refusal, ds4kv.CorruptError)
    else:
        assert bytes(loaded.payload) == expected.payload
        assert (loaded.text, loaded.trailer) == (expected.text, expected.trailer)
        header = loaded.header
        assert header.pack() == data[:48]
        assert ds4kv.read_header(path) == header
        assert header.layout == expected.layout
        assert {field: getattr(header, field) for field in FACTS} == {
            field: getattr(expected, field) for field in FACTS
        }
    if refusal is not None:
        assert str(path) in str(refusal)

    with contextlib.suppress(ds4kv.CorruptError, ds4kv.UnsupportedError):
        ds4kv.read_header(path)


def check_stream(region: bytes, chunk_size: int, workers: int, step: int) -> None:
    try:
        expected, loose = reference.decode_region(region, chunk_size)
    except reference.Bad as bad:
        note(f"reference: {bad}")
        expected, loose = None, False
    event("refused" if expected is None else "decoded")
    refusal = None
    got = bytearray()
    try:
        with ds4kv.PayloadReader(io.BytesIO(region), len(region), chunk_size=chunk_size, workers=workers) as stream:
            while piece := stream.read(step):
                got += piece
    except ds4kv.CorruptError as error:
        refusal = error
        note(f"ds4kv: {error!r}")
    if refusal is None:
        assert got == expected
    else:
        assert expected is None or loose
        assert not isinstance(refusal, ds4kv.TruncatedError)  # all bytes of the region were there


@pytest.mark.slow
@given(data=mutated(st.integers(0, len(GOLDEN) - 1).map(GOLDEN.__getitem__)), workers=WORKERS)
@mutating
def test_mutated_golden_files(data: bytes, workers: int, scratch: Path) -> None:
    check(data, scratch, workers)


@pytest.mark.slow
@given(data=mutated(small_files()), workers=WORKERS)
@example(data=b"", workers=1)
@example(data=b"KVC", workers=1)
@mutating
def test_mutated_small_files(data: bytes, workers: int, scratch: Path) -> None:
    check(data, scratch, workers)


@pytest.mark.slow
@given(data=small_files(), workers=WORKERS)
@mutating
def test_small_files_load(data: bytes, workers: int, scratch: Path) -> None:
    """The controls of all the others: what was not mutated is good, to both."""
    assert not reference.parse(data).loose
    check(data, scratch, workers)


@pytest.mark.slow
@given(
    data=mutated(small_files(codecs=(1, 2))),
    workers=WORKERS,
    step=st.integers(1, 200) | st.just(-1),
)
@mutating
def test_mutated_regions_as_streams(data: bytes, workers: int, step: int) -> None:
    if len(data) < 52:
        return
    at = 52 + struct.unpack_from("<I", data, 48)[0]
    chunk_size = struct.unpack_from("<I", data, 20)[0]
    if not 1 <= chunk_size <= reference.MAX_CHUNK:
        chunk_size = 64
    check_stream(data[at:], chunk_size, workers, step)


@pytest.mark.slow
@given(
    claim=st.tuples(*[st.sampled_from([0, 1, 12, 64, 2**24, 2**26, 2**32 - 1])] * 5),
    total=st.sampled_from(EDGES) | st.integers(0, 2**64 - 1),
    rest=st.binary(max_size=60),
    workers=WORKERS,
)
@mutating
def test_wild_claims(claim: tuple[int, ...], total: int, rest: bytes, workers: int, scratch: Path) -> None:
    """Short files whose numbers say anything at all."""
    chunk_size, count, raw_size, block_size, text_bytes = claim
    region = struct.pack("<QIII", total, count, raw_size, block_size) + rest
    text_bytes %= 2**32 if len(rest) % 2 else 1
    check(reference.build(region, chunk_size=chunk_size, text_bytes=text_bytes), scratch, workers)
