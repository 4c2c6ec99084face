from __future__ import annotations

import pytest

from dollyllama.evaluation.text import fluency, grade, words


@pytest.mark.parametrize(
    ("completion", "reference", "f1"),
    [
        ("Paris", "Paris", 1.0),
        ("paris!", "The Paris.", 1.0),
        ("", "Paris", 0.0),
        ("Paris", "", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),  # nothing but articles on both sides
        ("Rome", "Paris", 0.0),
        # precision 1/2, recall 1: 2 * 0.5 / 1.5
        ("in Paris", "Paris", 2 / 3),
        # precision 2/3, recall 2/4: 2 * (2/3 * 1/2) / (2/3 + 1/2) = 4/7
        ("cats eat fish", "cats eat mice daily", 4 / 7),
        # A word counts as often as in both: 1 shared of 3 and 1.
        ("yes yes yes", "yes", 0.5),
        ("fish eat cats", "cats eat fish", 1.0),  # order does not count
        ("don't", "dont", 1.0),
        ("well-known", "well known", 0.0),  # as SQuAD's script: punctuation goes, nothing comes
        ("Äpfel", "äpfel", 1.0),
    ],
)
def test_f1_is_that_of_squad(completion: str, reference: str, f1: float) -> None:
    assert grade(completion, reference)["f1"] == pytest.approx(f1)
    assert grade(reference, completion)["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("completion", "reference", "rouge_l"),
    [  # values of rouge-score 0.1.2, without stemming
        ("The cat sat on the mat.", "the cat is on a mat", 2 / 3),
        ("yes yes yes", "yes", 0.5),
        ("fish eat cats", "cats eat fish", 1 / 3),
        ("don't", "dont", 0.0),
        ("a_b", "a b", 1.0),
        ("in Paris", "Paris", 2 / 3),
        ("It's 3,000.5 km", "It is 3000 km", 0.4),
        ("", "Paris", 0.0),
        # Here it would cut at what is no ASCII letter, and does not.
        ("Äpfel und Birnen", "äpfel", 0.5),
    ],
)
def test_rouge_l_is_that_of_its_usual_script(
    completion: str, reference: str, rouge_l: float
) -> None:
    assert grade(completion, reference)["rouge_l"] == pytest.approx(rouge_l)


@pytest.mark.parametrize("reference", ["", " \n", "…!"])
def test_a_reference_without_words_has_no_rouge_l(reference: str) -> None:
    assert "rouge_l" not in grade("Paris", reference)


def test_articles_are_words_not_letters() -> None:
    assert words("The theatre, an anthem & a banana") == ["theatre", "anthem", "banana"]


def test_an_answer_that_does_not_repeat_itself_is_diverse() -> None:
    scores = fluency("The cat sat on a mat")
    assert scores == {
        "words": 6.0,
        "distinct_1": 1.0,
        "distinct_2": 1.0,
        "rep_2": 0.0,
        "rep_3": 0.0,
        "rep_4": 0.0,
        "diversity": 1.0,
    }


def test_repetition_is_counted_by_hand() -> None:
    # a b a b a b: pairs ab ba ab ba ab, triples aba bab aba bab, fours abab baba abab
    scores = fluency("a b A b a b")
    assert scores["distinct_1"] == pytest.approx(2 / 6)
    assert scores["distinct_2"] == pytest.approx(2 / 5)
    assert scores["rep_2"] == pytest.approx(3 / 5)
    assert scores["rep_3"] == pytest.approx(2 / 4)
    assert scores["rep_4"] == pytest.approx(1 / 3)
    assert scores["diversity"] == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("", {"words"}),
        ("one", {"words", "distinct_1"}),
        ("one two three", {"words", "distinct_1", "distinct_2", "rep_2", "rep_3"}),
    ],
)
def test_what_an_answer_is_too_short_for_is_absent(answer: str, names: set[str]) -> None:
    assert set(fluency(answer)) == names
