"""The shape that the files of a study must have for the rest to read them without asking again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Any name: a section of what somebody else has named.
_ANY = "*"

#: What a study is judged by, in a plan and as it was at first.
_JUDGING: Mapping[str, Any] = {
    "baseline": str,
    "primary": str,
    "answers_primary": str,
    "relevant": float,
    "tips": {_ANY: str},
    "better": {_ANY: str},
}

#: File -> the values that are read from it. Those with a ``!`` must be there, others may be absent
#: or null; but rows have all of their keys. ``float`` takes whole numbers too.
_SHAPES: dict[str, Mapping[str, Any]] = {
    "config.yaml": {
        "seed": int,
        "lora!": {},
        "trainer!": {},
        "model": {"path": str},
        "evaluation!": {"primary": str},
        "data!": {"sources!": {_ANY: {"grader": str}}},
    },
    "result.json": {
        "files": {_ANY: str},
        "train": {
            "seconds": float,
            "tokens": float,
            "tokens_per_second": float,
            "peak_memory_mib": float,
        },
        "seconds": {"evaluate_after": float},
        "metrics": {"after": [{"name!": str, "value": float, "n!": int}]},
    },
    "provenance.json": {
        "code": {},
        "device": {},
        "machine": {},
        "packages": {},
        "base_model": {"files": {_ANY: {}}},
    },
    "data.json": {"sources": {_ANY: {"digests": {}}}},
    "cell.json": {
        "variant": str,
        "seed": int,
        "fingerprint": str,
        "training": str,
        "trained_by": str,
        "reused_from": str,
    },
    "sweep.json": {
        "command": [str],
        **_JUDGING,
        "left_out": {_ANY: str},
        "factors": [str],
        "budget": str,
        "judged_first": {**_JUDGING, "seeds": [int]},
        "cells!": [{"folder!": str, "variant!": str, "seed!": int}],
    },
}

_CALLED = {str: "text", int: "a whole number", float: "a number"}


def check_shape(file: str, values: Mapping[str, Any]) -> None:
    """ValueError, in one line, for values that the file of this name cannot hold."""
    _check(values, _SHAPES[file], "")


def _check(value: Any, shape: Any, place: str) -> None:
    if isinstance(shape, type):
        wanted = (int, float) if shape is float else shape
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{place} must be {_CALLED[shape]}, and is {_brief(value)}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list, and is {_brief(value)}")
        for number, row in enumerate(value):
            own = f"{place}[{number}]"
            _check(row, shape[0], own)
            for key in shape[0] if isinstance(shape[0], dict) else ():
                if key.rstrip("!") not in row:
                    raise ValueError(f"{own} lacks {key.rstrip('!')}")
    else:
        if not isinstance(value, dict):
            raise ValueError(f"{place} must have keys and values, and is {_brief(value)}")
        for key, inner in shape.items():
            name = key.rstrip("!")
            if key == _ANY:
                for own, each in value.items():
                    _check(each, inner, f"{place}.{own}")
            elif value.get(name) is not None:
                _check(value[name], inner, f"{place}.{name}".lstrip("."))
            elif name != key:
                raise ValueError(f"{place}.{name} is missing".lstrip("."))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]} …"
