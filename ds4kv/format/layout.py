"""Where everything is in a checkpoint file.

    byte 0           48            52          52 + text_bytes     + payload_bytes
         | header    | text length | text ...  | region ...        | trailer ...
           48 bytes    4 bytes       the key     the payload as      the tool map,
                                     of a store  it is stored        or nothing

Four layouts call themselves version 2. Which of them a file has is told by its header, and where that leaves a doubt by
the heads of its records. C knows the rules (csrc/layout.c); FORMAT.md states them. In layout ``packed`` a trailer has
its own sum behind it.
"""

from __future__ import annotations

from typing import NamedTuple

from ds4kv.core.region import PREFIX_SIZE, look
from ds4kv.format.header import HEADER_SIZE, Header, Layout

__all__ = ["LAYOUTS", "PREFIX_SIZE", "Outline", "examine"]

LAYOUTS = (None, Layout.V1, Layout.V2, Layout.V2_MID, Layout.V2_CHECKED, Layout.PACKED)
"""Layouts by their numbers in C."""


class Outline(NamedTuple):
    """Header and size of the text in bytes."""

    header: Header
    text_bytes: int

    @property
    def region_start(self) -> int:
        """Where the region begins in the file."""
        return PREFIX_SIZE + self.text_bytes

    @property
    def region_end(self) -> int:
        """Where it ends, and the trailer begins."""
        return PREFIX_SIZE + self.text_bytes + self.header.payload_bytes


def examine(fd: int, file_size: int, *, may_be_damaged: bool = False) -> Outline:
    """The outline of an open file of ``file_size`` bytes.

    Where it ``may_be_damaged``, text and region may end beyond the file, and the region be of none of the layouts that
    the header could be of.

    Raises CorruptError if no layout's rules hold, TruncatedError if header, text or region are not all there,
    UnsupportedError for a layout, version or codec that isn't read, each with offset and field; and OSError.
    """
    head, layout, _, _, _, text_bytes = look(fd, file_size, may_be_damaged=may_be_damaged)
    return Outline(Header.unpack(head[:HEADER_SIZE], LAYOUTS[layout]), text_bytes)
