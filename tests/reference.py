"""An independent reading of `.kv` checkpoint files, for the tests to measure ds4kv against.

It is slow and plain on purpose, shares no line with the package, and has from elsewhere only what would
be no second opinion if it were written for this: XXH32 and XXH3, and numpy to regroup bytes and bits.
`parse` takes the bytes of a whole file and either returns everything in it or raises `Bad` with the
verdict the bytes deserve. `build` makes files, good or odd, out of parts. `lint` names what a careful
writer would not have written although every reader must take it. FORMAT.md says the same in prose.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import lz4.block
import numpy as np
import xxhash

CORRUPT, TRUNCATED, UNSUPPORTED = "corrupt", "truncated", "unsupported"
NONE, LZ4, LZ4HC = 0, 1, 2
HEADER = struct.Struct("<3sBBBBBIIIIQQQ")
HEADER_BYTES, TEXT_AT, FRAME_BYTES, HEAD_BYTES = 48, 52, 12, 8
MAX_CHUNK = 64 << 20
PACKED = 75  # the version byte of layout packed
TOOL_MAP = 1


class Bad(Exception):
    """These bytes are refused: the verdict, the reason, and where in what was given it shows."""

    def __init__(self, verdict: str, why: str, at: int) -> None:
        super().__init__(f"{verdict} at {at}: {why}")
        self.verdict, self.why, self.at = verdict, why, at


@dataclass(frozen=True)
class Parsed:
    layout: str
    version: int
    quant_bits: int
    reason_code: int
    ext_flags: int
    codec: int  # how the payload is stored: 0 in v1, 1 where byte 21 says that there is a codec, and in packed
    model_id: int  # byte 7, where that is not the codec
    payload_abi: int  # bytes 20..23 of v1; byte 20 where byte 21 is the codec, and in packed
    tokens: int
    hits: int
    ctx_size: int
    chunk_size: int  # 0 in every version 1 file, whatever bytes 20..23 hold
    created_at: int
    last_used: int
    payload_bytes: int
    text: bytes
    payload: bytes
    trailer: bytes
    loose: bool  # some block is one that LZ4 forbids and its decoders take: either verdict is right


# ------------------------------------------------------------------------------------ LZ4 blocks


def decode_block(block: bytes, raw_size: int) -> tuple[bytes, bool]:
    """The raw_size bytes that an LZ4 block stands for, and whether it is loose.

    LZ4 wants the last five bytes to be literals and the last match to begin twelve bytes before the
    end or earlier, so that decoders may copy in strides; and no match offset is 0. Decoders enforce
    that only in part: lz4's own makes zeros of a match at offset 0.
    """
    out = bytearray()
    at = 0
    match_start = match_end = None
    loose = False

    def more(length: int) -> int:  # a nibble of 15 goes on in bytes, up to the first that is not 255
        nonlocal at
        while length >= 15:
            if at == len(block):
                raise Bad(CORRUPT, "the block ends inside a length", at)
            byte, at = block[at], at + 1
            length += byte
            if byte != 255:
                break
        return length

    while True:
        if at == len(block):
            raise Bad(CORRUPT, "the block does not end with a literal run", at)
        token, at = block[at], at + 1
        run = more(token >> 4)
        if run > len(block) - at:
            raise Bad(CORRUPT, "a literal run leaves the block", at)
        out += block[at : at + run]
        at += run
        if len(out) > raw_size:
            raise Bad(CORRUPT, "the block decodes to more than its raw size", at)
        if at == len(block):
            break
        if at + 2 > len(block):
            raise Bad(CORRUPT, "the block ends inside a match offset", at)
        offset = block[at] | block[at + 1] << 8
        if offset > len(out):
            raise Bad(CORRUPT, "a match offset reaches before the chunk", at)
        at += 2
        length = more(token & 15) + 4
        if length > raw_size - len(out):
            raise Bad(CORRUPT, "the block decodes to more than its raw size", at)
        match_start = len(out)
        loose |= offset == 0
        piece = bytes(out[match_start - offset : match_start - offset + length]) if offset else b"\0"
        out += (piece * (length // len(piece) + 1))[:length]
        match_end = len(out)
    if len(out) < raw_size:
        raise Bad(CORRUPT, "the block decodes to less than its raw size", at)
    if match_end is not None:
        loose |= match_start > raw_size - 12 or match_end > raw_size - 5
    return bytes(out), loose


def sequences(*parts: tuple[bytes, int, int] | bytes) -> bytes:
    """An LZ4 block put together by hand: (literals, offset, match length) ..., last literals."""
    block = bytearray()

    def nibble(length: int) -> int:
        return min(length, 15)

    def rest(length: int) -> bytes:
        if length < 15:
            return b""
        return b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])

    for part in parts:
        if isinstance(part, tuple):
            literals, offset, length = part
            block.append(nibble(len(literals)) << 4 | nibble(length - 4))
            block += rest(len(literals)) + literals + struct.pack("<H", offset) + rest(length - 4)
        else:
            block.append(nibble(len(part)) << 4)
            block += rest(len(part)) + part
    return bytes(block)


def store(raw: bytes) -> bytes:
    """The dullest LZ4 block there is: everything as literals."""
    return sequences(raw)


def bound(raw_size: int) -> int:
    """The longest block that raw_size bytes can need."""
    return raw_size + raw_size // 255 + 16


# --------------------------------------------------------------------------- the payload region


def _ceil(total: int, size: int) -> int:
    return -(-total // size)


def regroup(raw: bytes) -> bytes:
    """First every fourth byte, then every fourth from the second on, and so on; the odd rest stays."""
    array = np.frombuffer(raw, np.uint8)
    m = len(raw) // 4
    return array[: 4 * m].reshape(m, 4).T.tobytes() + raw[4 * m :]


def ungroup(grouped: bytes) -> bytes:
    array = np.frombuffer(grouped, np.uint8)
    m = len(grouped) // 4
    return array[: 4 * m].reshape(4, m).T.tobytes() + grouped[4 * m :]


def _blocks(data: bytes) -> tuple[list[bytes], bytes]:
    """Blocks of 256 KiB, the last one of a multiple of 2,048 bytes, and the rest."""
    size = 256 << 10
    end = len(data) - len(data) % 2048
    return [data[at : min(at + size, end)] for at in range(0, end, size)], data[end:]


def planes_of(raw: bytes, word: int) -> bytes:
    """The bit planes of words of 16 or 32 bits, the lowest plane of a block first; exponents as Gray codes."""
    blocks, rest = _blocks(raw)
    gray, planes = 0x3F80 << word - 16, []
    for block in blocks:
        words = np.frombuffer(block, f"<u{word // 8}")
        words = words ^ (words >> 1 & words.dtype.type(gray))
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, word // 8), axis=1, bitorder="little")
        planes.append(np.packbits(bits.T, axis=1, bitorder="little").tobytes())
    return b"".join(planes) + rest


def from_planes(planes: bytes, word: int) -> bytes:
    blocks, rest = _blocks(planes)
    exponent, raw = range(word - 9, word - 2), []
    for block in blocks:
        rows = np.unpackbits(np.frombuffer(block, np.uint8).reshape(word, -1), axis=1, bitorder="little")
        for bit in reversed(exponent):
            rows[bit] ^= rows[bit + 1]
        raw.append(np.packbits(rows.T, axis=1, bitorder="little").tobytes())
    return b"".join(raw) + rest


def xxh32(raw: bytes) -> int:
    return xxhash.xxh32_intdigest(raw)


def decode_region(
    region: bytes, chunk_size: int, *, grouped: bool = False, checked: bool = False
) -> tuple[bytes, bool]:
    """The payload in an LZ4 region, and whether any of its blocks is loose."""
    head_bytes = HEAD_BYTES + 4 * checked
    if not 1 <= chunk_size <= MAX_CHUNK:
        raise Bad(CORRUPT, "chunk size", 0)
    if len(region) < FRAME_BYTES:
        raise Bad(CORRUPT, "the region is too short for its frame", 0)
    total, count = struct.unpack_from("<QI", region)
    if count != _ceil(total, chunk_size):
        raise Bad(CORRUPT, "chunk count does not follow from total and chunk size", 8)
    if checked and count == 0:
        raise Bad(CORRUPT, "a region without chunks", 8)
    at = FRAME_BYTES
    payload = []
    left = total
    any_loose = False
    for _ in range(count):
        if len(region) - at < head_bytes:
            raise Bad(CORRUPT, "the region ends inside a record head", at)
        raw_size, block_size = struct.unpack_from("<II", region, at)
        if raw_size != min(chunk_size, left):
            raise Bad(CORRUPT, "raw size is not what this place asks for", at)
        if not 1 <= block_size <= bound(chunk_size):
            raise Bad(CORRUPT, "block size is zero or above the bound", at + 4)
        at += head_bytes
        if block_size > len(region) - at:
            raise Bad(CORRUPT, "a block leaves the region", at - 4)
        try:
            chunk, loose = decode_block(region[at : at + block_size], raw_size)
        except Bad as bad:
            raise Bad(CORRUPT, bad.why, at + bad.at) from None
        if grouped:
            chunk = ungroup(chunk)
        if checked and xxh32(chunk) != struct.unpack_from("<I", region, at - 4)[0]:
            raise Bad(CORRUPT, "the chunk is not the one whose checksum this is", at - 4)
        payload.append(chunk)
        any_loose |= loose
        left -= raw_size
        at += block_size
    if at != len(region):
        raise Bad(CORRUPT, "bytes are left over after the last record", at)
    return b"".join(payload), any_loose


def misfit(region: bytes, chunk_size: int, head_bytes: int) -> int | None:
    """Where frame and record heads of such a size stop accounting for the region; None: they do, to the byte."""
    if len(region) < FRAME_BYTES:
        return 0
    total, count = struct.unpack_from("<QI", region)
    if count != _ceil(total, chunk_size) or (count == 0 and head_bytes == 12):  # never empty, where there are checksums
        return 0
    if count * (head_bytes + 2) > len(region) - FRAME_BYTES:  # a block has a token and a literal
        return 0
    at = FRAME_BYTES
    for n in range(count):
        if len(region) - at < head_bytes:
            return at
        raw_size, block_size = struct.unpack_from("<II", region, at)
        after = at + head_bytes + block_size
        if raw_size != (chunk_size if n < count - 1 else total - n * chunk_size) or block_size < 2:
            return at
        if after > len(region):
            return at
        at = after
    return None if at == len(region) else at


def is_records(region: bytes, head_bytes: int) -> bool:
    """The same where nothing but the first record says what the chunk size is."""
    first = struct.unpack_from("<I", region, FRAME_BYTES)[0] if len(region) >= FRAME_BYTES + 4 else 0
    if not first or len(region) < FRAME_BYTES + head_bytes:
        return False
    total, count = struct.unpack_from("<QI", region)
    sizes, at = [], FRAME_BYTES
    while at + head_bytes <= len(region) and len(sizes) < count:
        raw_size, block_size = struct.unpack_from("<II", region, at)
        sizes.append(raw_size)
        at += head_bytes + max(block_size, 2)
    if not sizes:
        return False
    *full, last = sizes
    return (
        at == len(region)
        and len(sizes) == count
        and sum(sizes) == total
        and all(size == first for size in full)
        and 0 < last <= first
    )


def cut(payload: bytes, chunk_size: int) -> list[bytes]:
    return [payload[i : i + chunk_size] for i in range(0, len(payload), chunk_size)]


def fast(raw: bytes) -> bytes:
    """The LZ4 block that LZ4_compress_default makes."""
    return lz4.block.compress(raw, store_size=False)


def high(raw: bytes) -> bytes:
    """The LZ4 block that LZ4HC makes at level 1."""
    return lz4.block.compress(raw, mode="high_compression", compression=1, store_size=False)


Encoder = Callable[[bytes], bytes]


def encode_region(payload: bytes, chunk_size: int, block: Encoder = store, *, grouped: bool = False) -> bytes:
    """A correct region, of blocks that are literals only unless told."""
    pieces = cut(payload, chunk_size)
    return region_of((len(raw), block(regroup(raw) if grouped else raw)) for raw in pieces)


def encode_checked(payload: bytes, chunk_size: int, block: Encoder = store) -> bytes:
    """The same with regrouped bytes in the blocks and a checksum of the others in each head."""
    pieces = cut(payload, chunk_size)
    region = struct.pack("<QI", len(payload), len(pieces))
    for raw in pieces:
        encoded = block(regroup(raw))
        region += struct.pack("<III", len(raw), len(encoded), xxh32(raw)) + encoded
    return region


def region_of(
    records: Iterable[Sequence[int | bytes]],
    *,
    total: int | None = None,
    count: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A region of (raw size, block) or (raw size, block, claimed block size) records, as told."""
    records = list(records)
    if total is None:
        total = sum(record[0] for record in records)
    if count is None:
        count = len(records)
    region = bytearray(struct.pack("<QI", total, count))
    for raw_size, block, *claim in records:
        region += struct.pack("<II", raw_size, claim[0] if claim else len(block)) + block
    return bytes(region) + extra


# --------------------------------------------------------------- frame and records of layout packed

PACKED_FRAME = struct.Struct("<QIIQQ")  # total, count, 0, seal, first sum; and behind these the sum of them
PACKED_HEAD = struct.Struct("<IIIQ")  # raw size, block size, transform, sum
PACKED_FRAME_BYTES, PACKED_HEAD_BYTES, SUM_BYTES = 40, 20, 8
WORDS = {0: 0, 1: 16, 2: 32}  # transform, and the bits of its words; 0: none


def xxh3(data: bytes, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(data, seed % 2**64)


def sum_of(data: bytes, seed: int = 0) -> bytes:
    return struct.pack("<Q", xxh3(data, seed))


def seal_of(data: bytes) -> int:
    """What a file's header and text are known by: all of them that doesn't change once the payload has begun."""
    facts = bytearray(data[: TEXT_AT + struct.unpack_from("<I", data, HEADER_BYTES)[0]])
    facts[6] &= 255 - TOOL_MAP
    facts[12:16] = bytes(4)  # hits
    facts[32:48] = bytes(16)  # last use, payload bytes
    return xxh3(bytes(facts))


def packed_frame(total: int, count: int, seal: int, first_sum: int, zero: int = 0) -> bytes:
    frame = PACKED_FRAME.pack(total, count, zero, seal, first_sum)
    return frame + sum_of(frame)


def is_packed_frame(region: bytes) -> bool:
    """Whether a frame begins here that is right by its own sum."""
    frame = region[: PACKED_FRAME_BYTES - SUM_BYTES]
    return region[len(frame) : PACKED_FRAME_BYTES] == sum_of(frame) and frame[12:16] == bytes(4)


def packed_record(raw: bytes, seed: int, word: int, block: Encoder) -> bytes:
    """A correct record: of this word's planes, or of the chunk as it is where that makes no smaller block."""
    encoded = block(planes_of(raw, word) if word else raw)
    if len(encoded) >= len(raw):
        encoded, word = raw, 0
    return PACKED_HEAD.pack(len(raw), len(encoded), word // 16, xxh3(raw, seed)) + encoded


def encode_packed(
    payload: bytes, chunk_size: int, seal: int, block: Encoder = fast, words: Sequence[int] = (32,)
) -> bytes:
    """A correct region. Its chunks have these words in turn."""
    pieces = cut(payload, chunk_size)
    first_sum = xxh3(pieces[0]) if pieces else 0
    region = packed_frame(len(payload), len(pieces), seal, first_sum)
    for n, raw in enumerate(pieces):
        region += packed_record(raw, seal + first_sum + n, words[n % len(words)], block)
    return region


def decode_packed(region: bytes, chunk_size: int) -> tuple[bytes, bool]:
    """The payload in a region of layout packed, by the seal that its frame has; and whether a block is loose."""
    if len(region) < PACKED_FRAME_BYTES:
        raise Bad(CORRUPT, "the region is too short for its frame", 0)
    if not is_packed_frame(region):
        raise Bad(CORRUPT, "the frame is not the one whose sum this is", 0)
    total, count, _, seal, first_sum = PACKED_FRAME.unpack_from(region)
    if count != _ceil(total, chunk_size):
        raise Bad(CORRUPT, "number of chunks", 8)
    at, payload, any_loose = PACKED_FRAME_BYTES, [], False
    for n in range(count):
        if len(region) - at < PACKED_HEAD_BYTES:
            raise Bad(CORRUPT, "the region ends inside a record head", at)
        raw_size, block_size, transform, sum_ = PACKED_HEAD.unpack_from(region, at)
        if raw_size != min(chunk_size, total - n * chunk_size):
            raise Bad(CORRUPT, "raw size", at)
        is_stored = block_size == raw_size
        if not is_stored and not 2 <= block_size < raw_size:
            raise Bad(CORRUPT, "block size", at + 4)
        if transform not in WORDS or (is_stored and transform != 0):
            raise Bad(CORRUPT, "transform", at + 8)
        block = region[at + PACKED_HEAD_BYTES : at + PACKED_HEAD_BYTES + block_size]
        if len(block) < block_size:
            raise Bad(CORRUPT, "a block leaves the region", at + 4)
        raw, loose = (block, False) if is_stored else decode_block(block, raw_size)
        if transform:
            raw = from_planes(raw, WORDS[transform])
        if xxh3(raw, seal + first_sum + n) != sum_:
            raise Bad(CORRUPT, "the chunk is not the one that was written to this file and place", at + 12)
        payload.append(raw)
        any_loose |= loose
        at += PACKED_HEAD_BYTES + block_size
    if at != len(region):
        raise Bad(CORRUPT, "bytes are left over after the last record", at)
    return b"".join(payload), any_loose


def packed_trailer(behind: bytes, seal: int, is_flagged: bool) -> bytes:
    """The trailer in what is behind the region. Where no tool map is promised, one that was torn is none."""
    trailer, noted = behind[:-SUM_BYTES], behind[-SUM_BYTES:]
    if len(behind) > SUM_BYTES and noted == sum_of(trailer, seal):
        return trailer
    if is_flagged:
        raise Bad(TRUNCATED if len(behind) <= SUM_BYTES else CORRUPT, "trailer", 0)
    return b""


# ------------------------------------------------------------------------------- the whole file


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit; it is only here to know a 64-byte checked header when one comes by."""
    remainder = 2**32 - 1
    for byte in data:
        for bit in range(8):
            carry = (remainder ^ byte >> bit) & 1
            remainder //= 2
            if carry:
                remainder ^= 0x82F63B78
    return remainder ^ 2**32 - 1


def is_v2_crc(data: bytes) -> bool:
    """Whether this begins with the other proposal's header, which proves itself by a checksum."""
    if len(data) < 68 or data[:4] != b"KVC\x02" or data[7] or any(data[20:24]):
        return False
    return crc32c(data[:48] + bytes(4) + data[52:68]) == struct.unpack_from("<I", data, 48)[0]


def claims(data: bytes) -> dict[str, tuple[int, int]]:
    """The layouts that a version 2 header could be of because it names a codec their way, the most
    likely first, each with its chunk size and the size of its record heads."""
    model, (word,), (codec, log2, spare) = data[7], struct.unpack_from("<I", data, 20), data[21:24]
    found = {}
    if model in (LZ4, LZ4HC) and 1 <= word <= MAX_CHUNK:
        found["v2"] = word, 8
    if codec == 2 and log2 <= 26 and spare == 0:
        found["v2-checked"] = 2**log2, 12
    if codec == 1 and log2 <= 26 and spare == 0:
        found["v2-mid"] = 2**log2, 8
    return found


def layout_of(data: bytes) -> str:
    """Which layout a version 2 file has; Bad if there is something to say against it in any of them."""
    at = TEXT_AT + struct.unpack_from("<I", data, HEADER_BYTES)[0]
    end = at + struct.unpack_from("<Q", data, 40)[0]
    region = data[at:end] if end <= len(data) else b""
    claimed = claims(data)
    if len(claimed) > 1 and end <= len(data):
        misfits = {name: misfit(region, *how) for name, how in claimed.items()}
        for name in claimed:
            if misfits[name] is None:
                return name
        raise Bad(CORRUPT, f"neither of {', '.join(claimed)}", at + max(misfits.values()))
    for name in claimed:
        return name
    codec, log2, spare = data[21:24]
    if data[7] == 0:
        if codec in (1, 2) and is_records(region, 4 + 4 * codec):
            raise Bad(CORRUPT, f"chunks of 2**{log2} bytes, or {spare} behind it", 22 if log2 > 26 else 23)
        likely = log2 >= 12 or is_records(region, 8) or is_records(region, 12)
        if codec > 2 and log2 <= 26 and spare == 0 and likely:
            raise Bad(UNSUPPORTED, f"codec {codec} in byte 21", 21)
        if codec == 0 and 1 <= log2 <= 26 and spare == 0 and region[8:12] != bytes(4):
            misfits = [misfit(region, 2**log2, head_bytes) for head_bytes in (8, 12)]
            if None in misfits:
                raise Bad(CORRUPT, "no codec in byte 21, and a region of records", 21)
    return "v2"


def decode_mid(region: bytes, chunk_size: int) -> tuple[bytes, bool]:
    """Nothing says whether the blocks are regrouped, unless one of both ways begins as payloads do."""
    (plain, loose), (grouped, _) = (decode_region(region, chunk_size, grouped=way) for way in (False, True))
    if plain == grouped:
        return plain, loose
    found = [payload for payload in (plain, grouped) if payload[:4] == b"DSV4"]
    if len(found) != 1:
        raise Bad(UNSUPPORTED, "plain or regrouped, who knows", 0)
    return found[0], loose


def parse(data: bytes, name: str = "") -> Parsed:
    """Everything in the file, or Bad. A name of 40 hex digits and `.kv` must be the text's SHA-1."""
    if data[:3] != b"KVC"[: len(data)]:
        raise Bad(CORRUPT, "magic", 0)
    if len(data) > 3 and data[3] not in (1, 2, PACKED):
        raise Bad(UNSUPPORTED, f"version {data[3]}", 3)
    if len(data) < TEXT_AT:
        raise Bad(TRUNCATED, "the file ends inside its header", len(data))
    if is_v2_crc(data):
        raise Bad(UNSUPPORTED, "layout v2-crc", 48)
    (
        _,
        version,
        quant_bits,
        reason_code,
        ext_flags,
        codec,
        tokens,
        hits,
        ctx_size,
        chunk_size,
        created_at,
        last_used,
        payload_bytes,
    ) = HEADER.unpack_from(data)
    text_at = TEXT_AT
    payload_at = text_at + struct.unpack_from("<I", data, HEADER_BYTES)[0]
    trailer_at = payload_at + payload_bytes
    text, region = data[text_at:payload_at], data[payload_at:trailer_at]

    layout = {1: "v1", PACKED: "packed"}.get(version) or layout_of(data)
    if version == 1 and data[21] in (1, 2):
        raise Bad(UNSUPPORTED, "version 1 with a codec in byte 21", 21)

    if quant_bits not in (2, 4):
        raise Bad(CORRUPT, "quantisation", 4)
    if tokens == 0:
        raise Bad(CORRUPT, "no tokens", 8)
    model_id, payload_abi = (0, 0) if layout == "v2" else (codec, chunk_size)
    if layout == "v1":
        codec = chunk_size = 0
    elif layout != "v2":
        codec, chunk_size, payload_abi = LZ4, 1 << data[22], data[20]
    if layout == "packed" and (data[21] or not 1 <= data[22] <= 26 or data[23]):
        raise Bad(CORRUPT, "codec, or chunk size", 21)
    if codec > LZ4HC:
        raise Bad(UNSUPPORTED, f"codec {codec}", 7)
    if codec == NONE and any(data[21:24]) and is_packed_frame(region):
        raise Bad(CORRUPT, "the region is one of layout packed", 3)
    if codec != NONE and not 1 <= chunk_size <= MAX_CHUNK:
        raise Bad(CORRUPT, "chunk size", 20)
    if payload_at > len(data):
        raise Bad(TRUNCATED, "the file ends inside its text", 48)
    if trailer_at > len(data):
        raise Bad(TRUNCATED, "the file ends inside its payload region", 40)
    if re.fullmatch(r"[0-9a-fA-F]{40}\.kv", name) and hashlib.sha1(text).hexdigest() != name[:40].lower():
        raise Bad(CORRUPT, "the text is not the one the file is named after", text_at)

    trailer = data[trailer_at:]
    if codec == NONE:
        payload, loose = region, False
    elif layout == "packed":
        try:
            payload, loose = decode_packed(region, chunk_size)
        except Bad as bad:
            raise Bad(bad.verdict, bad.why, payload_at + bad.at) from None
        seal = seal_of(data)
        if struct.unpack_from("<Q", region, 16)[0] != seal:
            raise Bad(CORRUPT, "the seal is not of this header and text", payload_at + 16)
        trailer = packed_trailer(trailer, seal, bool(ext_flags & TOOL_MAP))
    elif payload_bytes < FRAME_BYTES:
        raise Bad(CORRUPT, "the region is too short for its frame", payload_at)
    else:
        try:
            if layout == "v2-mid":
                payload, loose = decode_mid(region, chunk_size)
            else:
                is_checked = layout == "v2-checked"
                payload, loose = decode_region(region, chunk_size, grouped=is_checked, checked=is_checked)
        except Bad as bad:
            raise Bad(bad.verdict, bad.why, payload_at + bad.at) from None
    return Parsed(
        layout,
        version,
        quant_bits,
        reason_code,
        ext_flags,
        codec,
        model_id,
        payload_abi,
        tokens,
        hits,
        ctx_size,
        chunk_size,
        created_at,
        last_used,
        payload_bytes,
        text,
        payload,
        trailer,
        loose,
    )


def build(
    region: bytes = b"",
    *,
    text: bytes = b"",
    trailer: bytes = b"",
    text_bytes: int | None = None,
    payload_bytes: int | None = None,
    magic: bytes = b"KVC",
    version: int = 2,
    quant_bits: int = 2,
    reason_code: int = 1,
    ext_flags: int = 0,
    codec: int = LZ4,
    tokens: int = 600,
    hits: int = 0,
    ctx_size: int = 32768,
    chunk_size: int = 64,
    created_at: int = 1780000000,
    last_used: int = 1780000000,
) -> bytes:
    """A file of these parts. Nothing is checked; the two lengths are true unless given."""
    return (
        HEADER.pack(
            magic,
            version,
            quant_bits,
            reason_code,
            ext_flags,
            codec,
            tokens,
            hits,
            ctx_size,
            chunk_size,
            created_at,
            last_used,
            len(region) if payload_bytes is None else payload_bytes,
        )
        + struct.pack("<I", len(text) if text_bytes is None else text_bytes)
        + text
        + region
        + trailer
    )


def build_checked(
    payload: bytes, *, log2: int = 6, model_id: int = 0, payload_abi: int = 0, block: Encoder = store, **parts: object
) -> bytes:
    """A v2-checked file."""
    region = encode_checked(payload, 1 << log2, block)
    return build(region, codec=model_id, chunk_size=payload_abi | 2 << 8 | log2 << 16, **parts)


def build_mid(
    payload: bytes,
    *,
    log2: int = 6,
    model_id: int = 0,
    payload_abi: int = 0,
    block: Encoder = store,
    grouped: bool = True,
    **parts: object,
) -> bytes:
    """A v2-mid file, early (plain) or late (grouped)."""
    region = encode_region(payload, 1 << log2, block, grouped=grouped)
    return build(region, codec=model_id, chunk_size=payload_abi | 1 << 8 | log2 << 16, **parts)


def build_packed(
    payload: bytes,
    *,
    log2: int = 6,
    model_id: int = 0,
    payload_abi: int = 0,
    block: Encoder = fast,
    words: Sequence[int] = (32,),
    trailer: bytes = b"",
    region: Callable[[int], bytes] | None = None,
    **parts: object,
) -> bytes:
    """A packed file; `region` makes another region of its seal, for a file that is odd."""
    parts |= {"version": PACKED, "codec": model_id, "chunk_size": payload_abi | log2 << 16}
    seal = seal_of(build(**parts))
    made = region(seal) if region else encode_packed(payload, 1 << log2, seal, block, words)
    return build(made, trailer=trailer and trailer + sum_of(trailer, seal), **parts)


def build_crc(payload: bytes, *, text: bytes = b"", trailer: bytes = b"", **parts: object) -> bytes:
    """A v2-crc file: its header goes on with four checksums, then come text length and all the rest."""
    head = build(payload, codec=0, chunk_size=0, **parts)[:HEADER_BYTES]
    length = struct.pack("<I", len(text))
    sums = struct.pack("<III", crc32c(text), crc32c(payload), crc32c(trailer) if trailer else 0)
    own = struct.pack("<I", crc32c(head + bytes(4) + sums + length))
    return head + own + sums + length + text + payload + trailer


# ------------------------------------------------------------------------------ the writer's side


def lint(data: bytes) -> list[str]:
    """What is odd about a file that parses: readers take it, a writer should not have made it."""
    file = parse(data)
    odd = []
    if file.reason_code > 6:
        odd.append("reason above 6")
    behind = TEXT_AT + len(file.text) + file.payload_bytes
    if file.layout == "packed" and len(data) > behind and not file.trailer:
        odd.append("a trailer that was torn")
    if file.loose:
        odd.append("a block breaks rules of LZ4 that its decoders let pass")
    if file.version == 1 and (data[7] or any(data[20:24])):
        odd.append("reserved bytes of a version 1 header are not zero")
    if file.version == 2 and file.codec == NONE and any(data[20:24]):
        odd.append("codec none with a chunk size")
    if bool(file.ext_flags & 1) != bool(file.trailer):
        odd.append("the tool map flag and the trailer disagree")
    if file.ext_flags & 1:
        odd += _lint_tool_map(file.trailer)
    return odd


def _lint_tool_map(trailer: bytes) -> list[str]:
    if len(trailer) < 8 or trailer[:4] != b"KTM\x01":
        return ["the tool map has no head"]
    at = 8
    for _ in range(struct.unpack_from("<I", trailer, 4)[0]):
        if len(trailer) - at < 8:
            return ["the tool map ends inside an entry head"]
        id_bytes, block_bytes = struct.unpack_from("<II", trailer, at)
        if not 1 <= id_bytes <= 256 or not 1 <= block_bytes <= 512 << 20:
            return ["a tool map entry has an impossible length"]
        at += 8 + id_bytes + block_bytes
    return [] if at == len(trailer) else ["the tool map does not end where the file ends"]
