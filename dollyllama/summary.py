"""A run folder told on one screen, from its files alone: no torch, no Hydra, no model.

Works while the run is going on and after it failed: what is not there yet is left out.
"""

from __future__ import annotations

import json
import shlex
import textwrap
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dollyllama import record
from dollyllama.card import config_rows
from dollyllama.config import read
from dollyllama.evaluation.metric import Metric
from dollyllama.evaluation.table import compare_table
from dollyllama.explain import one_line
from dollyllama.files import parse_json, read_signed_json

#: A run that says "running" and has written nothing for so long has probably been killed.
SILENT_SECONDS = 600

#: The parts of a run that are timed, in their order.
_PARTS = ("prepare", "load", "evaluate_before", "train", "evaluate_after")
_SAMPLES = 2
_SAMPLE_CHARACTERS = 400


def summary(folder: Path) -> str:
    """Describe the run in ``folder``: status, settings, data, metrics, cost, samples, what next.

    ValueError in one line when ``folder`` is no run folder or a file in it is damaged.
    """
    config = read_config(folder)
    record.check(folder)
    try:
        return _told(folder, config)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {one_line(str(error))}"
        raise ValueError(f"a file of the record in {folder} is damaged ({what})") from None


def _told(folder: Path, config: dict[str, Any]) -> str:
    result = _read_json(folder / "result.json")
    data = _read_json(folder / "data.json")
    status, error = _status(folder, result)
    parts = [f"{folder}: {status}" + (f"\n{error}" if error else ""), columns(config_rows(config))]
    if data:
        parts.append(_data(data))
    metrics = result.get("metrics", {}) if result else {}
    if any(metrics.values()):
        primary = config.get("evaluation", {}).get("primary")
        before = _metrics(metrics["before"]) if "before" in metrics else None
        parts.append(compare_table(before, _metrics(metrics.get("after", [])), primary=primary))
    cost = cost_rows(result or {})
    if not (result or {}).get("train"):
        cost = [*_progress(folder), *cost]
    if cost:
        parts.append(columns(cost))
    parts += _samples(folder)
    mirror = config.get("tracking", {}).get("mirror")
    status = result["status"] if result else "running"
    parts.append("\n".join(next_commands(folder, status, mirror)))
    return "\n\n".join(parts)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml`` as plain values.

    It is not checked against this machine: a run made with CUDA can be read anywhere.
    ValueError when ``folder`` is no run folder or the file is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        what = "is no run folder: it has no config.yaml" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}; `python train.py` prints the folder of its run")
    values = OmegaConf.to_container(read(path))
    if not isinstance(values, dict) or not {"model", "lora", "trainer", "data"} <= values.keys():
        raise ValueError(f"{path} is no config of a run: it lacks model, lora, trainer or data")
    return {str(key): value for key, value in values.items()}


def next_commands(folder: Path, status: str, mirror: str | None = None) -> list[str]:
    """The command lines that a reader of this run may want next."""
    run = shlex.quote(str(folder))
    if status == "finished":
        return [
            f"evaluate:  python -m dollyllama evaluate {run}",
            f"generate:  python -m dollyllama generate {run} --instruction TEXT",
            f"merge:     python -m dollyllama merge {run} --output DIR",
            f"look at:   python -m dollyllama show {run}",
        ]
    if status == "diverged":
        return [f"look at:   {folder / 'config.yaml'} (a resumed run would diverge again)"]
    return [
        f"resume:    {record.resume_command(folder, mirror)}",
        f"look at:   {folder / 'config.yaml'}",
    ]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return read_signed_json(path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON Lines, less a last line that is still being written."""
    if not path.exists():
        return []
    lines = []
    try:
        texts = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))[:200]}") from None
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(parse_json(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}") from None
    return lines


def _status(folder: Path, result: dict[str, Any] | None) -> tuple[str, str | None]:
    status = result["status"] if result else "running"
    if status != "running":
        seconds = (result or {}).get("seconds", {}).get("total")
        return status + (f" in {_duration(seconds)}" if seconds else ""), (result or {})["error"]
    files = [folder / name for name in ("metrics.jsonl", "result.json", "data.json", "config.yaml")]
    last = max(file.stat().st_mtime for file in files if file.exists())
    silent = max(0.0, time.time() - last)
    if silent > SILENT_SECONDS:
        return f"stopped without a result: nothing written for {_duration(silent)}", None
    return f"running, last written {_duration(silent)} ago", None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def columns(rows: list[tuple[str, str]]) -> str:
    """Labels and texts in two columns."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:{width}}  {text}" for label, text in rows)


def _data(data: dict[str, Any]) -> str:
    header = ("source", "read", "rejected", "training", "held out", "tokens", "with loss")
    rows = [
        (
            name,
            about["rows"]["read"],
            sum(about["rejected"].values()),
            about["rows"]["trained"],
            about["rows"]["evaluated"],
            about["tokens"]["train"]["tokens"],
            about["tokens"]["train"]["supervised"],
        )
        for name, about in [*sorted(data["sources"].items()), ("total", data["total"])]
    ]
    cells = [header, *((name, *(f"{number:,}" for number in rest)) for name, *rest in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join(
        f"{line[0]:{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in cells
    )


def _metrics(rows: list[dict[str, Any]]) -> list[Metric]:
    return [Metric(**row) for row in rows if row["value"] is not None]


def cost_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What a run took, from the contents of its ``result.json``: labels and short texts."""
    rows = []
    if parameters := result.get("parameters"):
        share = parameters["trainable"] / parameters["total"]
        rows.append(
            ("trainable", f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2%})")
        )
    if train := result.get("train"):
        expected = result.get("expected_memory_mib")
        told = f" (estimated {expected:,.0f})" if expected else ""
        rows += [
            (
                "training",
                (
                    f"{train['steps']:,} steps, {train['tokens']:,} tokens in "
                    f"{_duration(train['seconds'])}, {train['tokens_per_second']:,.0f} tokens/s"
                ),
            ),
            ("peak memory", f"{train['peak_memory_mib']:,.0f} MiB{told}"),
        ]
    seconds = result.get("seconds", {})
    if spent := [f"{_spaced(part)} {seconds[part]:.0f}" for part in _PARTS if part in seconds]:
        rows.append(("seconds", ", ".join(spent)))
    return rows


def _progress(folder: Path) -> list[tuple[str, str]]:
    """How far a run has come that has not written yet what it took."""
    lines = [line for line in _read_lines(folder / "metrics.jsonl") if "train/loss" in line]
    if not lines:
        return []
    return [("training", f"step {lines[-1]['step']:,}, loss {lines[-1]['train/loss']}")]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _samples(folder: Path) -> list[str]:
    """The last sample of each of the first few sources."""
    latest = {sample["source"]: sample for sample in _read_lines(folder / "samples.jsonl")}
    shown = []
    for source in sorted(latest)[:_SAMPLES]:
        sample = latest[source]
        scores = ", ".join(f"{name} {value:g}" for name, value in sample["scores"].items())
        texts = [
            textwrap.indent(f"{label}:\n{_shorten(sample[label])}", "  ")
            for label in ("prompt", "completion", "reference")
        ]
        shown.append("\n".join([f"sample of {source} ({scores})", *texts]))
    return shown


def _shorten(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else f"… {text[-_SAMPLE_CHARACTERS:]}"
