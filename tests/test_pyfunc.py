"""What a caller of an exported model may choose, and the input that it takes."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from dollyllama.config import Decoding, PromptFormat, Strategy
from dollyllama.pyfunc import Answers, choose

NOTHING = dict.fromkeys(("temperature", "top_p", "repetition_penalty", "alpha", "k", "q"))


def decoding(strategy: str, **values: Any) -> Decoding:
    return Decoding(**{"strategy": Strategy(strategy), "max_new_tokens": 9, **NOTHING, **values})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, decoding("contrastive", alpha=0.5, k=4)),
        ({"k": 6}, decoding("contrastive", alpha=0.5, k=6)),
        ({"strategy": "contrastive", "k": 6}, decoding("contrastive", alpha=0.5, k=6)),
        ({"strategy": "greedy"}, decoding("greedy")),
        ({"strategy": "greedy", "max_new_tokens": 3}, decoding("greedy", max_new_tokens=3)),
        (
            {"strategy": "nucleus", "temperature": 0.7, "top_p": 0.9},
            decoding("nucleus", temperature=0.7, top_p=0.9),
        ),
    ],
)
def test_what_is_not_given_is_the_runs_unless_another_strategy_has_no_use_for_it(
    given: dict[str, Any], expected: Decoding
) -> None:
    assert choose(decoding("contrastive", alpha=0.5, k=4), given) == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"strategy": "beam"}, "strategy=beam: there are greedy, temperature"),
        ({"strategy": "contrastive", "k": 4}, "decoding.alpha is needed"),
        ({"alpha": 0.5}, "decoding.alpha=0.5 has no effect with decoding.strategy=greedy"),
    ],
)
def test_what_contradicts_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        choose(decoding("greedy"), given)


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (pd.DataFrame({"id": ["Name a bird."]}), "the first column is id: name it instruction"),
        (pd.DataFrame(["Name a bird.", " "]), "instruction 1 is empty"),
    ],
)
def test_input_that_is_no_instruction_is_refused(frame: pd.DataFrame, line: str) -> None:
    answers = Answers(
        None, None, prompt=PromptFormat.alpaca, decoding=decoding("greedy"), batch_size=1, seed=0
    )
    with pytest.raises(ValueError, match=line):
        answers.predict(frame)
