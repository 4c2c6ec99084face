"""W&B's transaction log of an offline run, read without W&B's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_records(folder: Path) -> list[Any]:
    """The records of the one offline run in ``folder``."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read_log(path)


def read_log(path: Path) -> list[Any]:
    """The records of a log.

    They are in LevelDB's log format, after a header of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, part, place = [], b"", 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # The rest of a block too short for a record's header.
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def read_run(records: list[Any]) -> Any:
    """What the run was started with."""
    return next(record.run for record in records if record.HasField("run"))


def read_config(records: list[Any]) -> dict[str, Any]:
    return {item.key: json.loads(item.value_json) for item in read_run(records).config.update}


def read_history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {_name(item): _value(item) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def read_summary(records: list[Any]) -> dict[str, Any]:
    """What the summary was set to by the program; W&B adds the last of the history."""
    return {
        _name(item): _value(item)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }


def read_artifacts(records: list[Any], kind: str) -> list[Any]:
    """The artefacts of a type; W&B makes some of tables by itself."""
    return [
        record.artifact
        for record in records
        if record.HasField("artifact") and record.artifact.type == kind
    ]


def _name(item: Any) -> str:
    return "/".join(item.nested_key) or str(item.key)


def _value(item: Any) -> Any:
    return json.loads(item.value_json) if item.value_json else None
