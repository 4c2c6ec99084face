"""Prepared data as one page of HTML that needs nothing else: no network, no server, no other file.

Figures are SVG in which positions are percentages, so that text keeps its size however wide the
page is. Colours are the page's: every shape has a class.
"""

from __future__ import annotations

import heapq
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dollyllama.config import leaves
from dollyllama.data.example import Split
from dollyllama.data.flow import (
    STEPS,
    Manifest,
    draw_flow,
    flow,
    flow_table,
    in_words,
    ink,
    step_of,
)
from dollyllama.data.prepare import CLUSTERS, CONTAMINATION, PreparedData
from dollyllama.data.store import Rows
from dollyllama.data.tokens import EncodedExample
from dollyllama.webpage.render import json_for_script, render_page

#: How much there is to browse, so that the page stays within a few megabytes: samples in all and
#: tokens of each, rows of a reason, clusters, contaminated rows, and characters of a text.
_SAMPLES = 48
_SAMPLE_TOKENS = 1024
_OF_A_REASON = 12
_CLUSTERS = 24
_CONTAMINATED = 24
_CHARACTERS = 600

#: Copies of a row that are written out; the others are counted.
_COPIES = 4


def data_page(prepared: PreparedData, tokenizer: Any) -> str:
    """Return the data as HTML, in which what rows say is text and nothing else."""
    manifest = prepared.manifest
    names = list(manifest["sources"])
    ribbons = flow(manifest)
    values = {
        "manifest": manifest,
        "inks": {name: ink(number) for number, name in enumerate(names)},
        "flow": Markup(draw_flow(ribbons, names)),
        "flow_table": flow_table(ribbons, names),
        "lengths": _lengths(prepared),
        "tokens": _tokens(manifest),
        "samples": _samples(prepared, tokenizer),
        "refused": _refused(prepared),
        "clusters": _clusters(prepared),
        "contaminated": _contaminated(prepared),
        "settings": _settings(manifest),
    }
    folder = Path(__file__).parent
    return render_page(folder, values, count=_count, percent=_percent, words=in_words)


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _settings(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested settings as ("a.b", text) pairs; what is not set is left out."""
    return sorted(
        (key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in leaves(manifest["settings"])
        if value is not None and value != []
    )


# --- lengths and tokens -------------------------------------------------------------------------

_BINS = 32


@dataclass(frozen=True, slots=True)
class _Length:
    """A source's lengths in tokens. cut: rows that were longer; refused: those left out for it."""

    source: str
    drawing: Markup
    rows: int
    median: float
    most: float  # 95 of 100 rows are at most as long
    longest: int
    cut: int
    refused: int


def _lengths(prepared: PreparedData) -> list[_Length]:
    """Lengths of the rows of both sides, repeats counted, source by source."""
    manifest = prepared.manifest
    names = list(manifest["sources"])
    sides = (prepared.train, prepared.held_out)
    numbers = np.concatenate([_source_numbers(side, names) for side in sides])
    everything = np.concatenate([side.lengths for side in sides])
    most = int(manifest["settings"]["max_length"])
    found = []
    for number, (name, about) in enumerate(manifest["sources"].items()):
        lengths = everything[numbers == number]
        cut = sum(about["tokens"][side.value]["truncated"] for side in Split)
        refused = sum(
            about["rejected"].get(reason, 0) for reason in ("too_long", "prompt_too_long")
        )
        drawing = draw_lengths(
            lengths, max_length=most, cut=cut, refused=refused, title=f"Lengths of {name}"
        )
        median, high = np.percentile(lengths, [50, 95]) if len(lengths) else (0.0, 0.0)
        found.append(
            _Length(
                source=name,
                drawing=Markup(drawing),
                rows=len(lengths),
                median=float(median),
                most=float(high),
                longest=int(lengths.max(initial=0)),
                cut=cut,
                refused=refused,
            )
        )
    return found


def _source_numbers(rows: Rows, names: Sequence[str]) -> npt.NDArray[np.int16]:
    """Of each row the place of its source in ``names``."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.fromiter((numbers[source] for source in rows.sources), np.int16, len(rows))


def count_lengths(
    lengths: npt.NDArray[np.int32], *, max_length: int, cut: int
) -> list[tuple[int, int, int]]:
    """Histogram of the rows that were not cut: (first length, last length, rows).

    lengths: tokens of each row, 1 to ``max_length``; ``cut`` of the longest lack their end.
    """
    wide = -(-max_length // _BINS)
    edges = [*range(1, max_length + 1, wide), max_length + 1]
    counts, _ = np.histogram(lengths, edges)
    counts[-1] -= cut
    return [
        (first, end - 1, int(count))
        for (first, end), count in zip(pairwise(edges), counts, strict=True)
    ]


#: Of a histogram's width, what lengths up to max_length take; the rest is for longer rows.
_UP_TO = 0.88


def draw_lengths(
    lengths: npt.NDArray[np.int32], *, max_length: int, cut: int, refused: int, title: str
) -> str:
    """A histogram with a line at ``max_length`` and, right of it, the rows that were longer."""
    bins = count_lengths(lengths, max_length=max_length, cut=cut)
    highest = max([cut + refused, *(count for *_, count in bins), 1])
    parts = ['<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>']
    for first, last, count in bins:
        if count:
            left, right = (_UP_TO * place / max_length for place in (first - 1, last))
            said = f"{first:,} to {last:,} tokens: {count:,} rows"
            parts.append(_bar(left, right, 0.0, count / highest, "bin", said))
    left, right = _UP_TO + 0.025, 0.995
    if cut:
        said = f"longer than {max_length:,} tokens and cut: {cut:,} rows"
        parts.append(_bar(left, right, 0.0, cut / highest, "bin cut", said))
    if refused:
        said = f"too long and left out: {refused:,} rows"
        parts.append(_bar(left, right, cut / highest, refused / highest, "bin refused", said))
    at = f"{100 * _UP_TO:.2f}%"
    parts.append(f'<line class="limit" x1="{at}" x2="{at}" y1="-4" y2="100%"/>')
    ticks = [(0.0, "start", "0"), (_UP_TO / 2, "middle", f"{max_length / 2:,.0f}")]
    ticks += [(_UP_TO, "end", f"{max_length:,}"), (right, "end", "over")]
    parts += [
        f'<text x="{100 * share:.2f}%" y="100%" dy="16" text-anchor="{anchor}">{text}</text>'
        for share, anchor, text in ticks
    ]
    return f'<svg class="lengths" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def _bar(left: float, right: float, low: float, tall: float, kind: str, title: str) -> str:
    """A bar from ``low`` upwards, in shares of the drawing; title: shown when pointed at."""
    return (
        f'<g class="{kind}"><title>{escape(title)}</title>'
        f'<rect x="{100 * left:.2f}%" width="{100 * (right - left):.2f}%" '
        f'y="{100 * (1 - low - tall):.2f}%" height="{100 * tall:.2f}%"/></g>'
    )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A source's tokens in training, and its shares of the mix."""

    source: str
    drawing: Markup
    counts: dict[str, dict[str, int]]  # by side
    of_rows: str
    of_loss: str


def _tokens(manifest: Manifest) -> list[_Tokens]:
    """What the model reads of each source, and what of it carries loss."""
    total = manifest["total"]["tokens"]["train"]
    sources = {name: about["tokens"] for name, about in manifest["sources"].items()}
    most = max([*(own["train"]["tokens"] for own in sources.values()), 1])
    found = []
    for name, own in sources.items():
        train = own["train"]
        learnt, read = train["supervised"] / most, train["tokens"] / most
        parts = [
            _bar(0.0, learnt, 0.3, 0.4, "learnt", f"{train['supervised']:,} tokens with a loss"),
            _bar(learnt, read, 0.3, 0.4, "masked", f"{train['masked']:,} tokens without"),
        ]
        drawing = (
            f'<svg class="tokens" role="img"><title>{escape(name)}: {train["tokens"]:,} tokens, '
            f"{train['supervised']:,} with a loss</title>{''.join(parts)}</svg>"
        )
        found.append(
            _Tokens(
                source=name,
                drawing=Markup(drawing),
                counts=own,
                of_rows=_percent(train["examples"], total["examples"]),
                of_loss=_percent(train["supervised"], total["supervised"]),
            )
        )
    return found


# --- samples ------------------------------------------------------------------------------------


def _samples(prepared: PreparedData, tokenizer: Any) -> Markup:
    """Rows as the model sees them, as JSON for the page's script, sources in turn.

    Of each source the first of the mix, whose order is by chance; some that were cut, which may be
    rare, and some that are held out.
    """
    names = list(prepared.manifest["sources"])
    most = max(3, _SAMPLES // max(len(names), 1))
    full = int(prepared.manifest["settings"]["max_length"])
    shown = []
    for side, rows in ((Split.train, prepared.train), (Split.held_out, prepared.held_out)):
        numbers = _source_numbers(rows, names)
        for number in range(len(names)):
            places = np.flatnonzero(numbers == number)
            first = places[: most - most // 3 if side is Split.train else most // 6 or 1]
            long = places[rows.lengths[places] == full][: most // 6] if side is Split.train else []
            chosen = dict.fromkeys([*first.tolist(), *map(int, long)])
            shown += [_sample(rows[place], side, tokenizer) for place in chosen]
    return json_for_script({"max_length": full, "samples": shown})


def _sample(encoded: EncodedExample, side: Split, tokenizer: Any) -> dict[str, Any]:
    ids = [int(each) for each in encoded.ids[:_SAMPLE_TOKENS]]
    return {
        "source": encoded.example.source,
        "row": encoded.example.row,
        "side": side.value,
        "truncated": encoded.truncated,
        "length": len(encoded.ids),
        "supervised": encoded.supervised,
        "ids": ids,
        "texts": token_texts(ids, tokenizer),
        "spans": [[max(start, 1), stop] for start, stop in encoded.spans],
    }


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text of those before it; all of them together are the text.

    A token alone may have no text: a SentencePiece one loses its space, and a character can be
    spread over several tokens, of which the last one gets it.
    """

    def decode(start: int, stop: int) -> str:
        text: str = tokenizer.decode(
            ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    texts = []
    context, said = 0, 0  # tokens from ``context`` on, whose text is out up to ``said``
    for stop in range(1, len(ids) + 1):
        before, now = decode(context, said), decode(context, stop)
        whole = stop == len(ids) or not now.endswith("\ufffd")
        texts.append(now[len(before) :] if whole else "")
        if whole:
            context, said = said, stop
    return texts


# --- rows to browse -----------------------------------------------------------------------------

#: A text in pieces, and whether each is to be marked.
Marked = list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row to look at: columns with their texts."""

    source: str
    row: int
    texts: list[tuple[str, Marked]]
    note: str = ""


def _plain(text: str) -> Marked:
    return [(text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …", False)]


def _row(shown: dict[str, Any]) -> _Row:
    """A row as the record of the mix has it."""
    texts = [(key, _plain(shown[key])) for key in ("instruction", "response")]
    return _Row(shown["source"], shown["row"], texts)


@dataclass(slots=True)
class _Reason:
    """Rows that were refused for one reason: how many, by source, and some of them."""

    name: str
    step: str
    counts: dict[str, int]
    rows: list[_Row] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def _refused(prepared: PreparedData) -> list[_Reason]:
    """Refused rows by reason in the order of the steps, evenly picked from each source's."""
    sources = prepared.manifest["sources"]
    totals = Counter(prepared.manifest["total"]["rejected"])
    reasons = {
        name: _Reason(
            name,
            step_of(name),
            {key: own["rejected"][name] for key, own in sources.items() if name in own["rejected"]},
        )
        for name in sorted(totals, key=lambda each: (-totals[each], each))
    }
    wanted = {
        (source, reason.name): _spread(count, -(-_OF_A_REASON // len(reason.counts)))
        for reason in reasons.values()
        for source, count in reason.counts.items()
    }
    seen = Counter[tuple[str, str]]()
    for each in prepared.rejected():
        key = (each.source, each.reason)
        if seen[key] in wanted[key]:
            row = _Row(each.source, each.row, _columns(each.raw), each.detail)
            reasons[each.reason].rows.append(row)
        seen[key] += 1
    return sorted(reasons.values(), key=lambda each: STEPS.index(each.step))


def _spread(count: int, most: int) -> set[int]:
    """Up to ``most`` of ``count`` places from 0, evenly chosen."""
    return {count * (2 * number + 1) // (2 * most) for number in range(most) if count}


def _columns(raw: Any) -> list[tuple[str, Marked]]:
    """An upstream row's columns; a line that could not be read has none."""
    if not isinstance(raw, dict):
        return [("line", _plain(str(raw)))]
    return [
        (key, _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
        for key, value in raw.items()
    ]


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Copies of a row, what they change marked in them. why: it stays. more: are not shown."""

    kept: _Row
    why: str
    copies: list[_Row]
    more: int


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Clusters of copies: how many, how many rows they lost, how many reach over sources."""

    count: int
    dropped: int
    across: int
    shown: list[_Cluster]


def _clusters(prepared: PreparedData) -> _Clusters:
    """The largest clusters, and others by chance."""
    chance, largest = _Chance(_CLUSTERS // 2), list[tuple[int, int, dict[str, Any]]]()
    dropped = across = 0
    for cluster in _read_lines(prepared.folder / CLUSTERS):
        rows = [cluster["kept"], *cluster["dropped"]]
        dropped += len(rows) - 1
        across += len({row["source"] for row in rows}) > 1
        chance.add(cluster)
        # Of equal ones the first: no two clusters have the same number.
        heapq.heappush(largest, (len(rows), -chance.count, cluster))
        if len(largest) > _CLUSTERS // 2:
            heapq.heappop(largest)
    chosen = [cluster for *_, cluster in sorted(largest, reverse=True)]
    chosen += [cluster for cluster in chance.rows if cluster not in chosen]
    return _Clusters(chance.count, dropped, across, [_cluster(each) for each in chosen])


def _cluster(cluster: dict[str, Any]) -> _Cluster:
    kept, dropped = _row(cluster["kept"]), cluster["dropped"]
    copies = [_copy(_row(each), kept) for each in dropped[:_COPIES]]
    return _Cluster(kept, cluster["why"], copies, len(dropped) - len(copies))


def _copy(copy: _Row, kept: _Row) -> _Row:
    texts = [
        (key, mark_changes(ours[0][0], theirs[0][0]))
        for (key, ours), (_, theirs) in zip(kept.texts, copy.texts, strict=True)
    ]
    return replace(copy, texts=texts)


def mark_changes(kept: str, copy: str) -> Marked:
    """The text of a copy, with the words marked that the kept one does not have there."""
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (kept, copy))
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    return [
        ("".join(theirs[start:stop]), tag != "equal")
        for tag, _, _, start, stop in matcher.get_opcodes()
        if start < stop
    ]


@dataclass(frozen=True, slots=True)
class _Match:
    """A training row and the test that it gives away; found: the similarity, or shared words."""

    row: _Row
    test: str
    kind: str
    found: str


@dataclass(frozen=True, slots=True)
class _Contaminated:
    """Training rows that left the mix for the tests they give away: how many, some by chance."""

    counts: dict[str, int]  # by kind
    shown: list[_Match]


def _contaminated(prepared: PreparedData) -> _Contaminated:
    """As many of each kind, as one may be much rarer than the other."""
    kinds: dict[str, _Chance] = {}
    for line in _read_lines(prepared.folder / CONTAMINATION):
        kinds.setdefault(line["kind"], _Chance(_CONTAMINATED // 2)).add(line)
    counts = {kind: chance.count for kind, chance in sorted(kinds.items())}
    return _Contaminated(counts, [_match(each) for kind in counts for each in kinds[kind].rows])


def _match(line: dict[str, Any]) -> _Match:
    shown, found = line["row"], line["found"]
    texts = [(key, mark_run(shown[key], found)) for key in ("instruction", "response")]
    row = _Row(shown["source"], shown["row"], texts)
    return _Match(row, line["test"], line["kind"], found)


def mark_run(text: str, run: str) -> Marked:
    """A text with a run of words marked, case and punctuation aside, and as much around it as the
    page has room for.
    """
    words = r"[\W_]+".join(map(re.escape, run.split()))
    found = re.search(words, text, re.IGNORECASE) if words else None
    if found is None:
        return _plain(text)
    start = max(0, found.start() - _CHARACTERS // 3)
    stop = max(found.end(), start + _CHARACTERS)
    before, after = text[start : found.start()], text[found.end() : stop]
    return [
        (f"… {before}" if start else before, False),
        (found[0], True),
        (f"{after} …" if stop < len(text) else after, False),
    ]


class _Chance:
    """A sample of the rows that were added, each as likely as any other, and their number.

    Algorithm R of Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11(1), section 2.
    """

    def __init__(self, most: int) -> None:
        self._most, self._random = most, random.Random(0)
        self.rows: list[Any] = []
        self.count = 0

    def add(self, row: Any) -> None:
        self.count += 1
        if len(self.rows) < self._most:
            self.rows.append(row)
        elif (place := self._random.randrange(self.count)) < self._most:
            self.rows[place] = row


def _read_lines(path: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file, one after another: it may not fit into memory."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
