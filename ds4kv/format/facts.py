"""What of a header other programs change in place, and what is left of it: the *facts* of a file.

A note holds the header that a file was saved with. ds4 may use the file later. What it changes then is no damage: hits
and last use, the flag of a trailer. And as ds4 writes all of a header back, what it doesn't know is gone: an unknown
reason, and of a raw region the version and bytes 7 and 20 to 23.

A *head* is header and text length, 52 bytes. Its facts are what is left without hits, last use and flag.
"""

from __future__ import annotations

from ds4kv.format.header import PACKED_VERSION
from ds4kv.format.layout import PREFIX_SIZE

__all__ = ["facts_of", "field_at", "is_raw", "later_facts", "structure"]

_VERSION_AT, _REASON_AT, _EXT_FLAGS_AT, _CODEC_AT = 3, 5, 6, 7
_HITS = slice(12, 16)
_CHUNK_SIZE = slice(20, 24)
_LAST_USED = slice(32, 40)
_TOOL_MAP = 1
_LAST_KNOWN_REASON = 6

_FIELDS = (
    (0, "magic"),
    (3, "version"),
    (4, "quant_bits"),
    (5, "reason"),
    (6, "ext_flags"),
    (7, "codec"),
    (8, "tokens"),
    (12, "hits"),
    (16, "ctx_size"),
    (20, "chunk_size"),
    (24, "created_at"),
    (32, "last_used"),
    (40, "payload_bytes"),
    (48, "text_bytes"),
)


def field_at(offset: int) -> str:
    """The field that the byte at ``offset`` belongs to."""
    return [field for start, field in _FIELDS if start <= offset][-1]


def facts_of(head: bytes) -> bytes:
    """A head without what every hit and every trailer changes."""
    if len(head) < PREFIX_SIZE:
        return head
    facts = bytearray(head)
    facts[_EXT_FLAGS_AT] &= ~_TOOL_MAP
    facts[_HITS] = bytes(4)
    facts[_LAST_USED] = bytes(8)
    return bytes(facts)


def structure(facts: bytes) -> tuple[bytes, ...]:
    """What of the facts says how to read the file: none of it is another one's by chance."""
    if len(facts) < PREFIX_SIZE:
        return ()
    sizes = facts[40:]
    return (sizes,) if is_raw(facts) else (sizes, facts[_VERSION_AT : _VERSION_AT + 1], facts[7:8], facts[_CHUNK_SIZE])


def is_raw(facts: bytes) -> bool:
    """Whether the region is the payload as it is."""
    if facts[_VERSION_AT] == PACKED_VERSION:
        return False
    return facts[_VERSION_AT] == 1 or (facts[_CODEC_AT] == 0 and facts[21] not in (1, 2))


def later_facts(facts: bytes) -> set[bytes]:
    """What these facts may be after any number of rewrites in place."""
    later = {facts}
    if facts[_REASON_AT] > _LAST_KNOWN_REASON:
        later.add(facts[:_REASON_AT] + b"\0" + facts[_REASON_AT + 1 :])
    if is_raw(facts):
        for known in tuple(later):
            for version in (1, 2):
                raw = bytearray(known)
                raw[_VERSION_AT] = version
                raw[_CODEC_AT] = 0
                raw[_CHUNK_SIZE] = bytes(4)
                later.add(bytes(raw))
    return later
