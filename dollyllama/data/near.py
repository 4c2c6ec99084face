"""Near duplicates: rows that say almost the same, whatever frame stands around what they say.

A row is the set of its words and word pairs, each weighted by how rare it is, so that a template
or a wording counts next to nothing. MinHash with locality-sensitive hashing proposes pairs of rows
and their weighted Jaccard similarity, computed exactly, decides (Broder 1997, "On the resemblance
and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", ch. 3).

Legend: V shingles of a set of rows laid end to end, R rows, P pairs, F fields (question, input,
answer), K kinds of shingle (words that are no numbers second), S sources, B buckets or bands.
"""

from __future__ import annotations

import mmap
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dollyllama.data.cores import on_all_cores
from dollyllama.data.example import Example
from dollyllama.data.formats import sql_instruction, without_notes
from dollyllama.data.split import components

Shingles = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
#: The question, the input it is about, the answer.
Content = tuple[str, str, str]
Number = TypeVar("Number", bound=np.generic)
Floats = npt.NDArray[np.float32]

#: Two rows are copies from this weighted Jaccard similarity on: a copy with 15 % of its words
#: changed here and there keeps 0.53 to 0.65 of its words and word pairs.
SIMILAR = 0.53
#: And question, input and answer by themselves from these on: the same query or the same passage
#: under another question is another row.
SIMILAR_FIELDS = (0.5, 0.5, 0.4)
#: Less is enough of the question where the answer is the same, and of the answer where the question
#: is: a long answer may be cut, a question be put otherwise.
SIMILAR_BESIDE = (0.4, 0.4, 0.25)
#: With the same answer a question that stands whole in the other is enough, however long the frame
#: around it. What may be missing of it: the word pairs at its ends. Both must weigh this much.
_WHOLE, _TELLING = 1.5, 4
#: With the same question an answer is enough that keeps so large a part of its words, each counted
#: alike: a query with its columns renamed keeps those of SQL. And rows of this similarity.
_SKELETON, SIMILAR_RENAMED = 0.4, 0.42

#: Rows whose shingles weigh less together are copies only where the question or the answer keeps
#: its words, numbers and order aside: what is the highest and what is the lowest are two questions.
_SHORT = 50

#: A shingle in one row of so many weighs as much as the rarest: beyond, rarity is chance.
_RARE = 1000
#: What a shingle weighs that every row has. Above 0, so that rows of nothing but frame compare.
_LIGHTEST = 0.01
#: Of so many rows of average text a source is thought to have beside its own, for its shares.
_PRIOR_ROWS = 100
#: Shingles share counters: a table of 4 MiB a source, in which a rare one seldom meets a frequent.
BUCKETS = 1 << 20

#: A pair of similarity s shares a band in 1 - (1 - s^3)^24: 97.9 % at 0.53, 18 % at 0.2.
BANDS, _HASHES_A_BAND = 24, 3
#: Bands whose keys are in memory together: 4 bytes a row each.
_BANDS_AT_ONCE = 8
#: A row is compared with so many of those after it that share a band with it. Copies in a crowd
#: still chain up, and a crowd costs no more than its size.
_NEIGHBOURS = 8
#: Shingles worked on at a time: their arrays stay in the cache. Pairs: each may touch two pages of
#: a mapped file, and the kernel maps sixteen around a page.
_AT_ONCE, _PAIRS_AT_ONCE = 1 << 18, 1 << 8
_FACTORS_BH = (
    np.random.default_rng(0x5EED).integers(1 << 31, size=(BANDS, _HASHES_A_BAND)) * 2 + 1
).astype(np.uint32)

#: Of a row's content, and where a shingle's field stands, and that it is a word and no number.
FIELDS, FIELD_SHIFT, _PLAIN_SHIFT = 3, 30, 29
_DROPPED = np.uint32(32 - _PLAIN_SHIFT)
#: Letters and digits in a row; a sign of a script without spaces stands by itself.
_WORD = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Copies:
    """Pairs of rows that are near copies.

    pairs: row numbers, (pairs, 2) int64, the smaller first, sorted. similarity: float32, mostly
    from 0.53 to 1; less where one is framed or renamed.
    """

    pairs: Indices
    similarity: Floats


def content(example: Example) -> Content:
    """Say what makes a row itself: the question, the input it is about, the answer.

    A context that the instruction quotes (SQL: the schema) is left out: many questions share it.
    So are a calculator's notes.
    """
    asked = example.instruction
    if example.context:
        _, _, schema = sql_instruction("?", example.context).partition("?")
        asked = asked.removesuffix(schema).replace(example.context, " ")
    question = "\n".join([*(said for _, said in example.history), asked])
    return question, example.input, without_notes(example.response)


def split_words(text: str) -> list[str]:
    """Return the words of a text, case and punctuation aside."""
    return _WORD.findall(text.casefold())


class _Hashes(dict[str, int]):
    """CRC-32 by word, odd for a number, computed once; ``hash`` differs between processes."""

    def __missing__(self, word: str) -> int:
        value = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        self[word] = value = value & ~1 | word.isdecimal()
        return value


def hash_words(texts: Iterable[str]) -> tuple[Shingles, Indices]:
    """Hash the words of texts, case and punctuation aside.

    Returns (words_V, text_V): the hashes, uint32, odd for numbers, texts laid end to end, and the
    number of the text that each is of.
    """
    hash_of = _Hashes().__getitem__
    hashes: list[int] = []
    counts: list[int] = []
    for text in texts:
        words = split_words(text)
        hashes.extend(map(hash_of, words))
        counts.append(len(words))
    return np.array(hashes, np.uint32), np.repeat(
        np.arange(len(counts)), np.array(counts, np.int64)
    )


def shingle(contents: Sequence[Content]) -> tuple[Shingles, Indices]:
    """Hash the words and word pairs of rows, case and punctuation aside.

    contents: as of ``content``. Returns (values_V, offsets): row i has
    ``values_V[offsets[i]:offsets[i + 1]]``, uint32, sorted and distinct; offsets (rows + 1,) int64.
    The top two bits name the field, so a word of the question is not a word of the answer; the next
    is set for a word that is no number.
    Meant for a few thousand rows at a time.
    """
    words_V, text_V = hash_words(text for fields in contents for text in fields)
    paired = text_V[1:] == text_V[:-1]
    plain_V = (~words_V & np.uint32(1)) << np.uint32(_PLAIN_SHIFT)
    hashes_V = _scramble(words_V) >> _DROPPED | plain_V
    hashes_V = np.concatenate([hashes_V, hash_pairs(words_V)[paired]])
    row_V, field_V = np.divmod(np.concatenate([text_V, text_V[:-1][paired]]), FIELDS)
    # The row above bit 32, the field in the two bits below: one sort orders all.
    keys_V = distinct((row_V << 32 | field_V << FIELD_SHIFT).astype(np.uint64) | hashes_V)
    starts = np.arange(len(contents) + 1, dtype=np.uint64) << np.uint64(32)
    return keys_V.astype(np.uint32), np.searchsorted(keys_V, starts).astype(np.int64)


def hash_pairs(words_V: Shingles) -> Shingles:
    """Hash each word with the next one, as in a shingle below its field; one fewer than words."""
    return _scramble(words_V[:-1] * np.uint32(0x9E3779B1) + words_V[1:]) >> _DROPPED


def distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Sort and drop repeats; np.unique hashes, which takes far longer."""
    values = np.sort(values)
    new = np.concatenate([[True], values[1:] != values[:-1]])
    return np.asarray(values[new[: len(values)]])


def _scramble(values: Shingles) -> Shingles:
    """Spread 32 bits over 32 bits, one to one (Mueller's finaliser in Wellons' constants)."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x7FEB352D)
    values ^= values >> np.uint32(15)
    values *= np.uint32(0x846CA68B)
    values ^= values >> np.uint32(16)
    return values


def find_copies(values_V: Shingles, offsets: Indices, weights: Floats) -> Copies:
    """Find the near copies among all rows, within a source and across sources.

    values_V, offsets: as of ``shingle``, rows laid end to end; values_V may be mapped from a file.
    weights: as of ``shingle_weights``. In memory: about 60 bytes a row. A row without a word is
    never a copy.
    """
    rows = len(offsets) - 1
    found, similarities = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for proposed in _propose(values_V, offsets, weights):
        for start in range(0, len(proposed), _PAIRS_AT_ONCE):
            some = proposed[start : start + _PAIRS_AT_ONCE]
            first_V, second_V = (
                pair_keys(row_P, values_V, offsets) for row_P in np.divmod(some, rows)
            )
            similarity_P, near_P = compare(first_V, second_V, len(some), weights)
            found.append(some[near_P])
            similarities.append(similarity_P[near_P])
            _release(values_V)
    # Several bands propose the same pair.
    pairs, first = np.unique(np.concatenate(found), return_index=True)
    pairs_P2 = np.stack(np.divmod(pairs, max(rows, 1)), axis=1)
    return Copies(pairs_P2, np.concatenate(similarities)[first])


def shingle_weights(values_V: Shingles, offsets: Indices, source_R: npt.NDArray[Any]) -> Floats:
    """Weigh shingles by rarity: (2^20,) float32 from 0.01 to 1, by the low 20 bits of a shingle.

    Inverse document frequency (Spärck Jones 1972), from every row to one in a thousand. What is
    frequent in one source is frame there and must be light everywhere, so the source with the
    largest share of rows decides; a small source's share is drawn towards all rows' share.
    source_R: number of each row's source, from 0. In memory: 4 MiB a source.
    """
    rows_S = np.bincount(source_R)
    counts_SB = np.zeros((len(rows_S), BUCKETS), np.uint32)
    for lot in lots(offsets):
        some_V, some = cut(values_V, offsets, lot)
        buckets_V = bucket(some_V)
        some_R = source_R[lot]
        source_V = np.repeat(some_R, np.diff(some))
        for source in np.unique(some_R):
            own_V = buckets_V[source_V == source]
            np.add.at(counts_SB[source], own_V, np.uint32(1))
    overall_B = counts_SB.sum(0, dtype=np.float64) / max(len(source_R), 1)
    share_B = overall_B.copy()
    for rows, counts_B in zip(rows_S, counts_SB, strict=True):
        drawn_B = (counts_B + _PRIOR_ROWS * overall_B) / (rows + _PRIOR_ROWS)
        np.maximum(share_B, drawn_B, out=share_B)
    rarity_B = -np.log(np.maximum(share_B, 1 / _RARE)) / np.log(_RARE)
    return np.asarray(np.clip(rarity_B, _LIGHTEST, 1), np.float32)


def _propose(values_V: Shingles, offsets: Indices, weights: Floats) -> Iterator[Indices]:
    """Yield candidate pairs as first * rows + second, distinct within what is yielded at once."""
    rows = len(offsets) - 1
    worded = np.flatnonzero(np.diff(offsets))
    for start in range(0, BANDS, _BANDS_AT_ONCE):
        bands = range(start, min(start + _BANDS_AT_ONCE, BANDS))
        keys_BR = np.empty((len(bands), rows), np.uint32)

        def keys_of(lot: slice, bands: Sequence[int] = bands) -> Shingles:
            return band_keys(*cut(values_V, offsets, lot), weights, bands)

        for own, keys in zip(lots(offsets), on_all_cores(keys_of, lots(offsets)), strict=True):
            keys_BR[:, own] = keys
        proposed = [np.empty(0, np.int64)]
        for keys_R in keys_BR:
            row_R = worded[np.argsort(keys_R[worded], kind="stable")]
            sorted_R = keys_R[row_R]
            for step in range(1, _NEIGHBOURS + 1):
                same = np.flatnonzero(sorted_R[step:] == sorted_R[:-step])
                proposed.append(row_R[same] * rows + row_R[same + step])
        del keys_BR
        yield distinct(np.concatenate(proposed))


def band_keys(
    values_V: Shingles, offsets: Indices, weights: Floats, bands: Sequence[int]
) -> Shingles:
    """Return each row's key in these of the ``BANDS`` bands, (bands, rows) uint32.

    A row without shingles has a key of no meaning.
    A MinHash is the shingle with the smallest hash / weight. Two rows have the same one with the
    probability of their weighted Jaccard similarity, nearly: -log(1 - hash) would make it exact
    (exponential clocks), and the hashes that win are so small that the logarithm changes little.
    """
    keys_BR = np.zeros((len(bands), len(offsets) - 1), np.uint32)
    lightness_V = np.float32(1) / weights[bucket(values_V)]
    worded = np.flatnonzero(np.diff(offsets))
    if not len(worded):
        return keys_BR
    for keys_R, factors_H in zip(keys_BR, _FACTORS_BH[bands], strict=True):
        for factor in factors_H:
            hashes_V = values_V * factor
            hashes_V ^= hashes_V >> np.uint32(15)
            hashes_V *= np.uint32(0x846CA68B)
            clocks_V = hashes_V.astype(np.float32) * lightness_V
            least_R = np.minimum.reduceat(clocks_V, offsets[worded]).view(np.uint32)
            keys_R[worded] = _scramble(keys_R[worded] * np.uint32(31) + least_R)
    return keys_BR


def compare(
    first_V: Keys, second_V: Keys, pairs: int, weights: Floats
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the weighted Jaccard similarity of each pair, and whether they are near copies.

    first_V, second_V: as of ``pair_keys``; pairs without any shingle are not allowed. A field is
    compared as if both had one more shingle in common, so that short ones differ less.
    """
    both_V = np.sort(np.concatenate([first_V, second_V]))
    common_V = both_V[1:][both_V[1:] == both_V[:-1]]
    common_PFK, first_PFK, second_PFK = (
        _weigh(keys_V, pairs, weights) for keys_V in (common_V, first_V, second_V)
    )
    union_PFK = first_PFK + second_PFK - common_PFK
    common_PF, union_PF = common_PFK.sum(2), union_PFK.sum(2)
    similarity_P = common_PF.sum(1) / union_PF.sum(1)
    same_question_P, same_answer_P = _same_sides(union_PF - common_PF, 1)
    beside_PF = np.stack([same_answer_P, same_answer_P, same_question_P], axis=1)
    enough_PF = np.where(beside_PF, SIMILAR_BESIDE, SIMILAR_FIELDS)
    near_P = (similarity_P >= SIMILAR) & ((common_PF + 1) / (union_PF + 1) >= enough_PF).all(1)
    same_words_2P = _same_sides((union_PFK - common_PFK)[:, :, 1], 0.5)
    near_P &= np.any(same_words_2P, axis=0) | (union_PF.sum(1) >= _SHORT)

    question_P = common_PF[:, :2].sum(1)
    smaller_P = np.minimum(first_PFK[:, :2].sum((1, 2)), second_PFK[:, :2].sum((1, 2)))
    framed_P = same_answer_P & (smaller_P - question_P < _WHOLE)
    framed_P &= (question_P >= _TELLING) & (union_PF[:, 2] >= _TELLING)
    renamed_P = same_question_P & (question_P >= _TELLING) & (similarity_P >= SIMILAR_RENAMED)
    if np.any(renamed_P & ~near_P):
        first_P, second_P, both_P = (
            _by_kind(keys_V, pairs)[:, -1, 1] for keys_V in (first_V, second_V, common_V)
        )
        renamed_P &= both_P >= _SKELETON * (first_P + second_P - both_P)
        near_P |= renamed_P & (both_P > 0)
    return similarity_P.astype(np.float32), near_P | framed_P


def pair_keys(row_P: Indices, values_V: Shingles, offsets: Indices) -> Keys:
    """Return the shingles of a row of each pair, each below the number of its pair."""
    sizes_P = offsets[row_P + 1] - offsets[row_P]
    ends_P = np.cumsum(sizes_P)
    place_V = np.arange(sizes_P.sum()) + np.repeat(offsets[row_P] - ends_P + sizes_P, sizes_P)
    pair_V = np.repeat(np.arange(len(row_P), dtype=np.uint64), sizes_P)
    return np.asarray(pair_V << np.uint64(32) | values_V[place_V])


def _same_sides(
    changed_PF: npt.NDArray[np.float64], most: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return whether question and input, and whether answers, differ by less than this weight."""
    return changed_PF[:, :2].sum(1) < most, changed_PF[:, 2] < most


def _weigh(keys_V: Keys, pairs: int, weights: Floats) -> npt.NDArray[np.float64]:
    """Sum the weights by pair, field and kind: (pairs, fields, 2), the second kind plain words."""
    return _by_kind(keys_V, pairs, weights[bucket(keys_V.astype(np.uint32))])


def _by_kind(keys_V: Keys, pairs: int, weights_V: Floats | None = None) -> npt.NDArray[np.float64]:
    """The same sums of these weights, or of 1 each."""
    slot_V = (keys_V >> np.uint64(_PLAIN_SHIFT)).astype(np.int64)
    slots = np.bincount(slot_V, weights_V, pairs << (32 - _PLAIN_SHIFT)).astype(np.float64)
    return slots.reshape(pairs, 1 << (32 - FIELD_SHIFT), 2)[:, :FIELDS]


def bucket(values_V: Shingles) -> Shingles:
    """Where the weight of a shingle stands."""
    return values_V & np.uint32(BUCKETS - 1)


def lots(offsets: Indices) -> Iterator[slice]:
    """Yield consecutive rows with about as many shingles at a time, at least a row."""
    start, rows = 0, len(offsets) - 1
    while start < rows:
        stop = int(np.searchsorted(offsets, offsets[start] + _AT_ONCE, side="right")) - 1
        stop = min(max(stop, start + 1), rows)
        yield slice(start, stop)
        start = stop


def cut(values_V: Shingles, offsets: Indices, lot: slice) -> tuple[Shingles, Indices]:
    """Return the shingles of some rows in memory of their own, and their offsets from 0."""
    some = offsets[lot.start : lot.stop + 1]
    some_V = np.array(values_V[some[0] : some[-1]])
    _release(values_V)
    return some_V, some - some[0]


def _release(values_V: Shingles) -> None:
    """Give the pages of a mapped file back, so that what was read does not stay resident."""
    if sys.platform != "win32" and isinstance(values_V.base, mmap.mmap):
        values_V.base.madvise(mmap.MADV_DONTNEED)


def cluster_of(pairs_P2: Indices, rows: int) -> Indices:
    """Name the cluster of each row: (rows,), int64, the smallest row number in it.

    pairs_P2: rows that are copies of each other, and so are in one cluster.
    """
    _, first_R, cluster_R = np.unique(
        components(pairs_P2, rows), return_index=True, return_inverse=True
    )
    return np.asarray(first_R[cluster_R], np.int64)


def kept_of(clusters_R: Indices, truncated_R: npt.NDArray[np.bool_], length_R: Indices) -> Indices:
    """Name the row that stays of each row's cluster: (rows,) int64; it names itself.

    clusters_R: as of ``cluster_of``. A row that is not truncated goes before one that is, then
    the longer response (``length_R``, in tokens), then the smaller row number.
    """
    order = np.lexsort((np.arange(len(clusters_R)), -length_R, truncated_R, clusters_R))
    _, first = np.unique(clusters_R[order], return_index=True)
    kept_R = np.empty_like(clusters_R)
    kept_R[clusters_R[order[first]]] = order[first]
    return np.asarray(kept_R[clusters_R])
