"""The typed config tree: what every key means, which values it takes, what contradicts what.

Defaults live in ``conf/`` alone: a section here has none, so a key that is forgotten in YAML is an
error that names it. Checks that need one section stand in its ``__post_init__``, those that need
several in ``Run``'s. Nothing heavy is imported, so that a config error answers at once.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import (  # type: ignore[import-untyped]
    AliasEvent,
    CSafeLoader,
    YAMLError,
    parse,
)

from dollyllama.device import cuda_is_available
from dollyllama.explain import explain, explain_unknown_key, one_line, unknown_key
from dollyllama.files import write_text
from dollyllama.redact import redact
from dollyllama.remote import check_url, is_remote


class Device(StrEnum):
    auto = enum.auto()
    cpu = enum.auto()
    cuda = enum.auto()


class Dtype(StrEnum):
    float32 = enum.auto()
    bfloat16 = enum.auto()
    float16 = enum.auto()


class QuantizationMethod(StrEnum):
    nf4 = enum.auto()
    fp4 = enum.auto()
    int8 = enum.auto()
    none = enum.auto()


class Upcast(StrEnum):
    """Which parameters of the loaded base become float32."""

    norms = enum.auto()
    all = enum.auto()
    none = enum.auto()


class LoraVariant(StrEnum):
    lora = enum.auto()
    rslora = enum.auto()
    dora = enum.auto()
    pissa = enum.auto()


class OptimizerName(StrEnum):
    adamw = enum.auto()
    adamw_8bit = enum.auto()
    paged_adamw_8bit = enum.auto()
    paged_adamw_32bit = enum.auto()
    adafactor = enum.auto()
    lion_8bit = enum.auto()
    sgd = enum.auto()


class ScheduleName(StrEnum):
    linear = enum.auto()
    cosine = enum.auto()
    constant = enum.auto()


class RowFormat(StrEnum):
    """The column schemas that upstream data sets come in; one reader each in ``data.formats``.

    ``columns`` is any other: the source's ``columns`` say what they are called.
    """

    sql_create_context = enum.auto()
    alpaca = enum.auto()
    prompt_response = enum.auto()
    grade_school_math = enum.auto()
    databricks_dolly = enum.auto()
    gsm8k = enum.auto()
    self_instruct_starcoder = enum.auto()
    messages = enum.auto()
    humaneval = enum.auto()
    turns = enum.auto()
    columns = enum.auto()


class Grader(StrEnum):
    sql = enum.auto()
    maths = enum.auto()
    code = enum.auto()
    text = enum.auto()


class GroupBy(StrEnum):
    """What rows share that must not cross the split."""

    instruction = enum.auto()
    context = enum.auto()
    longest_line = enum.auto()


class Rule(StrEnum):
    """Cleaning rules that a source asks for beyond those that hold for every row."""

    real_table_names = enum.auto()


class Quality(StrEnum):
    """Rules that every source's rows are held to; each says by itself which rows it is about.

    ``data.quality`` says what each drops; of such rows at least 95 in 100 have the fault.
    """

    no_answer = enum.auto()
    length = enum.auto()
    as_an_ai = enum.auto()
    refusal = enum.auto()
    mojibake = enum.auto()
    other_language = enum.auto()
    repeated_text = enum.auto()
    sql_schema = enum.auto()
    sql_columns = enum.auto()
    python_syntax = enum.auto()
    maths_steps = enum.auto()


class PromptFormat(StrEnum):
    """The words around an instruction: Alpaca's, those for rows with input, the tokenizer's own."""

    alpaca = enum.auto()
    alpaca_input = enum.auto()
    chat = enum.auto()


class Role(StrEnum):
    """Who speaks in a conversation."""

    system = enum.auto()
    user = enum.auto()
    assistant = enum.auto()


class Commercial(StrEnum):
    """Whether a source may be used commercially; unclear when places that state it disagree."""

    allowed = enum.auto()
    forbidden = enum.auto()
    unclear = enum.auto()


class Licences(StrEnum):
    """Which sources may be in a mix: any, or those whose commercial use is allowed."""

    any = enum.auto()
    commercial = enum.auto()


class LossOn(StrEnum):
    """Which tokens carry loss: every response of a conversation, all text, or chosen roles."""

    response = enum.auto()
    full_text = enum.auto()
    roles = enum.auto()


class Overlong(StrEnum):
    """What becomes of an example of more than ``max_length`` tokens."""

    truncate = enum.auto()
    reject = enum.auto()


class Deduplicate(StrEnum):
    """Which copies of a row are left out: what case and white space alone tell apart, or more.

    semantic: near copies, and what an embedder finds to say the same.
    """

    semantic = enum.auto()
    near = enum.auto()
    exact = enum.auto()
    none = enum.auto()


class Batching(StrEnum):
    padded = enum.auto()
    length_grouped = enum.auto()
    packed = enum.auto()


class Strategy(StrEnum):
    greedy = enum.auto()
    temperature = enum.auto()
    nucleus = enum.auto()
    contrastive = enum.auto()
    adaptive_contrastive = enum.auto()


class WandbMode(StrEnum):
    """``auto`` is online when the user is logged in, offline otherwise."""

    auto = enum.auto()
    online = enum.auto()
    offline = enum.auto()
    disabled = enum.auto()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _in_range(key: str, value: float | None, low: float, high: float, *, open_low: bool) -> None:
    """Refuse a number outside [low, high] (or (low, high] when ``open_low``); null passes."""
    if value is None:
        return
    inside = (low < value if open_low else low <= value) and value <= high
    bound = ">" if open_low else ">="
    upper = "" if math.isinf(high) else f" and <= {high:g}"
    _require(math.isfinite(value) and inside, f"{key} must be {bound} {low:g}{upper}, not {value}")


def _names_files(key: str, path: str | None) -> None:
    """Refuse a path that no file can have, which every look at it would fail on."""
    whole = (path or "").encode("utf-8", "surrogatepass")
    name = max(whole.split(b"/"), key=len)
    _require(
        len(whole) < 4096 and len(name) <= 255,
        f"{key} is no path: it has {len(whole):,} bytes and a name of {len(name):,} in it, where "
        f"4,095 and 255 are the most",
    )


def _exactly_used(section: str, choice: str, values: dict[str, Any], used: set[str]) -> None:
    """Refuse keys that ``choice`` would ignore and ask for those that it needs."""
    for key, value in values.items():
        if key in used:
            _require(value is not None, f"{section}.{key} is needed by {choice} and is null")
        else:
            _require(
                value is None,
                f"{section}.{key}={value} has no effect with {choice}: set {section}.{key}=null",
            )


@dataclass(kw_only=True, slots=True)
class Model:
    """The base model.

    pickled_weights: whether weights in pickles may be read, tensors alone, where the model has no
    safetensors. sharded: whether the processes of a run keep a share of the base each, not all.
    """

    path: str
    revision: str | None
    pickled_weights: bool
    dtype: Dtype
    sharded: bool

    def __post_init__(self) -> None:
        _names_files("model.path", self.path)


@dataclass(kw_only=True, slots=True)
class Quantization:
    method: QuantizationMethod
    double: bool | None
    compute_dtype: Dtype | None

    def __post_init__(self) -> None:
        four_bit = self.method in (QuantizationMethod.nf4, QuantizationMethod.fp4)
        _exactly_used(
            "quantization",
            f"quantization.method={self.method}",
            {"double": self.double, "compute_dtype": self.compute_dtype},
            {"double", "compute_dtype"} if four_bit else set(),
        )


@dataclass(kw_only=True, slots=True)
class Precision:
    upcast: Upcast
    autocast: bool


@dataclass(kw_only=True, slots=True)
class Lora:
    r: int
    alpha: float
    dropout: float
    variant: LoraVariant
    target_modules: list[str]

    def __post_init__(self) -> None:
        _require(self.r >= 1, f"lora.r must be at least 1, not {self.r}")
        _in_range("lora.alpha", self.alpha, 0, math.inf, open_low=True)
        _require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), not {self.dropout}")
        _require(
            bool(self.target_modules),
            "lora.target_modules is empty: name linear layers, or 'all-linear'",
        )


#: Optimizers whose state lives in CUDA's unified memory: on a CPU they would quietly be unpaged.
CUDA_ONLY = frozenset({OptimizerName.paged_adamw_8bit, OptimizerName.paged_adamw_32bit})

_ADAM_KEYS = {"betas", "eps"}
_OPTIMIZER_KEYS: dict[OptimizerName, set[str]] = {
    OptimizerName.adamw: _ADAM_KEYS,
    OptimizerName.adamw_8bit: _ADAM_KEYS,
    OptimizerName.paged_adamw_8bit: _ADAM_KEYS,
    OptimizerName.paged_adamw_32bit: _ADAM_KEYS,
    OptimizerName.adafactor: set(),
    OptimizerName.lion_8bit: {"betas"},
    OptimizerName.sgd: {"momentum"},
}


@dataclass(kw_only=True, slots=True)
class Optimizer:
    name: OptimizerName
    lr: float
    weight_decay: float
    betas: list[float] | None
    eps: float | None
    momentum: float | None

    def __post_init__(self) -> None:
        _in_range("optimizer.lr", self.lr, 0, math.inf, open_low=True)
        _in_range("optimizer.weight_decay", self.weight_decay, 0, math.inf, open_low=False)
        _exactly_used(
            "optimizer",
            f"optimizer.name={self.name}",
            {"betas": self.betas, "eps": self.eps, "momentum": self.momentum},
            _OPTIMIZER_KEYS[self.name],
        )
        _require(
            self.betas is None
            or (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)),
            f"optimizer.betas must be two numbers in [0, 1), not {self.betas}",
        )
        _in_range("optimizer.eps", self.eps, 0, math.inf, open_low=True)
        _in_range("optimizer.momentum", self.momentum, 0, 1, open_low=False)


@dataclass(kw_only=True, slots=True)
class Schedule:
    name: ScheduleName
    warmup_ratio: float

    def __post_init__(self) -> None:
        _in_range("schedule.warmup_ratio", self.warmup_ratio, 0, 1, open_low=False)


#: What ``columns`` can name, and whether it must. ``input`` stands below the instruction where a
#: row has it, ``context`` is for the grader alone.
COLUMNS = {"instruction": True, "response": True, "input": False, "context": False}


@dataclass(kw_only=True, slots=True)
class Source:
    """One data set: where it lives, how its rows read, who may use it, how answers are graded.

    columns: for ``format: columns``, what the file calls each of ``COLUMNS``; a dot reaches into an
    object or a list, ``answers.text.0``.
    weight: passes over its training rows in an epoch of the mix, 0.3 or 2.5 too; 0 keeps it out of
    training, to be evaluated alone. max_rows, max_tokens: caps on what the mix takes of it, repeats
    counted.
    """

    path: str
    file: str
    revision: str | None
    split: str
    format: RowFormat
    columns: dict[str, str]
    group_by: GroupBy
    rules: list[Rule]
    grader: Grader
    licence: str
    licence_stated_at: str
    commercial: Commercial
    weight: float
    max_rows: int | None
    max_tokens: int | None


def _check_columns(key: str, source: Source) -> None:
    if source.format is not RowFormat.columns:
        _require(
            not source.columns,
            f"{key}.columns has no effect with {key}.format={source.format}: leave it out, or set "
            f"{key}.format=columns",
        )
        return
    for name in source.columns:
        near = get_close_matches(name, COLUMNS, n=1, cutoff=0.0)
        _require(
            name in COLUMNS,
            f"{key}.columns.{name} is nothing that a row has: did you mean {near[0]}? "
            f"There are {', '.join(COLUMNS)}",
        )
    for name, needed in COLUMNS.items():
        _require(
            name in source.columns or not needed,
            f"{key}.columns.{name} is missing: name the file's column",
        )


@dataclass(kw_only=True, slots=True)
class Data:
    """A mix: its sources and how they become rows.

    decontaminate: whether training rows leave that give a held-out question away, or a question or
    answer of the benchmarks, which are read for nothing else. embedder, similarity: a Model2Vec
    model, and from which likeness on rows are copies, with ``deduplicate=semantic``.
    """

    sources: dict[str, Source]
    benchmarks: dict[str, Source]
    root: str | None
    licences: Licences
    quality: list[Quality]
    deduplicate: Deduplicate
    embedder: str | None
    similarity: float | None
    decontaminate: bool
    held_out: float
    temperature: float
    max_rows: int | None
    max_tokens: int | None
    max_length: int
    overlong: Overlong
    prompt: PromptFormat
    loss_on: LossOn
    loss_roles: list[Role] | None

    def __post_init__(self) -> None:
        _require(bool(self.sources), "data.sources is empty: a mix needs at least one source")
        for name, source in self.sources.items():
            key = f"data.sources.{name}"
            _in_range(f"{key}.weight", source.weight, 0, 1000, open_low=False)
            _in_range(f"{key}.max_rows", source.max_rows, 1, math.inf, open_low=False)
            _in_range(f"{key}.max_tokens", source.max_tokens, 1, math.inf, open_low=False)
            if source.weight == 0:
                caps = {"max_rows": source.max_rows, "max_tokens": source.max_tokens}
                _exactly_used(key, f"{key}.weight=0", caps, set())
            _require(
                self.licences is Licences.any or source.commercial is Commercial.allowed,
                f"data.licences=commercial does not allow {key}, whose commercial use is "
                f"{source.commercial} ({source.licence}; stated at {source.licence_stated_at}): "
                f"leave it out with '~data.sources.{name}', or say {key}.commercial=allowed "
                f"when you know better",
            )
        _names_files("data.root", self.root)
        _names_files("data.embedder", self.embedder)
        for kind, sources in (("sources", self.sources), ("benchmarks", self.benchmarks)):
            for name, source in sources.items():
                key = f"data.{kind}.{name}"
                _check_columns(key, source)
                _names_files(f"{key}.path", source.path)
                _names_files(f"{key}.file", source.file)
        _require(
            "all" not in self.sources,
            "data.sources.all: metrics over all sources are called so; give it another name",
        )
        _require(0 < self.held_out < 1, f"data.held_out must be in (0, 1), not {self.held_out}")
        _require(self.max_length >= 8, f"data.max_length must be >= 8, not {self.max_length}")
        roles = None if self.loss_roles is None else f"[{','.join(self.loss_roles)}]"
        _exactly_used(
            "data",
            f"data.loss_on={self.loss_on}",
            {"loss_roles": roles},
            {"loss_roles"} if self.loss_on is LossOn.roles else set(),
        )
        _require(
            self.loss_roles is None or 0 < len(self.loss_roles) == len(set(self.loss_roles)),
            f"data.loss_roles must name one or more roles, each once, not {roles}",
        )
        _require(
            self.max_rows is None or self.max_rows >= 1,
            f"data.max_rows must be at least 1 or null, not {self.max_rows}",
        )
        _require(
            self.decontaminate or not self.benchmarks,
            f"data.benchmarks names {', '.join(sorted(self.benchmarks))}, which nothing looks for: "
            f"set data.decontaminate=true or benchmarks=none",
        )
        semantic = {"embedder": self.embedder, "similarity": self.similarity}
        _exactly_used(
            "data",
            f"data.deduplicate={self.deduplicate}",
            semantic,
            set(semantic) if self.deduplicate is Deduplicate.semantic else set(),
        )
        _require(
            self.similarity is None or 0.5 <= self.similarity < 1,
            f"data.similarity must be >= 0.5 and < 1, not {self.similarity}",
        )
        _in_range("data.max_tokens", self.max_tokens, 1, math.inf, open_low=False)
        _in_range("data.temperature", self.temperature, 1, math.inf, open_low=False)


@dataclass(kw_only=True, slots=True)
class Trainer:
    """How long and in which batches.

    Exactly one of epochs, max_steps, max_tokens and max_seconds is set; the last is a budget of
    time, turned into tokens by the speed of a few steps before training.
    """

    epochs: float | None
    max_steps: int | None
    max_tokens: int | None
    max_seconds: float | None
    batch_size: int
    accumulation: int
    batching: Batching
    max_grad_norm: float | None
    activation_checkpointing: bool
    logging_steps: int
    eval_steps: int | None
    checkpoint_steps: int | None
    keep_checkpoints: int | None
    profile: bool

    def __post_init__(self) -> None:
        budgets = {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "max_tokens": self.max_tokens,
            "max_seconds": self.max_seconds,
        }
        given = {key: value for key, value in budgets.items() if value is not None}
        _require(
            len(given) == 1,
            "trainer wants exactly one of epochs, max_steps, max_tokens and max_seconds, not "
            + (" and ".join(f"{key}={value}" for key, value in given.items()) or "none")
            + ": set the others to null",
        )
        _in_range("trainer.epochs", self.epochs, 0, math.inf, open_low=True)
        _in_range("trainer.max_steps", self.max_steps, 0, math.inf, open_low=False)
        _in_range("trainer.max_tokens", self.max_tokens, 1, math.inf, open_low=False)
        _in_range("trainer.max_seconds", self.max_seconds, 0, math.inf, open_low=True)
        _in_range("trainer.max_grad_norm", self.max_grad_norm, 0, math.inf, open_low=True)
        for key in ("batch_size", "accumulation", "logging_steps"):
            _in_range(f"trainer.{key}", getattr(self, key), 1, math.inf, open_low=False)
        for key in ("eval_steps", "checkpoint_steps", "keep_checkpoints"):
            _in_range(f"trainer.{key}", getattr(self, key), 1, math.inf, open_low=False)
        _require(
            (self.checkpoint_steps is None) == (self.keep_checkpoints is None),
            "trainer.keep_checkpoints goes with trainer.checkpoint_steps: set both or neither",
        )


#: Strategies whose answers differ from draw to draw.
DRAWS = frozenset({Strategy.temperature, Strategy.nucleus})

_DECODING_KEYS: dict[Strategy, set[str]] = {
    Strategy.greedy: set(),
    Strategy.temperature: {"temperature"},
    Strategy.nucleus: {"temperature", "top_p"},
    Strategy.contrastive: {"alpha", "k"},
    Strategy.adaptive_contrastive: {"q"},
}

#: Strategies that have a penalty on repetition of their own.
CONTRASTIVE = frozenset({Strategy.contrastive, Strategy.adaptive_contrastive})


@dataclass(kw_only=True, slots=True)
class Decoding:
    strategy: Strategy
    max_new_tokens: int
    temperature: float | None
    top_p: float | None
    repetition_penalty: float | None
    alpha: float | None
    k: int | None
    q: float | None

    def __post_init__(self) -> None:
        _in_range("decoding.max_new_tokens", self.max_new_tokens, 1, math.inf, open_low=False)
        _exactly_used(
            "decoding",
            f"decoding.strategy={self.strategy}",
            {
                "temperature": self.temperature,
                "top_p": self.top_p,
                "alpha": self.alpha,
                "k": self.k,
                "q": self.q,
            },
            _DECODING_KEYS[self.strategy],
        )
        _in_range("decoding.temperature", self.temperature, 0, math.inf, open_low=True)
        _in_range("decoding.top_p", self.top_p, 0, 1, open_low=True)
        _in_range(
            "decoding.repetition_penalty", self.repetition_penalty, 1, math.inf, open_low=False
        )
        _require(
            self.repetition_penalty is None or self.strategy not in CONTRASTIVE,
            f"decoding.repetition_penalty={self.repetition_penalty} has no effect with "
            f"decoding.strategy={self.strategy}, which has a penalty of its own: set "
            f"decoding.repetition_penalty=null",
        )
        _in_range("decoding.alpha", self.alpha, 0, 1, open_low=False)
        _in_range("decoding.k", self.k, 1, math.inf, open_low=False)
        _in_range("decoding.q", self.q, 0, math.inf, open_low=True)

    @classmethod
    def of(cls, strategy: Strategy, max_new_tokens: int, **values: Any) -> Decoding:
        """A strategy with exactly these values; the others are null."""
        given: dict[str, Any] = dict.fromkeys(each.name for each in fields(cls))
        given |= values | {"strategy": strategy, "max_new_tokens": max_new_tokens}
        return cls(**given)


#: What each grader says of an answer that it can judge; the first is what the grader is for.
SCORES: dict[Grader, tuple[str, ...]] = {
    Grader.sql: ("execution", "exact", "executes"),
    Grader.maths: ("exact", "exact_strict"),
    Grader.code: ("parses", "passes"),
    Grader.text: ("f1", "rouge_l"),
}

#: Formats whose rows bring the tests that ``passes`` needs, and the schema for ``execution``.
WITH_TESTS = frozenset({RowFormat.humaneval})
WITH_SCHEMA = frozenset({RowFormat.sql_create_context})

#: The k of pass@k (Chen et al. 2021, arXiv:2107.03374), as far as there are so many answers.
PASS_AT = (1, 5, 10, 100)


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """``loss_examples`` and ``generate_examples`` are per source; 0 leaves that part out.

    answers: how many are drawn to one question. run_code: answers in Python are run against the
    tests of their rows, in the sandbox. merged: the adapter is merged into the base first, as
    ``merge`` does it. primary: the metric that decides, as ``<what>/<source>``,
    or null.
    """

    before: bool
    loss_examples: int
    generate_examples: int
    answers: int
    run_code: bool
    merged: bool
    batch_size: int
    primary: str | None

    def __post_init__(self) -> None:
        for key in ("loss_examples", "generate_examples"):
            _in_range(f"evaluation.{key}", getattr(self, key), 0, math.inf, open_low=False)
        for key in ("batch_size", "answers"):
            _in_range(f"evaluation.{key}", getattr(self, key), 1, math.inf, open_low=False)
        nothing = self.loss_examples == 0 and self.generate_examples == 0
        _require(
            not nothing
            or (not self.before and not self.merged and self.batch_size == 1 and not self.primary),
            "evaluation.loss_examples=0 and evaluation.generate_examples=0 leave nothing to "
            "evaluate, so evaluation.before, evaluation.merged, evaluation.batch_size and "
            "evaluation.primary have no effect: use evaluation=none",
        )
        _require(
            self.generate_examples > 0 or self.answers == 1,
            f"evaluation.answers={self.answers} has no effect with evaluation.generate_examples=0: "
            f"set evaluation.answers=1",
        )
        _require(
            self.generate_examples > 0 or not self.run_code,
            "evaluation.run_code=true has no effect with evaluation.generate_examples=0: set "
            "evaluation.run_code=false",
        )

    def scores(self, source: Source) -> list[str]:
        """The names of what the answers to a source's questions are scored by."""
        scores = list(SCORES[source.grader])
        if "passes" not in scores:
            return scores
        if not self.run_code or source.format not in WITH_TESTS:
            scores.remove("passes")
            return scores
        return [*scores, *(f"pass@{k}" for k in PASS_AT if k <= self.answers)]


@dataclass(kw_only=True, slots=True)
class Tracking:
    """artifacts: keep the adapter of a run and the report of a study as W&B artefacts.

    mirror: the URL below which the folder of a run or a study is kept as well.
    """

    wandb: WandbMode
    project: str | None
    entity: str | None
    group: str | None
    tags: list[str] | None
    artifacts: bool
    mirror: str | None

    def __post_init__(self) -> None:
        if self.mirror is not None:
            _require(
                is_remote(self.mirror),
                f"tracking.mirror={self.mirror} is no URL: write s3://BUCKET/PATH or "
                f"gs://BUCKET/PATH",
            )
            check_url(self.mirror)
            _require(
                not self.mirror.startswith("hf://"),
                f"tracking.mirror={self.mirror}: the Hub makes a commit of every file: use s3:// "
                f"or gs://",
            )
        if self.wandb is WandbMode.disabled:
            _require(
                not self.artifacts,
                "tracking.artifacts=true has no effect with tracking.wandb=disabled: "
                "set tracking.artifacts=false",
            )
            for key in ("project", "entity", "group", "tags"):
                value = getattr(self, key)
                _require(
                    value is None,
                    f"tracking.{key}={value} has no effect with tracking.wandb=disabled: "
                    f"set tracking.{key}=null",
                )
        else:
            _require(self.project is not None, "tracking.project is needed by W&B and is null")


@dataclass(kw_only=True, slots=True)
class Sweep:
    """How the runs of a sweep are judged and looked after; a single run has no use for it.

    answers_primary: the metric that decides where cells share an adapter, and so a loss. relevant:
    an effect below this share of the baseline's value does not matter. cell_minutes: a cell that
    takes longer is stopped. fail_fast: so many first cells that all fail of the same error end the
    sweep. prune_after: once so many cells of a search have finished, one that falls behind their
    median on the way is ended. tips: a variant and the claim that it puts to the test by dropping
    it; better: a variant and the claim that it makes by itself. factors: the variants of a
    factorial design. optional: variants that are left out where the machine or the model cannot
    have them.
    """

    answers_primary: str | None
    relevant: float
    cell_minutes: float | None
    fail_fast: int | None
    prune_after: int | None
    tips: dict[str, str]
    better: dict[str, str]
    factors: list[str]
    optional: list[str]

    def __post_init__(self) -> None:
        _in_range("sweep.relevant", self.relevant, 0, 1, open_low=False)
        _in_range("sweep.cell_minutes", self.cell_minutes, 0, math.inf, open_low=True)
        _in_range("sweep.fail_fast", self.fail_fast, 1, math.inf, open_low=False)
        _in_range("sweep.prune_after", self.prune_after, 1, math.inf, open_low=False)


@dataclass(kw_only=True, slots=True)
class Run:
    seed: int
    device: Device
    model: Model
    quantization: Quantization
    precision: Precision
    lora: Lora
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    trainer: Trainer
    decoding: Decoding
    evaluation: Evaluation
    tracking: Tracking
    sweep: Sweep
    resume: str | None

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, f"seed must be in [0, 2**32), not {self.seed}")
        cuda = cuda_is_available()
        _require(
            self.device is not Device.cuda or cuda,
            "device=cuda, but no CUDA device answers here: use device=cpu, or device=auto",
        )
        on_cuda = cuda and self.device is not Device.cpu
        works = ", ".join(name for name in OptimizerName if name not in CUDA_ONLY)
        _require(
            on_cuda or self.optimizer.name not in CUDA_ONLY,
            f"optimizer={self.optimizer.name} keeps its state in CUDA's paged memory and this run "
            f"is on a CPU: use one of {works}",
        )
        _require(
            self.trainer.eval_steps is None or self.evaluation.loss_examples > 0,
            f"trainer.eval_steps={self.trainer.eval_steps} has no effect with "
            f"evaluation.loss_examples=0: set trainer.eval_steps=null",
        )
        _require(
            self.evaluation.answers == 1 or self.decoding.strategy in DRAWS,
            f"evaluation.answers={self.evaluation.answers} would be the same answer so many times "
            f"with decoding={self.decoding.strategy}: use decoding=nucleus, or "
            f"evaluation.answers=1",
        )
        scores = map(self.evaluation.scores, self.data.sources.values())
        _require(
            not self.evaluation.run_code or any("passes" in each for each in scores),
            f"evaluation.run_code=true has no effect: no source has rows with tests "
            f"(format={', '.join(sorted(WITH_TESTS))}, grader=code): set evaluation.run_code=false",
        )
        self._check_primary()
        quantized = self.quantization.method is not QuantizationMethod.none
        _require(
            not (quantized and self.lora.variant is LoraVariant.pissa),
            f"lora=pissa starts from the singular vectors of full-precision weights and "
            f"quantization={self.quantization.method} has none: use quantization=none or lora=lora",
        )
        _require(
            on_cuda
            or self.quantization.method is not QuantizationMethod.int8
            or self.lora.variant is not LoraVariant.dora,
            "lora=dora on quantization=int8 does not train on a CPU: use quantization=nf4_double "
            "or lora=lora",
        )

        _require(
            not self.model.sharded or self.quantization.method is not QuantizationMethod.int8,
            "model.sharded=true cannot part weights of quantization=int8: use "
            "quantization=nf4_double",
        )
        _require(
            not self.model.sharded or self.lora.variant in (LoraVariant.lora, LoraVariant.rslora),
            f"lora={self.lora.variant} starts from whole weights and model.sharded=true leaves "
            f"shares of them: use lora=lora or lora=rslora",
        )

    def measured(self) -> list[str]:
        """The metrics that this run measures and a study can be decided by."""
        measured: list[str] = []
        if self.evaluation.loss_examples:
            measured += ["loss/all", *(f"loss/{name}" for name in self.data.sources)]
        if self.evaluation.generate_examples:
            measured.append("score/all")
            for name, source in self.data.sources.items():
                measured += [f"{score}/{name}" for score in self.evaluation.scores(source)]
        return measured

    def _check_primary(self) -> None:
        """Refuse a primary metric that this run does not measure."""
        primary = self.evaluation.primary
        if primary is None:
            return
        measured = self.measured()
        near = get_close_matches(primary, measured, n=1, cutoff=0.0)
        _require(
            primary in measured,
            f"evaluation.primary={primary} is not measured by this run: did you mean "
            f"{near[0]}? There are {', '.join(measured)}"
            if near
            else f"evaluation.primary={primary} is not measured: use evaluation.primary=null",
        )


@dataclass(kw_only=True, slots=True)
class Study(Run):
    """What conf/sweep.yaml composes to; ``sweeping`` checks ``seeds`` and takes it out for cells.

    seeds: every variant is run with 0, 1, ... so many.
    """

    seeds: int


#: ``${`` behind an even number of backslashes: an odd one makes it plain text.
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


#: Keys that came later than the first runs, whose configs lack them, and what was done then.
_LATER = {"data.embedder": None, "data.similarity": None, "sweep.prune_after": None}


def save(run: Run, path: Path) -> None:
    """Write ``run`` as resolved YAML that ``load`` reads back to an equal object."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(run)))


def load(path: Path) -> Run:
    """Read a run's resolved config. ValueError when a key is unknown, missing or impossible."""
    return build(read(path), str(path))


def read(path: Path) -> DictConfig:
    """Read a config that ``save`` wrote, unchecked. ValueError when it is absent or damaged.

    What an earlier version had no key for is as it was then. It holds values alone: an
    interpolation, by which OmegaConf would read a variable of the environment, is refused, since
    the folder may be a stranger's.
    """
    try:
        text = path.read_text(encoding="utf-8")
        require_no_alias(text)
        values = OmegaConf.load(StringIO(text))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except YAML_FAULTS as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))[:200]}") from None
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} is damaged: it holds no keys and values")
    for key, value in leaves(OmegaConf.to_container(values, resolve=False)):
        if _INTERPOLATION.search(str(value)):
            raise ValueError(f"{path}: {key} is {value}, and a run's config holds no interpolation")
    for key, value in _LATER.items():
        section, _, name = key.rpartition(".")
        if isinstance(part := values.get(section), DictConfig) and name not in part:
            part[name] = value
    return values


#: What comes out of the readers of YAML for a text that is none, or whose tags do not fit.
YAML_FAULTS = (
    *(YAMLError, OmegaConfBaseException, OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


def require_no_alias(text: str) -> None:
    """ValueError for YAML with an alias, by which a few lines could stand for endless ones."""
    if any(isinstance(each, AliasEvent) for each in parse(text, Loader=CSafeLoader)):
        raise ValueError("it has an alias (*NAME), which no config of a run has")


def build(values: DictConfig, origin: str | None = None) -> Run:
    """Check ``values`` against the tree above and make a Run of them.

    origin: the file to name in errors. ValueError when a key is unknown, missing or impossible.
    """
    where = f"{origin}: " if origin else ""
    try:
        # Hydra's "+key=value" puts keys into a section that the section's class does not have.
        strange = unknown_key(values, Run)
        if strange is not None:
            raise ValueError(explain_unknown_key(strange, Run))
        run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Run), values))
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}{explain(error, Run)}") from error
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    assert isinstance(run, Run)
    plain = OmegaConf.to_container(OmegaConf.structured(run), enum_to_str=True)
    for key, value in leaves(plain):
        _require(
            redact(value) == value,
            f"{where}{key} holds what looks like a key or token, and the config is written to the "
            "run folder: take it out and give it by the environment",
        )
    return run


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested dict with its dotted key."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(config: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys in which two configs differ -> the value in ``config``; "absent" without one."""
    own, other = dict(leaves(config)), dict(leaves(baseline))
    changed = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
    return {key: as_typed(own[key]) if key in own else "absent" for key in changed}


def as_typed(value: Any) -> str:
    """A value as it is typed on Hydra's command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def fingerprint(values: Any) -> str:
    """Return a short stable digest of JSON-like ``values`` (16 hex digits of SHA-256)."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
