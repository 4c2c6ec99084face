from __future__ import annotations

import pytest

from dollyllama.evaluation.text import grade, words


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


def test_articles_are_words_not_letters() -> None:
    assert words("The theatre, an anthem & a banana") == ["theatre", "anthem", "banana"]
