"""Any file that is read, damaged anywhere: a line that names it, a repair, or the same result.

A row of ``KINDS`` is a kind of file and what reads it; each gets drawn damages. docs/resuming.md
says which kinds have no digest, so that a damage which leaves them readable is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dollyllama import config, launch, record
from dollyllama import run as run_module
from dollyllama.answers import read_requests, resume_at
from dollyllama.data.prepare import EmptySide, prepare
from dollyllama.data.store import _open as mapped_part
from dollyllama.files import read_signed_json, write_json, write_json_lines, write_signed_json
from dollyllama.model import quantised
from dollyllama.model.load import load_merged, load_tokenizer
from dollyllama.model.shards import list_tensors, read_tensor
from dollyllama.restore import restore
from dollyllama.run import run
from dollyllama.study.cells import is_settled
from dollyllama.study.records import CellStatus, read_sweep
from dollyllama.summary import summary
from dollyllama.tracking import Tracker, WandbRun
from dollyllama.training.checkpoints import load_newest, save_checkpoint
from tests.data.build import make_data, make_source, numbered_rows
from tests.model.build import CPU, load, make_tokenizer, some_ids, write_model
from tests.study import record as study_record

# --- damages ------------------------------------------------------------------------------------


class Way(StrEnum):
    """What happens to a file."""

    flipped = auto()
    cut = auto()
    emptied = auto()
    deleted = auto()
    folder = auto()
    appended = auto()


@dataclass(frozen=True, slots=True)
class Damage:
    """number: of the file among those of its kind; place: in it, from 0 to 1; bit: which one."""

    way: Way
    number: int = 0
    place: float = 0.0
    bit: int = 0

    def __call__(self, path: Path) -> None:
        content = path.read_bytes()
        at = min(int(self.place * len(content)), len(content) - 1)
        path.unlink()  # what maps or links the file keeps its own
        match self.way:
            case Way.flipped:
                changed = bytes([content[at] ^ 1 << self.bit]) if content else b""
                path.write_bytes(content[:at] + changed + content[at + 1 :])
            case Way.cut:
                path.write_bytes(content[:at])
            case Way.emptied:
                path.touch()
            case Way.folder:
                path.mkdir()
            case Way.appended:
                rest = (b"\0", b"x", b"}\n", b"\xff\xfe\n", b"[1]\n", b"\n", b"a: 1\n", b"PAR1")
                path.write_bytes(content + rest[self.bit])


DAMAGES = st.builds(
    Damage,
    # A flip is the damage of which there are the most.
    st.sampled_from([*Way, *[Way.flipped] * 3]),
    st.integers(0, 99),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
)


# --- what is read, and by what -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of a scene, by patterns, and what is made of them.

    read: from the scene's folder to all that depends on the files. told: whether a result that is
    another one says so itself.
    """

    scene: str
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    told: Callable[[Any, Any], bool] = lambda whole, found: False

    def choose(self, folder: Path, number: int) -> Path:
        found = sorted(
            path for pattern in self.files for path in folder.glob(pattern) if path.is_file()
        )
        assert found, self.files
        return found[number % len(found)]


def unnoticed(whole: Any, found: Any) -> bool:
    """Of what has no digest: any readable content is taken for what was meant."""
    return True


def sha(*tensors: torch.Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().float().contiguous().numpy().tobytes())
    return total.hexdigest()


@torch.inference_mode()
def logits_of(model: Any, ids: torch.Tensor) -> str:
    return sha(model(ids.to(model.device)).logits)


def shown(scene: Path) -> Any:
    return summary(scene / "run")


def finished(scene: Path) -> Any:
    """What a run that was stopped comes to when it goes on."""
    run_config = launch.compose_run(
        [*TINY, f"model.path={scene / 'model'}", f"data.root={scene / 'rows'}"]
    )
    result = run(run_config, scene / "run")
    weights = scene / "run" / "adapter" / "adapter_model.safetensors"
    rows = [(scene / "run" / name).read_bytes() for name in ("losses.jsonl", "samples.jsonl")]
    return asdict(result)["metrics"], weights.read_bytes(), rows


def is_unfinished(whole: str, found: str) -> bool:
    """Without result.json a run counts as one that goes on, and its status says so."""
    return ": running, last written" in found.splitlines()[0]


def reopened(scene: Path) -> Any:
    return asdict(launch.reopen_run(scene / "run", [], sections=["decoding"]))


def restored(scene: Path) -> Any:
    model, tokenizer = restore(config.load(scene / "run" / "config.yaml"), scene / "run")
    ids = tokenizer("SELECT name FROM ships")["input_ids"]
    return ids, tokenizer.decode(ids), logits_of(model, torch.tensor([ids]))


def begun(scene: Path) -> Any:
    """A base as a new run reads it."""
    tokenizer = load_tokenizer(str(scene / "model"), None)
    model = load(scene / "model", tokenizer, dtype="float32")
    return tokenizer.backend_tokenizer.to_str(), logits_of(model, some_ids())


def merged_into(scene: Path) -> Any:
    return [(each.name, sha(read_tensor(each))) for each in list_tensors(scene / "model")]


def loaded_merged(scene: Path) -> Any:
    return logits_of(load_merged(scene / "model", CPU), some_ids())


def kept_base(scene: Path) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DOLLYLLAMA_CACHE", str(scene / "cache"))
        patched.setattr(quantised, "MIN_BYTES", 0)
        return logits_of(load(scene / "base", make_tokenizer(), "nf4"), some_ids())


def gone_on(scene: Path) -> Any:
    """What a stopped run goes on from."""
    state = load_newest(scene / "checkpoints")
    return None if state is None else (state[0].name, sha(state[1]["weight"]))


def is_earlier(whole: Any, found: Any) -> bool:
    """A checkpoint that is damaged, or deleted, leaves the one before."""
    return found in (("checkpoint-1", sha(torch.full((50,), 1.0))), None)


def logged(scene: Path) -> Any:
    """A log that a killed run left, and that the next session goes on with."""
    tracker = Tracker(scene / "metrics.jsonl", WandbRun(None, "metrics.jsonl"))
    tracker.log(9, {"train/loss": 1.0})
    tracker.finish(failed=False)
    return [json.loads(line) for line in (scene / "metrics.jsonl").read_text().splitlines()[:-1]]


def prepared(scene: Path) -> Any:
    """Rows, and where every row that was read has gone."""
    mapped_part.cache_clear()
    source = make_source(scene / (scene / "name").read_text())
    benchmark = make_source(scene / "test.jsonl")
    data = make_data({"a": source}, benchmarks={"b": benchmark})
    made = prepare(data, make_tokenizer(), seed=0, cache=scene / "cache")
    rows = [
        [(each.example, each.ids, each.spans) for each in side]
        for side in (made.train, made.held_out)
    ]
    counts = made.manifest["sources"]["a"]
    rejected = [(each.row, each.reason) for each in made.rejected()]
    assert counts["rows"]["read"] == counts["rows"]["trained"] + counts["rows"]["evaluated"] + len(
        rejected
    )
    return rows, rejected, made.fingerprint


def is_other_data(whole: Any, found: Any) -> bool:
    """Rows with other digests are other data: data.json says so, and no begun run takes them."""
    return bool(whole[2] != found[2])


def answered(scene: Path) -> Any:
    requests = read_requests(scene / "input.jsonl")
    at = resume_at(scene / "output.jsonl", requests, {"seed": 0})
    return [asdict(each) for each in requests], at


def reported(scene: Path) -> Any:
    plan, cells = read_sweep([scene / "sweep"])
    return plan, cells


def is_cell_with_reason(whole: Any, found: Any) -> bool:
    """All cells but one are as they were, and that one says what is wrong with it."""
    changed = [(one, other) for one, other in zip(whole[1], found[1], strict=True) if one != other]
    return whole[0] == found[0] and all(
        other.reason or other.status is CellStatus.running for _, other in changed
    )


def is_without_plan(whole: Any, found: Any) -> bool:
    """Cells without sweep.json are those of a search: the report names no command and no claim."""
    return found[0].commands == []


def settled(scene: Path) -> Any:
    return is_settled(scene / "sweep" / "baseline.seed_0")


def is_made_again(whole: bool, found: bool) -> bool:
    return not found


RUN_FILES = tuple(f"run/{name}" for name in ("result.json", *record.FILES))
CELL_FILES = tuple(f"sweep/baseline.seed_0/{name}" for name in ("result.json", *record.FILES))
SOURCES = ("jsonl", "jsonl.gz", "json", "json.gz", "csv", "parquet")

KINDS = {
    "run, shown": Kind("run", RUN_FILES, shown, is_unfinished),
    "killed run, shown": Kind("killed", RUN_FILES, shown, unnoticed),
    "run, opened": Kind("run", RUN_FILES, reopened),
    "adapter": Kind("run", ("run/adapter/*.json", "run/adapter/*.safetensors"), restored),
    "base of an adapter": Kind("run", ("model/*",), restored),
    "new base": Kind("model", ("model/*",), begun, unnoticed),
    "sharded base": Kind("shards", ("model/*",), begun, unnoticed),
    "base to merge into": Kind("shards", ("model/model*",), merged_into, unnoticed),
    "merged model": Kind(
        "model", ("model/*.json", "model/*.safetensors"), loaded_merged, unnoticed
    ),
    "kept 4-bit base": Kind("kept", ("cache/bases/*/*", "cache/digests/*"), kept_base),
    "checkpoint": Kind("checkpoints", ("checkpoints/*/*",), gone_on, is_earlier),
    "log of a killed run": Kind("log", ("metrics.jsonl",), logged, unnoticed),
    "prepared mix": Kind("rows jsonl", ("cache/mixes/*/*",), prepared),
    "prepared source": Kind("rows jsonl", ("cache/sources/*/*",), prepared),
    "benchmark": Kind("rows jsonl", ("test.jsonl",), prepared, is_other_data),
    **{
        f"source, {suffix}": Kind(f"rows {suffix}", (f"rows.{suffix}",), prepared, is_other_data)
        for suffix in SOURCES
    },
    "source, saved": Kind("rows saved", ("rows/*",), prepared, is_other_data),
    "questions": Kind("answers", ("input.jsonl",), answered, unnoticed),
    "answers": Kind("answers", ("output.jsonl", "*.settings.json"), answered, unnoticed),
    "plan of a sweep": Kind("sweep", ("sweep/sweep.json",), reported, is_without_plan),
    "cell, reported": Kind(
        "sweep", (*CELL_FILES, "sweep/baseline.seed_0/cell.json"), reported, is_cell_with_reason
    ),
    "cell, taken for done": Kind(
        "sweep", (*CELL_FILES, "sweep/baseline.seed_0/cell.json"), settled, is_made_again
    ),
}


#: Where a reading is a whole run.
RUNS = {"stopped run, gone on": Kind("stopped", RUN_FILES, finished)}

#: What once gave a traceback, a line without the file's name, or another result.
ONCE = [
    ("run, shown", Damage(Way.deleted, 10)),
    ("run, shown", Damage(Way.flipped, 9, 0.45)),
    ("run, shown", Damage(Way.flipped, 9, 0.75)),
    ("run, shown", Damage(Way.flipped, 10, 0.85)),
    ("run, shown", Damage(Way.flipped, 10, 0.95)),
    ("killed run, shown", Damage(Way.appended, 43, 0.0, 4)),
    ("run, opened", Damage(Way.flipped, 2, 0.25)),
    ("run, opened", Damage(Way.flipped, 2, 0.6786)),
    ("adapter", Damage(Way.flipped, 2, 0.125)),
    ("adapter", Damage(Way.flipped, 2, 0.9583)),
    ("adapter", Damage(Way.flipped, 3, 0.2083)),
    ("base to merge into", Damage(Way.cut, 95, 0.33269, 6)),
    ("base to merge into", Damage(Way.flipped, 65, 0.34382, 5)),
    ("merged model", Damage(Way.emptied, 72)),
    ("merged model", Damage(Way.cut, 62, 0.02834)),
    ("new base", Damage(Way.flipped, 20, 0.20085, 5)),
    ("new base", Damage(Way.flipped, 38, 0.15206, 4)),
    ("new base", Damage(Way.flipped, 18, 0.13020, 3)),
    ("new base", Damage(Way.flipped, 5, 0.83177, 2)),
    ("sharded base", Damage(Way.flipped, 58, 0.01086, 5)),
    ("prepared mix", Damage(Way.folder, 15)),
    ("prepared source", Damage(Way.folder, 2)),
    ("prepared source", Damage(Way.flipped, 3, 0.025)),
    ("source, saved", Damage(Way.flipped, 0, 0.7797434502547135, 3)),  # once a bus error
    ("source, saved", Damage(Way.flipped, 0, 0.7495768111897567, 0)),
    ("source, saved", Damage(Way.flipped, 83, 0.37961, 3)),
    ("source, saved", Damage(Way.flipped, 32, 0.03245, 1)),
    ("source, saved", Damage(Way.flipped, 25, 0.34693, 3)),
    ("plan of a sweep", Damage(Way.flipped, 0, 0.9, 0)),
    ("cell, reported", Damage(Way.flipped, 65, 0.34382, 5)),
    ("cell, reported", Damage(Way.deleted, 0)),
]


# --- scenes -------------------------------------------------------------------------------------


def build(scene: str, folder: Path) -> None:
    """Make the files of a scene, as the product or its user makes them."""
    what, _, suffix = scene.partition(" ")
    match what:
        case "run" | "killed" | "stopped":
            write_model(folder / "model")
            write_json_lines(folder / "rows" / "sql_create_context.jsonl", sql_rows())
            overrides = (f"model.path={folder / 'model'}", f"data.root={folder / 'rows'}")
            run_config = launch.compose_run([*TINY, *overrides])
            if scene == "stopped":
                with stopped_in_the_last_evaluation(), pytest.raises(KeyboardInterrupt):
                    run(run_config, folder / "run")
            else:
                run(run_config, folder / "run")
            if scene == "killed":
                result = read_signed_json(folder / "run" / "result.json")
                going_on = {**result, "status": "running", "files": {}}
                write_signed_json(folder / "run" / "result.json", going_on)
        case "model":
            write_model(folder / "model")
        case "shards":
            write_model(folder / "whole")
            model = load(folder / "whole", make_tokenizer(), dtype="float32")
            model.save_pretrained(folder / "model", max_shard_size=100_000)
            load_tokenizer(str(folder / "whole"), None).save_pretrained(folder / "model")
        case "kept":
            write_model(folder / "base")
        case "checkpoints":
            for step in (1, 2):
                state = {"step": step, "weight": torch.full((50,), float(step))}
                save_checkpoint(folder / "checkpoints", step, state, keep=2)
        case "log":
            write_json_lines(
                folder / "metrics.jsonl", [{"step": step, "train/loss": 2.0} for step in range(9)]
            )
        case "rows":
            write_json_lines(folder / "test.jsonl", numbered_rows(3, 900))
            write_rows(folder, suffix)
        case "answers":
            asked = [{"instruction": f"Say {number}."} for number in range(4)]
            write_json_lines(folder / "input.jsonl", asked)
            done = [{**each, "completion": "It.", "tokens": 2} for each in asked]
            write_json_lines(folder / "output.jsonl", done[:2])
            write_json(folder / "output.jsonl.settings.json", {"seed": 0})
        case "sweep":
            study_record.write_sweep(folder / "sweep", {"baseline": {}, "other": {"shift": 0.1}})
            for cell in (folder / "sweep").glob("*/"):
                result = read_signed_json(cell / "result.json")
                write_signed_json(cell / "result.json", {**result, "files": record.describe(cell)})
            for path in (folder / "sweep").rglob("*.json"):
                if path.name in ("cell.json", "sweep.json"):
                    write_signed_json(path, read_signed_json(path))


@contextmanager
def stopped_in_the_last_evaluation() -> Iterator[None]:
    measured = iter([run_module.measure])

    def measure(*given: Any) -> Any:
        for once in measured:
            return once(*given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "measure", measure)
        yield


def sql_rows() -> list[dict[str, str]]:
    return [
        {
            "question": f"How many {word}s are there?",
            "context": f"CREATE TABLE {word}s (id INTEGER, name VARCHAR)",
            "answer": f"SELECT COUNT(*) FROM {word}s",
        }
        for word in ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "elk", "eel")
    ]


#: A run of a second. Its budget is measured, and so in a file.
TINY = (
    *("model=local", "data=sql", "data.held_out=0.3", "tracking=files", "device=cpu"),
    *("trainer=smoke", "trainer.max_steps=null", "trainer.max_seconds=0.1"),
    *("evaluation.loss_examples=2", "evaluation.generate_examples=1", "decoding.max_new_tokens=4"),
)


def write_rows(folder: Path, suffix: str) -> None:
    import gzip

    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = numbered_rows(40)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    texts = {
        "jsonl": lines,
        "json": json.dumps(rows, indent=1),
        "csv": "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in rows),
    }
    path = folder / ("rows" if suffix == "saved" else f"rows.{suffix}")
    (folder / "name").write_text(path.name)
    if suffix == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(texts[suffix.removesuffix(".gz")].encode(), mtime=0))
    else:
        path.write_text(texts[suffix], encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Scene:
    """A folder that is put back before every reading: paths and times in it stay the same."""

    folder: Path
    kept: Path

    @contextmanager
    def put_back(self) -> Iterator[Path]:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.kept, self.folder)
        yield self.folder


Scenes = Callable[[Kind], tuple[Scene, Any]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Builds each scene once, and reads it whole once for each kind."""
    made: dict[str, Scene] = {}
    read: dict[int, Any] = {}

    def scene_of(kind: Kind) -> tuple[Scene, Any]:
        if kind.scene not in made:
            place = tmp_path_factory.mktemp("scene")
            folder = place / "here"
            folder.mkdir()
            build(kind.scene, folder)
            if kind.scene.startswith(("rows", "kept")):
                kind.read(folder)  # fills the cache
            shutil.copytree(folder, place / "kept")
            made[kind.scene] = Scene(folder, place / "kept")
        scene = made[kind.scene]
        if id(kind) not in read:
            with scene.put_back() as folder:
                read[id(kind)] = kind.read(folder)
        return scene, read[id(kind)]

    return scene_of


# --- the property -------------------------------------------------------------------------------


def judge(kind: Kind, scene: Scene, whole: Any, damage: Damage) -> str:
    """What became of a damage; an AssertionError where that may not be."""
    with scene.put_back() as folder:
        path = kind.choose(folder, damage.number)
        damage(path)
        try:
            found = kind.read(folder)
        except EmptySide as error:
            found = None, None, error.prepared.fingerprint
        except (ValueError, OSError) as error:
            line = launch.describe(error)
            assert line.strip()
            named = (str(path), str(path.parent), str(path.relative_to(folder)), path.name)
            assert any(name in line for name in named), f"{path} is not named: {line}"
            return "error"
    if found == whole:
        return "same"
    assert kind.told(whole, found), f"{path}: another result, and nothing says so"
    return "told"


COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@pytest.mark.parametrize("name", KINDS)
@seed(0)
@settings(max_examples=8, **COMMON)
@given(damage=DAMAGES)
def test_a_damaged_file_is_named_or_repaired(scenes: Scenes, name: str, damage: Damage) -> None:
    judge(KINDS[name], *scenes(KINDS[name]), damage)


@pytest.mark.parametrize(("name", "damage"), ONCE, ids=str)
def test_what_once_failed_does_no_more(scenes: Scenes, name: str, damage: Damage) -> None:
    judge(KINDS[name], *scenes(KINDS[name]), damage)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *RUNS])
def test_many_damages_are_named_or_repaired(scenes: Scenes, name: str) -> None:
    kind = (KINDS | RUNS)[name]
    scene, whole = scenes(kind)
    counts: Counter[str] = Counter()

    @settings(max_examples=20 if name in RUNS else 100, **COMMON)
    @given(DAMAGES)
    def check(damage: Damage) -> None:
        counts[judge(kind, scene, whole, damage)] += 1

    check()
    print(f"{name}: {dict(sorted(counts.items()))}")  # pytest -rP shows it
