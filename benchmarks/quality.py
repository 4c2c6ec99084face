"""What do the quality rules drop? Counts, time and samples of each rule, source by source.

    python -m benchmarks.quality DATA_FOLDER [--samples 30] [--rule RULE] [--seed 0]

Reads every source of ``conf/source`` whose file is in the folder. Shares are of the usable rows,
those that the source's own rules and cleaning let pass. A row counts for every rule that it breaks.
The samples are for reading: a rule belongs into the default list when at least 95 of 100 are right.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path
from random import Random

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from dollyllama.config import Grader, Quality, Source
from dollyllama.data.example import Example
from dollyllama.data.ingest import clean_rows
from dollyllama.data.quality import QUALITY
from dollyllama.data.sources import locate, read_rows

SOURCES = Path(__file__).parents[1] / "conf" / "source"
Dropped = dict[tuple[str, Quality], list[tuple[Example, str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="local copies, as data.root")
    parser.add_argument("--samples", type=int, default=5, help="rows to show of each rule")
    parser.add_argument("--rule", type=Quality, choices=list(Quality), help="show this one's alone")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    options = parser.parse_args()
    # Benchmarks without answers have no usable row.
    usable = {name: own for name, own in read_usable(options.folder).items() if own[1]}
    if not usable:
        parser.error(f"{options.folder} has the file of no source in {SOURCES}")
    dropped: Dropped = {}
    seconds: dict[tuple[str, Quality], float] = {}
    for name, (grader, examples) in usable.items():
        for rule, check in QUALITY.items():
            begun = time.process_time()
            found = [(each, check(each, grader)) for each in examples]
            seconds[name, rule] = time.process_time() - begun
            dropped[name, rule] = [(each, detail) for each, detail in found if detail is not None]
    console = Console(width=160)
    sizes = {name: len(examples) for name, (_, examples) in usable.items()}
    console.print(counts_table(sizes, dropped))
    console.print(times_table(sizes, seconds))
    for rule in [options.rule] if options.rule else Quality:
        show_samples(dropped, rule, options.samples, Random(options.seed))


def read_usable(folder: Path) -> dict[str, tuple[Grader, list[Example]]]:
    """The clean examples of each source that has a file in ``folder``, and its grader."""
    usable: dict[str, tuple[Grader, list[Example]]] = {}
    for path in sorted(SOURCES.glob("*.yaml")):
        values = OmegaConf.load(path)
        if "defaults" in values:
            continue  # the sample's: other rows of the same sources
        source = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Source), values))
        assert isinstance(source, Source)
        try:
            place = locate(path.stem, source, root=str(folder))
        except ValueError:
            continue
        rows = read_rows(place, name=path.stem, split=source.split)
        usable[path.stem] = (source.grader, clean_rows(rows, source, name=path.stem)[0])
    return usable


def counts_table(sizes: dict[str, int], dropped: Dropped) -> Table:
    table = Table("rule", *(f"{name}\n{size:,} rows" for name, size in sizes.items()))
    for rule in Quality:
        cells = (_share(len(dropped[name, rule]), sizes[name]) for name in sizes)
        table.add_row(rule.value, *cells)
    rows = {
        name: {each.row for rule in Quality for each, _ in dropped[name, rule]} for name in sizes
    }
    table.add_row("any", *(_share(len(rows[name]), sizes[name]) for name in sizes))
    return table


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.2%})" if count else "0"


def times_table(sizes: dict[str, int], seconds: dict[tuple[str, Quality], float]) -> Table:
    table = Table("µs a row", *sizes)
    for rule in Quality:
        table.add_row(
            rule.value,
            *(f"{seconds[name, rule] / sizes[name] * 1e6:.1f}" for name in sizes),
        )
    totals = {name: sum(seconds[name, rule] for rule in Quality) for name in sizes}
    table.add_row("all", *(f"{totals[name] / sizes[name] * 1e6:.1f}" for name in sizes))
    return table


def show_samples(dropped: Dropped, rule: Quality, count: int, random: Random) -> None:
    found = [each for (_, of), rows in dropped.items() if of is rule for each in rows]
    print(f"\n--- {rule}: {min(count, len(found))} of {len(found)}")
    for example, detail in random.sample(found, min(count, len(found))):
        print(f"\n{example.source} row {example.row}: {detail}")
        print(textwrap.shorten(f"  asked: {example.question}", 300, placeholder=" …"))
        print(textwrap.shorten(f"  answer: {example.response}", 500, placeholder=" …"))


if __name__ == "__main__":
    main()
