from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dollyllama.data import near
from dollyllama.data.formats import sql_instruction
from dollyllama.data.near import (
    BUCKETS,
    Content,
    Copies,
    Indices,
    Shingles,
    bucket,
    cluster_of,
    content,
    find_copies,
    kept_of,
    shingle,
    shingle_weights,
    split_words,
)
from tests.data.build import make_example

WORDS = [f"{head}{tail}" for head in "bdfgklmnprst" for tail in ("ar", "el", "im", "on", "ups")]


def sentence(rng: random.Random, words: int) -> str:
    """Words that no other sentence has in this order, some of them rare."""
    return " ".join(rng.choice(WORDS) + str(rng.randrange(40)) for _ in range(words))


def make_rows(count: int, *, seed: int = 0, words: int = 20) -> list[Content]:
    rng = random.Random(seed)
    return [(sentence(rng, words), "", sentence(rng, words)) for _ in range(count)]


def copies_of(values: Shingles, offsets: Indices, source: npt.NDArray[np.int64]) -> Copies:
    return find_copies(values, offsets, shingle_weights(values, offsets, source))


def found(rows: list[Content], source: list[int] | None = None) -> list[tuple[int, int]]:
    copies = copies_of(*shingle(rows), np.array(source or [0] * len(rows)))
    return [(int(first), int(second)) for first, second in copies.pairs]


def edit(text: str, place: int, word: str = "other") -> str:
    words = text.split(" ")
    words[place] = word
    return " ".join(words)


# --- shingles ------------------------------------------------------------------------------------


def test_a_shingle_is_a_word_or_two_words_in_a_row_whatever_their_case_and_punctuation() -> None:
    values, offsets = shingle([("The cat, the CAT!", "", ""), ("the cat the", "", "")])
    # the, cat / the cat, cat the
    assert np.diff(offsets).tolist() == [4, 4]
    assert values[:4].tolist() == values[4:].tolist()


def test_shingles_of_a_row_are_sorted_distinct_and_tell_the_fields_apart() -> None:
    values, offsets = shingle([("a b a b", "a b", "a b"), ("", "", ""), ("", "", "a b")])
    assert offsets.tolist() == [0, 10, 10, 13]
    assert (np.diff(values[:10].astype(np.int64)) > 0).all()
    assert (values[:10] >> 30).tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert values[7:10].tolist() == values[10:].tolist()


def test_a_word_is_hashed_alike_wherever_it_stands() -> None:
    rows = make_rows(5)
    together, offsets = shingle(rows)
    alone = [shingle([row])[0] for row in rows]
    assert together.tolist() == np.concatenate(alone).tolist()
    assert np.diff(offsets).tolist() == [len(each) for each in alone]


def test_nothing_to_shingle_is_no_error() -> None:
    values, offsets = shingle([])
    assert (len(values), offsets.tolist()) == (0, [0])
    assert len(copies_of(values, offsets, np.zeros(0, np.int64)).pairs) == 0
    assert found([("", "", ""), ("!?", "", "")]) == []


def test_a_script_without_spaces_is_read_sign_by_sign() -> None:
    assert split_words("東京は2 Tage_weit") == ["東", "京", "は", "2", "tage", "weit"]


def test_the_schema_is_no_content_but_the_question_is() -> None:
    context = "CREATE TABLE head (age INTEGER, name VARCHAR)"
    asked = make_example(
        sql_instruction("How old is the head?", context), "SELECT age FROM head", context=context
    )
    question, given, answer = content(asked)
    assert question == "Generate SQL query: How old is the head?"
    assert (given, answer) == ("", "SELECT age FROM head")


def test_a_calculator_s_notes_are_no_content() -> None:
    noted = "She sells 48/2 = <<48/2=24>>24 clips.\n#### 24"
    assert content(make_example("How many?", noted))[2] == "She sells 48/2 = 24 clips.\n#### 24"
    shifts = "std::cout << a; b >>= 2;"
    assert content(make_example("Shift it.", shifts))[2] == shifts


def test_history_and_input_are_content() -> None:
    example = make_example("And now?", "Yes.", input="a list", history=(("user", "Hello."),))
    assert content(example) == ("Hello.\nAnd now?", "a list", "Yes.")


# --- weights -------------------------------------------------------------------------------------


def test_a_shingle_weighs_by_the_share_of_rows_that_have_it() -> None:
    rows = [(f"frame {'half' if row % 2 else ''} only{row}", "", "") for row in range(2000)]
    values, offsets = shingle(rows)
    weights = shingle_weights(values, offsets, np.zeros(2000, np.int64))

    def weight(word: str) -> float:
        return float(weights[bucket(shingle([(word, "", "")])[0])[0]])

    assert weight("frame") == pytest.approx(0.01)
    assert weight("half") == pytest.approx(math.log(2) / math.log(1000), abs=0.01)
    assert weight("only7") == 1


def test_what_is_frame_in_one_source_is_frame_in_all_and_a_small_source_changes_little() -> None:
    big = [(f"plain{row} seldom{row}", "", "") for row in range(3000)]
    framed = [(f"frame word{row}", "", "") for row in range(1000)]
    single = [("plain7 lonely", "", "")]
    values, offsets = shingle(big + framed + single)
    source = np.array([0] * 3000 + [1] * 1000 + [2])
    weights = shingle_weights(values, offsets, source)
    word = {w: float(weights[bucket(shingle([(w, "", "")])[0])[0]]) for w in ("frame", "lonely")}
    assert word["frame"] < 0.05  # a quarter of all rows, but each of its source
    assert word["lonely"] > 0.6  # each row of its source, but there is only one


# --- pairs ---------------------------------------------------------------------------------------


def compared(first: Content, second: Content) -> tuple[float, list[float]]:
    """The similarity, and that of each field, from the texts; every weight is 1."""
    common, union, fields = 0, 0, []
    for texts in zip(first, second, strict=True):
        words = [text.split() for text in texts]
        one, other = (set(each) | set(itertools.pairwise(each)) for each in words)
        fields.append((len(one & other) + 1) / (len(one | other) + 1))
        common, union = common + len(one & other), union + len(one | other)
    return common / union, fields


def test_pairs_and_similarities_are_those_of_a_comparison_of_all_with_all() -> None:
    rows = make_rows(150)
    rng = random.Random(1)
    for row in range(60):
        question, given, answer = rows[row]
        for _ in range(row % 12):
            question = edit(question, rng.randrange(20), f"new{rng.randrange(1000)}")
            answer = edit(answer, rng.randrange(20), f"new{rng.randrange(1000)}")
        rows.append((question, given, answer if row % 5 else "something else"))
    copies = find_copies(*shingle(rows), np.ones(BUCKETS, np.float32))
    expected = {}
    for pair in itertools.combinations(range(len(rows)), 2):
        similarity, fields = compared(*(rows[row] for row in pair))
        if similarity >= 0.53 and fields[0] >= 0.5 and fields[2] >= 0.4:
            expected[pair] = similarity
    assert 15 < len(expected) < 40
    pairs = [(int(first), int(second)) for first, second in copies.pairs]
    assert dict(zip(pairs, copies.similarity.tolist(), strict=True)) == pytest.approx(expected)


def test_a_copy_is_found_across_sources_and_whatever_its_case() -> None:
    rows = make_rows(100)
    question, given, answer = rows[3]
    rows.append((edit(question, 5).upper(), given, answer.title() + "!"))
    assert found(rows, [0] * 100 + [1]) == [(3, 100)]


def test_a_common_frame_makes_no_copies_and_hides_none() -> None:
    frame = " ".join(f"please{word}" for word in range(60))
    short = make_rows(300, words=6)
    framed = [(f"{frame} {question}", given, answer) for question, given, answer in short]
    assert found(framed) == []
    bare = short[:20]
    assert found(framed + bare, [0] * 300 + [1] * 20) == [(row, 300 + row) for row in range(20)]


def test_one_passage_or_one_query_for_two_questions_makes_no_copy() -> None:
    rng = random.Random(2)
    passage, query = sentence(rng, 80), sentence(rng, 40)
    rows = make_rows(50, words=8)
    rows += [(sentence(rng, 8), passage, sentence(rng, 4)) for _ in range(2)]
    rows += [(sentence(rng, 8), "", query) for _ in range(2)]
    assert found(rows) == []


def test_short_answers_to_two_questions_on_one_passage_make_no_copy() -> None:
    rng = random.Random(8)
    passage = sentence(rng, 80)
    rows = make_rows(1500, words=8)
    rows += [(f"When was it founded? {passage}", "", "1889")]
    rows += [(f"When was it released? {passage}", "", "1981")]
    assert found(rows) == []


def test_of_one_question_half_the_answer_may_be_another() -> None:
    rng = random.Random(9)
    rows = make_rows(50)
    question, given, answer = rows[5]
    answer = " ".join([*answer.split()[:11], sentence(rng, 9)])
    rows.append((f"{question.upper()}?", given, answer))
    rows.append((edit(question, 9), given, answer))
    assert found(rows[:51]) == [(5, 50)]
    assert (5, 51) not in found(rows)


@pytest.mark.parametrize(
    ("asked", "answered", "copies"),
    [
        ("what is the lowest fee of the campus in 1996", "select min fee from campus", False),
        ("what is the highest fee of the campus in 1999", "select max fee from campus 7", True),
        ("what is the fee highest of the campus in 1996", "select max fee from campus", True),
        ("what is the lowest fee of the campus in 1996", "select max fee from campus", True),
    ],
)
def test_a_short_copy_keeps_the_words_of_question_or_answer(
    asked: str, answered: str, copies: bool
) -> None:
    rows = make_rows(2000)
    rows += [("what is the highest fee of the campus in 1996", "", "select max fee from campus")]
    rows += [(asked, "", answered)]
    assert found(rows) == ([(2000, 2001)] if copies else [])


def test_a_question_in_a_long_frame_is_a_copy_where_it_is_whole_and_answered_alike() -> None:
    rng = random.Random(21)
    asked, answer = sentence(rng, 8), sentence(rng, 8)

    def framed(question: str) -> str:
        return f"{sentence(rng, 11)} {question} {sentence(rng, 5)}"

    rows = make_rows(2000)
    rows += [(asked, "", answer), (framed(asked), "", answer)]
    rows += [(framed(edit(edit(asked, 2), 5)), "", answer), (framed(asked), "", sentence(rng, 8))]
    rows += [("a fee", "", answer), (framed("a fee"), "", answer)]  # says too little
    assert found(rows) == [(2000, 2001)]


def test_a_query_with_other_names_is_a_copy_where_the_question_is_the_same() -> None:
    rng = random.Random(22)

    def query() -> str:
        name, table, key, order = sentence(rng, 4).split()
        return f"SELECT {name} FROM {table} WHERE {key} > 7 ORDER BY {order} LIMIT 1"

    rows = [(question, "", query()) for question, _, _ in make_rows(2000)]
    rows += [(rows[5][0], "", query()), (edit(rows[6][0], 3), "", query())]
    rows += [(rows[7][0], "", sentence(rng, 8))]
    assert found(rows) == [(5, 2000)]


def test_a_crowd_of_copies_hangs_together_and_costs_no_square() -> None:
    rows = make_rows(3000)
    question, given, answer = rows[0]
    rows += [(edit(question, row % 20, f"new{row}"), given, answer) for row in range(150)]
    copies = copies_of(*shingle(rows), np.zeros(3150, np.int64))
    clusters = cluster_of(copies.pairs, 3150)
    assert (clusters[3000:] == 0).all()
    assert len(np.unique(clusters)) == 3000
    # Each with eight neighbours in each band, of 11,325 pairs that there are.
    assert len(copies.pairs) < 150 * 8 * 24 / 4


def test_rows_in_a_mapped_file_and_in_small_chunks_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(80)
    rows += [(edit(question, 1), given, answer) for question, given, answer in rows[:30]]
    values, offsets = shingle(rows)
    source = np.arange(110) % 3
    expected = copies_of(values, offsets, source)
    assert len(expected.pairs) == 30
    values.tofile(tmp_path / "values")
    monkeypatch.setattr(near, "_AT_ONCE", 100)
    mapped = np.memmap(tmp_path / "values", np.uint32, mode="r")
    again = copies_of(mapped, offsets, source)
    assert again.pairs.tolist() == expected.pairs.tolist()
    assert again.similarity == pytest.approx(expected.similarity)


# --- clusters ------------------------------------------------------------------------------------


def test_what_hangs_together_is_one_cluster_named_by_its_first_row() -> None:
    pairs = np.array([[1, 4], [2, 3], [4, 5]])
    assert cluster_of(pairs, 7).tolist() == [0, 1, 2, 2, 1, 1, 6]
    assert cluster_of(np.empty((0, 2), np.int64), 3).tolist() == [0, 1, 2]


def test_of_a_cluster_stays_the_whole_then_the_longest_then_the_first_row() -> None:
    clusters = np.array([0, 0, 0, 3, 3, 5, 6, 6])
    truncated = np.array([True, False, False, True, True, True, False, False])
    length = np.array([99, 5, 7, 1, 2, 1, 4, 4])
    assert kept_of(clusters, truncated, length).tolist() == [2, 2, 2, 4, 4, 5, 6, 6]
