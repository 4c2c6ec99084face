"""How many words an answer shares with the reference, and how much it repeats itself."""

from __future__ import annotations

import re
import string
from collections import Counter

from rapidfuzz.distance import LCSseq

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ROUGE_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and English articles (SQuAD's normalisation)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def grade(completion: str, reference: str) -> dict[str, float]:
    """Score a free answer by the words that it shares with the reference.

    f1: the harmonic mean of precision and recall over words, in any order; as in SQuAD's evaluation
    script: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; words count as often as they
    occur. rouge_l: the same over the longest common subsequence, so that order counts (Lin 2004,
    ROUGE, section 3.1, with equal weights, without stemming). They reward saying the same in the
    same words, nothing deeper. An empty answer scores 0; where the reference has no words,
    ``rouge_l`` is absent and ``f1`` asks for none.
    """
    said, wanted = words(completion), words(reference)
    if not said or not wanted:
        scores = {"f1": float(said == wanted)}
    else:
        shared = sum((Counter(said) & Counter(wanted)).values())
        scores = {"f1": 2 * shared / (len(said) + len(wanted))}
    # ROUGE cuts otherwise: at whatever is neither letter nor digit, articles kept.
    said, wanted = _ROUGE_WORD.findall(completion.lower()), _ROUGE_WORD.findall(reference.lower())
    if wanted:
        scores["rouge_l"] = 2 * LCSseq.similarity(said, wanted) / (len(said) + len(wanted))
    return scores


def fluency(completion: str) -> dict[str, float]:
    """Say without a reference how long an answer is and how much it repeats itself.

    words: how many, cut at white space. distinct_n: the share of different n-grams among all of its
    n-grams of words (Li et al. 2016, arXiv:1510.03055, section 5.2, of one answer); rep_n: one less
    that; diversity: the product of 1 - rep_n over n = 2, 3, 4 (Su et al. 2022, arXiv:2202.06417,
    section 4.2). Absent where the answer is too short to have n-grams.
    """
    cut = completion.lower().split()
    distinct = {n: _distinct(cut, n) for n in (1, 2, 3, 4)}
    scores = {"words": float(len(cut))}
    scores |= {f"distinct_{n}": share for n in (1, 2) if (share := distinct[n]) is not None}
    scores |= {f"rep_{n}": 1 - share for n in (2, 3, 4) if (share := distinct[n]) is not None}
    if (last := distinct[4]) is not None:
        assert distinct[2] is not None  # four words have pairs
        assert distinct[3] is not None
        scores["diversity"] = distinct[2] * distinct[3] * last
    return scores


def _distinct(cut: list[str], n: int) -> float | None:
    grams = list(zip(*(cut[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None
