"""A made-up record of a run, as dicts and as a folder, for the tests that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dollyllama.config import Run
from dollyllama.files import write_json, write_json_lines, write_text

CONF = Path(__file__).parents[1] / "conf"


def config(*overrides: str) -> dict[str, Any]:
    """The default config with ``overrides``, composed from ``conf/`` alone, as plain values."""
    ConfigStore.instance().store("schema", Run)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", overrides=list(overrides))
    values = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def data(root: str | None = "embedded") -> dict[str, Any]:
    def rows(trained: int, evaluated: int) -> dict[str, Any]:
        counts = {"read": 120, "trained": trained, "evaluated": evaluated}
        sides = {"train": {"tokens": 9000, "supervised": 4000}, "held_out": {"tokens": 500}}
        return {"rows": counts, "rejected": {"empty_response": 3, "duplicate": 2}, "tokens": sides}

    sources = {
        "sql": {
            "upstream": "b-mc2/sql-create-context",
            "licence": {
                "name": "CC-BY-4.0",
                "stated_at": "https://example.org/card | page",
                "commercial": "allowed",
            },
            **rows(100, 15),
        },
        "maths": {
            "upstream": "openai/gsm8k:main",
            "licence": {
                "name": "MIT",
                "stated_at": "https://example.org/LICENSE",
                "commercial": "allowed",
            },
            **rows(101, 14),
        },
    }
    return {"settings": {"root": root}, "sources": sources, "total": rows(201, 29)}


def metric(name: str, value: float | None, error: float | None = 0.01) -> dict[str, Any]:
    return {"name": name, "value": value, "standard_error": error, "n": 40}


def result(status: str = "finished", error: str | None = None) -> dict[str, Any]:
    return {
        "status": status,
        "error": error,
        "metrics": {
            "before": [metric("loss/sql", 3.25), metric("exact/sql", 0.0)],
            "after": [metric("loss/sql", 0.5), metric("exact/sql", 0.425, 0.078)],
        },
        "train": {
            "steps": 300,
            "tokens": 123456,
            "supervised_tokens": 65432,
            "seconds": 61.0,
            "tokens_per_second": 2023.9,
            "peak_memory_mib": 812.3,
            "loss": 0.7,
        },
        "seconds": {"prepare": 1.0, "load": 2.0, "train": 61.0, "total": 83.4},
        "parameters": {"trainable": 250_000, "total": 5_000_000},
    }


def provenance() -> dict[str, Any]:
    return {
        "started": "2026-11-24T10:00:00+00:00",
        "code": {"version": "0.1.0", "commit": "c0ffee", "dirty": True, "digest": "d"},
        "packages": {"torch": "2.13.0", "peft": "0.21.2"},
        "python": "3.11.7",
        "device": {"type": "cpu", "name": "A Processor"},
    }


def metrics() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": 0, "loss/sql": 3.25, "loss/maths": 3.5}]
    lines += [{"step": step, "train/loss": 3 / step} for step in range(1, 301)]
    return [*lines, {"step": 300, "loss/sql": 0.5, "loss/maths": 0.6}]


def sample(source: str, completion: str) -> dict[str, Any]:
    return {
        "source": source,
        "prompt": "Below is an instruction.",
        "completion": completion,
        "reference": "SELECT 1",
        "scores": {"exact": 1.0},
    }


def write(folder: Path, **changes: Any) -> Path:
    """Write the whole record; ``changes`` replace the contents of result, data or config."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(changes.get("config") or config()))
    write_json(folder / "data.json", changes.get("data") or data())
    write_json(folder / "result.json", changes.get("result") or result())
    write_json(folder / "provenance.json", provenance())
    write_json_lines(folder / "metrics.jsonl", metrics())
    write_json_lines(
        folder / "samples.jsonl", [sample("sql", "early"), sample("sql", "late answer")]
    )
    return folder
