"""Every leaf key has an effect: a change of it shows in the data, the record or the adapter.

``EFFECTS`` is complete by test. A row is the overrides that change one key, where that shows, and
the overrides under which the key is in use (given to both sides).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dollyllama import config, launch, preflight
from dollyllama.explain import schema_keys

#: Where a change shows.
TRAIN, HELD_OUT, REJECTED, MANIFEST = "train", "held_out", "rejected", "manifest"
ADAPTER, DTYPES, LOG, METRICS, SAMPLES = "adapter", "dtypes", "log", "metrics", "samples"
FILES, PASSES, TRACKER = "files", "passes", "tracker"
REFUSED = "refused"

DATA_PARTS = {TRAIN, HELD_OUT, REJECTED, MANIFEST}


@dataclass(frozen=True, slots=True)
class Effect:
    change: tuple[str, ...]
    shows_in: str
    under: tuple[str, ...] = ()


def effect(*change: str, shows_in: str, under: Sequence[str] = ()) -> Effect:
    return Effect(change, shows_in, tuple(under))


SQL = "data.sources.sql"
NUCLEUS, CONTRASTIVE = ["decoding=nucleus"], ["decoding=contrastive"]
SGD = ["optimizer=sgd"]
CHECKPOINTS = ["trainer.checkpoint_steps=1", "trainer.keep_checkpoints=3"]
WANDB = ["tracking=wandb_offline"]
SEMANTIC = [
    *("data.root=talk", "data.deduplicate=semantic"),
    *("data.embedder=embedder", "data.similarity=0.9"),
]

EFFECTS = {
    "seed": effect("seed=1", shows_in=ADAPTER),
    "device": effect("device=cuda", shows_in=REFUSED),
    "model.path": effect("model.path=other_model", shows_in=ADAPTER),
    "model.revision": effect("model.revision=v1", shows_in=REFUSED),
    "model.pickled_weights": effect(
        "model.pickled_weights=false", shows_in=REFUSED, under=["model.path=pickled_model"]
    ),
    # Alone a process has no share: tests/test_distributed.py shows what the key does.
    "model.sharded": effect("model.sharded=true", shows_in=REFUSED, under=["quantization=int8"]),
    "model.dtype": effect("model.dtype=float32", shows_in=DTYPES),
    "quantization.method": effect("quantization.method=fp4", shows_in=ADAPTER),
    "quantization.double": effect("quantization.double=false", shows_in=ADAPTER),
    "quantization.compute_dtype": effect(
        "quantization.compute_dtype=float32", shows_in=ADAPTER, under=["precision.autocast=false"]
    ),
    "precision.upcast": effect("precision.upcast=none", shows_in=DTYPES),
    "precision.autocast": effect("precision.autocast=false", shows_in=ADAPTER),
    "lora.r": effect("lora.r=4", shows_in=ADAPTER),
    "lora.alpha": effect("lora.alpha=8", shows_in=ADAPTER),
    "lora.dropout": effect("lora.dropout=0.5", shows_in=ADAPTER),
    "lora.variant": effect("lora.variant=rslora", shows_in=ADAPTER),
    "lora.target_modules": effect("lora.target_modules=[q_proj]", shows_in=ADAPTER),
    "optimizer.name": effect("optimizer.name=adamw_8bit", shows_in=ADAPTER),
    "optimizer.lr": effect("optimizer.lr=0.1", shows_in=ADAPTER),
    "optimizer.weight_decay": effect("optimizer.weight_decay=0.5", shows_in=ADAPTER),
    "optimizer.betas": effect("optimizer.betas=[0.5,0.5]", shows_in=ADAPTER),
    "optimizer.eps": effect("optimizer.eps=0.1", shows_in=ADAPTER),
    "optimizer.momentum": effect("optimizer.momentum=0.1", shows_in=ADAPTER, under=SGD),
    "schedule.name": effect("schedule.name=constant", shows_in=ADAPTER),
    "schedule.warmup_ratio": effect("schedule.warmup_ratio=0.7", shows_in=ADAPTER),
    f"{SQL}.path": effect(f"{SQL}.path=others/rows.jsonl", shows_in=TRAIN),
    f"{SQL}.file": effect(f"{SQL}.file=few", shows_in=TRAIN),
    f"{SQL}.revision": effect(f"{SQL}.revision=v1", shows_in=REFUSED),
    f"{SQL}.split": effect(f"{SQL}.split=test", shows_in=TRAIN),
    f"{SQL}.format": effect(
        f"{SQL}.format=alpaca", shows_in=TRAIN, under=[f"{SQL}.group_by=instruction"]
    ),
    f"{SQL}.columns.*": effect(
        f"{SQL}.columns.response=output",
        shows_in=TRAIN,
        under=[
            f"{SQL}.format=columns",
            f"+{SQL}.columns={{instruction: question, response: answer}}",
            f"{SQL}.group_by=instruction",
        ],
    ),
    f"{SQL}.group_by": effect(f"{SQL}.group_by=instruction", shows_in=HELD_OUT),
    f"{SQL}.rules": effect(f"{SQL}.rules=[]", shows_in=REJECTED),
    f"{SQL}.grader": effect(f"{SQL}.grader=text", shows_in=METRICS),
    f"{SQL}.licence": effect(f"{SQL}.licence=MIT", shows_in=MANIFEST),
    f"{SQL}.licence_stated_at": effect(f"{SQL}.licence_stated_at=elsewhere", shows_in=MANIFEST),
    f"{SQL}.commercial": effect(f"{SQL}.commercial=forbidden", shows_in=MANIFEST),
    f"{SQL}.weight": effect(f"{SQL}.weight=0.5", shows_in=TRAIN),
    f"{SQL}.max_rows": effect(f"{SQL}.max_rows=3", shows_in=TRAIN),
    f"{SQL}.max_tokens": effect(f"{SQL}.max_tokens=300", shows_in=TRAIN),
    "data.root": effect("data.root=others", shows_in=TRAIN),
    "data.licences": effect(
        "data.licences=commercial", shows_in=REFUSED, under=[f"{SQL}.commercial=unclear"]
    ),
    "data.quality": effect(
        "data.quality=[no_answer]",
        shows_in=REJECTED,
        under=[f"{SQL}.format=alpaca", f"{SQL}.group_by=instruction", f"{SQL}.grader=text"],
    ),
    "data.deduplicate": effect("data.deduplicate=none", shows_in=REJECTED),
    "data.embedder": effect("data.embedder=other_embedder", shows_in=REJECTED, under=SEMANTIC),
    "data.similarity": effect("data.similarity=0.5", shows_in=REJECTED, under=SEMANTIC),
    "data.decontaminate": effect("data.decontaminate=true", shows_in=REJECTED),
    "data.temperature": effect(
        "data.temperature=5",
        shows_in=TRAIN,
        under=[
            "+source@data.sources.other=sql_create_context",
            *("data.sources.other.path=others/rows.jsonl", "data.sources.other.weight=0.3"),
        ],
    ),
    "data.max_tokens": effect("data.max_tokens=600", shows_in=TRAIN),
    "data.held_out": effect("data.held_out=0.6", shows_in=HELD_OUT),
    "data.max_rows": effect("data.max_rows=3", shows_in=TRAIN),
    "data.max_length": effect("data.max_length=246", shows_in=TRAIN),
    "data.overlong": effect(
        "data.overlong=reject", shows_in=REJECTED, under=["data.max_length=246"]
    ),
    "data.prompt": effect(
        "data.prompt=alpaca_input",
        shows_in=TRAIN,
        under=[f"{SQL}.format=alpaca", f"{SQL}.group_by=instruction"],
    ),
    "data.loss_on": effect("data.loss_on=full_text", shows_in=TRAIN),
    "data.loss_roles": effect(
        "data.loss_roles=[user]",
        shows_in=TRAIN,
        under=["data.loss_on=roles", "data.loss_roles=[assistant]"],
    ),
    "trainer.epochs": effect(
        "trainer.epochs=2", shows_in=ADAPTER, under=["trainer.max_steps=null", "trainer.epochs=1"]
    ),
    "trainer.max_steps": effect("trainer.max_steps=2", shows_in=ADAPTER),
    "trainer.max_tokens": effect(
        "trainer.max_tokens=2000",
        shows_in=ADAPTER,
        under=["trainer.max_steps=null", "trainer.max_tokens=200"],
    ),
    "trainer.max_seconds": effect(
        *("trainer.max_seconds=3", "trainer.max_tokens=null"),
        shows_in=ADAPTER,
        under=["trainer.max_steps=null", "trainer.max_tokens=200"],
    ),
    "trainer.batch_size": effect("trainer.batch_size=1", shows_in=ADAPTER),
    "trainer.accumulation": effect("trainer.accumulation=2", shows_in=ADAPTER),
    "trainer.batching": effect("trainer.batching=padded", shows_in=ADAPTER),
    "trainer.max_grad_norm": effect("trainer.max_grad_norm=0.01", shows_in=ADAPTER, under=SGD),
    "trainer.activation_checkpointing": effect(
        "trainer.activation_checkpointing=true", shows_in=PASSES
    ),
    "trainer.logging_steps": effect("trainer.logging_steps=3", shows_in=LOG),
    "trainer.eval_steps": effect("trainer.eval_steps=1", shows_in=LOG),
    "trainer.checkpoint_steps": effect(
        "trainer.checkpoint_steps=2", shows_in=FILES, under=CHECKPOINTS
    ),
    "trainer.keep_checkpoints": effect(
        "trainer.keep_checkpoints=1", shows_in=FILES, under=CHECKPOINTS
    ),
    "trainer.profile": effect("trainer.profile=true", shows_in=FILES),
    "decoding.strategy": effect(
        "decoding.strategy=contrastive", "decoding.alpha=0.9", "decoding.k=8", shows_in=SAMPLES
    ),
    "decoding.max_new_tokens": effect("decoding.max_new_tokens=2", shows_in=SAMPLES),
    "decoding.temperature": effect("decoding.temperature=9", shows_in=SAMPLES, under=NUCLEUS),
    "decoding.top_p": effect("decoding.top_p=0.1", shows_in=SAMPLES, under=NUCLEUS),
    "decoding.repetition_penalty": effect("decoding.repetition_penalty=9", shows_in=SAMPLES),
    "decoding.alpha": effect("decoding.alpha=1", shows_in=SAMPLES, under=CONTRASTIVE),
    "decoding.q": effect(
        "decoding.q=50", shows_in=SAMPLES, under=["decoding=adaptive_contrastive"]
    ),
    "decoding.k": effect(
        "decoding.k=1", shows_in=SAMPLES, under=[*CONTRASTIVE, "decoding.alpha=1"]
    ),
    "evaluation.before": effect("evaluation.before=false", shows_in=METRICS),
    "evaluation.loss_examples": effect("evaluation.loss_examples=1", shows_in=METRICS),
    "evaluation.generate_examples": effect("evaluation.generate_examples=1", shows_in=SAMPLES),
    "evaluation.answers": effect("evaluation.answers=2", shows_in=SAMPLES, under=NUCLEUS),
    "evaluation.run_code": effect(
        "evaluation.run_code=true",
        shows_in=METRICS,
        under=[
            *(f"{SQL}.format=humaneval", f"{SQL}.grader=code", f"{SQL}.group_by=instruction"),
            "data.max_length=512",
        ],
    ),
    "evaluation.merged": effect("evaluation.merged=true", shows_in=METRICS),
    "evaluation.primary": effect("evaluation.primary=loss/maths", shows_in=REFUSED),
    "evaluation.batch_size": effect("evaluation.batch_size=1", shows_in=PASSES),
    "tracking.wandb": effect("tracking.wandb=auto", shows_in=TRACKER, under=WANDB),
    "tracking.project": effect("tracking.project=mine", shows_in=TRACKER, under=WANDB),
    "tracking.entity": effect("tracking.entity=team", shows_in=TRACKER, under=WANDB),
    "tracking.group": effect("tracking.group=night", shows_in=TRACKER, under=WANDB),
    "tracking.tags": effect("tracking.tags=[a]", shows_in=TRACKER, under=WANDB),
    "tracking.mirror": effect("tracking.mirror=hf://me/runs", shows_in=REFUSED),
    "tracking.artifacts": effect("tracking.artifacts=true", shows_in=TRACKER, under=WANDB),
}

OF_DATA = [key for key, each in EFFECTS.items() if each.shows_in in DATA_PARTS]
OF_REFUSAL = [key for key, each in EFFECTS.items() if each.shows_in == REFUSED]
OF_RUN = [key for key in EFFECTS if key not in OF_DATA and key not in OF_REFUSAL]

BASE = (
    *("model=local", "model.path=model", "data=sql", "data.root=rows", "data.max_length=256"),
    *("data.held_out=0.3", "target_modules=attention", "device=cpu"),
    # The rows below are alike and careless by intention.
    *("data.quality=[]", "data.deduplicate=exact", "data.decontaminate=false"),
    *("trainer=smoke", "trainer.max_steps=3", "trainer.batch_size=2"),
    *("evaluation=quick", "evaluation.loss_examples=2", "evaluation.generate_examples=2"),
    *("evaluation.batch_size=2", "decoding.max_new_tokens=6", "tracking=files"),
)


def test_every_leaf_of_the_config_is_in_the_table() -> None:
    keys = schema_keys(config.Run)
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    named = {re.sub(r"\.sources\.sql\b", ".sources.*", key) for key in EFFECTS}
    # Where a run goes on is launch.py's to decide: tests/test_launch.py. What is a sweep's shows in
    # no run, but in plan, cells and report: tests/study.
    of_sweeps = {key for key in leaves if key.startswith("sweep.")}
    # Sources that are read by the same code: tests/data/test_prepare.py.
    of_benchmarks = {key for key in leaves if key.startswith("data.benchmarks.")}
    assert named | {"resume"} | of_sweeps | of_benchmarks == leaves


# --- a place to work in -------------------------------------------------------------------------


LETTERS = "abcdefgh"
WORDS = ("alpha", "beta", "gamma", "delta")


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Rows that read in three formats; two questions share a schema, some lines come twice."""
    made = [
        {
            "question": f"Get {' '.join(LETTERS[number // 3 % 8] * n for n in (3, 4, 5))} {number}",
            "context": f"CREATE TABLE t{number // 2} (a INT)",
            "answer": f"SELECT {'a' * (number % 9)} FROM "
            f"{'table_' if number % 5 == 0 else 't'}{number}",
            "instruction": f"Say {number}",
            "input": f"aloud {number}",
            "output": f"It is {number}.",
            "prompt": f"def f{number}():\n",
            "canonical_solution": f"    return {number}\n",
            "test": f"def check(f):\n    assert f() == {number}\n",
            "entry_point": f"f{number}",
        }
        for number in range(first, first + count)
    ]
    return [*made, *made[1:3], {**made[1], "instruction": "Say nothing", "output": "..."}]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows under the names that ``EFFECTS`` uses, and tiny models."""
    from tests.data.build import write_embedder
    from tests.model.build import pickle_weights, write_model

    folder = tmp_path_factory.mktemp("workshop")
    write_model(folder / "model")
    write_model(folder / "other_model", seed=1)
    pickle_weights(write_model(folder / "pickled_model"))
    # Two rows say the same, another pair shares three of four words.
    for name, same in {"embedder": (0, 1), "other_embedder": (2, 3)}.items():
        pairs = [(word, same) for word in WORDS] + [(word, (4, 5)) for word in WORDS[:3]]
        alike = [f"{word}{one} {word}{other}" for word, (one, other) in pairs]
        known = {word for words in alike for word in words.split()}
        others = {f"{word}{row}" for word in WORDS for row in range(24)} - known
        write_embedder(folder / name, [*alike, *sorted(others)])
    files = {
        "rows/sql_create_context": rows(24),
        "rows/sql_create_context_test": rows(24, 100),
        "rows/few": rows(10),
        "others/sql_create_context": rows(24, 200),
        "others/rows": rows(24, 300),
        "talk/sql_create_context": [
            {
                "question": " ".join(f"{word}{row}" for word in WORDS),
                "context": f"CREATE TABLE t{row} (a INT)",
                "answer": f"SELECT {' '.join(f'{word}{row}' for word in WORDS)} FROM t{row}",
            }
            for row in range(24)
        ],
    }
    for name, content in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def working_folder(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(workshop / "cache"))
    monkeypatch.setattr(config, "cuda_is_available", lambda: False)
    return tmp_path


def both_sides(key: str, observe: Callable[[config.Run], dict[str, Any]]) -> tuple[Any, Any]:
    """What ``observe`` sees where the key's effect shows: without the change and with it."""
    row = EFFECTS[key]
    base = observe(compose_run(*BASE, *row.under))
    changed = observe(compose_run(*BASE, *row.under, *row.change))
    return base[row.shows_in], changed[row.shows_in]


@cache
def compose_run(*overrides: str) -> config.Run:
    return launch.compose_run(overrides)


# --- the three kinds of effect ------------------------------------------------------------------


@pytest.mark.parametrize("key", OF_REFUSAL)
def test_a_key_that_cannot_work_here_is_refused_by_name(key: str) -> None:
    (change,) = EFFECTS[key].change
    with pytest.raises(ValueError, match=re.escape(change)):
        preflight.check(compose_run(*BASE, *EFFECTS[key].under, change))


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, Any]]:
    """What was seen of data or of a run, by its config: the baseline is made once."""
    return {}


@pytest.mark.parametrize("key", OF_DATA)
def test_a_key_of_the_data_shows_in_the_data(key: str, seen: dict[str, dict[str, Any]]) -> None:
    from dollyllama.data.prepare import prepare
    from dollyllama.model.load import load_tokenizer

    def observe(run: config.Run) -> dict[str, Any]:
        name = f"data {config.fingerprint(asdict(run))}"
        if name not in seen:
            seen[name] = prepared(run)
        return seen[name]

    def prepared(run: config.Run) -> dict[str, Any]:
        tokenizer = load_tokenizer(run.model.path, run.model.revision)
        data = prepare(run.data, tokenizer, seed=run.seed)
        return {
            TRAIN: [(list(each.ids), each.spans) for each in data.train],
            HELD_OUT: sorted(each.example.row for each in data.held_out),
            REJECTED: [(each.row, each.reason) for each in data.rejected()],
            # Not what only repeats the config.
            MANIFEST: {name: about["licence"] for name, about in data.manifest["sources"].items()},
        }

    base, changed = both_sides(key, observe)
    assert base != changed


@pytest.mark.slow
@pytest.mark.parametrize("key", OF_RUN)
def test_a_key_shows_in_what_a_run_leaves(
    key: str,
    working_folder: Path,
    seen: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def observe(run_config: config.Run) -> dict[str, Any]:
        name = config.fingerprint(asdict(run_config))
        if name not in seen:
            seen[name] = run_and_look(run_config, working_folder / name, monkeypatch)
        return seen[name]

    base, changed = both_sides(key, observe)
    assert base != changed


def run_and_look(
    run_config: config.Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    from transformers.models.llama.modeling_llama import LlamaMLP

    from dollyllama import run as run_module
    from dollyllama.files import read_json_lines

    passes, settings = [0], {}
    forward, open_tracker = LlamaMLP.forward, run_module.open_tracker

    def counted(self: Any, *given: Any) -> Any:
        passes[0] += 1
        return forward(self, *given)

    def recorded(place: Path, **given: Any) -> Any:
        """tests/test_tracking.py shows what W&B makes of these; here they only have to arrive."""
        settings.update(given)
        return open_tracker(place, **(given | {"mode": "disabled"}))

    with monkeypatch.context() as patched:
        patched.setattr(LlamaMLP, "forward", counted)
        patched.setattr(run_module, "open_tracker", recorded)
        patched.setattr(
            run_module.Tracker, "artifact", lambda _, *given: settings.update(artifact=given[1])
        )
        run_module.run(run_config, folder)

    def measured(line: dict[str, Any]) -> dict[str, Any]:
        """A log line without what the clock decides."""
        return {name: line[name] for name in line if "loss" in name or name == "step"}

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return {
        ADAPTER: hashlib.sha256(adapter).hexdigest(),
        DTYPES: origin["dtypes"],
        LOG: [measured(line) for line in read_json_lines(folder / "metrics.jsonl")],
        METRICS: result["metrics"],
        SAMPLES: [
            (each["phase"], each["row"], each["completion"])
            for each in read_json_lines(folder / "samples.jsonl")
        ],
        FILES: sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        PASSES: passes[0],
        TRACKER: {
            name: settings.get(name)
            for name in ("mode", "project", "entity", "group", "tags", "artifact")
        },
    }
