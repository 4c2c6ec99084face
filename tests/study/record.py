"""A made-up study in folders, as sweeps leave them: for the tests of what reads them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dollyllama.config import fingerprint as digest_of
from dollyllama.files import read_json_lines, write_json, write_json_lines, write_text
from tests import run_record

#: Source -> its head score, and one more that its grader gives.
SOURCES = {
    "code": ("parses", "parses"),
    "dolly": ("f1", "rouge_l"),
    "maths": ("exact", "exact_strict"),
    "sql": ("execution", "executes"),
}


def config(**changes: Any) -> dict[str, Any]:
    """The default config; ``lora__r=8`` sets ``lora.r``."""
    values = copy.deepcopy(
        _CONFIG or _CONFIG.update(run_record.config("tracking=files")) or _CONFIG
    )
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    return values


_CONFIG: dict[str, Any] = {}


def example_ids(source: str, count: int) -> list[str]:
    return [f"{number:04d}{source[:2].encode().hex()}00000000"[:16] for number in range(count)]


def losses(
    *, seed: int, shift: float = 0.0, examples: int = 10, noise: float = 0.03
) -> list[dict[str, Any]]:
    """A loss of about 0.5 + ``shift`` a token for so many examples of every source."""
    # What belongs to an example is the same in every cell.
    shared = np.random.default_rng(7)
    own = np.random.default_rng([seed, round(abs(shift) * 1e6), 1 if shift < 0 else 0])
    rows = []
    by_seed = own.normal(0, 0.004)
    for source in SOURCES:
        for row, name in enumerate(example_ids(source, examples)):
            tokens = int(shared.integers(5, 60))
            level = 0.5 * float(shared.lognormal(0, 0.4)) + shift + by_seed
            loss = max(0.0, level + own.normal(0, noise)) * tokens
            rows.append(
                {
                    "phase": "after",
                    "source": source,
                    "id": name,
                    "row": row,
                    "loss": float(loss),
                    "tokens": tokens,
                }
            )
    return rows


def samples(
    *, seed: int, chance: float = 0.5, examples: int = 10, answers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Answers that are right with ``chance``; ``answers`` in place of made-up texts."""
    shared = np.random.default_rng(11)
    own = np.random.default_rng([seed, round(chance * 1e6)])
    rows = []
    for source, (head, other) in SOURCES.items():
        for row, name in enumerate(example_ids(source, examples)):
            hard = float(shared.normal(0, 0.25))
            right = float(own.random() < chance + hard)
            made_up = (
                f"SELECT {source}_{row} FROM table_{'right' if right else 'wrong'} LIMIT {row}"
            )
            text = answers[row % len(answers)] if answers else made_up
            scores = {head: right, other: right, "stops": 1.0, "tokens": 10.0 + row, "rep_2": 0.1}
            rows.append(
                {
                    "phase": "after",
                    "source": source,
                    "id": name,
                    "row": row,
                    "prompt": (
                        "Below is an instruction.\n\n### Instruction:\nShow row "
                        f"{row} of {source}.\n\n### Response:\n"
                    ),
                    "completion": text,
                    "reference": f"SELECT {source}_{row} FROM table_right LIMIT {row}",
                    "scores": {**scores, "diversity": 0.9},
                    "stopped_by": "end_marker",
                    "tokens": 10 + row,
                }
            )
    return rows


def metrics(
    loss_rows: list[dict[str, Any]], sample_rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What ``result.json`` says of them, by plain means."""
    values: dict[str, tuple[float, int]] = {}
    if loss_rows:
        for source in ("all", *SOURCES):
            if own := [row for row in loss_rows if source in ("all", row["source"])]:
                tokens = sum(row["tokens"] for row in own)
                values[f"loss/{source}"] = sum(row["loss"] for row in own) / tokens, len(own)
    if sample_rows:
        heads = []
        for source, (head, _) in SOURCES.items():
            scores = [row["scores"][head] for row in sample_rows if row["source"] == source]
            values[f"{head}/{source}"] = sum(scores) / len(scores), len(scores)
            heads.append(values[f"{head}/{source}"])
        values["score/all"] = (
            sum(mean for mean, _ in heads) / len(heads),
            sum(n for _, n in heads),
        )
    return [
        {"name": name, "value": value, "standard_error": None, "n": n}
        for name, (value, n) in values.items()
    ]


def measure_again(folder: Path) -> None:
    """Let ``result.json`` say what the changed rows of a cell make up."""
    rows = [read_json_lines(folder / f"{name}.jsonl") for name in ("losses", "samples")]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    write_json(folder / "result.json", {**result, "metrics": {"after": metrics(*rows)}})


def write_cell(
    folder: Path,
    *,
    variant: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    shift: float = 0.0,
    chance: float = 0.5,
    examples: int = 10,
    noise: float = 0.03,
    status: str = "finished",
    error: str | None = None,
    fingerprint: str | None = None,
    trained_by: str | None = None,
    answers: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    seconds: float = 60.0,
) -> Path:
    """One cell's folder; without ``variant`` a plain run's, which has no cell.json."""
    finished = status == "finished"
    loss_rows = losses(seed=seed, shift=shift, examples=examples, noise=noise) if finished else []
    sample_rows = (
        samples(seed=seed, chance=chance, examples=examples, answers=answers) if finished else []
    )
    values = {**config(**(settings or {})), "seed": seed}
    write_text(folder / "config.yaml", OmegaConf.to_yaml(values))
    result = run_record.result(status, error)
    result["metrics"] = {"after": metrics(loss_rows, sample_rows)} if finished else {}
    result["seconds"]["evaluate_after"] = 9.0 + seed
    if finished:  # also where it took over another's adapter: the record comes with it
        result["train"] |= {"seconds": seconds + seed, "peak_memory_mib": 800.0 + seconds}
    else:
        result["train"] = None
    write_json(folder / "result.json", result)
    write_json(
        folder / "provenance.json",
        {
            **run_record.provenance(),
            "machine": {"processor": "A Processor", "cores": 2},
            "platform": "Linux x86_64",
            **(provenance or {}),
        },
    )
    write_json(
        folder / "data.json",
        {"sources": {name: {"digests": {f"{name}.gz": "0" * 64}} for name in SOURCES}},
    )
    if finished:
        write_json_lines(folder / "losses.jsonl", loss_rows)
        write_json_lines(folder / "samples.jsonl", sample_rows)
        curve = np.random.default_rng(seed)
        lines = [
            {
                "step": step,
                "train/loss": float(3 / (1 + step / 4) + 0.4 + shift + curve.normal(0, 0.02)),
            }
            for step in range(2, 49, 2)
        ]
        if trained_by is None:
            write_json_lines(folder / "metrics.jsonl", lines)
        write_text(folder / "adapter" / "adapter_model.safetensors", "x" * 4096)
    if variant is not None:
        write_json(
            folder / "cell.json",
            {
                "variant": variant,
                "seed": seed,
                "fingerprint": fingerprint or _fingerprint(variant, seed),
                "overrides": [f"ablation={variant}", f"seed={seed}"],
                "training": _training(values),
                "trained_by": trained_by,
                "reused_from": None,
            },
        )
    return folder


def _training(values: Mapping[str, Any]) -> str:
    """Equal for cells that differ in what comes after training alone."""
    return digest_of({k: v for k, v in values.items() if k not in ("decoding", "evaluation")})


def _fingerprint(variant: str, seed: int) -> str:
    return f"{variant.encode().hex()}{'0' * 16}"[:15] + str(seed)


def write_sweep(
    folder: Path,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **plan: Any,
) -> Path:
    """A sweep's folder: each variant with its keywords of ``write_cell``, under every seed."""
    cells = []
    for variant, keywords in variants.items():
        for seed in seeds:
            name = f"{variant}.seed_{seed}"
            cells.append(
                {
                    "folder": name,
                    "variant": variant,
                    "seed": seed,
                    "fingerprint": _fingerprint(variant, seed),
                    "overrides": [f"ablation={variant}", f"seed={seed}"],
                }
            )
            write_cell(folder / name, variant=variant, seed=seed, **keywords)
    write_json(
        folder / "sweep.json",
        {
            "command": ["sweep.py", "sweep=tips"],
            "baseline": "baseline",
            "seeds": list(seeds),
            "primary": "loss/all",
            "answers_primary": "score/all",
            "relevant": 0.02,
            "tips": {},
            "budget": "48 steps of 8 rows",
            "cells": cells,
            "left_out": {},
            **plan,
        },
    )
    return folder
