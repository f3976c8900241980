"""Texts in their order, none of them in memory: which has the longest beginning in common with a prompt.

Sorted, the texts with most in common with a prompt stand where the prompt would. A bisection finds that place by
a piece of some texts, and begins each comparison where the last ones agreed: so it reads as much as a few texts, and a
few KiB for each step. Beside each text stands how much it has in common with the one before it: so all others follow by
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

__all__ = ["SortedTexts", "compare"]

Read: TypeAlias = Callable[[str, int, int], bytes]

_FIRST_PIECE = 1 << 12
_LARGEST_PIECE = 1 << 18


class SortedTexts:
    """Names of texts, in the texts' order. ``read(name, start, size)`` gives a piece of the text of that name, and less
    than ``size`` bytes only at its end.

    For one thread at a time. What ``read`` raises comes through, and nothing is changed then.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        # Three lists of plain values, and no object a text: ten thousand are work for the garbage collector.
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._shared: list[int] = []  # bytes in common with the one before; of the first one 0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, text: bytes) -> None:
        """Adds a name, whose text this is."""
        place, before, after = self._place(text)
        self._names.insert(place, name)
        self._sizes.insert(place, len(text))
        self._shared.insert(place, before)
        if place + 1 < len(self._shared):
            self._shared[place + 1] = after

    def remove(self, name: str) -> None:
        """Forgets a name. Raises ValueError if it isn't there."""
        place = self._names.index(name)
        shared = self._shared[place]
        del self._names[place], self._sizes[place], self._shared[place]
        if place < len(self._shared):
            self._shared[place] = min(shared, self._shared[place])

    def nearest(self, text: bytes) -> Iterator[tuple[int, str]]:
        """All names, from those whose text has most in common with ``text`` on: how many bytes, and the name.

        Of those with as many the one that ends there comes first.
        """
        place, left, right = self._place(text)
        before, after = place - 1, place
        told = ending = -1
        while before >= 0 or after < len(self._names):
            common = max(left, right)
            if common != told:
                told, ending = common, self._ending(before, common) if left == common else -1
                if ending >= 0:
                    yield common, self._names[ending]
            if left >= right:
                this, before = before, before - 1
                left = min(left, self._shared[this]) if before >= 0 else -1
            else:
                this, after = after, after + 1
                right = min(right, self._shared[after]) if after < len(self._names) else -1
            if this != ending:
                yield common, self._names[this]

    def _ending(self, place: int, size: int) -> int:
        """Which of the texts that begin with the same ``size`` bytes as the one at ``place``, up to that one, is no
        longer: it would be the first of them. -1 if none is.
        """
        while self._shared[place] >= size and place > 0:
            place -= 1
        return place if self._sizes[place] == size else -1

    def _place(self, text: bytes) -> tuple[int, int, int]:
        """Where ``text`` belongs, before all that are equal to it, and how many bytes it has in common with the one
        before and the one after; -1 where there is none.
        """
        low, high = 0, len(self._names)
        before = after = -1
        while low < high:
            middle = (low + high) // 2
            most = max(before, after)
            if most < _FIRST_PIECE:
                common, is_less = compare(self._read, self._names[middle], text, max(min(before, after), 0))
            else:
                # What the one with most in common has in common with the one in the middle, by what stands beside them.
                is_before = before == most
                between = self._shared[low : middle + 1] if is_before else self._shared[middle + 1 : high + 1]
                theirs = min(between)
                if theirs == most:
                    common, is_less = compare(self._read, self._names[middle], text, most)
                else:
                    common, is_less = min(theirs, most), (theirs > most) == is_before
            if is_less:
                low, before = middle + 1, common
            else:
                high, after = middle, common
        return low, before, after


def compare(read: Read, name: str, text: bytes, start: int = 0) -> tuple[int, bool]:
    """How many bytes the text of a name and this one have in common, which is ``start`` or more, and whether it is less
    than this one.
    """
    size = _FIRST_PIECE
    while True:
        theirs, ours = read(name, start, size), text[start : start + size]
        if theirs != ours or len(ours) < size:
            common = _common(theirs, ours)
            return start + common, theirs[common : common + 1] < ours[common : common + 1]
        start += size
        size = min(4 * size, _LARGEST_PIECE)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two pieces have in common, by halves: comparing slices is fast, comparing bytes is not."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
