"""The 48 bytes in front of every checkpoint, to a :class:`Header` and back.

All of a header is kept as it was found, down to the bytes that this layout doesn't use, so that a file can be
rewritten without losing what a newer engine put there. C has the same rules in csrc/header.c; tests/test_header.py
holds the two to each other.
"""

from __future__ import annotations

import enum
import operator
import struct
from typing import Any, NamedTuple, Self

from ds4kv.errors import CorruptError, TruncatedError, UnsupportedError

__all__ = [
    "CHECKED_CHUNK_SIZE",
    "CHUNK_SIZE",
    "HEADER_SIZE",
    "MAX_CHUNK_SIZE",
    "PACKED_VERSION",
    "Codec",
    "Ext",
    "Form",
    "Header",
    "Layout",
    "Reason",
    "default_chunk_size",
]

MAGIC = b"KVC"
HEADER_SIZE = 48
CHUNK_SIZE = 1 << 24
CHECKED_CHUNK_SIZE = 1 << 20
MAX_CHUNK_SIZE = 1 << 26

_STRUCT = struct.Struct("<3s5B4I3Q")
PACKED_VERSION = ord("K")


class Layout(enum.StrEnum):
    """How a file is laid out. All but ``v2-crc`` are read, and all but that and ``v2-mid`` are written.

    No ds4 reads ``packed``, which is for engines that have none beside them.
    """

    V1 = "v1"
    V2 = "v2"
    V2_MID = "v2-mid"
    V2_CHECKED = "v2-checked"
    V2_CRC = "v2-crc"
    PACKED = "packed"


def default_chunk_size(layout: str) -> int:
    """Payload bytes of a chunk, where nobody asks for another size. In ``v2`` it is ds4's, whose files those are."""
    return CHECKED_CHUNK_SIZE if layout in (Layout.V2_CHECKED, Layout.PACKED) else CHUNK_SIZE


class Codec(enum.IntEnum):
    """How the payload region is stored; the number is header byte 7 of ``v2``. Other layouts know NONE and LZ4."""

    NONE = 0
    LZ4 = 1
    LZ4HC = 2


class Form(enum.IntEnum):
    """How a region's bytes hold its chunks; the numbers are ``DS4KV_FORM_*`` of ``ds4kv.h``."""

    RAW = 0  # the payload as it is
    PLAIN = 1  # record heads of raw and block size; the block is of the chunk
    TRANSPOSED = 2  # the same heads; the block is of the chunk's bytes regrouped by position mod 4
    CHECKED = 3  # heads with the chunk's XXH32 as well; blocks as TRANSPOSED
    PACKED = 4  # frame and heads with sums of this file and place; blocks of bit planes, or chunks as they are


class Reason(enum.IntEnum):
    """Why the checkpoint was saved; the number is header byte 5."""

    UNKNOWN = 0
    COLD = 1
    CONTINUED = 2
    EVICT = 3
    SHUTDOWN = 4
    AGENT_SYSTEM = 5
    AGENT_SESSION = 6

    @property
    def word(self) -> str:
        """The reason as logs spell it, such as ``agent-system``."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def from_word(cls, word: str) -> Reason:
        """The reason with this spelling; ValueError if there is none."""
        if word in _REASONS:
            return _REASONS[word]
        raise ValueError(f"reason {word!r} is none of {', '.join(_REASONS)}")


_REASONS = {reason.word: reason for reason in Reason}


class Ext(enum.IntFlag):
    """Header byte 6. Unknown bits pass through untouched."""

    TOOL_MAP = 1
    RESPONSES_VISIBLE = 2
    THINKING_VISIBLE = 4


class _Fields(NamedTuple):
    tokens: int
    ctx_size: int
    layout: Layout = Layout.V2
    quant_bits: int = 2
    reason_code: int = Reason.COLD
    ext_flags: int = 0
    codec: Codec = Codec.NONE
    hits: int = 0
    chunk_size: int = 0
    created_at: int = 0
    last_used: int = 0
    payload_bytes: int = 0
    model_id: int = 0
    payload_abi: int = 0


class Header(_Fields):
    """The fixed header of a checkpoint, a named tuple; fields are given by keyword.

    ``tokens``, ``hits`` and ``ctx_size`` count; ``created_at`` and ``last_used`` are Unix seconds; ``payload_bytes`` is
    the size of the payload region as stored; ``chunk_size`` is in payload bytes, 0 where there are no chunks.
    ``model_id`` and ``payload_abi`` are bytes 7 and 20-23 of ``v1``, bytes 7 and 20 of ``packed``, ``v2-checked`` and
    ``v2-mid``: newer engines use them, older ones leave them 0.

    Raises ValueError when built from values that no file may hold, TypeError from what is no whole number.
    """

    __slots__ = ()

    def __new__(cls, **fields: Any) -> Self:
        self = super().__new__(cls, **fields)
        if type(self.layout) is not Layout or type(self.codec) is not Codec:
            self = self._replace(layout=Layout(self.layout), codec=Codec(self.codec))
        if self.layout is Layout.V2_CRC:
            raise ValueError("a header of layout v2-crc is another: use v1, v2, v2-checked or packed")
        if self.quant_bits not in (2, 4):
            raise ValueError(f"quant_bits is {self.quant_bits}, not 2 or 4")
        for (name, bits), value in zip(_WIDTHS.items(), _numbers(self), strict=True):
            if not 0 <= operator.index(value) < 1 << bits:
                raise ValueError(f"{name} is {value}, outside 0..2**{bits} - 1")
        if self.tokens == 0:
            raise ValueError("tokens is 0; a checkpoint holds at least one")
        if self.layout is Layout.V1 and (self.codec is not Codec.NONE or self.chunk_size):
            raise ValueError(f"layout v1 has no codec, so not {self.codec.name.lower()} either")
        if self.layout is Layout.V2 and (self.model_id or self.payload_abi):
            raise ValueError("layout v2 has no room for model_id and payload_abi: v1, v2-checked and packed have")
        if self.codec is not Codec.NONE and not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {self.chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        if self.layout in _CODEC_BYTE:
            if self.codec is not Codec.LZ4:
                raise ValueError(f"layout {self.layout} has codec lz4, not {self.codec.name.lower()}")
            if self.chunk_size.bit_count() != 1 or self.chunk_size < 1 << _least_log2(self.layout):
                least = 1 << _least_log2(self.layout)
                raise ValueError(
                    f"chunk_size is {self.chunk_size}; layout {self.layout} wants a power of two, {least} or more"
                )
            if self.payload_abi > 255:
                raise ValueError(f"payload_abi is {self.payload_abi}; layout {self.layout} has 8 bits for it")
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()  # a named tuple would be unpickled by position

    @property
    def version(self) -> int:
        """Header byte 3."""
        return {Layout.V1: 1, Layout.PACKED: PACKED_VERSION}.get(self.layout, 2)

    @property
    def reason(self) -> Reason:
        """Why it was saved; a code that isn't known reads as UNKNOWN, and stays in ``reason_code``."""
        return Reason(self.reason_code) if self.reason_code <= max(Reason) else Reason.UNKNOWN

    @property
    def form(self) -> Form | None:
        """How the region holds its chunks; None for ``v2-mid``, whose blocks alone tell PLAIN from TRANSPOSED."""
        if self.codec is Codec.NONE:
            return Form.RAW
        return _FORMS.get(self.layout)

    def pack(self) -> bytes:
        """The 48 bytes."""
        byte7, word20 = self.model_id, self.payload_abi
        if self.layout is Layout.V2:
            byte7, word20 = self.codec, self.chunk_size
        elif self.layout in _CODEC_BYTE:
            word20 |= _CODEC_BYTE[self.layout] << 8 | self.chunk_size.bit_length() - 1 << 16
        return _STRUCT.pack(
            MAGIC,
            self.version,
            self.quant_bits,
            self.reason_code,
            self.ext_flags,
            byte7,
            self.tokens,
            self.hits,
            self.ctx_size,
            word20,
            self.created_at,
            self.last_used,
            self.payload_bytes,
        )

    @classmethod
    def unpack(cls, head: bytes, layout: Layout | None = None) -> Header:
        """Reads the first 48 bytes of ``head``, of version 2 as those of ``layout``: ``v2`` unless it is given. Other
        versions have one layout each.

        Raises TruncatedError if there are fewer, CorruptError if they can't be a header of it, UnsupportedError for a
        version or codec that isn't read. Which layout it is takes more of the file: :mod:`ds4kv.format.layout` tells.
        """
        if head[:3] != MAGIC[: len(head)]:
            raise CorruptError(
                f"a checkpoint begins with 'KVC', this with {bytes(head[:3])!r}", offset=0, field="magic"
            )
        if len(head) < HEADER_SIZE:
            raise TruncatedError(
                f"the file ends after {len(head)} of the header's {HEADER_SIZE} bytes",
                offset=len(head),
                field="header",
            )
        (_, version, quant_bits, reason, ext, byte7, tokens, hits, ctx_size, word20, created, used, payload) = (
            _STRUCT.unpack_from(head)
        )
        if version not in (1, 2, PACKED_VERSION):
            raise UnsupportedError(
                f"version {version}; versions 1, 2 and {PACKED_VERSION} are read", offset=3, field="version"
            )
        if quant_bits not in (2, 4):
            raise CorruptError(f"quant bits are 2 or 4, not {quant_bits}", offset=4, field="quant_bits")
        if tokens == 0:
            raise CorruptError("no tokens", offset=8, field="tokens")
        layout = {1: Layout.V1, PACKED_VERSION: Layout.PACKED}.get(version) or layout or Layout.V2
        codec, chunk_size, model_id, payload_abi = Codec.NONE, 0, byte7, word20
        if layout in _CODEC_BYTE:
            codec, chunk_size, payload_abi = Codec.LZ4, _power_of_two(word20, layout), word20 & 0xFF
        elif layout is not Layout.V1:
            if byte7 not in iter(Codec):
                raise UnsupportedError(f"codec {byte7}; codecs 0 to {max(Codec)} are read", offset=7, field="codec")
            codec, chunk_size, model_id, payload_abi = Codec(byte7), word20, 0, 0
            if codec is not Codec.NONE and not 1 <= chunk_size <= MAX_CHUNK_SIZE:
                raise CorruptError(
                    f"chunks of {chunk_size} bytes; 1 to {MAX_CHUNK_SIZE} are allowed", offset=20, field="chunk_size"
                )
        # By its fields in their order, and not by __new__(): these are numbers of the right widths, and all else was
        # judged above. That takes as long as the rest of this.
        return cls._make(
            (
                *(tokens, ctx_size, layout, quant_bits, reason, ext, codec, hits, chunk_size, created, used, payload),
                *(model_id, payload_abi),
            )
        )


_FORMS = {Layout.V2: Form.PLAIN, Layout.V2_CHECKED: Form.CHECKED, Layout.PACKED: Form.PACKED}
# Header byte 21 of the layouts that have the chunk size's exponent in byte 22.
_CODEC_BYTE = {Layout.V2_MID: 1, Layout.V2_CHECKED: 2, Layout.PACKED: 0}


def _least_log2(layout: Layout) -> int:
    """In ``packed`` an exponent of 0 would be what bytes that mean nothing are."""
    return 1 if layout is Layout.PACKED else 0


def _power_of_two(word20: int, layout: Layout) -> int:
    """The chunk size in bytes 20 to 23 of a header that has it as an exponent."""
    codec, log2, zero = word20 >> 8 & 0xFF, word20 >> 16 & 0xFF, word20 >> 24
    if codec != _CODEC_BYTE[layout]:
        raise CorruptError(f"codec {codec} isn't that of layout {layout}", offset=21, field="codec")
    if not _least_log2(layout) <= log2 < MAX_CHUNK_SIZE.bit_length():
        least = _least_log2(layout)
        raise CorruptError(f"chunks of 2**{log2} bytes; 2**{least} to 2**26 can be", offset=22, field="chunk_size")
    if zero:
        raise CorruptError(f"{zero} where layout {layout} has 0", offset=23, field="chunk_size")
    return 1 << log2


_WIDTHS = {
    "reason_code": 8,
    "ext_flags": 8,
    "model_id": 8,
    "tokens": 32,
    "hits": 32,
    "ctx_size": 32,
    "chunk_size": 32,
    "payload_abi": 32,
    "created_at": 64,
    "last_used": 64,
    "payload_bytes": 64,
}
_numbers = operator.attrgetter(*_WIDTHS)
