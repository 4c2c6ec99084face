"""The allocator's rules, each on a few blocks that can be followed by hand."""

from __future__ import annotations

import pytest

from dollyllama.training.heap import Heap

MIB = 2**20
#: What malloc adds to a block, at most.
LITTLE = 200


def test_what_is_freed_between_others_stays_and_is_used_again() -> None:
    heap = Heap()
    first, _second = heap.take(10 * MIB), heap.take(10 * MIB)
    heap.give(first)
    heap.take(8 * MIB)  # into the hole
    assert heap.most == pytest.approx(20 * MIB, abs=2 * LITTLE)
    heap.take(4 * MIB)  # too large for what is left of it
    assert heap.most == pytest.approx(24 * MIB, abs=3 * LITTLE)


def test_neighbours_that_are_free_become_one() -> None:
    heap = Heap()
    blocks = [heap.take(10 * MIB) for _ in range(3)]
    heap.give(blocks[0])
    heap.give(blocks[1])
    heap.take(19 * MIB)
    assert heap.most == pytest.approx(30 * MIB, abs=4 * LITTLE)


def test_large_blocks_are_given_back_at_once() -> None:
    heap = Heap()
    for _ in range(5):
        heap.give(heap.take(40 * MIB))
    assert heap.most == pytest.approx(40 * MIB, abs=LITTLE)


def test_the_end_of_the_heap_is_given_back_when_much_of_it_is_free() -> None:
    few, many = Heap(), Heap()
    for heap, count in ((few, 6), (many, 7)):
        for block in [heap.take(10 * MIB) for _ in range(count)]:
            heap.give(block)
        heap.end_pass()
        heap.take(40 * MIB)
    # 60 MiB stay, and the block is laid into them; 70 do not, and it is mapped.
    assert few.most == pytest.approx(60 * MIB, abs=7 * LITTLE)
    assert many.most == pytest.approx(70 * MIB, abs=8 * LITTLE)
    many.take(31 * MIB)
    assert many.most == pytest.approx(71 * MIB, abs=8 * LITTLE)


def test_what_settles_in_a_splinter_keeps_its_place_until_the_pass_ends() -> None:
    """The same blocks again and again: some holes have become too small, until the pass ends."""
    heap = Heap()
    for _ in range(40):
        blocks = [heap.take(3 * MIB + 8) for _ in range(10)]
        for block in blocks:
            heap.give(block)
    during = heap.most
    assert during > 31 * MIB
    heap.end_pass()
    assert heap.take(8)[0] is not None
    fresh = Heap()
    for block in [fresh.take(3 * MIB + 8) for _ in range(10)]:
        fresh.give(block)
    assert fresh.most < during
