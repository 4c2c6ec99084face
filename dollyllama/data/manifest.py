"""The record of a mix: where each source came from, and where each of its rows went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dollyllama.config import Source
from dollyllama.data.dedupe import Cluster, Places
from dollyllama.data.example import Split
from dollyllama.data.ingest import Job
from dollyllama.data.licences import stated_licence
from dollyllama.data.mix import MixReport
from dollyllama.data.store import Corpus


@dataclass(frozen=True, slots=True)
class Late:
    """A row that is fit by itself and is left out for another's sake. place: in the corpus."""

    place: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """A training row that gives a test away. place: in the corpus. test: its name and row.

    question: what the test asks. kind: as of ``contamination.Kind``. found: the similarity, or the
    words that both have.
    """

    place: int
    test: str
    question: str
    kind: str
    found: str


@dataclass(frozen=True, slots=True)
class Mix:
    """What became of the rows of a corpus; rows by their place in it.

    kept: rows that copy no other. train: in order, with repeats. held_out: in the corpus's order.
    clusters: of copies. late: by place. found: training rows that were like what they must not be.
    """

    corpus: Corpus
    kept: Places
    train: Places
    held_out: Places
    clusters: list[Cluster]
    late: list[Late]
    found: list[Found]
    shares: MixReport


def describe_sources(
    sources: Mapping[str, Source],
    jobs: Mapping[str, Job],
    mix: Mix,
) -> dict[str, dict[str, Any]]:
    """Each source's part of the manifest.

    AssertionError when a row is lost: rows read are rejected, not drawn, trained or evaluated on.
    """
    corpus = mix.corpus
    number_of = corpus.sources
    tokens = {name: corpus.column(name) for name in ("tokens", "truncated")}
    supervised = {
        Split.train: corpus.column("supervised"),
        Split.held_out: corpus.column("held_out_supervised"),
    }
    described = {}
    for number, (name, source) in enumerate(sorted(sources.items())):
        store, share = corpus.stores[name], mix.shares.shares[name]
        own = {
            side: chosen[number_of[chosen] == number]
            for side, chosen in ((Split.train, mix.train), (Split.held_out, mix.held_out))
        }
        kept = int(np.count_nonzero(number_of[mix.kept] == number))
        start, stop = corpus.starts[number : number + 2].tolist()
        late = Counter(each.reason for each in mix.late if start <= each.place < stop)
        rejected = dict(sorted((store.rejected + late).items()))
        rows = {
            **{step: store.rows[step] for step in ("read", "rules", "cleaned", "quality", "fits")},
            "deduplicated": kept,
            "train": share.available,
            "held_out": len(own[Split.held_out]),
            "not_drawn": share.available - share.chosen,
            "trained": share.drawn,
            "trained_distinct": share.chosen,
            "evaluated": len(own[Split.held_out]),
        }
        used = rows["train"] + rows["evaluated"]
        assert rows["read"] == sum(rejected.values()) + used, f"rows of {name} do not add up"
        described[name] = {
            "upstream": source.path,
            "revision": source.revision,
            "split": source.split,
            "read_from": jobs[name].place.name,
            "digests": jobs[name].digests,
            "format": source.format.value,
            "licence": stated_licence(source, jobs[name].place.local),
            "grader": source.grader.value,
            "rows": rows,
            "repaired": dict(sorted(store.repaired.items())),
            "rejected": rejected,
            "gives_away": _given_away(mix, start, stop),
            "tokens": {
                side.value: _count(
                    tokens["tokens"][found], supervised[side][found], tokens["truncated"][found]
                )
                for side, found in own.items()
            },
        }
    return described


def _given_away(mix: Mix, start: int, stop: int) -> dict[str, int]:
    """Rows of a source, by its places in the corpus, that left for a test: by benchmark."""
    tests = (each.test.rpartition(" row ")[0] for each in mix.found if start <= each.place < stop)
    return dict(sorted(Counter(test.partition(" ")[0] for test in tests).items()))


def _count(
    tokens: npt.NDArray[np.int32],
    supervised: npt.NDArray[np.int32],
    truncated: npt.NDArray[np.bool_],
) -> dict[str, int]:
    total, learnt = int(tokens.sum(dtype=np.int64)), int(supervised.sum(dtype=np.int64))
    return {
        "examples": len(tokens),
        "tokens": total,
        "masked": total - learnt,
        "supervised": learnt,
        "truncated": int(np.count_nonzero(truncated)),
        "longest": int(tokens.max(initial=0)),
    }


def total_of(sources: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Sums over the sources, of rows and of tokens; ``longest`` is a maximum."""
    rows: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for source in sources.values():
        rows.update(source["rows"])
        reasons.update(source["rejected"])
    tokens: dict[str, dict[str, int]] = {}
    for side in Split:
        parts = [source["tokens"][side.value] for source in sources.values()]
        tokens[side.value] = {
            key: (max if key == "longest" else sum)(part[key] for part in parts) for key in parts[0]
        }
    return {"rows": dict(rows), "rejected": dict(sorted(reasons.items())), "tokens": tokens}
