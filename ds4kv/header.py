"""The 48 bytes in front of every checkpoint, to a :class:`Header` and back.

All of a header is kept as it was found, down to the bytes that this layout doesn't use, so that a file can be
rewritten without losing what a newer engine put there. This module is plain Python and never loads the extension:
listing a directory of checkpoints needs nothing else.
"""

from __future__ import annotations

import enum
import operator
import struct
from collections import namedtuple

from ds4kv.errors import CorruptError, TruncatedError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

__all__ = ["CHUNK_SIZE", "HEADER_SIZE", "MAX_CHUNK_SIZE", "Codec", "Ext", "Header", "Layout", "Reason"]

MAGIC = b"KVC"
HEADER_SIZE = 48
CHUNK_SIZE = 1 << 24
MAX_CHUNK_SIZE = 1 << 26

_STRUCT = struct.Struct("<3s5B4I3Q")


class Layout(enum.StrEnum):
    """How a file is laid out. Only ``v1`` and ``v2`` are read and written; the others are told apart and refused."""

    V1 = "v1"
    V2 = "v2"
    V2_MID = "v2-mid"
    V2_CHECKED = "v2-checked"
    V2_CRC = "v2-crc"


class Codec(enum.IntEnum):
    """How the payload region is stored; the number is header byte 7 of ``v2``."""

    NONE = 0
    LZ4 = 1
    LZ4HC = 2


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
        for reason in cls:
            if reason.word == word:
                return reason
        raise ValueError(f"reason {word!r} is none of {', '.join(r.word for r in cls)}")


class Ext(enum.IntFlag):
    """Header byte 6. Unknown bits pass through untouched."""

    TOOL_MAP = 1
    RESPONSES_VISIBLE = 2
    THINKING_VISIBLE = 4


_Fields = namedtuple(
    "_Fields",
    "tokens ctx_size layout quant_bits reason_code ext_flags codec hits chunk_size created_at last_used payload_bytes"
    " model_id payload_abi",
    defaults=(Layout.V2, 2, Reason.COLD, 0, Codec.NONE, 0, 0, 0, 0, 0, 0, 0),
)


class Header(_Fields):
    """The fixed header of a checkpoint, a named tuple; fields are given by keyword.

    ``tokens``, ``hits`` and ``ctx_size`` count; ``created_at`` and ``last_used`` are Unix seconds; ``payload_bytes`` is
    the size of the payload region as stored; ``chunk_size`` is in payload bytes, 0 where there are no chunks.
    ``model_id`` and ``payload_abi`` are bytes 7 and 20-23 of ``v1``, which newer engines use and older ones leave 0.

    Raises ValueError when built from values that no file may hold, TypeError from what is no whole number.
    """

    __slots__ = ()
    tokens: int
    ctx_size: int
    layout: Layout
    quant_bits: int
    reason_code: int
    ext_flags: int
    codec: Codec
    hits: int
    chunk_size: int
    created_at: int
    last_used: int
    payload_bytes: int
    model_id: int
    payload_abi: int

    def __new__(cls, **fields: Any) -> Self:
        self = super().__new__(cls, **fields)
        self = self._replace(layout=Layout(self.layout), codec=Codec(self.codec))
        if self.layout not in (Layout.V1, Layout.V2):
            raise ValueError(f"layout {self.layout} can't be written: use v1 or v2")
        if self.quant_bits not in (2, 4):
            raise ValueError(f"quant_bits is {self.quant_bits}, not 2 or 4")
        for name, bits in _WIDTHS.items():
            value = operator.index(getattr(self, name))
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name} is {value}, outside 0..2**{bits} - 1")
        if self.tokens == 0:
            raise ValueError("tokens is 0; a checkpoint holds at least one")
        if self.layout is Layout.V1 and (self.codec is not Codec.NONE or self.chunk_size):
            raise ValueError(f"layout v1 has no codec, so not {self.codec.name.lower()} either")
        if self.layout is Layout.V2 and (self.model_id or self.payload_abi):
            raise ValueError("layout v2 has no room for model_id and payload_abi")
        if self.codec is not Codec.NONE and not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {self.chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()  # a named tuple would be unpickled by position

    @property
    def version(self) -> int:
        """Header byte 3."""
        return 1 if self.layout is Layout.V1 else 2

    @property
    def reason(self) -> Reason:
        """Why it was saved; a code that isn't known reads as UNKNOWN, and stays in ``reason_code``."""
        return Reason(self.reason_code) if self.reason_code <= max(Reason) else Reason.UNKNOWN

    def pack(self) -> bytes:
        """The 48 bytes."""
        v1 = self.layout is Layout.V1
        return _STRUCT.pack(
            MAGIC,
            self.version,
            self.quant_bits,
            self.reason_code,
            self.ext_flags,
            self.model_id if v1 else self.codec,
            self.tokens,
            self.hits,
            self.ctx_size,
            self.payload_abi if v1 else self.chunk_size,
            self.created_at,
            self.last_used,
            self.payload_bytes,
        )

    @classmethod
    def unpack(cls, head: bytes) -> Header:
        """Reads the first 48 bytes of ``head`` as ``v1`` or ``v2``.

        Raises TruncatedError if there are fewer, CorruptError if they can't be a header, UnsupportedError for a version
        or codec that isn't read. Other layouts that call themselves version 2 are :mod:`ds4kv.layout`'s to tell.
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
        if version not in (1, 2):
            raise UnsupportedError(f"version {version}; versions 1 and 2 are read", offset=3, field="version")
        if quant_bits not in (2, 4):
            raise CorruptError(f"quant bits are 2 or 4, not {quant_bits}", offset=4, field="quant_bits")
        if tokens == 0:
            raise CorruptError("no tokens", offset=8, field="tokens")
        codec = Codec.NONE
        if version == 2:
            if byte7 not in iter(Codec):
                raise UnsupportedError(f"codec {byte7}; codecs 0 to {max(Codec)} are read", offset=7, field="codec")
            codec = Codec(byte7)
            if codec is not Codec.NONE and not 1 <= word20 <= MAX_CHUNK_SIZE:
                raise CorruptError(
                    f"chunks of {word20} bytes; 1 to {MAX_CHUNK_SIZE} are allowed", offset=20, field="chunk_size"
                )
        return cls(
            layout=Layout.V1 if version == 1 else Layout.V2,
            quant_bits=quant_bits,
            reason_code=reason,
            ext_flags=ext,
            codec=codec,
            tokens=tokens,
            hits=hits,
            ctx_size=ctx_size,
            chunk_size=word20 if version == 2 else 0,
            created_at=created,
            last_used=used,
            payload_bytes=payload,
            model_id=byte7 if version == 1 else 0,
            payload_abi=word20 if version == 1 else 0,
        )


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
