"""``plan``: the memory that a run takes, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

from dollyllama import config, launch, preflight, remote
from dollyllama.files import parse_json
from dollyllama.summary import columns
from dollyllama.verbs.parser import parser

_MIB = 2**20
#: What a GPU's driver and libraries take of it before any tensor does.
_CONTEXT = 512 * _MIB
#: Estimates are good to about a tenth: a batch fits when that much is left.
_SPARE = 1.1
#: A larger batch is not looked for: no recipe has one, and trying it takes long.
_MOST_ROWS = 512


def main(arguments: Sequence[str]) -> None:
    """tell the memory of a run before it starts, part by part, and the largest batch that fits"""
    command = parser("plan", main.__doc__)
    command.add_argument(
        "run",
        nargs="*",
        metavar="RUN or OVERRIDE",
        help="a run folder, overrides as for train.py, or both: lora.r=8 trainer.batch_size=4",
    )
    command.add_argument(
        "--gpu", type=float, metavar="GIB", help="as on a GPU of so many GiB, also without one"
    )
    given = command.parse_intermixed_args(arguments)
    if given.gpu is not None and not 0 < given.gpu < float("inf"):
        raise ValueError(f"--gpu must be a number of GiB above 0, not {given.gpu:g}")
    with ExitStack() as during:
        if given.gpu is not None:  # what a config may ask for depends on there being one
            during.enter_context(mock.patch.object(config, "cuda_is_available", return_value=True))
        folder, run_config = _open(given.run)
    preflight.check(run_config)

    from dollyllama.model.load import load_tokenizer
    from dollyllama.restore import choose_device
    from dollyllama.training.memory import (
        DryRun,
        largest_batch,
        largest_rows,
        longest_rows,
        process_memory,
    )

    tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)
    train = _prepared_rows(run_config, tokenizer)

    def rows_of(trainer: config.Trainer) -> Any:
        if train is None:
            return longest_rows(trainer.batch_size, run_config.data.max_length)
        return largest_rows(train, trainer, seed=run_config.seed)

    on_gpu = given.gpu is not None or choose_device(run_config.device).type == "cuda"
    dry_run = DryRun(run_config, tokenizer, on_gpu=on_gpu)
    rows = rows_of(run_config.trainer)
    estimate = dry_run.estimate(rows, run_config.trainer)
    process = 0 if on_gpu else process_memory()
    free = _free_memory(given.gpu, on_gpu=on_gpu)

    tokens = sum(len(row.ids) for row in rows)
    known = "data.max_length each: no data prepared" if train is None else "the largest of the data"
    table = [
        ("micro-batch", f"{len(rows):,} rows, {tokens:,} tokens ({known})"),
        ("weights", _mib(estimate.weights)),
        ("adapter", _mib(estimate.adapter)),
        ("optimizer", _mib(estimate.optimizer)),
        ("activations", _mib(estimate.activations)),
    ]
    if not on_gpu:
        table += [
            ("freed, but held", _mib(estimate.held)),
            ("libraries", _mib(process)),
        ]
    table.append(("peak memory", f"{_mib(estimate.total + process)} of {_mib(free)} free"))
    if (measured := _measured(folder)) is not None:
        table.append(("measured", f"{measured:,.0f} MiB in {folder}, evaluation too"))
    print(columns(table))
    limit = _MOST_ROWS if train is None else min(len(train), _MOST_ROWS)
    found = largest_batch(
        dry_run, run_config.trainer, rows_of, room=free / _SPARE - process, limit=limit
    )
    if found is None:
        print(
            f"\nnot even trainer.batch_size=1 fits: try trainer.activation_checkpointing=true, "
            f"quantization=nf4_double or a data.max_length below {run_config.data.max_length}"
        )
        return
    size, largest = found
    more = ", and no larger one was tried" if size == limit else ""
    print(
        f"\ntrainer.batch_size={size} is the largest that fits with a tenth to spare: "
        f"{_mib(largest.total + process)}{more}"
    )


def _open(arguments: Sequence[str]) -> tuple[Path | None, config.Run]:
    """The run folder among the arguments, if any, and the config that it and overrides make."""
    folders = [each for each in arguments if "=" not in each and not each.startswith("~")]
    if len(folders) > 1:
        raise ValueError(f"plan is for one run, not {' and '.join(folders)}")
    overrides = [each for each in arguments if each not in folders]
    if not folders:
        return None, launch.compose_run(overrides)
    folder = remote.local(folders[0], without=("checkpoints",))
    sections = [field.name for field in fields(config.Run)]
    return folder, launch.reopen_run(folder, overrides, sections=sections)


def _prepared_rows(run_config: config.Run, tokenizer: Any) -> Any:
    """The rows to train on if they are prepared already, or else None: that would take a while."""
    from dollyllama.data.prepare import check, prepare

    try:
        if check(run_config.data, tokenizer, seed=run_config.seed):
            return None
    except ValueError:
        return None
    return prepare(run_config.data, tokenizer, seed=run_config.seed).train


def _free_memory(gpu: float | None, *, on_gpu: bool) -> float:
    """Bytes that a run could have: this process's own are free once it has ended."""
    if gpu is not None:
        return gpu * 2**30 - _CONTEXT
    if on_gpu:
        import torch

        return float(torch.cuda.mem_get_info()[0])
    import psutil

    own = psutil.Process().memory_info().rss
    return float(psutil.virtual_memory().available + own)


def _measured(folder: Path | None) -> float | None:
    """The peak that the run in ``folder`` had, in MiB; None when it has not trained."""
    if folder is None:
        return None
    try:
        result = parse_json((folder / "result.json").read_text(encoding="utf-8"))
        return float(result["train"]["peak_memory_mib"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mib(size: float) -> str:
    return f"{size / _MIB:,.0f} MiB"
