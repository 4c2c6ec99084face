"""Sources to the rows that a run trains and evaluates on, every row accounted for.

ingest, a source at a time -> copies -> split -> contamination -> mix. What looks at one row alone
is kept by source (``store``), so that only a source that changed is read again; what looks at all
rows works on arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dollyllama import config
from dollyllama.config import Data, Deduplicate, fingerprint
from dollyllama.data.contamination import find_contamination, find_copied_parts
from dollyllama.data.dedupe import Places, clusters_of, first_copies, why_kept
from dollyllama.data.example import Rejected, Split
from dollyllama.data.ingest import (
    Job,
    build_store,
    find_source,
    parts_of,
    questions_of,
    read_questions,
    settings_of,
)
from dollyllama.data.manifest import Found, Late, Mix, describe_sources, total_of
from dollyllama.data.mix import Pool, build_mix
from dollyllama.data.near import (
    Content,
    cluster_of,
    content,
    find_copies,
    kept_of,
    shingle_weights,
)
from dollyllama.data.prompt import check_prompt_format
from dollyllama.data.quality import QUALITY, RULES
from dollyllama.data.semantic import describe_embedder, find_embedder, find_semantic_copies
from dollyllama.data.split import is_held_out
from dollyllama.data.store import Corpus, Rows, Store
from dollyllama.files import cache_folder, damaged, digest, locked, write_json

#: Called with the stage's name, how much of it is done and how much there is (0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a run. train is in the order of the mix, held_out in that of source and row.

    manifest: what ``data.json`` holds. fingerprint: equal for equal data, tokens and code.
    folder: where rejected.jsonl, clusters.jsonl and contamination.jsonl are.
    """

    train: Rows
    held_out: Rows
    manifest: dict[str, Any]
    fingerprint: str
    folder: Path

    def rejected(self) -> Iterator[Rejected]:
        """The rows that are not used, by source and row."""
        with (self.folder / REJECTED).open(encoding="utf-8") as file:
            for line in file:
                yield Rejected(**json.loads(line))


#: Files of a prepared mix: the record of what was left out and why.
REJECTED, CLUSTERS, CONTAMINATION = "rejected.jsonl", "clusters.jsonl", "contamination.jsonl"
RECORD = (REJECTED, CLUSTERS, CONTAMINATION)


class EmptySide(ValueError):  # noqa: N818
    """A mix with nothing to train or to evaluate on; ``prepared`` says where its rows went."""

    def __init__(self, prepared: PreparedData, message: str) -> None:
        super().__init__(message)
        self.prepared = prepared


def prepare(
    data: Data,
    tokenizer: Any,
    *,
    seed: int,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Prepare a mix for training and evaluation, or load it when it has been prepared before.

    cache: a folder for prepared data; None is ``$DOLLYLLAMA_CACHE/data``, or
    ``.cache/dollyllama/data`` below the working folder.
    ValueError when a source cannot be read or the tokenizer lacks a template, EmptySide when a
    side of the split is empty.
    """
    report = progress or (lambda stage, done, total: None)
    cache = cache or cache_folder() / "data"
    check_prompt_format(data.prompt, tokenizer)
    wanted = _wanted(data, tokenizer, seed=seed, cache=cache, report=report)
    prepared = _load(wanted.folder, wanted.stores)
    if prepared is None:
        try:
            prepared = _make(wanted, data, tokenizer, seed=seed, report=report)
        except OSError as error:
            what = error.strerror or str(error)
            at = f": {error.filename}" if error.filename else ""
            raise ValueError(
                f"data cannot be prepared in {cache} ({what}{at}): make room there, or name "
                "another folder by DOLLYLLAMA_CACHE=FOLDER; the same command goes on where it "
                "stopped"
            ) from error
    _require_both_sides(prepared, data)
    return prepared


def _make(
    wanted: _Wanted, data: Data, tokenizer: Any, *, seed: int, report: Progress
) -> PreparedData:
    """Make what is not there, unless another process does meanwhile."""
    jobs, stores, folder = wanted.jobs, wanted.stores, wanted.folder
    with _called_benchmarks():
        tests = [question for job in wanted.tests.values() for question in read_questions(job)]
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        report("reading, cleaning, tokenising", done, 0)

    built = {name: build_store(job, stores[name], tokenizer, count) for name, job in jobs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, None):
        if (cached := _load(folder, stores)) is not None:
            return cached
        mix = _combine(
            data, Corpus(built), tests, wanted.embedder, seed=seed, report=report, scratch=folder
        )
        described = describe_sources(data.sources, jobs, mix)
        manifest = {
            "fingerprint": folder.name,
            "seed": seed,
            "settings": {
                name: value for name, value in dataclasses.asdict(data).items() if name != "sources"
            },
            "tokenizer": _tokenizer_digest(tokenizer),
            "embedder": wanted.embedding,
            "sources": described,
            "total": total_of(described),
            "mix": dataclasses.asdict(mix.shares)["shares"],
        }
        _save(mix, manifest, folder)
    prepared = _load(folder, stores)
    if prepared is None:
        raise ValueError(f"{folder} changed while it was written: run again")
    return prepared


def check(data: Data, tokenizer: Any, *, seed: int, cache: Path | None = None) -> list[str]:
    """The files of a prepared mix that are not there or damaged; none when it can be loaded.

    ValueError when a source cannot be found, or the mix has not been prepared.
    """
    cache = cache or cache_folder() / "data"
    wanted = _wanted(data, tokenizer, seed=seed, cache=cache, report=lambda *_: None)
    if not (wanted.folder / _DIGESTS).is_file():
        raise ValueError(f"{wanted.folder.name} is not prepared: leave out --check to do so")
    found = [str(wanted.folder / name) for name in _damaged(wanted.folder)]
    for place in wanted.stores.values():
        try:
            found += [str(place / name) for name in Store(place).damaged()]
        except ValueError as error:
            found.append(str(error))
    return found


@contextmanager
def _called_benchmarks() -> Iterator[None]:
    """Errors of a benchmark name its key, not that of a source."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("data.sources.", "data.benchmarks.")) from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A mix by what decides it: its sources, and where they and the mix are when prepared."""

    jobs: dict[str, Job]
    tests: dict[str, Job]
    embedder: Path | None
    embedding: dict[str, str] | None
    stores: dict[str, Path]
    folder: Path


def _wanted(data: Data, tokenizer: Any, *, seed: int, cache: Path, report: Progress) -> _Wanted:
    jobs = {}
    for number, (name, source) in enumerate(sorted(data.sources.items())):
        report("looking at the files", number, len(data.sources))
        jobs[name] = find_source(data, name, source)
    with _called_benchmarks():
        tests = {
            name: find_source(data, name, source)
            for name, source in sorted(data.benchmarks.items())
        }
    embedder = None if data.embedder is None else find_embedder(data.embedder)
    embedding = None if embedder is None else describe_embedder(embedder)
    digests = {name: job.digests for name, job in jobs.items()}
    about = {"tokenizer": _tokenizer_digest(tokenizer), "code": _code_digest()}
    stores = {
        name: cache / "sources" / fingerprint(about | settings_of(job) | {"digests": digests[name]})
        for name, job in jobs.items()
    }
    key = fingerprint(
        about
        | {"data": dataclasses.asdict(data), "digests": digests, "seed": seed}
        | {"tests": {name: job.digests for name, job in tests.items()}}
        | {"embedder": embedding}
    )
    return _Wanted(jobs, tests, embedder, embedding, stores, cache / "mixes" / key)


# --- what looks at all rows ---------------------------------------------------------------------

#: Of copies a row stays that is not cut, then the one with the longest response, in tokens.
_RANKED_BY = ("truncated", "held_out_supervised")


def _combine(
    data: Data,
    corpus: Corpus,
    tests: list[tuple[str, Content]],
    embedder: Path | None,
    *,
    seed: int,
    report: Progress,
    scratch: Path,
) -> Mix:
    everything = np.arange(len(corpus))
    sources = corpus.sources
    report("finding copies", 0, 1)
    exact = first_copies(corpus.column("key"))
    repeated = np.flatnonzero(exact != everything)
    values, offsets = corpus.lay_out("shingles", scratch)
    weights = shingle_weights(values, offsets, sources)
    near = find_copies(values, offsets, weights).pairs
    copies = np.concatenate([np.stack([exact[repeated], repeated], axis=1), near])
    truncated, lengths = (corpus.column(name) for name in _RANKED_BY)
    kept = near_kept = kept_of(cluster_of(copies, len(corpus)), truncated, lengths)
    if embedder is not None:
        assert data.similarity is not None  # config.Data sees to it
        report("finding semantic copies", 0, 1)
        contents = [content(corpus.example(row)) for row in everything.tolist()]
        more = find_semantic_copies(contents, embedder, data.similarity)
        copies = np.concatenate([copies, more])
        kept = kept_of(cluster_of(copies, len(corpus)), truncated, lengths)
    elif data.deduplicate is Deduplicate.exact:
        kept = exact
    elif data.deduplicate is Deduplicate.none:
        kept = everything
    groups = clusters_of(kept)
    stays = kept == everything
    held_out = is_held_out(corpus.column("side"), copies, data.held_out)

    training = np.flatnonzero(stays & ~held_out)
    evaluated = np.flatnonzero(stays & held_out)
    found: list[Found] = []
    if data.decontaminate:
        report("looking for contamination", 0, 1)
        found = _contaminated(corpus, training, evaluated, tests, values, offsets, weights)
        training = np.setdiff1d(training, [each.place for each in found], assume_unique=True)

    report("mixing", 0, 1)
    tokens, supervised, ids = (corpus.column(name) for name in ("tokens", "supervised", "id"))
    pools = {}
    for number, (name, source) in enumerate(sorted(data.sources.items())):
        own = training[sources[training] == number]
        pools[name] = Pool(
            ids=ids[own],
            tokens=tokens[own],
            supervised=supervised[own],
            weight=source.weight,
            max_rows=source.max_rows,
            max_tokens=source.max_tokens,
        )
    order, shares = build_mix(
        pools,
        temperature=data.temperature,
        max_rows=data.max_rows,
        max_tokens=data.max_tokens,
        seed=seed,
    )

    def reason(row: int) -> str:
        if exact[row] != row:
            return "duplicate_row"
        return "near_duplicate" if near_kept[row] != row else "semantic_duplicate"

    late = [
        Late(row, reason(row), f"copy of {corpus.called(each.kept)}")
        for each in groups
        for row in each.dropped
    ]
    late += [
        Late(each.place, "contaminated", f"{each.kind} of {each.test}: {each.found}")
        for each in found
    ]
    late.sort(key=lambda each: each.place)
    return Mix(
        corpus, np.flatnonzero(stays), training[order], evaluated, groups, late, found, shares
    )


def _contaminated(
    corpus: Corpus,
    training: Places,
    evaluated: Places,
    tests: list[tuple[str, Content]],
    values: npt.NDArray[np.uint32],
    offsets: Places,
    weights: npt.NDArray[np.float32],
) -> list[Found]:
    """The training rows that give a test away. tests: the benchmarks', by name."""
    tests = tests + [
        (f"held-out {example.source} row {example.row}", (question, given, ""))
        for example in map(corpus.example, evaluated.tolist())
        for question, given, _ in questions_of(example)
    ]
    questions = [question for _, question in tests]
    matches = find_contamination(
        questions,
        training,
        lambda rows: [content(corpus.example(row)) for row in rows.tolist()],
        values,
        offsets,
        weights,
    )
    left = np.setdiff1d(training, [match.row for match in matches], assume_unique=True)
    matches += find_copied_parts(
        questions,
        left[corpus.is_in_parts()[left]],
        lambda rows: [parts_of(corpus.example(row)) for row in rows.tolist()],
        weights,
    )
    return [
        Found(match.row, *_in_words(tests[match.test]), match.kind, match.found)
        for match in sorted(matches, key=lambda match: match.row)
    ]


def _in_words(test: tuple[str, Content]) -> tuple[str, str]:
    name, (question, given, _) = test
    return name, f"{question}\n{given}".strip()


def _require_both_sides(prepared: PreparedData, data: Data) -> None:
    total = prepared.manifest["total"]
    rows, went = total["rows"], Counter[str](total["rejected"])
    if not len(prepared.train):
        went.update(held_out=rows["held_out"], not_drawn=rows["not_drawn"])
        raise EmptySide(
            prepared, f"the mix has no training example: {_losses(went, prepared, data)}"
        )
    if not len(prepared.held_out):
        went["training"] = rows["train"] + went.pop("contaminated", 0)
        raise EmptySide(
            prepared, f"the mix has no held-out example: {_losses(went, prepared, data)}"
        )


_REASONS_SHOWN = 3


def _losses(went: Counter[str], prepared: PreparedData, data: Data) -> str:
    """Where a mix's rows went, most of them first, and what keeps them. went: rows by reason."""
    names = textwrap.shorten(", ".join(sorted(data.sources)), 60, placeholder="…")
    most = [(reason, count) for reason, count in went.most_common(_REASONS_SHOWN) if count]
    parts = [f"{count:,} {reason}" for reason, count in most]
    if others := went.total() - sum(count for _, count in most):
        parts.append(f"{others:,} for other reasons")
    way_out = _way_out(most[0][0], prepared, data)
    return f"{went.total():,} rows of data.sources ({names}): {', '.join(parts)}; {way_out}"


def _way_out(reason: str, prepared: PreparedData, data: Data) -> str:
    """What to change where most rows of a mix went for this reason."""
    sources = prepared.manifest["sources"]
    longer = f"raise data.max_length={data.max_length}"
    ways = {
        "held_out": f"lower data.held_out={data.held_out:g}",
        "training": f"raise data.held_out={data.held_out:g}",
        "not_drawn": "raise the sources' weights, or the caps max_rows and max_tokens",
        "prompt_too_long": longer,
        "too_long": longer,
        "nothing_to_learn": f"{longer} or change data.loss_on={data.loss_on}",
        "duplicate_row": "add rows that copy no other",
        "near_duplicate": "add rows that copy no other",
        "semantic_duplicate": "add rows that copy no other",
    }
    if reason in ways:
        return ways[reason]
    if reason == "contaminated":
        return _without_test(sources, data)
    if reason in QUALITY:
        return f"leave {reason} out of data.quality"
    if reason in RULES:
        name = max(sources, key=lambda name: sources[name]["rejected"].get(reason, 0))
        return f"leave {reason} out of data.sources.{name}.rules"
    first = next(each for each in prepared.rejected() if each.reason == reason)
    detail = textwrap.shorten(first.detail, 120, placeholder="…")
    return f"mend those rows, first row {first.row} of {first.source}: {detail}"


def _without_test(sources: Mapping[str, dict[str, Any]], data: Data) -> str:
    """How to do without the test that most rows give away."""
    tests = Counter[str]()
    for source in sources.values():
        tests.update(source["gives_away"])
    test, _ = tests.most_common(1)[0]
    if test in data.benchmarks:
        return f"leave out data.benchmarks.{test}, which they give away"
    return f"set data.decontaminate=false{' benchmarks=none' if data.benchmarks else ''}"


def write_record(prepared: PreparedData, folder: Path) -> None:
    """Write to ``folder`` what a mix is made of, and what was left out and why."""
    write_json(folder / "data.json", prepared.manifest)
    for name in RECORD:
        shutil.copyfile(prepared.folder / name, folder / name)


# --- fingerprint and cache ----------------------------------------------------------------------


def _tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of everything that decides token ids."""
    text = tokenizer.backend_tokenizer.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{text}{special}{tokenizer.chat_template}".encode()).hexdigest()


#: Modules that show prepared data and make none.
_SHOWING = {"flow.py", "page.py", "show.py"}


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """SHA-256 of what makes data: this package's source, the config's, the parser of SQL."""
    total = hashlib.sha256(version("sqlglot").encode())
    total.update(Path(config.__file__).read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in _SHOWING:
            total.update(path.read_bytes())
    return total.hexdigest()


def _save(mix: Mix, manifest: dict[str, Any], folder: Path) -> None:
    """Write a mix to ``folder``, the file that says that it is whole last."""
    corpus = mix.corpus
    lengths = corpus.column("tokens")
    sides = {"train": mix.train, "held_out": mix.held_out}
    for side, places in sides.items():
        np.save(folder / f"{side}.npy", places)
        np.save(folder / f"{side}_lengths.npy", lengths[places])
    _write_lines(folder / REJECTED, _rejected(mix))
    _write_lines(folder / CLUSTERS, _clusters(mix))
    _write_lines(folder / CONTAMINATION, (_contamination(each, mix) for each in mix.found))
    write_json(folder / "manifest.json", manifest)
    names = [path.name for path in sorted(folder.iterdir()) if path.name != _DIGESTS]
    write_json(folder / _DIGESTS, {name: digest(folder / name) for name in names})


_DIGESTS = "digests.json"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines one by one: there may be more of them than fit into memory."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(f"{line}\n")


def _rejected(mix: Mix) -> Iterator[str]:
    """Every row that is not used, by source and row, as ``Rejected`` in JSON."""
    for source in mix.corpus.names:
        late = (
            (row, each.reason, each.detail, mix.corpus.raw(each.place))
            for each in mix.late
            for name, row in [mix.corpus.at(each.place)]
            if name == source
        )
        early = mix.corpus.stores[source].refused()
        for row, reason, detail, raw in heapq.merge(early, late):
            head = json.dumps({"source": source, "row": row, "reason": reason, "detail": detail})
            yield f'{head[:-1]}, "raw": {raw}}}'


def _clusters(mix: Mix) -> Iterator[str]:
    truncated, lengths = (mix.corpus.column(name) for name in _RANKED_BY)
    for cluster in mix.clusters:
        dropped = [_shown(place, mix) for place in cluster.dropped]
        why = why_kept(cluster, truncated, lengths)
        yield json.dumps({"kept": _shown(cluster.kept, mix), "why": why, "dropped": dropped})


def _contamination(found: Found, mix: Mix) -> str:
    about = dataclasses.asdict(found)
    del about["place"]
    return json.dumps({"row": _shown(found.place, mix), **about})


def _shown(place: int, mix: Mix) -> dict[str, Any]:
    example = mix.corpus.example(place)
    texts = {"instruction": example.question, "response": example.response}
    return {"source": example.source, "row": example.row, "id": example.id, **texts}


def _load(folder: Path, stores: Mapping[str, Path]) -> PreparedData | None:
    """Load what ``_save`` wrote over these stores; None when any of it is not there or damaged."""
    if not (folder / _DIGESTS).is_file() or _damaged(folder):
        return None
    try:
        corpus = Corpus({name: Store(place) for name, place in stores.items()})
    except ValueError:
        return None
    if any(store.damaged() for store in corpus.stores.values()):
        return None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    sides = {
        side: Rows(
            corpus,
            np.load(folder / f"{side}.npy", mmap_mode="r"),
            side,
            np.load(folder / f"{side}_lengths.npy", mmap_mode="r"),
        )
        for side in Split
    }
    return PreparedData(sides[Split.train], sides[Split.held_out], manifest, folder.name, folder)


def _damaged(folder: Path) -> list[str]:
    """Names of a mix's files whose bytes are not what was written."""
    try:
        return damaged(folder, json.loads((folder / _DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return [_DIGESTS]
