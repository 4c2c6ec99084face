"""Sources to token ids, every step in order and every row accounted for.

read -> clean -> rules -> deduplicate -> split -> mix -> tokenise, cached under one fingerprint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dollyllama.config import Data, Deduplicate, LossOn, Source, fingerprint
from dollyllama.data.clean import apply_rules, clean
from dollyllama.data.dedupe import drop_exact_duplicates
from dollyllama.data.example import Example, Rejected, Split
from dollyllama.data.mix import MixReport, build_mix
from dollyllama.data.sources import (
    EMBEDDED_LICENCE,
    Place,
    Row,
    check_columns,
    digest_place,
    digest_rows,
    locate,
    read_example,
    read_rows,
)
from dollyllama.data.split import assign_split
from dollyllama.data.tokens import EncodedExample, encode_all
from dollyllama.embedded import EMBEDDED
from dollyllama.files import digest, read_json_lines, write_json, write_json_lines

#: Called with the stage's name, how much of it is done and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a run. train is in the order of the mix, held_out in that of source and row.

    manifest: what ``data.json`` holds. fingerprint: equal for equal data, tokens and code.
    """

    train: list[EncodedExample]
    held_out: list[EncodedExample]
    rejected: list[Rejected]
    manifest: dict[str, Any]
    fingerprint: str


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
    ValueError when a source cannot be read, EmptySide when a side of the split is empty.
    """
    report = progress or (lambda stage, done, total: None)
    places = {name: place_of(source, name=name, root=data.root) for name, source in _sorted(data)}
    digests = {name: digest_place(place) for name, place in places.items()}
    rows: dict[str, list[Row]] = {}
    for name, place in places.items():
        if place.local is None:
            report("reading", len(rows), len(places))
            rows[name] = read_rows(place, name=name, split=data.sources[name].split)
            digests[name] = digest_rows(rows[name])
    key = fingerprint(
        {
            "data": dataclasses.asdict(data),
            "digests": digests,
            "seed": seed,
            "tokenizer": _tokenizer_digest(tokenizer),
            "code": _code_digest(),
        }
    )
    folder = (cache or _default_cache()) / key
    if (cached := _load(folder)) is not None:
        return cached
    for name, place in places.items():
        if name not in rows:
            report("reading", len(rows), len(places))
            rows[name] = read_rows(place, name=name, split=data.sources[name].split)
    prepared = _prepare(
        data,
        tokenizer,
        rows=rows,
        places=places,
        digests=digests,
        seed=seed,
        key=key,
        report=report,
    )
    _save(prepared, folder)
    return prepared


def _sorted(data: Data) -> list[tuple[str, Source]]:
    return sorted(data.sources.items())


def place_of(source: Source, *, name: str, root: str | None) -> Place:
    """Where a source's rows are. ValueError when a local place was named and holds nothing."""
    return locate(
        name=name,
        path=source.path,
        file=source.file,
        revision=source.revision,
        split=source.split,
        root=root,
    )


def clean_rows(
    rows: list[Row], source: Source, *, name: str, location: str
) -> tuple[list[Example], list[Rejected], Counter[str]]:
    """Read and clean a source's rows: examples, what cannot be one, and repairs by kind.

    ValueError when the columns are not those of the source's format.
    """
    check_columns(rows, name=name, location=location, row_format=source.format)
    examples: list[Example] = []
    rejected: list[Rejected] = []
    repairs: Counter[str] = Counter()
    for number, row in enumerate(rows):
        read = read_example(row, name=name, number=number, row_format=source.format)
        if not isinstance(read, Rejected):
            read = clean(*read, group_by=source.group_by)
        if isinstance(read, Rejected):
            rejected.append(read)
            continue
        example, done = read
        examples.append(example)
        repairs.update(done)
    return examples, rejected, repairs


def _prepare(
    data: Data,
    tokenizer: Any,
    *,
    rows: dict[str, list[Row]],
    places: dict[str, Place],
    digests: dict[str, dict[str, str]],
    seed: int,
    key: str,
    report: Progress,
) -> PreparedData:
    counts: dict[str, dict[str, int]] = {}
    repairs: dict[str, Counter[str]] = {}
    rejected: list[Rejected] = []
    examples: list[Example] = []
    for number, (name, source) in enumerate(_sorted(data)):
        report("cleaning", number, len(data.sources))
        cleaned, unreadable, repaired = clean_rows(
            rows[name], source, name=name, location=places[name].name
        )
        repairs[name] = repaired
        kept, refused = apply_rules(cleaned, source.rules)
        rejected += [*unreadable, *refused]
        examples += kept
        counts[name] = {"read": len(rows[name]), "cleaned": len(cleaned), "rules": len(kept)}

    if data.deduplicate is Deduplicate.exact:
        report("deduplicating", 0, 1)
        examples, refused = drop_exact_duplicates(examples)
        rejected += refused
    train, held_out = assign_split(examples, data.held_out)
    for side, kept in (("deduplicated", examples), ("train", train), ("held_out", held_out)):
        per_source = Counter(example.source for example in kept)
        for name in counts:
            counts[name][side] = per_source[name]
    mixed, mix = build_mix(
        train,
        weights={name: source.weight for name, source in _sorted(data)},
        caps={name: source.max_rows for name, source in _sorted(data)},
        max_rows=data.max_rows,
        seed=seed,
    )

    # The held-out loss is over responses whatever is trained on, so that runs can be compared.
    chosen = {
        Split.train: (mixed, data.loss_on),
        Split.held_out: (held_out, LossOn.response),
    }
    distinct = {
        side: {(example.source, example.row): example for example in examples}
        for side, (examples, _) in chosen.items()
    }
    total = sum(len(examples) for examples in distinct.values())
    sides: dict[Split, list[EncodedExample]] = {}
    encoded_before = 0
    for side, (examples, loss_on) in chosen.items():

        def encoding(count: int, before: int = encoded_before) -> None:
            report("tokenising", before + count, total)

        encoded, refused = encode_all(
            list(distinct[side].values()),
            tokenizer,
            max_length=data.max_length,
            loss_on=loss_on,
            overlong=data.overlong,
            progress=encoding,
        )
        encoded_before += len(distinct[side])
        rejected += refused
        of_row = {(each.example.source, each.example.row): each for each in encoded}
        sides[side] = [of_row[at] for each in examples if (at := (each.source, each.row)) in of_row]
    rejected = [
        dataclasses.replace(each, raw=rows[each.source][each.row])
        for each in sorted(rejected, key=lambda each: (each.source, each.row))
    ]
    manifest: dict[str, Any] = {
        "fingerprint": key,
        "seed": seed,
        "settings": {
            name: value for name, value in dataclasses.asdict(data).items() if name != "sources"
        },
        "tokenizer": _tokenizer_digest(tokenizer),
        "sources": {
            name: _describe(
                source,
                place=places[name],
                digests=digests[name],
                rows=counts[name],
                repairs=dict(sorted(repairs[name].items())),
                rejected=[each for each in rejected if each.source == name],
                mix=mix,
                name=name,
                root=data.root,
                sides={
                    side: [each for each in kept if each.example.source == name]
                    for side, kept in sides.items()
                },
            )
            for name, source in _sorted(data)
        },
    }
    manifest["total"] = _total(manifest["sources"])
    # What a reader of the record sees is what a reader of the cache gets.
    manifest = json.loads(json.dumps(manifest))
    prepared = PreparedData(sides[Split.train], sides[Split.held_out], rejected, manifest, key)
    _require_both_sides(prepared, data)
    return prepared


def _require_both_sides(prepared: PreparedData, data: Data) -> None:
    if not prepared.train:
        raise EmptySide(
            prepared,
            f"the mix has no training example: data.sources ({', '.join(sorted(data.sources))}), "
            f"their rules and weights, data.max_length={data.max_length} and "
            f"data.held_out={data.held_out:g} left none; raise max_length or loosen the rules",
        )
    if not prepared.held_out:
        raise EmptySide(
            prepared,
            f"the mix has no held-out example: data.held_out={data.held_out:g} of "
            f"{len(prepared.train)} training rows hit none; raise data.held_out",
        )


def _describe(
    source: Source,
    *,
    name: str,
    root: str | None,
    place: Place,
    digests: dict[str, str],
    rows: dict[str, int],
    repairs: dict[str, int],
    rejected: Sequence[Rejected],
    mix: MixReport,
    sides: dict[Split, list[EncodedExample]],
) -> dict[str, Any]:
    """One source's part of the manifest."""
    share = mix.shares[name]
    trained = {each.example.row for each in sides[Split.train]}
    return {
        "upstream": source.path,
        "revision": source.revision,
        "split": source.split,
        "read_from": place.name,
        "digests": digests,
        "format": source.format.value,
        "licence": EMBEDDED_LICENCE
        if root == EMBEDDED
        else {"name": source.licence, "stated_at": source.licence_stated_at},
        "grader": source.grader.value,
        "rows": {
            **rows,
            "not_drawn": share.available - share.chosen,
            "mixed": share.drawn,
            "trained": len(sides[Split.train]),
            "trained_distinct": len(trained),
            "evaluated": len(sides[Split.held_out]),
        },
        "repaired": repairs,
        "rejected": dict(sorted(Counter(each.reason for each in rejected).items())),
        "tokens": {side.value: _count_tokens(kept) for side, kept in sides.items()},
    }


def _count_tokens(examples: Sequence[EncodedExample]) -> dict[str, int]:
    tokens = sum(len(each.ids) for each in examples)
    masked = sum(each.masked for each in examples)
    return {
        "examples": len(examples),
        "tokens": tokens,
        "masked": masked,
        "supervised": tokens - masked,
        "truncated": sum(each.truncated for each in examples),
        "longest": max((len(each.ids) for each in examples), default=0),
    }


def _total(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
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


# --- fingerprint and cache ----------------------------------------------------------------------


def _default_cache() -> Path:
    return Path(os.environ.get("DOLLYLLAMA_CACHE", ".cache/dollyllama")) / "data"


def _tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of everything that decides token ids."""
    text = tokenizer.backend_tokenizer.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{text}{special}".encode()).hexdigest()


def _code_digest() -> str:
    """SHA-256 of this package's source: other code is other data."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _save(prepared: PreparedData, folder: Path) -> None:
    """Write prepared data to ``folder`` as a whole, or leave what another process put there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        sides = (prepared.train, prepared.held_out)
        at: dict[tuple[str, int], int] = {}
        distinct: list[EncodedExample] = []
        for each in (each for side in sides for each in side):
            if at.setdefault((each.example.source, each.example.row), len(distinct)) == len(
                distinct
            ):
                distinct.append(each)
        write_json_lines(
            temporary / "examples.jsonl",
            ([getattr(each.example, key) for key in _EXAMPLE_KEYS] for each in distinct),
        )
        write_json_lines(
            temporary / "rejected.jsonl", (dataclasses.asdict(each) for each in prepared.rejected)
        )
        order = [
            np.array([at[(each.example.source, each.example.row)] for each in side], np.int64)
            for side in sides
        ]
        np.savez(
            temporary / "tokens.npz",
            ids=np.array([token for each in distinct for token in each.ids], np.int32),
            lengths=np.array([len(each.ids) for each in distinct], np.int64),
            masked=np.array([each.masked for each in distinct], np.int64),
            truncated=np.array([each.truncated for each in distinct], np.bool_),
            train=order[0],
            held_out=order[1],
        )
        write_json(temporary / "manifest.json", prepared.manifest)
        write_json(
            temporary / "digests.json", {name: digest(temporary / name) for name in _CACHED_FILES}
        )
        try:
            temporary.rename(folder)
        except OSError:
            if _load(folder) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_CACHED_FILES = ("examples.jsonl", "rejected.jsonl", "tokens.npz", "manifest.json")
_EXAMPLE_KEYS = tuple(field.name for field in dataclasses.fields(Example))


def _load(folder: Path) -> PreparedData | None:
    """Load what ``_save`` wrote; None when it is not there. A damaged folder is removed."""
    if not folder.is_dir():
        return None
    if not _is_whole(folder):
        shutil.rmtree(folder)
        return None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    examples = [Example(*values) for values in read_json_lines(folder / "examples.jsonl")]
    rejected = [Rejected(**values) for values in read_json_lines(folder / "rejected.jsonl")]
    with np.load(folder / "tokens.npz", allow_pickle=False) as arrays:
        ids = arrays["ids"]
        ends = np.cumsum(arrays["lengths"]).tolist()
        masked, truncated = arrays["masked"].tolist(), arrays["truncated"].tolist()
        train, held_out = arrays["train"].tolist(), arrays["held_out"].tolist()
    encoded = [
        EncodedExample(example, ids[start:end].tolist(), mask, cut)
        for example, start, end, mask, cut in zip(
            examples, [0, *ends[:-1]], ends, masked, truncated, strict=True
        )
    ]
    return PreparedData(
        _pick(encoded, train), _pick(encoded, held_out), rejected, manifest, folder.name
    )


def _pick(encoded: Sequence[EncodedExample], places: Iterable[int]) -> list[EncodedExample]:
    return [encoded[place] for place in places]


def _is_whole(folder: Path) -> bool:
    try:
        digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
        return all(digests[name] == digest(folder / name) for name in _CACHED_FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False
