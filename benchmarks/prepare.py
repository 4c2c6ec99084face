"""Preparing data at the recipe's full size, beside ``datasets.map`` with the same steps.

    pip install -c constraints.txt -e '.[bench]' datasketch
    python -m benchmarks.prepare DATA TOKENIZER
    python -m benchmarks.prepare DATA TOKENIZER --times 14 --ours-only

DATA: a folder with the recipe's sources (``data.root``). What upstream has and DATA lacks is made
up: a row of the same source in which every word is replaced, with a chance of one half, by a word
drawn from the source, so that it is as long as real ones and copies none. --times makes as many
times the recipe's rows. Both sides read the same files with the same row functions, rules and
tokenizer, in as many processes as there are cores; the other side looks for near copies with
datasketch's MinHashLSH. They take turns; times are of the wall, memory is the largest sum of what
the processes have to themselves (USS), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from dollyllama.config import Data, LossOn
from dollyllama.data.clean import clean
from dollyllama.data.example import Example, Rejected
from dollyllama.data.formats import read_example
from dollyllama.data.ingest import find_source
from dollyllama.data.near import content, split_words
from dollyllama.data.prepare import prepare
from dollyllama.data.quality import apply_rules, check_quality
from dollyllama.data.sources import read_rows
from dollyllama.data.tokens import encode_all
from dollyllama.launch import compose_run
from dollyllama.model.load import load_tokenizer

#: Rows upstream; of dolly_hhrlhf those that the recipe kept, of SQL those with real table names
#: among all.
UPSTREAM = {"code": 20_022, "dolly": 39_420, "maths": 8_792, "sql": 78_577}
REAL_TABLES = 4_529


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the made-up files; default: a new one")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.tokenizer, None)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        overrides = ["data=dollyllama", f"data.root={given.data}", "data.max_length=512"]
        make_files(compose_run(overrides).data, folder / "raw", given.times)
        data = compose_run([*overrides, f"data.root={folder / 'raw'}"]).data
        times: dict[str, list[float]] = {}
        for number in range(given.rounds):
            for what, seconds, memory, rows in one_round(data, tokenizer, folder, number, given):
                times.setdefault(what, []).append(seconds)
                print(
                    f"round {number + 1}: {what}: {seconds:.1f} s, {memory:,.0f} MiB, {rows:,} rows"
                    f" ({1e6 * seconds / rows:.0f} µs a row)",
                    flush=True,
                )
        ours = statistics.median(times["cold"])
        for what, found in times.items():
            median = statistics.median(found)
            print(f"{what}: median {median:.1f} s, {median / ours:.2f} times cold")


def one_round(
    data: Data, tokenizer: Any, folder: Path, number: int, given: argparse.Namespace
) -> Iterator[tuple[str, float, float, int]]:
    """Each thing that is timed: its name, seconds, MiB and the rows that came out."""
    cache = folder / f"cache{number}"

    def ours() -> int:
        prepared = prepare(data, tokenizer, seed=0, cache=cache)
        return len(prepared.train) + len(prepared.held_out)

    yield "cold", *timed(ours)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print(f"round {number + 1}: {size / 2**20:,.0f} MiB of prepared data", flush=True)
    yield "nothing changed", *timed(ours)
    with gzip.open(folder / "raw" / "grade_school_math_instructions.jsonl.gz", "ab") as file:
        file.write(b'{"INSTRUCTION": "What is 2 plus 2?", "RESPONSE": "It is 2 + 2 = 4."}\n')
    yield "maths changed", *timed(ours)
    if not given.ours_only:
        yield "datasets.map and datasketch", *timed(lambda: by_map(data, tokenizer, cache))


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """Do the work in a process of its own: seconds, MiB at the most, and what it returns."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put(work()))
    peak = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                own = psutil.Process(process.pid)
                all_ = [own, *own.children(recursive=True)]
                peak = max(peak, sum(each.memory_full_info().uss for each in all_) / 2**20)
            except psutil.Error:
                continue

    started = time.perf_counter()
    process.start()
    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = results.get()
    process.join()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak, rows


def by_map(data: Data, tokenizer: Any, cache: Path) -> int:
    """The same steps as ``datasets`` and datasketch have them."""
    import datasets
    from datasketch import MinHash, MinHashLSH

    datasets.disable_progress_bars()
    processes = len(os.sched_getaffinity(0))
    parts = []
    for name, source in sorted(data.sources.items()):
        job = find_source(data, name, source)
        raw = datasets.load_dataset(
            "json", data_files=str(job.place.local), split="train", cache_dir=str(cache / "hf")
        )

        def fit(
            batch: dict[str, list[Any]], numbers: list[int], name: str = name, source: Any = source
        ) -> dict[str, list[Any]]:
            examples: list[Example] = []
            for at, number in enumerate(numbers):
                row = {key: values[at] for key, values in batch.items()}
                read = read_example(row, name=name, number=number, source=source)
                if not isinstance(read, Rejected) and apply_rules([read[0]], source.rules)[0]:
                    done = clean(*read, group_by=source.group_by)
                    if not isinstance(done, Rejected):
                        examples.append(done[0])
            examples, _ = check_quality(examples, data.quality, source.grader)
            encoded, _ = encode_all(
                examples,
                tokenizer,
                prompt=data.prompt,
                max_length=data.max_length,
                loss_on=LossOn.response,
                overlong=data.overlong,
            )
            return {
                "ids": [each.ids for each in encoded],
                "labels": [each.labels.tolist() for each in encoded],
                "content": [list(content(each.example)) for each in encoded],
            }

        parts.append(
            raw.map(
                fit,
                batched=True,
                with_indices=True,
                num_proc=processes,
                remove_columns=raw.column_names,
            )
        )
    rows = datasets.concatenate_datasets(parts)

    def sketch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        signatures = []
        for texts in batch["content"]:
            words = split_words("\n".join(texts))
            minhash = MinHash(num_perm=128, scheme="legacy")
            minhash.update_batch([" ".join(pair).encode() for pair in pairwise(words)])
            signatures.append(minhash.digest().tolist())
        return {"signature": signatures}

    sketched = rows.map(sketch, batched=True, num_proc=processes)
    index = MinHashLSH(threshold=0.6, num_perm=128)
    kept = []
    for number, signature in enumerate(sketched["signature"]):
        minhash = MinHash(num_perm=128, hashvalues=signature, scheme="legacy")
        if not index.query(minhash):
            index.insert(number, minhash)
            kept.append(number)
    return len(rows.select(kept).flatten_indices())


# --- the files ----------------------------------------------------------------------------------


def make_files(data: Data, folder: Path, times: int) -> None:
    """Write the recipe's sources at ``times`` their full size, made-up rows behind real ones."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    for name, source in sorted(data.sources.items()):
        place = find_source(data, name, source).place
        rows = read_rows(place, name=name, split=source.split)
        groups = [(rows, UPSTREAM[name] * times)]
        if name == "sql":
            real = [row for row in rows if "FROM table_" not in row["answer"]]
            other = [row for row in rows if "FROM table_" in row["answer"]]
            groups = [(real, REAL_TABLES * times), (other, (UPSTREAM[name] - REAL_TABLES) * times)]
        with gzip.open(folder / f"{source.file}.jsonl.gz", "wt", 1, encoding="utf-8") as file:
            for own, wanted in groups:
                words = sorted(
                    {word for row in own[:2000] for word in re.findall(r"[a-z]{3,}", str(row))}
                )
                for number in range(wanted):
                    row = (
                        own[number]
                        if number < len(own)
                        else made_up(generator.choice(own), words, generator)
                    )
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def made_up(row: dict[str, Any], words: list[str], generator: random.Random) -> dict[str, Any]:
    def other(match: re.Match[str]) -> str:
        return generator.choice(words) if generator.random() < 0.5 else match.group()

    return {
        key: re.sub(r"[a-z]{3,}", other, value)
        if isinstance(value, str) and key not in ("context", "answer")
        else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    main()
