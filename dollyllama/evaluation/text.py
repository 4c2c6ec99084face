"""How many words an answer shares with the reference."""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and English articles (SQuAD's normalisation)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def grade(completion: str, reference: str) -> dict[str, float]:
    """Score a free answer: ``f1``, the harmonic mean of precision and recall over words.

    As in SQuAD's evaluation script: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; words
    count as often as they occur. It rewards saying the same in the same words, nothing deeper.
    """
    said, wanted = words(completion), words(reference)
    if not said or not wanted:
        return {"f1": float(said == wanted)}
    shared = sum((Counter(said) & Counter(wanted)).values())
    return {"f1": 2 * shared / (len(said) + len(wanted))}
