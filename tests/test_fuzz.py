"""Whatever is typed: a config that can be run, or one line that says why not."""

from __future__ import annotations

import random
import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dollyllama import config, launch, preflight

#: Every key of the config, and every group.
KEYS = sorted(dict(config.leaves(asdict(launch.compose_run([]))))) + launch.groups()
OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(launch.CONF.glob("*/*.yaml"))
    if path.parent.name != "hydra"
]
VALUES = [
    *("0", "1", "-1", "2", "8", "16", "0.1", "0.5", "1.5", "1e-4", "1e-4x", "1e999", "-0.0", "nan"),
    *("inf", "true", "false", "null", "none", "auto", "cpu", "cuda", "", "''", '"a b"', "~", "???"),
    *("adamw", "nf4", "packed", "float32", "bfloat16", "greedy", "contrastive", "1_000", "0x10"),
    *(
        "[]",
        "[1]",
        "[a,b]",
        "{}",
        "{a:1}",
        "{a:{b:[1,2]}}",
        "[[",
        "}",
        "a,b",
        "1,2",
        "a=b",
        "$",
        "\\",
    ),
    *("${oc.env:HOME}", "${seed}", "${nowhere}", "${", "é", "中文", "\u2028", "\t", "a" * 500),
    *("99999999999999999999", "../../etc/passwd", "/dev/null", "/", ".", "https://x.y/z", "q_proj"),
]


def mutated(key: str, how: int) -> str:
    """A key as a hurried hand types it."""
    draw = random.Random(how)
    place = draw.randrange(len(key))
    return draw.choice(
        [
            key[:place] + key[place + 1 :],
            key[:place] + draw.choice("abcxyz._-") + key[place:],
            key[:place] + key[place:].swapcase(),
            f"{key}.{key.rpartition('.')[2]}",
            key.rpartition(".")[2],
            f"+{key}",
            f"++{key}",
            f"~{key}",
        ]
    )


KEY = st.sampled_from(KEYS) | st.builds(mutated, st.sampled_from(KEYS), st.integers(0, 10**6))
OVERRIDE = (
    st.sampled_from(OPTIONS)
    | st.builds("{}={}".format, KEY, st.sampled_from(VALUES))
    | st.builds("{}={}".format, KEY, st.integers() | st.floats() | st.text(max_size=12))
    | st.text(max_size=20)
)


def judge(overrides: list[str]) -> str:
    """What becomes of an override: "runs", or the line that refuses it."""
    try:
        run = launch.compose_run(overrides)
        preflight.check(run)
    except ValueError as error:
        line = launch.describe(error)
        assert line.strip(), overrides
        assert "\n" not in line, (overrides, line)
        assert not re.search(r"Traceback|object at 0x|<class '", line), (overrides, line)
        return line
    assert isinstance(run, config.Run)
    return "runs"


COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@seed(0)
@settings(max_examples=150, **COMMON)
@given(st.lists(OVERRIDE, min_size=1, max_size=3))
def test_overrides_run_or_are_refused_in_one_line(overrides: list[str]) -> None:
    judge(overrides)


@pytest.mark.slow
@settings(max_examples=2000, **COMMON)
@given(st.lists(OVERRIDE, min_size=1, max_size=3))
def test_two_thousand_overrides_run_or_are_refused_in_one_line(overrides: list[str]) -> None:
    judge(overrides)
