"""Cells read from their folders: what was run, how it ended, what every held-out example got."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from dollyllama.config import (
    PASS_AT,
    SCORES,
    YAML_FAULTS,
    Grader,
    as_typed,
    differences,
    fingerprint,
    leaves,
    require_no_alias,
)
from dollyllama.evaluation.code import pass_at_k
from dollyllama.evaluation.metric import DETAILS
from dollyllama.explain import one_line
from dollyllama.files import check_inner, check_signature, damaged, parse_json
from dollyllama.study.shapes import check_shape

#: What says nothing about what is compared.
_NO_PART_OF_A_VARIANT = frozenset({"seed", "tracking", "resume", "sweep"})

#: An effect below this share of the baseline's value does not matter, where no sweep says more.
_RELEVANT = 0.02
#: What decides and what matters, by its key in ``sweep.json``.
_JUDGING = {
    "baseline": "the baseline",
    "primary": "the metric",
    "answers_primary": "the metric of answers",
    "relevant": "the share that matters,",
}
#: So many folders outside of a plan are named.
_NAMED = 3

_MARK = '"phase": "after"'


class CellStatus(StrEnum):
    """How a cell stands: the run's own statuses, and what a folder alone can tell."""

    finished = auto()
    running = auto()
    interrupted = auto()
    diverged = auto()
    pruned = auto()
    failed = auto()
    damaged = auto()
    planned = auto()


#: Every other status is a failure to be told of.
AS_MEANT = frozenset({CellStatus.finished, CellStatus.pruned, CellStatus.planned})


class Observation(NamedTuple):
    """The loss of one held-out example: ``total`` nats over ``weight`` supervised tokens."""

    total: float
    weight: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study.

    variant: what it differs in from the baseline. reason: why it is not finished. training: what
    decides its adapter, as a fingerprint. trained_by: the folder name of the cell whose adapter it
    took. reused_from: the cell that it was copied from.
    config, result, provenance, data: what the files of the same names hold, empty where there is
    none. losses, samples: the rows of the JSON Lines files after training, whose ids have become
    ``<source>/<id>``. curve: step and training loss wherever one was logged, while the adapter was
    trained. adapter_bytes: the size of the trained weights.
    """

    folder: Path
    variant: str
    seed: int
    status: CellStatus
    reason: str | None = None
    fingerprint: str | None = None
    training: str | None = None
    trained_by: str | None = None
    reused_from: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    adapter_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the ``sweep.json`` files say together; made up from the cells where there is none.

    title: the folders' names. commands: one for each sweep. baseline: the variant that all others
    are compared with. primary: the metric that decides for variants that train, answers_primary
    for those that take another's adapter. relevant: the share of the baseline's value below which
    an effect does not matter. tips: variant -> the claim that it drops. left_out: variant -> why.
    warnings: what the folders disagree about. better: variant -> the claim that it makes by itself.
    factors: what a factorial design combines; design: its variants -> the factors that each has.
    """

    title: str
    commands: list[list[str]]
    baseline: str
    primary: str | None
    answers_primary: str | None
    relevant: float
    budget: str | None
    seeds: list[int]
    tips: dict[str, str]
    left_out: dict[str, str]
    warnings: list[str]
    better: dict[str, str] = field(default_factory=dict)
    factors: list[str] = field(default_factory=list)
    design: dict[str, list[str]] = field(default_factory=dict)


#: The names that a sweep gives, each with what the variant is called in the study: an ordered set.
_Members = dict[tuple[str, str], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cell and the name that its folder or its sweep gives it, None for a plain run."""

    cell: Cell
    name: str | None


def read_sweep(
    folders: Sequence[Path], *, baseline: str | None = None, primary: str | None = None
) -> tuple[Plan, list[Cell]]:
    """Read sweep folders, run folders and folders of run folders, mixed, as one study.

    A cell that is there twice (the same folder, or the same variant, fingerprint and seed in
    several sweeps) counts once. Variants are told from the configs: a name that stands for several
    of them is followed by what differs, and a run without a name is called by what differs from
    the baseline. The order of ``folders`` matters only where no sweep names a baseline: it is then
    the variant of the first. Half-written and damaged cells are cells with a reason.

    What decides, what matters and the budget are those of the sweeps that ran the baseline. Claims
    are those of sweeps that made them against it: none against another.

    baseline, primary: in place of those that the sweeps name, with a warning. ValueError for a
    folder that holds no run, a damaged ``sweep.json``, or a baseline that is not there.
    """
    if not folders:
        raise ValueError("there is no folder to report on: name a sweep or runs")
    sweeps: dict[Path, dict[str, Any]] = {}
    entries: dict[Path, _Entry] = {}
    homes: dict[Path, Path] = {}
    strays: list[str] = []
    for folder in folders:
        found, plan = _open(folder)
        if plan is not None:
            sweeps[folder.resolve()] = plan
            homes |= {entry.cell.folder.resolve(): folder.resolve() for entry in found}
            strays += _strays(folder, plan)
        for entry in found:
            known = entries.setdefault(entry.cell.folder.resolve(), entry)
            if known.name is None and entry.name is not None:
                entries[entry.cell.folder.resolve()] = entry
    first = next(iter(entries.values()))
    ordered = [entries[place] for place in sorted(entries, key=lambda each: (each.name, each))]
    places = sorted(sweeps, key=lambda each: (each.name, each))
    plans = [sweeps[place] for place in places]
    warnings = []
    if names := sorted(set(strays)):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        first_names = ", ".join(names[:_NAMED])
        warnings.append(f"not in the plan of its sweep, left out: {first_names}{more}")
    wanted = baseline or _agreed(plans, "baseline", warnings)
    named, chosen = _name(ordered, wanted, first, warnings)
    members: dict[Path, _Members] = {place: {} for place in places}
    for entry, cell in zip(ordered, named, strict=True):
        home = homes.get(cell.folder.resolve())
        if home is not None and entry.name is not None:
            members[home][entry.name, cell.variant] = None
    cells = _once(named, warnings)
    if baseline is not None and not any(cell.variant == chosen for cell in cells):
        there = ", ".join(sorted({cell.variant for cell in cells}))
        raise ValueError(f"there is no variant {baseline} to be the baseline: there are {there}")
    own = next((cell.config for cell in cells if cell.variant == chosen and cell.config), {})

    ran = [place for place in places if chosen in {label for _, label in members[place]}]
    claimed = [place for place in ran if (sweeps[place].get("baseline"), chosen) in members[place]]
    deciding = [sweeps[place] for place in ran] or plans
    relevant = _agreed(deciding, "relevant", warnings)
    planned = _agreed(deciding, "primary", warnings) or own.get("evaluation", {}).get("primary")
    afterwards = []
    if baseline is not None and not claimed:
        afterwards.append(f"the baseline {chosen}")
    if primary is not None and primary != planned:
        afterwards.append(f"the metric {primary}")
    for plan in deciding:
        afterwards += [
            f"{_JUDGING[key]} {plan.get(key)} in place of {value}"
            for key, value in (plan.get("judged_first") or {}).items()
            if key in _JUDGING and value != plan.get(key)
        ]
        if others := _claims_since(plan):
            afterwards.append(f"what is claimed of {', '.join(others)}")
    added = sorted({seed for place in ran for seed in _added_seeds(sweeps[place])})
    if added:
        warnings.append(
            f"seeds added once cells were finished: {', '.join(map(str, added))}; whoever looks, "
            f"adds seeds and looks again is wrong more often than the p-values say"
        )
    if afterwards:
        warnings.append(f"chosen after the cells were run: {' and '.join(afterwards)}")
    untested = [place for place in places if place not in claimed]
    own_changes = set(chosen.split("+"))
    if claimed and any(own_changes & _claiming(sweeps[place]) for place in claimed):
        warnings.append(
            f"no claim is judged: the baseline, {chosen}, drops or follows one itself, and the "
            f"claims are about the recipe; put it first, ablation=baseline,{chosen},…"
        )
        claimed = []
    elif any(_claiming(sweeps[place]) for place in untested):
        warnings.append(
            f"the claims of {', '.join(place.name for place in untested)} are not judged: they are "
            f"made against another baseline than {chosen}"
        )
    factorial = next((place for place in ran or places if sweeps[place].get("factors")), None)
    return (
        Plan(
            title=_title(folders, sweeps),
            commands=[plan["command"] for plan in plans if plan.get("command")],
            baseline=chosen,
            primary=primary or planned,
            answers_primary=primary or _agreed(deciding, "answers_primary", warnings),
            relevant=_RELEVANT if relevant is None else relevant,
            budget=_agreed(deciding, "budget", warnings),
            seeds=sorted({cell.seed for cell in cells}),
            tips=_claims("tips", claimed, sweeps, members),
            left_out=_merged(plans, "left_out"),
            warnings=warnings,
            better=_claims("better", claimed, sweeps, members),
            factors=sweeps[factorial]["factors"] if factorial else [],
            design=_design(sweeps[factorial], members[factorial]) if factorial else {},
        ),
        cells,
    )


def measured_losses(cell: Cell) -> dict[str, dict[str, Observation]]:
    """``loss/all`` and ``loss/<source>`` by example; those of rows with the same words added up."""
    if not cell.losses:
        return {}
    total: dict[str, Observation] = {}
    for row in cell.losses:
        key, loss, tokens = row["id"], row["loss"], row["tokens"]
        if key in total:
            loss, tokens = loss + total[key].total, tokens + total[key].weight
        total[key] = Observation(loss, tokens)
    found = {"loss/all": total}
    for key, each in total.items():
        found.setdefault(f"loss/{key.partition('/')[0]}", {})[key] = each
    return found


def measured_scores(cell: Cell) -> dict[str, dict[str, float]]:
    """``<score>/<source>``, ``pass@k/<source>`` and ``score/all`` by example.

    ``score/all`` is the head score of every source (the first of ``config.SCORES``), which is for
    weights to balance. Those of ``metric.DETAILS`` are left out. Several answers to one question
    are averaged.
    """
    found: dict[str, dict[str, float]] = {}
    answers: dict[str, list[dict[str, float]]] = {}
    for row in cell.samples:
        answers.setdefault(row["id"], []).append(row["scores"])
    for key, own in answers.items():
        source = key.partition("/")[0]
        for score, value in (own[0] if len(own) == 1 else _averaged(own)).items():
            if score not in DETAILS:
                found.setdefault(f"{score}/{source}", {})[key] = value
    head = {
        key: score
        for source, name in sorted(_head_scores(cell.config).items())
        for key, score in found.get(f"{name}/{source}", {}).items()
    }
    return found | ({"score/all": head} if head else {})


def recorded(cell: Cell) -> dict[str, float]:
    """The metrics after training as the cell's own ``result.json`` has them."""
    return {
        row["name"]: row["value"] for row in _metric_rows(cell.result) if row["value"] is not None
    }


def head_scores(cells: Iterable[Cell]) -> list[str]:
    """The metrics that ``score/all`` is the mean of, over the sources of all cells."""
    named = {
        f"{score}/{source}" for cell in cells for source, score in _head_scores(cell.config).items()
    }
    return sorted(named, key=lambda name: name.partition("/")[2])


# --- folders ------------------------------------------------------------------------------------


def _open(folder: Path) -> tuple[list[_Entry], dict[str, Any] | None]:
    """The cells in ``folder`` and, where it is a sweep's, what it plans."""
    if (folder / "sweep.json").exists():
        try:
            plan = _object(folder / "sweep.json")
            if not plan.get("cells"):
                raise ValueError("it plans no cells")
            for cell in plan["cells"]:
                check_inner(cell["folder"])
        except (ValueError, OSError) as error:
            raise ValueError(f"{folder / 'sweep.json'} is damaged: {_short(error)}") from None
        return [_read(folder / cell["folder"], cell) for cell in plan["cells"]], plan
    if _is_run(folder):
        return [_read(folder, None)], None
    runs = [each for each in sorted(folder.iterdir()) if _is_run(each)] if folder.is_dir() else []
    if not runs:
        what = "holds no sweep and no run" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}; `python train.py` prints the folder of its run")
    return [_read(each, None) for each in runs], None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "cell.json").is_file()


def _strays(folder: Path, plan: dict[str, Any]) -> list[str]:
    planned = {cell["folder"] for cell in plan["cells"]}
    return [each.name for each in folder.iterdir() if _is_run(each) and each.name not in planned]


def _read(folder: Path, planned: dict[str, Any] | None) -> _Entry:
    """One cell; whatever is wrong with its files is its reason."""
    problems: list[str] = []

    def attempt(name: str) -> dict[str, Any]:
        try:
            return _object(folder / name) if (folder / name).exists() else {}
        except (ValueError, OSError) as error:
            problems.append(f"{name} is damaged: {_short(error)}")
            return {}

    about = {**(planned or {}), **attempt("cell.json")}
    if planned and (folder / "result.json").exists() and not (folder / "cell.json").exists():
        problems.append("cell.json, which says how it was made, is missing")
    config, result = attempt("config.yaml"), attempt("result.json")
    provenance, data = attempt("provenance.json"), attempt("data.json")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, reader in (("losses", _loss_row), ("samples", _sample_row)):
        try:
            rows[name] = _after(folder / f"{name}.jsonl", reader)
        except (ValueError, OSError) as error:
            problems.append(f"{name}.jsonl is damaged: {_short(error)}")
            rows[name] = []
    if not problems:
        changed = damaged(folder, result.get("files") or {})
        problems += [f"{name} is not as the run wrote it" for name in changed[:1]]
        if "config.yaml" in changed:
            config = {}
    if not problems and result.get("status") == CellStatus.finished:
        problems += _unlike_the_record(result, rows["losses"], rows["samples"])
    status, reason = _status(folder, config, result, problems)
    cell = Cell(
        folder=folder,
        variant="",
        seed=config.get("seed", about.get("seed")) or 0,
        status=status,
        reason=reason,
        fingerprint=about.get("fingerprint"),
        training=about.get("training"),
        trained_by=about.get("trained_by"),
        reused_from=about.get("reused_from"),
        config=config,
        result=result,
        provenance=provenance,
        data=data,
        losses=rows["losses"],
        samples=rows["samples"],
        curve=_curve(_trainer(folder, about.get("trained_by")) / "metrics.jsonl"),
        adapter_bytes=_size(folder / "adapter") if config else None,
    )
    return _Entry(cell, about.get("variant"))


def _trainer(folder: Path, trained_by: str | None) -> Path:
    """The cell beside it that trained its adapter, or itself."""
    if trained_by and Path(trained_by).name == trained_by != "..":
        return folder.parent / trained_by
    return folder


def _size(adapter: Path) -> int | None:
    """Bytes of the trained weights; None without any."""
    files = [*adapter.glob("*.safetensors"), *adapter.glob("*.bin")]
    return sum(file.stat().st_size for file in files if file.is_file()) or None


def _metric_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (result.get("metrics") or {}).get("after") or []


def _unlike_the_record(
    result: Mapping[str, Any],
    losses: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What ``result.json`` recorded that the rows cannot have made: a part of them is gone."""
    nats: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in losses:
        for source in ("all", row["source"]):
            nats[f"loss/{source}"].append((row["loss"], row["tokens"]))
    asked: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in samples:
        for score, value in row["scores"].items():
            asked[f"{score}/{row['source']}"][row["id"]].append(value)
    problems: dict[str, str] = {}
    for metric in _metric_rows(result):
        name, value, n = metric["name"], metric["value"], metric["n"]
        what = name.partition("/")[0]
        if what == "loss":
            file, found = "losses.jsonl", len(nats[name])
        elif name != "score/all" and not what.startswith("pass@"):
            file, found = "samples.jsonl", len(asked[name])
        else:
            continue  # made of the others
        if found != n:
            told = f"holds {found} examples of {name} where result.json counts {n}"
        elif found and not (
            _is_ratio(nats[name], value) if what == "loss" else _is_mean(asked[name], value)
        ):
            told = f"does not add up to the {name} in result.json"
        else:
            continue
        problems.setdefault(file, f"{file} is damaged or missing: it {told}")
    return list(problems.values())


def _is_mean(answers: Mapping[str, Sequence[float]], value: float | None) -> bool:
    """Of each question's mean, as ``evaluation.suite.average`` has it."""
    mean = math.fsum(math.fsum(each) / len(each) for each in answers.values()) / len(answers)
    return value is not None and math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-12)


def _is_ratio(parts: Sequence[tuple[float, float]], value: float | None) -> bool:
    nats, tokens = (math.fsum(each) for each in zip(*parts, strict=True))
    return value is not None and math.isclose(nats / tokens, value, rel_tol=1e-6, abs_tol=1e-12)


def _status(
    folder: Path, config: dict[str, Any], result: dict[str, Any], problems: list[str]
) -> tuple[CellStatus, str | None]:
    if not folder.is_dir():
        return CellStatus.planned, None
    if problems:
        return CellStatus.damaged, "; ".join(problems)
    if not result:
        return CellStatus.running, "no result yet"
    status = str(result.get("status"))
    if status not in CellStatus.__members__:
        return CellStatus.damaged, f"result.json is damaged: its status is {status}"
    if status == CellStatus.finished and not config:
        return CellStatus.damaged, "it has no config.yaml"
    if status == CellStatus.interrupted:
        return CellStatus.interrupted, "interrupted"
    return CellStatus(status), one_line(str(result.get("error") or "")) or None


def _object(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds keys and values. ValueError when it does not."""
    text = path.read_text(encoding="utf-8")
    values = _yaml(text) if path.suffix == ".yaml" else parse_json(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no keys and values")
    check_signature(values)
    check_shape(path.name, values)
    return values


def _yaml(text: str) -> Any:
    """What a config.yaml holds: OmegaConf's own writing, which libyaml reads to the same values
    fifteen times as fast. The cells of a variant differ in the line of the seed, and share the
    rest: a study has hundreds.
    """
    seed = _SEED.search(text)
    if seed is None:
        return _parsed(text)
    shared = _parsed(text[: seed.start()] + text[seed.end() :])
    return {**shared, "seed": int(seed[1])} if isinstance(shared, dict) else shared


_SEED = re.compile(r"^seed: (\d+)$", re.MULTILINE)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    try:
        require_no_alias(text)
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except YAML_FAULTS as error:
        raise ValueError(_short(error)) from None


def _after(path: Path, read: Callable[[Any], tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of the phase after training; [] without the file. ValueError for a broken row.

    read: the source and the id of a row, once it is checked.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        # Most of a file may be of the phase before, which is not read: parsing is what takes time.
        if _MARK not in line:
            continue
        try:
            row = parse_json(line)
            source, name = read(row)
            if row["phase"] == "after":
                rows.append({**row, "id": f"{source}/{name}"})
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"line {number}: {_short(error)}") from None
    return rows


def _loss_row(row: Any) -> tuple[str, str]:
    if not all(map(math.isfinite, (row["loss"], 1 / row["tokens"]))):
        raise ValueError("a value is no number")
    return _text(row, "source"), _text(row, "id")


def _sample_row(row: Any) -> tuple[str, str]:
    if not all(map(math.isfinite, row["scores"].values())):
        raise ValueError("a value is no number")
    for key in ("prompt", "completion", "reference"):
        _text(row, key)
    return _text(row, "source"), _text(row, "id")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _curve(path: Path) -> list[tuple[int, float]]:
    """Training loss by step. It may be read while it is written: broken lines are left out."""
    points: dict[int, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        if '"train/loss"' not in line:
            continue
        try:
            row = parse_json(line)
            step, loss = int(row["step"]), float(row["train/loss"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        if math.isfinite(loss):
            points[step] = loss
    return sorted(points.items())


def _short(error: Exception) -> str:
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return one_line(text)[:200]


# --- names --------------------------------------------------------------------------------------


def _name(
    entries: list[_Entry], wanted: str | None, first: _Entry, warnings: list[str]
) -> tuple[list[Cell], str]:
    """Give every cell its variant's name; the cells, and what the baseline is called."""
    configs = {key: each.cell.config for each in entries if (key := _variant_key(each.cell))}
    labels = _labels(entries, configs)
    by_key = {key: label for (_, key), label in sorted(labels.items(), reverse=True)}

    if wanted is None:
        wanted = first.name
    if wanted is not None and (several := _several(entries, labels, wanted)):
        warnings.append(
            f"{wanted} stands for several configs: {'; '.join(several)}; the first is taken for "
            f"the baseline, --baseline chooses another"
        )
        wanted = several[0]
    origin = next((key for key, label in sorted(by_key.items()) if label == wanted), None)
    if origin is None and (origin := _variant_key(first.cell)) is not None:
        taken = any(entry.name == "baseline" for entry in entries)
        by_key.setdefault(origin, first.cell.folder.name if taken else "baseline")
    compared_with = _of_variant(configs[origin]) if origin else {}
    for key, values in configs.items():
        if key not in by_key:
            changed = differences(_of_variant(values), compared_with)
            by_key[key] = ", ".join(f"{name}={value}" for name, value in changed.items())

    def label(entry: _Entry) -> str:
        key = _variant_key(entry.cell)
        if entry.name is not None:
            return labels[entry.name, key] if key else entry.name
        return by_key[key] if key else entry.cell.folder.name

    named = [replace(entry.cell, variant=label(entry)) for entry in entries]
    return named, wanted or (by_key[origin] if origin else label(first))


def _labels(
    entries: list[_Entry], configs: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], str]:
    """Each name with each config that it stands for -> the name, told apart where several."""
    meanings: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.name is not None and (key := _variant_key(entry.cell)):
            meanings[entry.name].add(key)
    labels = {}
    for name, keys in meanings.items():
        values = {key: dict(leaves(_of_variant(configs[key]))) for key in keys}
        settings = sorted({setting for each in values.values() for setting in each})
        differing = [
            setting
            for setting in settings
            if len({as_typed(each.get(setting)) for each in values.values()}) > 1
        ]
        for key, each in values.items():
            what = ", ".join(f"{setting}={as_typed(each.get(setting))}" for setting in differing)
            labels[name, key] = f"{name}: {what}" if what else name
    return labels


def _several(entries: list[_Entry], labels: Mapping[tuple[str, str], str], name: str) -> list[str]:
    """The labels of a name that stands for more than one config, those of most cells first."""
    counts: Counter[str] = Counter()
    for entry in entries:
        if entry.name == name and (key := _variant_key(entry.cell)):
            counts[labels[name, key]] += 1
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    return ordered if len(ordered) > 1 else []


def _of_variant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NO_PART_OF_A_VARIANT}


def _variant_key(cell: Cell) -> str | None:
    return fingerprint(_of_variant(cell.config)) if cell.config else None


def _once(cells: list[Cell], warnings: list[str]) -> list[Cell]:
    """One cell for each variant and seed: the finished one, and of several the latest."""
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.variant, cell.seed].append(cell)
    kept = []
    twice: list[bool] = []  # whether the results are the same, of cells that ran in several places
    for (variant, seed), same in sorted(groups.items()):
        *others, last = sorted(same, key=_precedence)
        kept.append(last)
        finished = [each for each in others if each.status is CellStatus.finished]
        repeats = [
            each
            for each in finished
            if each.fingerprint is None or each.fingerprint != last.fingerprint
        ]
        alike = [each for each in finished if each not in repeats and each.reused_from is None]
        if alike and last.reused_from is None:
            twice.append(all(recorded(each) == recorded(last) for each in alike))
        if repeats:
            warnings.append(
                f"{variant} with seed {seed} was run {len(repeats) + 1} times, not all of it "
                f"alike: {last.folder.name}, the latest, counts"
            )
    if twice:
        results = (
            f"{twice.count(False)} of them with other results, as on another machine"
            if not all(twice)
            else "with the same results"
        )
        warnings.append(
            f"cells that ran in several of the folders: {len(twice)}, {results}; of each the "
            "latest counts, once"
        )
    return kept


def _precedence(cell: Cell) -> tuple[bool, bool, str, str, str]:
    """Sorts what is to be kept last; an original goes before its copy."""
    return (
        cell.status is CellStatus.finished,
        cell.status is not CellStatus.planned,
        str(cell.provenance.get("started", "")),
        "" if cell.reused_from else "original",
        str(cell.folder.resolve()),
    )


# --- plans --------------------------------------------------------------------------------------


def _agreed(plans: list[dict[str, Any]], key: str, warnings: list[str]) -> Any:
    """What the sweeps say; of several answers the first sweep's, with a warning."""
    said = [plan[key] for plan in plans if plan.get(key) is not None]
    if len({json.dumps(each) for each in said}) > 1:
        warnings.append(
            f"the sweeps differ in {key}: {', '.join(map(str, said))}; the first counts"
        )
    return said[0] if said else None


def _merged(plans: list[dict[str, Any]], key: str) -> dict[str, str]:
    merged: dict[str, str] = {}
    for plan in reversed(plans):
        merged |= plan.get(key) or {}
    return dict(sorted(merged.items()))


def _claims(
    key: str,
    claimed: Sequence[Path],
    sweeps: Mapping[Path, dict[str, Any]],
    members: Mapping[Path, _Members],
) -> dict[str, str]:
    """Variant -> claim. A name that was told apart has its claim in the sweeps that made it."""
    labels: dict[str, set[str]] = defaultdict(set)
    for place in claimed:
        for name, label in members[place]:
            labels[name].add(label)
    merged = _merged([sweeps[place] for place in claimed], key)
    return dict(
        sorted(
            (label, claim) for name, claim in merged.items() for label in labels.get(name, {name})
        )
    )


def _claiming(plan: Mapping[str, Any]) -> set[str]:
    """The variants of a sweep about which it makes a claim."""
    return {*(plan.get("tips") or ()), *(plan.get("better") or ())}


def _claims_since(plan: Mapping[str, Any]) -> list[str]:
    """The variants about which a sweep claimed something else when the first cell was finished."""
    first = plan.get("judged_first") or {}
    return sorted(
        {
            name
            for key in ("tips", "better")
            if key in first
            for name, _ in set(first[key].items()) ^ set((plan.get(key) or {}).items())
        }
    )


def _added_seeds(plan: Mapping[str, Any]) -> set[int]:
    """The seeds of a sweep that were not in its plan when the first cell was finished."""
    first = (plan.get("judged_first") or {}).get("seeds")
    return set() if first is None else {cell["seed"] for cell in plan["cells"]} - set(first)


def _design(plan: Mapping[str, Any], members: _Members) -> dict[str, list[str]]:
    """The variants of a sweep that combine its factors alone, without any of them first."""
    parts = {
        label: [] if name == plan.get("baseline") else name.split("+") for name, label in members
    }
    own = {label: each for label, each in parts.items() if set(each) <= set(plan["factors"])}
    return dict(sorted(own.items(), key=lambda pair: (len(pair[1]) > 0, pair[0])))


def _title(folders: Sequence[Path], sweeps: Mapping[Path, Any]) -> str:
    names = sorted({place.name for place in sweeps} or {each.resolve().name for each in folders})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- observations -------------------------------------------------------------------------------


def _averaged(answers: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score, and ``pass@k`` as ``evaluation.suite.pass_at`` has it."""
    names = {name for scores in answers for name in scores}
    means = {}
    for name in names:
        values = [scores[name] for scores in answers if name in scores]
        means[name] = math.fsum(values) / len(values)
        if name == "passes":
            passed = round(math.fsum(values))
            means |= {
                f"pass@{k}": pass_at_k(len(values), passed, k) for k in PASS_AT if k <= len(values)
            }
    return means


def _head_scores(config: Mapping[str, Any]) -> dict[str, str]:
    """Source -> the score that its grader is for."""
    sources = config.get("data", {}).get("sources", {})
    return {
        name: SCORES[Grader(source["grader"])][0]
        for name, source in sources.items()
        if source.get("grader") in Grader.__members__
    }
