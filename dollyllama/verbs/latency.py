"""``latency``: how fast a run answers, base alone, with its adapter, and merged."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dollyllama import config, preflight, remote
from dollyllama.latency.compare import MIN_ROUNDS
from dollyllama.verbs.parser import fetched, open_run, run_parser

#: Sizes of context that are measured where the model has the positions.
CONTEXTS = (128, 512)


def main(arguments: Sequence[str]) -> None:
    """time the answers of base, adapter and merged model side by side: does merging pay?"""
    command = run_parser("latency", main.__doc__)
    command.add_argument(
        "--merged", type=fetched, metavar="DIR", help="what merge wrote of RUN; default: merge now"
    )
    command.add_argument(
        "--batch", type=_count, nargs="+", default=[1, 4], help="rows at once, default: 1 4"
    )
    command.add_argument(
        "--context",
        type=_count,
        nargs="+",
        help="tokens of a prompt, default: 128 512, or as many as the model has positions for",
    )
    command.add_argument("--tokens", type=_count, default=32, help="written a row (default: 32)")
    command.add_argument(
        "--rounds", type=_count, default=MIN_ROUNDS, help=f"default and least: {MIN_ROUNDS}"
    )
    given = command.parse_intermixed_args(arguments)
    if given.tokens < 2:
        raise ValueError("--tokens must be at least 2: the first and a further one")
    if given.rounds < MIN_ROUNDS:
        raise ValueError(
            f"--rounds must be at least {MIN_ROUNDS}, not {given.rounds}: fewer have no interval"
        )
    for override in given.overrides:
        if not override.startswith(("device=", "seed=")):
            raise ValueError(f"{override} has no effect on latency: device and seed have")
    run_config = open_run(given.run, given.overrides)
    base_folder = preflight.require_model_folder(run_config)
    if given.merged is not None:
        _check_merged(given.merged, given.run)

    from dollyllama import provenance
    from dollyllama.bars import stage_bar
    from dollyllama.decoding.generate import is_out_of_memory
    from dollyllama.files import write_json
    from dollyllama.latency.compare import adapter_over_merged, latency_table, verdict
    from dollyllama.latency.measure import measure, weights_mib
    from dollyllama.model.load import load_merged, read_model_config
    from dollyllama.model.precision import dtype_census
    from dollyllama.restore import choose_device, restore, restore_merged

    positions = read_model_config(base_folder).max_position_embeddings
    contexts = _contexts(given.context, positions=positions, tokens=given.tokens)
    model, tokenizer = restore(run_config, given.run)
    device = choose_device(run_config.device)
    with stage_bar("latency") as progress:
        progress("merging", 0, 1)
        try:
            if given.merged is not None:
                merged = load_merged(given.merged, device)
            else:
                merged = restore_merged(run_config, given.run, tokenizer)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                "out of memory: the merged model is held beside base and adapter, and does not "
                "fit; device=cpu measures there"
            ) from error
        sides: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "base": lambda: _without_adapter(model),
            "adapter": lambda: nullcontext(model),
            "merged": lambda: nullcontext(merged),
        }
        weights = {
            "base": weights_mib(model, adapter=False),
            "adapter": weights_mib(model, adapter=True),
            "merged": weights_mib(merged, adapter=True),
        }
        load = os.getloadavg()
        cells = measure(
            sides,
            batches=given.batch,
            contexts=contexts,
            tokens=given.tokens,
            rounds=given.rounds,
            seed=run_config.seed,
            progress=progress,
        )
    census = dtype_census(model)
    dtypes = {
        "base": {kind: counts for kind, counts in census.items() if kind != "adapter"},
        "adapter": census,
        "merged": dtype_census(merged),
    }
    about = provenance.describe_device(str(device))
    started = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    output = remote.home(given.run) / "latency" / f"{started}.json"
    write_json(
        output,
        {
            "tokens": given.tokens,
            "rounds": given.rounds,
            "seed": run_config.seed,
            "device": about,
            "machine": provenance.describe_machine(),
            "load_average": load,
            "packages": provenance.package_versions(),
            "dtypes": dtypes,
            "weights_mib": weights,
            "cells": [
                {**asdict(cell), "adapter_over_merged": asdict(adapter_over_merged(cell))}
                for cell in cells
            ],
        },
    )
    print(
        f"{about['name']}, {given.tokens} greedy tokens a row, median (quartiles) of "
        f"{given.rounds} rounds\n\n{latency_table(cells, weights)}\n"
    )
    if any(each.growth_mib is None for cell in cells for each in cell.sides["base"]):
        print("memory beside the weights is left out: this system does not tell a new peak\n")
    print("\n".join(verdict(cell) for cell in cells))
    print(f"\n{_precisions(dtypes, run_config.quantization)}\n\n{output}")


def _count(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no whole number; RUN and overrides go before the flags"
        ) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _contexts(wished: Sequence[int] | None, *, positions: int, tokens: int) -> list[int]:
    """The contexts to measure. ValueError when the model has no positions for one."""
    room = positions - tokens
    if room < 1:
        raise ValueError(f"--tokens {tokens} leaves no context in {positions} positions: lower it")
    if wished is None:
        return sorted({min(context, room) for context in CONTEXTS})
    if max(wished) > room:
        raise ValueError(
            f"--context {max(wished)} and --tokens {tokens} are beyond the model's {positions} "
            f"positions: at most --context {room}"
        )
    return list(wished)


def _check_merged(folder: Path, run: Path) -> None:
    """ValueError unless ``merge`` wrote ``folder`` of the adapter in ``run``."""
    from dollyllama.files import digest, parse_json

    record = folder / "merge.json"
    try:
        adapter = parse_json(record.read_text(encoding="utf-8"))["adapter"]
    except FileNotFoundError:
        raise ValueError(
            f"--merged {folder} is no folder that merge wrote: no merge.json"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} does not name its adapter: merge {run} again") from None
    weights = run / "adapter" / "adapter_model.safetensors"
    if weights.is_file() and digest(weights) != adapter:  # restore tells of a missing one
        raise ValueError(f"--merged {folder} was made from another run's adapter than {run}'s")


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with model.disable_adapter():
        yield model


def _precisions(dtypes: dict[str, Any], quantization: config.Quantization) -> str:
    """What each side holds its weights in, and what follows where they differ."""
    held = {
        side: ", ".join(
            f"{kind} {' and '.join(sorted(counts))}" for kind, counts in sorted(census.items())
        )
        for side, census in dtypes.items()
    }
    lines = [f"{side:8} {text}" for side, text in held.items()]
    if "quantised" in dtypes["base"]:
        lines.append(
            f"Base and adapter dequantise their {quantization.method} weights at every step, and "
            f"merged holds them dequantised."
        )
    if held["base"] != held["merged"]:
        lines.append(
            "The sides do not compute in the same precision: a difference in time is that of "
            "precision and adapter together."
        )
    return "\n".join(lines)
