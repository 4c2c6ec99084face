"""What can become of a cell's process; functions that a fork finds by their names."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def write_result(folder: Path, status: str, error: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "weights").write_text(f"{os.getpid()}", encoding="utf-8")
    loss = {"phase": "after", "source": "sql", "id": "0", "row": 0, "loss": 0.5, "tokens": 1}
    (folder / "losses.jsonl").write_text(json.dumps(loss) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    metric = {"name": "loss/all", "value": 0.5, "standard_error": None, "n": 1}
    values = {"status": status, "error": error, "metrics": {"after": [metric]}}
    text = json.dumps({**values, "train": None, "parameters": {}, "seconds": {"total": 1.0}})
    (folder / "result.json").write_text(text, encoding="utf-8")


def finish(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    print("it finished")
    write_result(folder, "finished")


def say_environment(variable: str) -> None:
    print(os.environ.get(variable), file=sys.stdout)


def raise_at_once(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    raise ValueError("no such thing")


def raise_and_record(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    write_result(folder, "diverged", "Diverged: the loss is nan")
    raise ValueError("the loss is nan")


def eat_memory(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    import resource

    write_result(folder, "running")
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    bytearray(2**34)


def die_at_once(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_itself(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    write_result(folder, "running")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    write_result(folder, "running")
    time.sleep(600)


def hang_and_save(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    write_result(folder, "running")
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        write_result(folder, "interrupted")


def crash(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    import ctypes

    write_result(folder, "running")
    ctypes.string_at(0)


def note_training(run: Any, folder: Path, trained: Path | None, *_: object) -> None:
    write_result(folder, "finished")
    (folder / "trained").write_text(str(trained), encoding="utf-8")
