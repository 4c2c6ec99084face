"""Where the rows of a mix went, step by step, as numbers and as a Sankey diagram.

The drawing is SVG in which text keeps its size however wide the page is: across, positions are
percentages; up and down they are pixels. Colours are the page's: every shape has a class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from dollyllama.config import Quality

Manifest = dict[str, Any]

#: Steps by what the manifest calls the rows that are left after them. The last is worked out.
STEPS = ("read", "rules", "cleaned", "quality", "fits", "deduplicated", "decontaminated")

#: What becomes of a row that is left after the last step. ``trained`` counts rows, not repeats.
FATES = ("trained", "held_out", "not_drawn")

_FATE_KEYS = {"trained": "trained_distinct", "held_out": "held_out", "not_drawn": "not_drawn"}

#: The reasons for which a step refuses rows. ``rules`` has all others: the source's own rules, and
#: what is wrong with a row that cannot be read at all.
_REASONS = {
    "cleaned": {
        "empty_instruction",
        "empty_response",
        "empty_context",
        "empty_turn",
        "broken_unicode",
        "end_marker_in_response",
    },
    "quality": {rule.value for rule in Quality},
    "fits": {"prompt_too_long", "too_long", "chat_template", "nothing_to_learn"},
    "deduplicated": {"duplicate_row", "near_duplicate", "semantic_duplicate"},
    "decontaminated": {"contaminated"},
}
_STEP_OF = {reason: step for step, reasons in _REASONS.items() for reason in reasons}


def step_of(reason: str) -> str:
    """The step that refuses rows for a reason."""
    return _STEP_OF.get(reason, "rules")


@dataclass(frozen=True, slots=True)
class Ribbon:
    """Rows of a source that go from one node of the flow to another: a step, a reason or a fate."""

    source: str
    start: str
    end: str
    rows: int


def flow(manifest: Manifest) -> list[Ribbon]:
    """Where the rows of each source went, step by step; ribbons without rows are left out.

    AssertionError when a source's rows do not add up: as many leave a node as came to it.
    """
    ribbons = []
    for name, about in manifest["sources"].items():
        rows = about["rows"]
        left = {**rows, "decontaminated": rows["train"] + rows["held_out"]}
        for before, after in pairwise(STEPS):
            refused = {
                reason: count
                for reason, count in about["rejected"].items()
                if step_of(reason) == after
            }
            gone = sum(refused.values())
            assert left[before] == left[after] + gone, f"{name}: {after} does not add up"
            ribbons.append(Ribbon(name, before, after, left[after]))
            ribbons += [Ribbon(name, before, reason, count) for reason, count in refused.items()]
        fates = {fate: rows[key] for fate, key in _FATE_KEYS.items()}
        assert sum(fates.values()) == left[STEPS[-1]], f"{name}: the mix does not add up"
        ribbons += [Ribbon(name, STEPS[-1], fate, count) for fate, count in fates.items()]
    return [each for each in ribbons if each.rows]


def _node_rows(ribbons: Sequence[Ribbon]) -> Counter[tuple[str, str]]:
    """How many rows of a source come to a node, by (node, source)."""
    rows = Counter[tuple[str, str]]()
    for each in ribbons:
        rows[each.end, each.source] += each.rows
        if each.start == STEPS[0]:
            rows[each.start, each.source] += each.rows
    return rows


def _reasons(ribbons: Sequence[Ribbon], step: str) -> list[str]:
    """The reasons for which a step refused rows, the most frequent first."""
    rows = Counter[str]()
    for each in ribbons:
        if each.end not in (*STEPS, *FATES) and step_of(each.end) == step:
            rows[each.end] += each.rows
    return sorted(rows, key=lambda reason: (-rows[reason], reason))


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the flow as a table: the rows of a step, reason or fate by source, and their sum."""

    kind: str  # a class of the page
    node: str
    rows: list[int]


def flow_table(ribbons: Sequence[Ribbon], names: Sequence[str]) -> list[Line]:
    """The flow from left to right, each step below the reasons for which it refused rows."""
    rows = _node_rows(ribbons)

    def line(kind: str, node: str) -> Line:
        own = [rows[node, name] for name in names]
        return Line(kind, node, [*own, sum(own)])

    lines = []
    for step in STEPS:
        lines += [line("reason", reason) for reason in _reasons(ribbons, step)]
        lines.append(line("step", step))
    return [*lines, *(line("fate", fate) for fate in FATES)]


#: Pixels: of all rows, above what leaves, between fates, and of one and of two lines of text.
_TALL, _GAP, _BETWEEN, _ONE_LINE, _TWO_LINES = 340.0, 22.0, 40.0, 17.0, 31.0

#: What is thinner than so many pixels cannot be seen.
_STROKE = 0.75

#: Units across the box of the ribbons, which is stretched to the page's width.
_ACROSS = 1000


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a node stands: x in shares of the width, the rest in pixels. text: its label's y."""

    x: float
    top: float
    tall: float
    text: float


def _place_nodes(ribbons: Sequence[Ribbon], scale: float) -> dict[str, _Node]:
    """Steps side by side along the top, reasons below the step that refuses for them, and fates on
    the right. scale: pixels a row.
    """
    tall = defaultdict[str, float](float)
    for (node, _), rows in _node_rows(ribbons).items():
        tall[node] += rows * scale
    nodes = {}
    for number, step in enumerate(STEPS):
        x = number / len(STEPS)
        nodes[step] = _Node(x, 0.0, tall[step], -_ONE_LINE)
        top = tall[step] + _GAP
        text = top - _TWO_LINES + _ONE_LINE / 2
        for reason in _reasons(ribbons, step):
            text = max(text + _TWO_LINES, top + tall[reason] / 2)
            nodes[reason] = _Node(x, top, tall[reason], text)
            top += max(tall[reason], _STROKE) + 3
    top = 0.0
    for fate in FATES:
        nodes[fate] = _Node(1.0, top, tall[fate], top + tall[fate] / 2)
        top += tall[fate] + _BETWEEN
    return nodes


def draw_flow(ribbons: Sequence[Ribbon], names: Sequence[str]) -> str:
    """The flow as a Sankey diagram: sources on the left, refused rows leave below by reason."""
    rows = _node_rows(ribbons)
    scale = _TALL / max(sum(rows[STEPS[0], name] for name in names), 1)
    nodes = _place_nodes(ribbons, scale)
    arrive = {}  # by node and source, where its rows begin
    for node, place in nodes.items():
        at = place.top
        for name in names:
            arrive[node, name] = at
            at += rows[node, name] * scale
    leave = dict(arrive)
    paths = []
    for each in ribbons:
        start, end = (each.start, each.source), (each.end, each.source)
        line = _band(
            nodes[each.start].x, leave[start], nodes[each.end].x, arrive[end], each.rows * scale
        )
        paths.append(_ribbon(each, line, ink(names.index(each.source))))
        leave[start] += each.rows * scale
    marks = []
    for node, place in nodes.items():
        marks.append(_mark(node, place, sum(rows[node, name] for name in names)))
    text = -_ONE_LINE
    for number, name in enumerate(names):
        own = rows[STEPS[0], name]
        text = max(text + _ONE_LINE, arrive[STEPS[0], name] + own * scale / 2)
        marks.append(
            f'<text class="source {ink(number)}" x="0" y="{text:.1f}" dx="-12" dy="4" '
            f'text-anchor="end">{escape(_short(name))}'
            f'<tspan class="rows" dx="5">{own:,}</tspan></text>'
        )
    bottom = max(max(place.top + place.tall, place.text + _ONE_LINE) for place in nodes.values())
    bottom = max(bottom, text)
    return (
        f'<svg class="flow" role="group" aria-label="Rows from the sources through every step" '
        f'style="height: {bottom:.0f}px">'
        f'<svg class="stretched" width="100%" height="100%" viewBox="0 0 {_ACROSS} {bottom:.0f}" '
        f'preserveAspectRatio="none">{"".join(paths)}</svg>{"".join(marks)}</svg>'
    )


def _band(left: float, start: float, right: float, end: float, tall: float) -> str:
    """The path of a band from (left, start) to (right, end), ``tall`` pixels thick throughout."""
    left, right, tall = left * _ACROSS, right * _ACROSS, max(tall, _STROKE)
    middle = (left + right) / 2
    return (
        f"M{left:.1f} {start:.2f}C{middle:.1f} {start:.2f} {middle:.1f} {end:.2f} {right:.1f} "
        f"{end:.2f}v{tall:.2f}C{middle:.1f} {end + tall:.2f} {middle:.1f} {start + tall:.2f} "
        f"{left:.1f} {start + tall:.2f}z"
    )


def _ribbon(ribbon: Ribbon, line: str, colour: str) -> str:
    kind = "stays" if ribbon.end in (*STEPS, *FATES) else "leaves"
    source, end = escape(ribbon.source), escape(ribbon.end)
    said = f"{source}: {ribbon.rows:,} rows, {in_words(ribbon.start)} → {in_words(end)}"
    return (
        f'<path class="{kind} {colour}" d="{line}" data-source="{source}" '
        f'data-start="{ribbon.start}" data-end="{end}" data-rows="{ribbon.rows}">'
        f"<title>{said}</title></path>"
    )


def _mark(node: str, place: _Node, rows: int) -> str:
    """A node with its label in two lines; a reason leads to its rows on the page."""
    x = f"{100 * place.x:.2f}%"
    kind = "head" if node in STEPS else "fate" if node in FATES else "refused"
    bar = (
        f'<rect class="node {kind}" x="{x}" y="{place.top:.1f}" width="7" '
        f'height="{max(place.tall, 1):.1f}" transform="translate(-3.5)"/>'
    )
    shift, anchor = (0, "middle") if kind == "head" else (9, "start")
    label = (
        f'<text class="{kind}" y="{place.text:.1f}" text-anchor="{anchor}">'
        f'<tspan x="{x}" dx="{shift}">{escape(_short(in_words(node), 17))}</tspan>'
        f'<tspan class="rows" x="{x}" dx="{shift}" dy="14">{rows:,}</tspan></text>'
    )
    if kind == "refused":
        label = f'<a href="#reason-{escape(node)}">{label}</a>'
    return f"{bar if rows else ''}{label}"


def in_words(name: str) -> str:
    return name.replace("_", " ")


def ink(number: int) -> str:
    """The class of a source's colour, by the source's number; there are six."""
    return f"ink{number % 6 + 1}"


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
