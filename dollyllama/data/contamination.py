"""Contamination: training rows that give away a question the model is tested with.

A training row is found when its question is a near copy of a test's, or when it has a long run of
a test's words anywhere. Of a conversation each turn of the user is compared by itself besides, and
an input without its instruction: a short question has no long run, and beside another turn it is
no near copy. Of a test's answer a row must have half of the runs: programs and queries for
different questions share some. A test is a held-out row, without its answer, or a row of a
benchmark; each user turn of a conversation is a test by itself.

Legend: V shingles or words laid end to end, G runs of 13 words, W their word pairs, H runs found
in rows, R rows, T tests, S their sides (what is asked, and the answer), P pairs of a row and a test
or side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dollyllama.data.cores import on_all_cores
from dollyllama.data.near import (
    BANDS,
    FIELD_SHIFT,
    FIELDS,
    Content,
    Floats,
    Indices,
    Keys,
    Number,
    Shingles,
    band_keys,
    bucket,
    compare,
    cut,
    distinct,
    hash_pairs,
    hash_words,
    lots,
    pair_keys,
    shingle,
    split_words,
)

#: Words of a run that gives a test away, and training rows up to which it does: in more, it is a
#: phrase. Brown et al. 2020, arXiv:2005.14165, appendix C: 13 in long texts, and 10.
RUN_WORDS = 13
_FREQUENT = 10
#: What its 12 word pairs weigh at least: a template with a word or two of the question behind
#: it weighs 4 to 6, a loop in a program 6, prose 8 and more.
_LIGHTEST_RUN = 7
#: Who has so large a part of a test's runs has the test, however many others have it too.
_MOST = 0.5
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

#: What words and word pairs of a question weigh at least that is looked for in the parts of rows:
#: "Can you go on?" is in many conversations and gives nothing away.
_LIGHTEST_PART = 6

#: Tests that one row is compared with in a band.
_NEIGHBOURS = 8
#: Tests whose runs are in memory together, a few KB each, and tests whose bands are: for each lot
#: of those all rows are gone through.
_TESTS_AT_ONCE, _QUESTIONS_AT_ONCE = 1 << 16, 1 << 17
_ROWS_AT_ONCE = 2048
#: Bits of a shingle by which it is counted: 128 MiB of bytes.
_MOST_BITS = 27

#: Texts of the rows with these numbers, and the parts of each of them.
Read = Callable[[Indices], Sequence[Content]]
ReadParts = Callable[[Indices], Sequence[Sequence[Content]]]
#: Shingles of texts laid end to end, their offsets, and each text's row, -1 for one to pass by.
Texts = tuple[Shingles, Indices, Indices]
Task = TypeVar("Task")


class Kind(StrEnum):
    near_copy = "near copy"
    part = "near copy in part"
    n_gram = "n-gram"
    answer = "answer"


@dataclass(frozen=True, slots=True)
class Match:
    """A training row and the test that it gives away.

    row, test: their numbers. found: of near copies the similarity of the questions, else the
    longest run of words that both have, of an answer with the test's answer.
    """

    row: int
    test: int
    kind: Kind
    found: str


def find_contamination(
    tests: Sequence[Content],
    training: Indices,
    read: Read,
    values_V: Shingles,
    offsets: Indices,
    weights: Floats,
) -> list[Match]:
    """Find the training rows that give a test away, each once, sorted by row.

    tests: as of ``near.content``; an empty answer is not looked for. training: numbers of the
    training rows, ascending. values_V, offsets, weights: as of ``near``, over all rows.
    """
    is_training_R = np.zeros(len(offsets) - 1, np.bool_)
    is_training_R[training] = True
    found: list[Match] = []

    def take(lot: slice) -> Texts:
        some_V, some = _questions(*cut(values_V, offsets, lot))
        rows = np.arange(lot.start, lot.stop)
        return some_V, some, np.where(is_training_R[lot], rows, -1)

    for start in range(0, len(tests), _QUESTIONS_AT_ONCE):
        some = tests[start : start + _QUESTIONS_AT_ONCE]
        asked = [(question, given, "") for question, given, _ in some]
        near = _near_questions(asked, weights, lots(offsets), take)
        is_training_R[[match.row for match in near]] = False
        found += [replace(match, test=start + match.test) for match in near]
    if len(tests):
        found += _shared_runs(tests, is_training_R, read, values_V, offsets, weights)
    return sorted(found, key=lambda match: match.row)


# --- near copies ---------------------------------------------------------------------------------


def find_copied_parts(
    tests: Sequence[Content], rows: Indices, read: ReadParts, weights: Floats
) -> list[Match]:
    """Find the rows of which one part by itself is a near copy of a test's question.

    As ``find_contamination``, whose rows are to be left out; each row's parts are read once for
    ``_QUESTIONS_AT_ONCE`` tests.
    """
    found: dict[int, Match] = {}
    some_rows = [rows[at : at + _ROWS_AT_ONCE] for at in range(0, len(rows), _ROWS_AT_ONCE)]

    def take(some: Indices) -> Texts:
        parts_R = read(some)
        some_V, offsets = shingle(list(chain.from_iterable(parts_R)))
        return some_V, offsets, np.repeat(some, [len(parts) for parts in parts_R])

    for start in range(0, len(tests) if len(rows) else 0, _QUESTIONS_AT_ONCE):
        some = tests[start : start + _QUESTIONS_AT_ONCE]
        asked = [(question, given, "") for question, given, _ in some]
        for match in _near_questions(asked, weights, some_rows, take, lightest=_LIGHTEST_PART):
            own = replace(match, test=start + match.test, kind=Kind.part)
            found.setdefault(match.row, own)
    return sorted(found.values(), key=lambda match: match.row)


def _near_questions(
    asked: Sequence[Content],
    weights: Floats,
    tasks: Iterable[Task],
    take: Callable[[Task], Texts],
    *,
    lightest: float = 0,
) -> list[Match]:
    """Find rows with a text that is a near copy of a test's question and input, without answers.

    take: the texts of a task, without answers, the texts of a row in one task. lightest: what a
    test must weigh at least to be looked for.
    """
    tests_V, test_offsets = shingle(asked)
    test_V = np.repeat(np.arange(len(asked)), np.diff(test_offsets))
    weight_T = np.bincount(test_V, weights[bucket(tests_V)], len(asked))
    worded = np.flatnonzero((weight_T > 0) & (weight_T >= lightest))
    keys_BT = band_keys(tests_V, test_offsets, weights, range(BANDS))[:, worded]
    order_BT = np.argsort(keys_BT, axis=1, kind="stable")
    sorted_BT = np.take_along_axis(keys_BT, order_BT, axis=1)

    def look(task: Task) -> list[Match]:
        some_V, some, row_of = take(task)
        pairs = [np.empty(0, np.int64)]
        keys_BR = band_keys(some_V, some, weights, range(BANDS))
        for keys_R, sorted_T, order_T in zip(keys_BR, sorted_BT, order_BT, strict=True):
            place_R = np.searchsorted(sorted_T, keys_R)
            for step in range(_NEIGHBOURS):
                row_P = np.flatnonzero(place_R + step < len(sorted_T))
                row_P = row_P[sorted_T[place_R[row_P] + step] == keys_R[row_P]]
                test_P = worded[order_T[place_R[row_P] + step]]
                pairs.append(row_P * len(asked) + test_P)
        row_P, test_P = np.divmod(distinct(np.concatenate(pairs)), len(asked))
        wanted = row_of[row_P] >= 0
        row_P, test_P = row_P[wanted], test_P[wanted]
        similarity_P, near = compare(
            pair_keys(row_P, some_V, some),
            pair_keys(test_P, tests_V, test_offsets),
            len(row_P),
            weights,
        )
        row_P, test_P, similarity_P = row_of[row_P[near]], test_P[near], similarity_P[near]
        matches = []
        for each in _best(row_P, test_P, similarity_P):
            found = f"similarity {similarity_P[each]:.2f}"
            matches.append(Match(int(row_P[each]), int(test_P[each]), Kind.near_copy, found))
        return matches

    return list(chain.from_iterable(on_all_cores(look, tasks)))


def _questions(values_V: Shingles, offsets: Indices) -> tuple[Shingles, Indices]:
    """Return the shingles of rows without those of the answers."""
    asked_V = values_V >> np.uint32(FIELD_SHIFT) < 2
    return values_V[asked_V], np.concatenate([[0], np.cumsum(asked_V)])[offsets]


# --- runs of words -------------------------------------------------------------------------------


def _runs_of(
    tests: Sequence[Content], values_V: Shingles, offsets: Indices, weights: Floats
) -> tuple[Keys, Indices, Shingles]:
    """Find every run of 13 words that tells a test from others.

    Return their hashes, distinct and sorted, the first side of a test that has each (twice its
    number, and one more for the answer), and word pairs of which a row with any run has one.
    """
    counts = _count(values_V, offsets)
    hashes, numbers, pairs = [], [], []
    for start in range(0, len(tests), _TESTS_AT_ONCE):
        some = tests[start : start + _TESTS_AT_ONCE]
        words_V, text_V = hash_words(text for fields in some for text in fields)
        runs_G, start_G = hash_runs(words_V, text_V)
        pairs_GW = hash_pairs(words_V)[start_G[:, None] + np.arange(RUN_WORDS - 1)]
        tells = weights[bucket(pairs_GW)].sum(1) >= _LIGHTEST_RUN
        rarest_G = counts[_place(pairs_GW, counts)].argmin(1)
        pairs.append(distinct(np.take_along_axis(pairs_GW, rarest_G[:, None], axis=1)[tells, 0]))
        runs_G, first_G = np.unique(runs_G[tells], return_index=True)
        hashes.append(runs_G)
        test_G, field_G = np.divmod(text_V[start_G[tells][first_G]], FIELDS)
        numbers.append((2 * (start + test_G) + (field_G == FIELDS - 1)).astype(np.int32))
    hash_G, first_G = np.unique(np.concatenate(hashes), return_index=True)
    side_G = np.concatenate(numbers)[first_G].astype(np.int64)
    return hash_G, side_G, distinct(np.concatenate(pairs))


def _shared_runs(
    tests: Sequence[Content],
    is_training_R: npt.NDArray[np.bool_],
    read: Read,
    values_V: Shingles,
    offsets: Indices,
    weights: Floats,
) -> list[Match]:
    """Find rows that have 13 words in a row of a test, in question, input or answer.

    Each row's text is read once at most, and only where it has the rarest word pair of a run.
    """
    runs_G, side_G, rare = _runs_of(tests, values_V, offsets, weights)
    rows = np.flatnonzero(is_training_R & _have_any(rare, values_V, offsets))
    runs_S = np.bincount(side_G, minlength=2 * len(tests))
    is_asked_G, seen_G = side_G % 2 == 0, np.zeros(len(runs_G), np.int64)
    hit_rows, hit_runs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    hit_most = [np.empty(0, np.bool_)]
    some_rows = [rows[at : at + _ROWS_AT_ONCE] for at in range(0, len(rows), _ROWS_AT_ONCE)]

    def look(some: Indices) -> Indices:
        own_V, own_text_V = hash_words(text for fields in read(some) for text in fields)
        own_G, own_start_G = hash_runs(own_V, own_text_V)
        at, run = _find(own_G, runs_G)
        row_of = own_text_V[own_start_G[at]] // FIELDS
        return distinct(row_of << 32 | run)

    for some, found in zip(some_rows, on_all_cores(look, some_rows), strict=True):
        row, run = np.divmod(found, 1 << 32)
        np.add.at(seen_G, run, 1)
        _, pair, shared = np.unique(
            row << 32 | side_G[run], return_inverse=True, return_counts=True
        )
        most = shared[pair] >= _MOST * runs_S[side_G[run]]
        # Those of a template are dropped on the way, so that they take no room.
        kept = most | is_asked_G[run] & (seen_G[run] <= _FREQUENT)
        hit_rows.append(some[row[kept]])
        hit_runs.append(run[kept])
        hit_most.append(most[kept])
    row_H, run_H = np.concatenate(hit_rows), np.concatenate(hit_runs)
    kept = np.concatenate(hit_most) | is_asked_G[run_H] & (seen_G[run_H] <= _FREQUENT)
    pairs, shared_P = np.unique(row_H[kept] << 32 | side_G[run_H[kept]], return_counts=True)
    row_P, side_P = np.divmod(pairs, 1 << 32)
    best = _best(row_P, side_P, shared_P)
    matches = []
    for row, side, own in zip(row_P[best], side_P[best], read(row_P[best]), strict=True):
        test, is_answer = divmod(int(side), 2)
        *asked, answer = tests[test]
        run_of = longest_run(own, [answer] if is_answer else asked)
        matches.append(Match(int(row), test, Kind.answer if is_answer else Kind.n_gram, run_of))
    return matches


def hash_runs(words_V: Shingles, text_V: Indices) -> tuple[Keys, Indices]:
    """Hash every 13 words in a row of one text; and where each run begins in ``words_V``."""
    starts = max(len(words_V) - RUN_WORDS + 1, 0)
    runs_G = np.zeros(starts, np.uint64)
    for word in range(RUN_WORDS):
        runs_G = runs_G * _FACTOR + words_V[word : word + starts]
    start_G = np.flatnonzero(text_V[:starts] == text_V[len(text_V) - starts :])
    return runs_G[start_G], start_G


def _count(values_V: Shingles, offsets: Indices) -> npt.NDArray[np.uint8]:
    """Return about how many rows have a word pair, by its last bits: a lot of rows counts once.

    It is 0 where none has it, and stays 255 from there on.
    """
    counts = np.zeros(1 << min(_MOST_BITS, len(values_V).bit_length()), np.uint8)
    for lot in lots(offsets):
        place_V = _place(cut(values_V, offsets, lot)[0], counts)
        seen_V = counts[place_V]
        seen_V += seen_V < 255
        counts[place_V] = seen_V
    return counts


def _place(values: Shingles, table: npt.NDArray[Any]) -> Shingles:
    """Where shingles stand in a table of a power of two, whatever their field."""
    return values & np.uint32(len(table) - 1)


def _have_any(wanted: Shingles, values_V: Shingles, offsets: Indices) -> npt.NDArray[np.bool_]:
    """Return whether each row has any of these word pairs, sorted, in whichever field."""
    # Most shingles are none of them, which a look at some of their bits tells.
    listed = np.zeros(1 << min(_MOST_BITS, len(wanted).bit_length() + 3), np.bool_)
    listed[_place(wanted, listed)] = True
    have_R = np.zeros(len(offsets) - 1, np.bool_)
    for lot in lots(offsets):
        some_V, some = cut(values_V, offsets, lot)
        likely = np.flatnonzero(listed[_place(some_V, listed)])
        at, _ = _find(some_V[likely] & np.uint32((1 << FIELD_SHIFT) - 1), wanted)
        have_R[lot.start + np.searchsorted(some, likely[at], side="right") - 1] = True
    return have_R


def _find(values: npt.NDArray[Number], known: npt.NDArray[Number]) -> tuple[Indices, Indices]:
    """Return where the values stand that are in ``known``, sorted, and their places there."""
    place = np.searchsorted(known, values)
    at = np.flatnonzero(place < len(known))
    at = at[known[place[at]] == values[at]]
    return at, place[at]


def longest_run(content: Sequence[str], test: Sequence[str]) -> str:
    """Return the longest run of words, case and punctuation aside, that both have in a text."""
    longest: list[str] = []
    for own in map(split_words, content):
        for other in map(split_words, test):
            match = SequenceMatcher(None, own, other, autojunk=False).find_longest_match()
            longest = max(longest, own[match.a : match.a + match.size], key=len)
    return " ".join(longest)


def _best(row_P: Indices, other_P: Indices, score_P: npt.NDArray[Any]) -> Indices:
    """Return the places of the pair with the highest score of each row, of equal ones the first."""
    order = np.lexsort((other_P, -score_P, row_P))
    return order[np.diff(row_P[order], prepend=-1) > 0]
