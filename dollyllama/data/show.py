"""Prepared data for a reader at a terminal: the count table and examples with their mask."""

from __future__ import annotations

from typing import Any

from dollyllama.data.flow import step_of
from dollyllama.data.mix import MixReport, Share
from dollyllama.data.prepare import PreparedData
from dollyllama.data.store import Rows
from dollyllama.data.tokens import EncodedExample
from dollyllama.embedded import EMBEDDED

#: Rows upstream and rows that the original recipe kept, by Hub id. Its total is 72,763; what it
#: kept of dolly_hhrlhf is inferred: the total less the other three.
RECIPE = {
    "b-mc2/sql-create-context": (78_577, 4_529),
    "sahil2801/CodeAlpaca-20k": (20_022, 20_022),
    "mosaicml/dolly_hhrlhf": (59_310 + 5_129, 39_420),
    "qwedsacf/grade-school-math-instructions": (8_792, 8_792),
}


def count_table(manifest: dict[str, Any]) -> str:
    """The manifest's rows step by step, a column a source, beside the recipe's where they apply."""
    sources: dict[str, dict[str, Any]] = manifest["sources"]
    columns = [*sources.values(), manifest["total"]]
    reasons = sorted({reason for source in sources.values() for reason in source["rejected"]})

    def rows(label: str, key: str) -> tuple[str, list[int]]:
        return label, [column["rows"][key] for column in columns]

    def without(reason: str) -> tuple[str, list[int]]:
        return f"  - {reason}", [-column["rejected"].get(reason, 0) for column in columns]

    ids = [source["upstream"] for source in sources.values()]
    compare = manifest["settings"]["root"] != EMBEDDED and all(path in RECIPE for path in ids)
    upstream = [RECIPE[path][0] for path in ids] if compare else []
    recipe = [RECIPE[path][1] for path in ids] if compare else []
    usable = [column["rows"]["deduplicated"] for column in columns]

    lines: list[tuple[str, list[int]] | None] = []
    if compare:
        lines += [("upstream has", _with_sum(upstream))]
        read = [column["rows"]["read"] for column in columns]
        lack = [here - there for here, there in zip(read, _with_sum(upstream), strict=True)]
        lines += [("  lacking here", lack)]
    lines += [rows("read here", "read")]
    late = ("deduplicated", "decontaminated")
    lines += [without(reason) for reason in reasons if step_of(reason) not in late]
    lines += [rows("= fit by themselves", "fits")]
    lines += [without(reason) for reason in reasons if step_of(reason) == "deduplicated"]
    lines += [rows("= usable here", "deduplicated")]
    if compare:
        kept = _with_sum(recipe)
        lines += [
            ("  the recipe kept", kept),
            ("  difference", [here - there for here, there in zip(usable, kept, strict=True)]),
        ]
    lines += [None, ("  - held out", [-column["rows"]["held_out"] for column in columns])]
    lines += [without(reason) for reason in reasons if step_of(reason) == "decontaminated"]
    lines += [rows("= training side", "train")]
    lines += [("  - not drawn (weights, caps)", [-c["rows"]["not_drawn"] for c in columns])]
    lines += [("  + repeats", [_repeats(column) for column in columns])]
    lines += [rows("= trained on", "trained"), None]
    training = [column["tokens"]["train"] for column in columns]
    lines += [
        ("training tokens", [part["tokens"] for part in training]),
        ("  with a loss", [part["supervised"] for part in training]),
        ("  responses cut short", [part["truncated"] for part in training]),
    ]
    cells = [[line[0], *map(_number, line[1])] if line else [] for line in lines]
    table = _align([["rows", *sources, "total"], *cells])
    for name, source in sources.items():
        if found := source["gives_away"]:
            tests = ", ".join(f"{count:,} {test}" for test, count in found.items())
            table += f"\n{name} rows that would give away a test: {tests}"
    for name, source in sources.items():
        if not source["rows"]["train"] + source["rows"]["evaluated"]:
            lost = ", ".join(f"{count:,} {reason}" for reason, count in source["rejected"].items())
            table += (
                f"\nwarning: no row of {name} is left ({lost}): rejected.jsonl says why of each"
            )
    if compare and "mosaicml/dolly_hhrlhf" in ids:
        table += (
            "\nThe recipe trained on 72,763 rows; 39,420 of dolly_hhrlhf is that less the other "
            "three,\nwhose counts are upstream's after the recipe's rules."
        )
    return table


def _repeats(column: dict[str, Any]) -> int:
    repeats: int = column["rows"]["trained"] - column["rows"]["trained_distinct"]
    return repeats


def _with_sum(numbers: list[int]) -> list[int]:
    return [*numbers, sum(numbers)]


def _align(cells: list[list[str]]) -> str:
    """Set a table of right-aligned columns behind its first; an empty row is an empty line."""
    full = [row for row in cells if row]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    text = []
    for row in cells:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        text.append("   ".join([row[0].ljust(widths[0]), *numbers]) if row else "")
    return "\n".join(text)


def _number(value: int) -> str:
    return f"{value:,}" if value else "·"


_HEAD = ["", "rows", "used", "in mix", "repeats", "share", "tokens", "share", "supervised", "share"]


def mix_table(report: MixReport) -> str:
    """What the model will see of each source, a source a line: counts, and shares of the mix."""
    whole = report.total
    cells = [_HEAD, *(_cells(name, share, whole) for name, share in report.shares.items())]
    cells.append(_cells("total", whole, whole))
    return _align(cells)


def _cells(name: str, share: Share, whole: Share) -> list[str]:
    cells = [name, f"{share.available:,}", f"{share.chosen:,}"]
    cells += [f"{share.drawn:,}", f"{share.repeats:.2f}", _percent(share.drawn, whole.drawn)]
    cells += [f"{share.tokens:,}", _percent(share.tokens, whole.tokens)]
    return [*cells, f"{share.supervised:,}", _percent(share.supervised, whole.supervised)]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def show_examples(prepared: PreparedData, tokenizer: Any, n: int, *, colour: bool) -> str:
    """The first ``n`` training examples, sources in turn, decoded from their ids.

    Tokens without a loss are dim, or between ‹ and › where there is no colour.
    """
    opened, closed = (_DIM, _PLAIN) if colour else ("‹", "›")
    shown = []
    for example in _in_turn(prepared.train, n):
        text, done = "", 0
        for start, stop in (*example.spans, (len(example.ids),) * 2):
            if masked := tokenizer.decode(example.ids[done:start]):
                text += f"{opened}{masked}{closed}"
            text += tokenizer.decode(example.ids[start:stop])
            done = stop
        cut = ", cut at max_length" if example.truncated else ""
        head = (
            f"--- {example.example.source} row {example.example.row}, {len(example.ids)} tokens, "
            f"{example.supervised} with a loss{cut}"
        )
        shown.append(f"{head}\n{text}")
    return "\n\n".join(shown)


def _in_turn(rows: Rows, n: int) -> list[EncodedExample]:
    """The first ``n`` rows when each source has its first before any has its second."""
    place: dict[str, int] = {}
    turns = []
    for number, source in enumerate(rows.sources):
        turn = place[source] = place.get(source, -1) + 1
        if turn < n:
            turns.append((turn, source, number))
    return [rows[number] for *_, number in sorted(turns)[:n]]
