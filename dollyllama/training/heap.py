"""How much memory glibc's allocator holds for tensors that come and go on a CPU.

What is freed is not given back at once: blocks up to 32 MiB lie one behind the other in a heap that
shrinks at its end alone, and torch wants addresses that 64 divides, for which a little is cut off
before and behind each block. Small things that settle in such a splinter keep its neighbours apart,
so that the next tensor of the same size does not fit where the last one was. A process may hold far
more than its tensors need, most of all with activation checkpointing, where many come and go. This
plays their order through the rules of glibc 2.36 (malloc/malloc.c: ``_int_malloc``,
``_int_memalign``, ``_int_free``).
"""

from __future__ import annotations

from bisect import bisect_left, insort

_MIB = 2**20
#: Larger blocks are mapped, each by itself. It is less at first and rises to this with use, as it
#: has when training begins. Twice as much free memory at the end of the heap is given back.
_MAPPED, _TRIM = 32 * _MIB, 64 * _MIB
_HEADER, _ROUND, _ALIGNMENT, _SMALLEST = 16, 16, 64, 32
#: Of so many splinters one is in use until the backward pass has ended. The only figure here that
#: is no rule of glibc: fitted to four runs of the embedded model, three of them to 7 % and one to
#: 13 (docs/speed.md).
_SETTLED = 6

#: What ``Heap.give`` wants back: where a block begins (None: mapped) and its size.
Block = tuple[int | None, int]


class Heap:
    """An empty heap. most: bytes held at its peak, mapped blocks included."""

    def __init__(self) -> None:
        self.most = 0
        self._mapped = 0
        self._end = 0  # of the last block in use; free blocks lie before it
        self._resident = 0  # memory behind the end stays resident when it has been used
        self._by_size: list[tuple[int, int]] = []  # free blocks: size and start
        self._size_at: dict[int, int] = {}  # the same by their start
        self._start_of: dict[int, int] = {}  # and by their end
        self._splinters = 0
        self._settled: list[Block] = []

    def take(self, size: int) -> Block:
        """Allocate ``size`` bytes."""
        size = max(-(-(size + _HEADER // 2) // _ROUND) * _ROUND, _SMALLEST)
        wide = size + _ALIGNMENT + _SMALLEST
        start = self._place(wide)
        if start is None:
            self._mapped += wide
        self.most = max(self.most, self._mapped + self._resident)
        if start is None:
            return None, wide
        before = -(start + _HEADER) % _ALIGNMENT
        before += _ALIGNMENT if 0 < before < _SMALLEST else 0
        behind = wide - before - size
        if before:
            self._splinter(start, before)
        if behind >= _SMALLEST:
            self._splinter(start + before + size, behind)
        else:
            size += behind
        return start + before, size

    def give(self, block: Block) -> None:
        """Free what ``take`` gave."""
        start, size = block
        if start is None:
            self._mapped -= size
            return
        stop = start + size
        if (following := self._size_at.get(stop)) is not None:
            self._forget(stop, following)
            stop += following
        if (before := self._start_of.get(start)) is not None:
            self._forget(before, start - before)
            start = before
        if stop < self._end:
            self._keep(start, stop - start)
            return
        self._end = start
        if self._resident - self._end >= _TRIM:
            self._resident = self._end

    def end_pass(self) -> None:
        """Free what had settled in splinters."""
        for block in self._settled:
            self.give(block)
        self._settled.clear()

    def _place(self, size: int) -> int | None:
        """The start of the smallest free block that is large enough, else the end of the heap."""
        at = bisect_left(self._by_size, (size, 0))
        if at < len(self._by_size):
            found, start = self._by_size[at]
            self._forget(start, found)
            if found > size:
                self._keep(start + size, found - size)
            return start
        start = self._end
        if size > _MAPPED and start + size > self._resident:
            return None
        self._end += size
        self._resident = max(self._resident, self._end)
        return start

    def _splinter(self, start: int, size: int) -> None:
        self._splinters += 1
        if self._splinters % _SETTLED == 0:
            self._settled.append((start, size))
        else:
            self.give((start, size))

    def _keep(self, start: int, size: int) -> None:
        insort(self._by_size, (size, start))
        self._size_at[start] = size
        self._start_of[start + size] = start

    def _forget(self, start: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, start))]
        del self._size_at[start], self._start_of[start + size]
