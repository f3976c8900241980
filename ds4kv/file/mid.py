"""Layout ``v2-mid``, whose files have plain blocks or transposed ones and don't say which."""

from __future__ import annotations

from ds4kv.errors import UnsupportedError
from ds4kv.format.header import Form
from ds4kv.stream.streams import PayloadReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ds4kv.stream.regular import RegularFile

__all__ = ["form_of"]

_MAGIC = b"DSV4"
_PIECE_SIZE = 1 << 20


def form_of(fp: RegularFile, region_bytes: int, *, chunk_size: int) -> Form:
    """PLAIN or TRANSPOSED: as which of them the region at the file's position is a payload of DeepSeek V4.

    The first chunk tells. If it doesn't, and the payload is another one way than the other, the file is ambiguous, an
    UnsupportedError. CorruptError if the region can't be read.
    """
    start = fp.tell()

    def read(form: Form) -> PayloadReader:
        fp.seek(start)
        return PayloadReader(fp, region_bytes, chunk_size=chunk_size, form=form, workers=0)

    try:
        with read(Form.PLAIN) as plain, read(Form.TRANSPOSED) as transposed:
            begins = [reader.read(len(_MAGIC)) == _MAGIC for reader in (plain, transposed)]
            if begins == [False, True]:
                return Form.TRANSPOSED
            both = zip(_pieces(plain, chunk_size), _pieces(transposed, chunk_size), strict=True)
            if begins == [True, False] or all(a == b for a, b in both):
                return Form.PLAIN
    finally:
        fp.seek(start)
    raise UnsupportedError(
        "v2-mid files don't say whether their blocks are transposed, and neither way does this payload begin as one"
        " of DeepSeek V4: it is ambiguous",
        offset=21,
        field="codec",
    )


def _pieces(reader: PayloadReader, chunk_size: int) -> Iterator[bytes]:
    """The payload, of never more than one chunk at a time: what a later one holds doesn't matter once they differ."""
    reader.seek(0)
    while piece := reader.read(min(_PIECE_SIZE, chunk_size)):
        yield piece
