"""Layout packed: what proves header, text and trailer of a file, wherever it goes.

The *seal* is a sum of header and text, as they are when a save begins. It stands in the frame; the sums of the records
begin with it, and so does the sum behind a trailer. Other layouts have none: then it is None here, and nothing is asked
of them.
"""

from __future__ import annotations

from ds4kv.core import native
from ds4kv.core.region import frame_at
from ds4kv.errors import CorruptError, TruncatedError
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import HEADER_SIZE, PACKED_VERSION, Ext, Form, Header, Layout, default_chunk_size
from ds4kv.format.layout import PREFIX_SIZE, Outline
from ds4kv.stream.regular import read_exactly

__all__ = ["header_over", "judge_seal", "judge_trailer", "mended_outline", "seal_in", "seal_of", "with_sum"]

_SEAL_AT = 16  # in the frame
_LOG2_AT = 22  # in the header, between two bytes that are 0
_SUM_SIZE = 8


def seal_of(header: Header, text: bytes) -> int | None:
    """The seal of a file that begins with these."""
    if header.form is not Form.PACKED:
        return None
    return native.seal_of(header.pack() + len(text).to_bytes(4, "little"), text)


def seal_in(fd: int, outline: Outline) -> int | None:
    """The seal in the frame of an open file. Raises CorruptError if no frame can be there, and OSError."""
    header, start = outline.header, outline.region_start
    if header.form is not Form.PACKED:
        return None
    return frame_at(fd, start, header.payload_bytes, header.chunk_size, header.form).seal


def judge_seal(seal: int | None, outline: Outline, text: bytes) -> None:
    """Raises CorruptError if the seal of a file is not that of its header and text."""
    if seal is not None and seal_of(outline.header, text) != seal:
        raise CorruptError(
            "header and text are not those that were saved with this payload",
            offset=outline.region_start + _SEAL_AT,
            field="seal",
        )


def mended_outline(fd: int, error: CorruptError) -> Outline | None:
    """Of an open file that may be damaged: the outline, without the chunk size that ``error`` says can't be true. Frame
    and records tell the right one. None if it is about something else. Raises OSError.
    """
    if error.field not in ("codec", "chunk_size"):
        return None
    head = bytearray(read_exactly(fd, 0, PREFIX_SIZE))
    if head[3] != PACKED_VERSION:
        return None
    exponent = head[_LOG2_AT] if 1 <= head[_LOG2_AT] <= 26 else default_chunk_size(Layout.PACKED).bit_length() - 1
    head[_LOG2_AT - 1 : _LOG2_AT + 2] = 0, exponent, 0
    return Outline(Header.unpack(bytes(head[:HEADER_SIZE])), int.from_bytes(head[HEADER_SIZE:], "little"))


def header_over(header: Header, trailer: bytes) -> Header:
    """The header of a file with this trailer: under a seal, the flag of one that is not there would be damage."""
    if trailer or header.form is not Form.PACKED:
        return header
    return header._replace(ext_flags=header.ext_flags & ~int(Ext.TOOL_MAP))


def with_sum(trailer: bytes, seal: int | None) -> bytes:
    """A trailer as it is stored."""
    if seal is None or not trailer:
        return trailer
    return trailer + _sum(trailer, seal)


def judge_trailer(stored: bytes, seal: int, *, is_flagged: bool, offset: int) -> tuple[bytes, Verdict]:
    """The trailer in what follows the region, from ``offset`` of the file on: OK, as it was saved.

    Where the header doesn't flag it, one without its sum is what a killed rewrite leaves: b"", UNKNOWN. Else raises
    CorruptError, or TruncatedError where it is too short to have a sum.
    """
    trailer, own_sum = stored[:-_SUM_SIZE], stored[-_SUM_SIZE:]
    if trailer and _sum(trailer, seal) == own_sum:
        return trailer, Verdict.OK
    if not is_flagged:
        return b"", Verdict.UNKNOWN if stored else Verdict.OK
    if not trailer:
        raise TruncatedError(
            "the file ends within the trailer and its sum", offset=offset + len(stored), field="trailer"
        )
    raise CorruptError("the trailer is not what was written, by its own sum", offset=offset, field="trailer")


def _sum(trailer: bytes, seal: int) -> bytes:
    return native.hash64(trailer, seal).to_bytes(_SUM_SIZE, "little")
