"""Whatever is typed: a config that can be run, or one line that says why not."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dollyllama import config, launch, preflight
from dollyllama.summary import read_config
from tests.test_launch import HEAVY

#: Every key of the config, and every group.
DEFAULT = launch.compose_run([])
KEYS = sorted(dict(config.leaves(asdict(DEFAULT)))) + launch.groups()
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


def told(error: BaseException, given: Any) -> str:
    """The line that tells of an error."""
    line = launch.describe(error)
    assert line.strip(), given
    assert "\n" not in line, (given, line)
    assert not re.search(r"Traceback|object at 0x|<class '", line), (given, line)
    return line


def judge(build: Callable[[], config.Run], given: Any, name: str = "") -> str:
    """What becomes of a config: "runs", or the line that refuses it.

    name: what the line holds where the config itself is at fault, not what it asks of this machine.
    Nothing heavy is imported on the way, which is what would take more than a second.
    """
    with mock.patch.dict(sys.modules, dict.fromkeys(HEAVY)):  # importing them is an ImportError
        run = None
        try:
            run = build()
            preflight.check(run)
        except ValueError as error:
            line = told(error, given)
            assert run is not None or name in line, (given, line)
            return line
    assert isinstance(run, config.Run)
    return "runs"


def of_overrides(overrides: list[str]) -> str:
    return judge(lambda: launch.compose_run(overrides), overrides)


# --- files --------------------------------------------------------------------------------------

#: Lines that are odd YAML, or none.
ODD = (
    *("? [a, b]", "- 1", "---", "...", "%YAML 9.9", "\tseed: 1", "seed: 1: 2", "'", "seed: |", "{"),
    *(
        "seed: !!bool maybe",
        "seed: !!timestamp x",
        "seed: !!int x",
        "seed: !!float x",
        "a: !!set {b}",
    ),
    *("seed: 2001-99-99", "seed: 0o8", "seed: 1:99:99", "seed: .inf", "seed: 1e400", "!x seed: 1"),
    *("seed: &a [*a]", "<<: *a", "lora: &l {r: 1}\ntrainer: *l", "seed: !!python/name:os.system"),
    *("? {a: 1}\n: 2", "null: 1", "1: 2", "true: 1", "[]: 1", "\x00", "\ufeff", "seed: \x85", "#"),
    *("a: " + "[" * depth + "]" * depth for depth in (40, 60, 90, 120, 400, 2000)),
    # Doubled ten times: with thirty lines more it would not end.
    "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(10)),
)
EDIT = st.tuples(
    KEY, st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=12)
) | st.tuples(st.just(""), st.sampled_from(ODD))
EDITS = st.lists(EDIT, min_size=1, max_size=3)


def edited(values: dict[str, Any], edits: list[tuple[str, Any]]) -> str:
    """YAML of ``values`` after edits: a value for a key, or a line of text without one."""
    lines = []
    for key, value in edits:
        if not key:
            lines.append(value)
            continue
        *sections, last = key.lstrip("+~").split(".")
        place = values
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[last] = value
    # Plain scalars are what a hand would type: "1e-4x" is text, "1" a number.
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10**6)
    return "\n".join([re.sub(r": '(.*)'$", r": \1", text, flags=re.MULTILINE), *lines])


def of_run_file(folder: Path, text: str) -> str:
    """A config.yaml that was edited: the verbs and ``show`` read it."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with suppress(ValueError):
        read_config(folder)
    return judge(lambda: config.load(path), text, name=str(path))


def of_experiment(folder: Path, text: str) -> str:
    """An experiment of the user's own."""
    path = folder / "experiment" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# @package _global_\n{text}\n", encoding="utf-8", errors="surrogatepass")
    overrides = [f"hydra.searchpath=[file://{folder}]", "experiment=mine"]
    return judge(lambda: launch.compose_run(overrides), text)


def of_files(folder: Path, edits: list[tuple[str, Any]]) -> list[str]:
    whole = OmegaConf.to_container(OmegaConf.structured(DEFAULT), enum_to_str=True)
    return [of_run_file(folder, edited(whole, edits)), of_experiment(folder, edited({}, edits))]


COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


LIST = st.lists(OVERRIDE, min_size=1, max_size=3)


@seed(0)
@settings(max_examples=30, **COMMON)
@given(LIST)
def test_overrides_run_or_are_refused_in_one_line(overrides: list[str]) -> None:
    of_overrides(overrides)


FAILED_ONCE = (
    "data.loss_roles.loss_roles=0",
    *(f"{key}={'a' * 256}" for key in ("data.sources.sql.path", "data.root", "model.path")),
    f"data.sources.sql.path={'aa/' * 1400}",
)


@pytest.mark.parametrize("override", FAILED_ONCE, ids=lambda override: override[:30])
def test_an_override_that_once_failed_is_refused_in_one_line(override: str) -> None:
    assert of_overrides([override]) != "runs"


@seed(0)
@settings(max_examples=15, **COMMON)
@given(EDITS)
def test_edited_files_run_or_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, Any]]
) -> None:
    of_files(tmp_path_factory.mktemp("edited"), edits)


@pytest.mark.parametrize("line", ODD)
def test_odd_yaml_is_refused_in_one_line(tmp_path: Path, line: str) -> None:
    """Among them are those that once gave a traceback, or would not end."""
    of_files(tmp_path, [("", line)])


@pytest.mark.slow
def test_two_thousand_overrides_and_files_run_or_are_refused_in_one_line(tmp_path: Path) -> None:
    counts: dict[str, Counter[str]] = {"overrides": Counter(), "config.yaml": Counter()}
    counts["experiment"] = Counter()

    def note(what: str, line: str) -> None:
        counts[what]["runs" if line == "runs" else "refused"] += 1

    @settings(max_examples=2000, **COMMON)
    @given(LIST)
    def overrides(drawn: list[str]) -> None:
        note("overrides", of_overrides(drawn))

    @settings(max_examples=500, **COMMON)
    @given(EDITS)
    def files(drawn: list[tuple[str, Any]]) -> None:
        for what, line in zip(
            ("config.yaml", "experiment"), of_files(tmp_path, drawn), strict=True
        ):
            note(what, line)

    overrides()
    print(counts)  # pytest -rP shows it
    files()
    print(counts)
    assert sum(map(Counter.total, counts.values())) >= 3000
    assert all(each["runs"] and each["refused"] for each in counts.values())


#: Sizes of a run that takes seconds, whatever else was drawn.
SMOKE = (
    *("tracking=files", "device=cpu", "data.max_rows=64", "data.held_out=0.1"),
    *("trainer.epochs=null", "trainer.max_tokens=null", "trainer.max_seconds=null"),
    *("trainer.max_steps=2", "trainer.accumulation=1", "trainer.batch_size=2"),
    *("evaluation.loss_examples=4", "evaluation.generate_examples=1", "evaluation.answers=1"),
    "decoding.max_new_tokens=4",
)
RUNS = 40


@pytest.mark.slow
def test_forty_drawn_configs_that_are_fit_to_run_run_in_smoke_size(tmp_path: Path) -> None:
    from dollyllama.run import run
    from dollyllama.training.fit import Diverged

    ends: Counter[str] = Counter()

    @seed(1)
    @settings(max_examples=4000, phases=[Phase.generate], **COMMON)
    @given(LIST)
    def runs(drawn: list[str]) -> None:
        if ends.total() == RUNS or of_overrides(drawn) != "runs":
            return
        try:
            chosen = launch.compose_run([*drawn, *SMOKE])
            preflight.check(chosen)
        except ValueError:
            return  # what was drawn and the sizes contradict each other
        try:
            ends[run(chosen, tmp_path / str(ends.total())).status] += 1
        except (Diverged, ValueError, OSError) as error:
            print(f"{drawn}: {told(error, drawn)}")
            ends["ended in one line"] += 1

    runs()
    print(ends)
    assert ends["finished"] + ends["ended in one line"] == RUNS
    assert ends["finished"] > RUNS / 2
