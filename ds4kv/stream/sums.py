"""The sums of a region that is there already, as a store notes them of a file that it hasn't written."""

from __future__ import annotations

from array import array

from ds4kv.core import native as _core
from ds4kv.format.header import Form
from ds4kv.stream.fileobj import BinaryFile
from ds4kv.stream.reader import PayloadReader

__all__ = ["region_sums"]


def region_sums(fp: BinaryFile, region_bytes: int, *, chunk_size: int, form: Form) -> array[int]:
    """The XXH3-64 of each record of the region at a regular file's position; nothing is decoded.

    Raises CorruptError or TruncatedError where a record can't be.
    """
    with PayloadReader(fp, region_bytes, chunk_size=chunk_size, form=form, workers=0) as reader:
        return array("Q", map(_core.hash64, reader.stored_records()))
