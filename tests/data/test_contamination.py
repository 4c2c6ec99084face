from __future__ import annotations

import random

import numpy as np
import pytest

from dollyllama.data import contamination
from dollyllama.data.contamination import (
    Kind,
    Match,
    find_contamination,
    find_copied_parts,
    hash_runs,
    longest_run,
)
from dollyllama.data.near import (
    BUCKETS,
    Content,
    Floats,
    Indices,
    hash_words,
    shingle,
    shingle_weights,
)
from tests.data.test_near import edit, make_rows, sentence


def search(
    tests: list[Content],
    rows: list[Content],
    *,
    training: list[int] | None = None,
    weights: Floats | None = None,
) -> tuple[list[Match], set[int]]:
    """The matches, and the rows whose text was read."""
    values, offsets = shingle(rows)
    if weights is None:
        weights = shingle_weights(values, offsets, np.zeros(len(rows), np.int64))
    was_read: set[int] = set()

    def read(places: Indices) -> list[Content]:
        was_read.update(places.tolist())
        return [rows[place] for place in places]

    places = np.array(range(len(rows)) if training is None else training)
    return find_contamination(tests, places, read, values, offsets, weights), was_read


def test_a_near_copy_of_a_question_is_found_whatever_its_answer() -> None:
    rows = make_rows(200)
    question, given, _ = rows[7]
    tests = [*make_rows(3, seed=9), (edit(question, 4).upper(), given, "Another answer.")]
    found, _ = search(tests, rows, weights=np.ones(BUCKETS, np.float32))
    # 20 words, one of them another: 3 of 39 shingles go and 3 come.
    assert found == [Match(7, 3, Kind.near_copy, "similarity 0.86")]


def test_a_run_of_13_words_is_found_in_question_input_and_answer_and_12_are_not() -> None:
    rng = random.Random(3)
    told = sentence(rng, 60)
    rows = make_rows(1000)
    for row, words in ((20, 13), (21, 12)):
        run = " ".join(told.split()[10 : 10 + words])
        for field in range(3):
            texts = [sentence(rng, 20) for _ in range(3)]
            texts[field] += f" {run.title()}, {sentence(rng, 5)}"
            rows[row + 10 * field] = (texts[0], texts[1], texts[2])
    found, _ = search([(told, "", "")], rows)
    run = " ".join(told.split()[10:23])
    assert found == [Match(row, 0, Kind.n_gram, run) for row in (20, 30, 40)]


def test_a_run_is_of_one_text() -> None:
    told = sentence(random.Random(4), 60).split()
    rows = make_rows(200)
    rows[5] = (" ".join(told[:10]), " ".join(told[10:20]), " ".join(told[20:30]))
    rows[6] = (rows[6][0], "", " ".join(told[30:40]))
    assert search([(" ".join(told), "", "")], rows)[0] == []


def test_of_an_answer_half_is_looked_for() -> None:
    rng = random.Random(11)
    told = sentence(rng, 112).split()  # 100 runs
    rows = make_rows(200)
    for row, words in ((3, 112), (4, 62), (5, 61)):
        rows[row] = ("a question", "", f"{' '.join(told[-words:])} {sentence(rng, 20)}")
    found, _ = search([("a question of its own", "", " ".join(told))], rows)
    assert found == [
        Match(row, 0, Kind.answer, " ".join(told[-words:])) for row, words in ((3, 112), (4, 62))
    ]
    assert search([("a question of its own", "", "")], rows)[0] == []


def test_what_an_answer_repeats_of_its_question_is_the_question_s() -> None:
    rng = random.Random(12)
    asked, solved, rows = sentence(rng, 200), sentence(rng, 40), make_rows(200)
    rows[3] = ("a question", "", f"{sentence(rng, 5)} {solved}")
    found, _ = search([(asked, "", ""), ("", "", f"{asked} {solved}")], rows)
    assert found == [Match(3, 1, Kind.answer, solved)]


@pytest.mark.parametrize(("rows_with_it", "matches"), [(10, 10), (11, 0)])
def test_a_run_in_more_than_ten_training_rows_says_nothing(rows_with_it: int, matches: int) -> None:
    rng = random.Random(5)
    phrase = sentence(rng, 13)
    rows = make_rows(3000)
    for row in range(rows_with_it):
        rows[row] = (rows[row][0], f"{phrase} {sentence(rng, 30)}", rows[row][2])
    found, _ = search([(f"{phrase} {sentence(rng, 40)}", "", "")], rows)
    assert [match.row for match in found] == list(range(matches))


def test_a_template_with_one_word_of_the_question_behind_it_gives_nothing_away() -> None:
    rng = random.Random(6)
    template = sentence(rng, 12)
    rows = make_rows(400)
    for row in range(200):
        rows[row] = (f"{template} {'janet' if row < 5 else ''} {rows[row][0]}", "", rows[row][2])
    found, _ = search([(f"{template} janet {sentence(rng, 30)}", "", "")], rows)
    assert found == []


def find_parts(
    tests: list[Content], parts: dict[int, list[Content]], weights: Floats | None = None
) -> list[Match]:
    return find_copied_parts(
        tests,
        np.array(sorted(parts)),
        lambda rows: [parts[row] for row in rows.tolist()],
        np.ones(BUCKETS, np.float32) if weights is None else weights,
    )


def test_a_short_question_is_found_among_the_parts_of_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(15)
    asked = [sentence(rng, 8) for _ in range(30)]
    tests = [(each, "", "its answer") for each in asked]

    def told(words: int = 12) -> Content:
        return sentence(rng, words), "", ""

    parts = {row: [told(), told(30), told()] for row in range(0, 200, 2)}
    parts[40][2] = (asked[7].upper() + "?", "", "")
    parts[50][0] = (asked[29], "", "")
    parts[60][1] = (f"{asked[3]} {told(30)[0]}", "", "")
    parts[199] = [(edit(asked[5], 1), "", "")]
    for rows_at_once, questions_at_once in ((1000, 1000), (7, 7)):
        monkeypatch.setattr(contamination, "_ROWS_AT_ONCE", rows_at_once)
        monkeypatch.setattr(contamination, "_QUESTIONS_AT_ONCE", questions_at_once)
        found = find_parts(tests, parts)
        assert [(each.row, each.test) for each in found] == [(40, 7), (50, 29), (199, 5)]
        assert {each.kind for each in found} == {Kind.part}
        assert found[0].found == "similarity 1.00"


def test_what_is_said_in_every_conversation_gives_nothing_away() -> None:
    rng = random.Random(16)
    asked, often = sentence(rng, 8), "Can you go on with that, please?"
    rows = [(f"{sentence(rng, 20)} {often}", "", "") for _ in range(300)]
    weights = shingle_weights(*shingle(rows), np.zeros(len(rows), np.int64))
    parts: dict[int, list[Content]] = {3: [(often, "", "")], 4: [(asked, "", "")]}
    found = find_parts([(often, "", ""), (asked, "", "")], parts, weights)
    assert [(each.row, each.test) for each in found] == [(4, 1)]
    assert find_parts([("Go on.", "", "")], {3: [("Go on.", "", "")]}) == []


def test_only_training_rows_are_found_each_once_with_its_best_test() -> None:
    rng = random.Random(7)
    passage = sentence(rng, 60)
    words = passage.split()
    rows = make_rows(200)
    rows[3] = (sentence(rng, 10), " ".join(words[:40]), "Yes.")
    rows[4] = (sentence(rng, 10), " ".join(words[:40]), "Yes.")
    tests = [
        (f"{' '.join(words[25:60])} {sentence(rng, 9)}", "", ""),
        (f"{sentence(rng, 40)} {' '.join(words[:25])}", "", ""),
        *((question, given, "") for question, given, _ in rows[10:12]),
    ]
    found, _ = search(tests, rows, training=[row for row in range(200) if row not in (4, 11)])
    assert [(match.row, match.test, match.kind) for match in found] == [
        (3, 1, Kind.n_gram),
        (10, 2, Kind.near_copy),
    ]
    assert found[0].found == " ".join(words[:25])


def test_only_rows_with_a_run_s_rarest_word_pair_are_read() -> None:
    rows = make_rows(2000)
    run = rows[55][2]
    found, was_read = search([(f"{run} and more", "", "")], rows)
    assert [match.row for match in found] == [55]
    assert was_read == {55}


def test_a_test_that_many_rows_give_away_is_no_phrase() -> None:
    rng = random.Random(5)
    told, phrase = sentence(rng, 27), sentence(rng, 14)
    rows = make_rows(3000)
    for row in range(15):
        rows[row] = (f"{sentence(rng, 30)} {told} {sentence(rng, 30)}", "", sentence(rng, 5))
        rows[100 + row] = (f"{sentence(rng, 30)} {phrase}", "", sentence(rng, 5))
    tests = [(told, "", ""), (f"{phrase} {sentence(rng, 60)}", "", "")]
    found, _ = search(tests, rows)
    assert [(match.row, match.test) for match in found] == [(row, 0) for row in range(15)]


def test_tests_in_small_batches_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(100)
    tests = [*make_rows(20, seed=9), rows[8], (f"{rows[9][2]} more", "", "")]
    expected = [(8, 20, Kind.near_copy), (9, 21, Kind.n_gram)]
    for size, questions in ((1000, 1000), (7, 1000), (1000, 7), (7, 3)):
        monkeypatch.setattr(contamination, "_TESTS_AT_ONCE", size)
        monkeypatch.setattr(contamination, "_QUESTIONS_AT_ONCE", questions)
        found, _ = search(tests, rows)
        assert [(match.row, match.test, match.kind) for match in found] == expected


@pytest.mark.parametrize("tests", [[], [("", "", "")], [("Too short.", "", "")]])
def test_no_tests_and_tests_without_words_find_nothing(tests: list[Content]) -> None:
    assert search(tests, [*make_rows(30), ("", "", "An answer.")])[0] == []


def test_runs_are_equal_where_13_words_are() -> None:
    words = [str(number) for number in range(14)]
    words_V, text_V = hash_words([" ".join(words), " ".join(words[1:]), " ".join(words[:12])])
    runs, starts = hash_runs(words_V, text_V)
    assert starts.tolist() == [0, 1, 14]
    assert runs[1] == runs[2] != runs[0]


def test_the_longest_run_stands_in_one_field() -> None:
    own = ("one two three", "", "Four, FIVE. six seven eight")
    assert longest_run(own, ("three four five", "zero four five six nine", "")) == "four five six"
