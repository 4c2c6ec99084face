"""Errors of a config, each in one line: which key or option, what is wrong, the nearest valid one.

OmegaConf says what it found; a reader wants to know what to type instead. Everything here works on
a schema of dataclasses and on exceptions: no config is read, nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

#: Words that other tools use (transformers, PEFT, TRL, axolotl), and what they are called here.
ELSEWHERE = {
    "bnb_4bit_compute_dtype": "quantization.compute_dtype",
    "bnb_4bit_quant_type": "quantization.method",
    "bnb_4bit_use_double_quant": "quantization.double",
    "bs": "trainer.batch_size",
    "dataset": "data",
    "generation": "decoding",
    "gradient_accumulation_steps": "trainer.accumulation",
    "gradient_checkpointing": "trainer.activation_checkpointing",
    "group_by_length": "trainer.batching",
    "learning_rate": "optimizer.lr",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.r",
    "lora_target_modules": "lora.target_modules",
    "lr_scheduler_type": "schedule.name",
    "max_seq_length": "data.max_length",
    "micro_batch_size": "trainer.batch_size",
    "model_name_or_path": "model.path",
    "num_train_epochs": "trainer.epochs",
    "optim": "optimizer",
    "packing": "trainer.batching",
    "per_device_train_batch_size": "trainer.batch_size",
    "quantisation": "quantization",
    "rank": "lora.r",
    "sample_packing": "trainer.batching",
    "save_steps": "trainer.checkpoint_steps",
    "scheduler": "schedule",
    "sequence_len": "data.max_length",
    "train_on_inputs": "data.loss_on",
    "val_set_size": "data.held_out",
    "warmup_steps": "schedule.warmup_ratio",
}

#: Names at least so alike (2 x common letters / all letters) are taken for one misspelt.
_ALIKE = 0.6
#: A key of the section that the user named is preferred to one as alike in another section.
_SAME_SECTION = 0.1


def schema_keys(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of a dataclass tree with its type, sections included; a dict's keys are ``*``."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        path = f"{prefix}{name}"
        keys[path] = kind
        if is_dataclass(kind):
            keys |= schema_keys(kind, f"{path}.")
        elif get_origin(kind) is dict:
            part = get_args(kind)[1]
            keys |= {f"{path}.*": part, **schema_keys(part, f"{path}.*.")}
    return keys


def unknown_key(values: Mapping[str, Any], schema: Any, prefix: str = "") -> str | None:
    """The first key of nested ``values`` that ``schema`` lacks, in full, or None."""
    hints = get_type_hints(schema)
    for name, value in values.items():
        if name not in hints:
            return f"{prefix}{name}"
        kind = hints[name]
        if is_dataclass(kind) and isinstance(value, Mapping):
            found = unknown_key(value, kind, f"{prefix}{name}.")
        elif get_origin(kind) is dict and isinstance(value, Mapping):
            parts = (
                unknown_key(part, get_args(kind)[1], f"{prefix}{name}.{key}.")
                for key, part in value.items()
                if isinstance(part, Mapping)
            )
            found = next((key for key in parts if key is not None), None)
        else:
            found = None
        if found is not None:
            return found
    return None


def explain_unknown_key(full_key: str, schema: Any, groups: Iterable[str] = ()) -> str:
    """Say that ``full_key`` does not exist, and what probably was meant.

    groups: config groups that are no keys themselves (``experiment``).
    """
    meant = _nearest_keys(full_key, schema, groups)
    if meant:
        return f"{full_key} is no key of this config: did you mean {' or '.join(meant)}?"
    if full_key.startswith("hydra."):
        return f"{full_key} is no key of Hydra's own config: --cfg hydra prints it"
    section = full_key.rpartition(".")[0]
    start = f"{section}." if section else ""
    names = [
        key.removeprefix(start)
        for key in schema_keys(schema)
        if key.startswith(start) and "." not in key.removeprefix(start)
    ]
    return f"{full_key} is no key of this config: {section or 'it'} has {', '.join(sorted(names))}"


def _nearest_keys(full_key: str, schema: Any, groups: Iterable[str]) -> list[str]:
    """Up to three keys that are equally and closely like ``full_key``, by their last name."""
    section, _, word = full_key.rpartition(".")
    # "data.sources.sql.wieght": the schema says data.sources.*.weight.
    schema_section = re.sub(r"\bsources\.[^.]+", "sources.*", section)
    candidates = [(key.rpartition(".")[2], key) for key in schema_keys(schema)]
    candidates += [(group, group) for group in groups] + list(ELSEWHERE.items())
    scored: dict[str, float] = {}
    for name, key in candidates:
        alike = SequenceMatcher(None, word.lower(), name).ratio()
        home = key.rpartition(".")[0]
        if alike >= _ALIKE and name != "*":
            bonus = _SAME_SECTION if home == schema_section else 0.0
            shown = f"{section}.{name}" if "*" in key and home == schema_section else key
            scored[shown] = max(scored.get(shown, 0.0), alike + bonus)
    if not scored:
        return []
    best = max(scored.values())
    return [key for key, score in scored.items() if score == best][:3]


def explain_option(group: str, option: str, options: Iterable[str]) -> str:
    """Say that a group has no such option, with the nearest and with all of them."""
    options = sorted(options)
    meant = get_close_matches(option, options, n=1, cutoff=_ALIKE)
    hint = f"did you mean {group}={meant[0]}? " if meant else ""
    return f"{group}={option}: there is no such option; {hint}{group} has {', '.join(options)}"


def explain(error: OmegaConfBaseException, schema: Any, groups: Iterable[str] = ()) -> str:
    """Say in one line what OmegaConf found wrong with a value or a key."""
    key = str(error.full_key or error.key or "")
    message = first_line(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value yet: give {key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {message[:1].lower()}{message[1:]}"
    if isinstance(error, ValidationError):
        return _explain_value(key, error.value, message)
    if isinstance(error, ConfigKeyError | AttributeError) and "not " in message:
        parent = error.parent_node
        if isinstance(parent, DictConfig) and error.object_type is dict:
            known = ", ".join(sorted(str(name) for name in parent))
            return f"{key} is not there: {key.rpartition('.')[0]} has {known or 'nothing'}"
        return explain_unknown_key(key, schema, groups)
    if "does not support deletion" in message:
        return f"{key} cannot be removed: give it another value, {key}=null where it may be null"
    return f"{key}: {message}" if key else message


def _explain_value(key: str, value: Any, message: str) -> str:
    if match := re.search(r"expected one of \[(.*)\]", message):
        names = match[1].split(", ")
        meant = get_close_matches(str(value), names, n=1, cutoff=_ALIKE)
        hint = f": did you mean {meant[0]}?" if meant else ""
        return f"{key} must be one of {', '.join(names)}, not {value}{hint}"
    if match := re.search(r"could not be converted to (\w+)", message):
        kinds = {
            "Integer": "a whole number",
            "Float": "a number",
            "Boolean": "true or false",
            "String": "text",
        }
        return f"{key} must be {kinds.get(match[1], match[1])}, not {value}"
    if "is not a valid bool" in message:
        return f"{key} must be true or false, not {value}"
    if "not Optional" in message or ("incompatible with type hint" in message and value is None):
        return f"{key} cannot be null: give it a value"
    if "is not a ListConfig, list or tuple" in message:
        return f"{key} must be a list, like {key}=[{value}], not {value}"
    if "is not a subclass of" in message or "incompatible with" in message:
        return f"{key} is a section with keys of its own, not one value"
    return f"{key}: {message}" if key else message


def first_line(error: BaseException) -> str:
    """An error's first line of text, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(text: str) -> str:
    """Collapse white space, line feeds included."""
    return " ".join(text.split())
