"""The adapter on a frozen base: where it goes, how it starts, and the folder that it is saved in.

The folder is in PEFT's format and holds the adapter's own weights, never embeddings: an added pad
token's row is the mean of the others wherever the model is loaded (``load.py``), so that whoever
loads the adapter need only grow the embeddings to the tokenizer's length.
"""

from __future__ import annotations

import difflib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dollyllama import embedded
from dollyllama.card import base_name
from dollyllama.config import LoraVariant
from dollyllama.embedded import EMBEDDED
from dollyllama.files import parse_json, write_json
from dollyllama.model.precision import count_elements, quantised_as

ALL_LINEAR = "all-linear"
#: The one of PEFT's types that is made here, in all its variants.
_KIND = "LORA"

#: What PEFT calls each variant: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023,
#: arXiv:2312.03732; Liu et al. 2024, arXiv:2402.09353; Meng et al. 2024, arXiv:2404.02948.
_VARIANTS: dict[LoraVariant, dict[str, Any]] = {
    LoraVariant.lora: {},
    LoraVariant.rslora: {"use_rslora": True},
    LoraVariant.dora: {"use_dora": True},
    LoraVariant.pissa: {"init_lora_weights": "pissa"},
}


def resolve_targets(model: Any, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that ``targets`` ask for, in the model's order.

    A target is the last part or parts of a layer's name (``q_proj``, ``self_attn.q_proj``), or
    "all-linear": every linear layer but the head. ValueError when a target matches no linear layer,
    or is the head of a model whose head shares its weight with the embeddings.
    """
    model_name = type(model).__name__
    head = model.get_output_embeddings()
    linear = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    inner = _unique(_last(name) for name, each in linear.items() if each is not head)
    heads = [name for name, each in linear.items() if each is head]
    resolved: list[str] = []
    for target in targets:
        if target == ALL_LINEAR:
            resolved += inner
            continue
        matched = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not target or not matched:
            valid = [*inner, *heads]
            near = difflib.get_close_matches(target, [*valid, ALL_LINEAR], n=1, cutoff=0.5)
            guess = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"lora.target_modules matches no linear layer of {model_name}: {target!r}.{guess} "
                f"Its linear layers are {', '.join(valid)}; {ALL_LINEAR} means all but the head"
            )
        if set(matched) & set(heads) and head.weight is model.get_input_embeddings().weight:
            raise ValueError(
                f"lora.target_modules: {target} shares its weight with the embeddings in this "
                f"{model_name} (tie_word_embeddings), so an adapter cannot change one without the "
                f"other: use target_modules=all_linear"
            )
        resolved.append(target)
    return _unique(resolved)


def attach_adapter(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    variant: LoraVariant,
    targets: Sequence[str],
    seed: int,
) -> Any:
    """Freeze ``model`` and put a fresh float32 adapter on it, drawn from ``seed`` alone.

    Returns a PeftModel that computes what ``model`` did: exactly, but for the rounding of norms
    that DoRA compares and of the base from which PiSSA takes the first singular vectors. The base
    is frozen and nothing else is done to it: PEFT's own preparation for quantised training makes
    embeddings and head float32 too. ValueError for targets that ``resolve_targets`` refuses, and
    for DoRA on 8-bit weights on a CPU.
    """
    if variant is LoraVariant.dora and model.device.type == "cpu" and _is_int8(model):
        # PEFT 0.21 replaces the weight there and loses its scales; the second step fails.
        raise ValueError(
            "lora=dora on quantization=int8 does not train on a CPU: "
            "use quantization=nf4_double, or lora=lora"
        )
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=resolve_targets(model, targets),
        task_type="CAUSAL_LM",
        **_VARIANTS[variant],
    )
    model.requires_grad_(False)
    # PEFT draws on the CPU and then moves; the fork leaves the run's own random numbers alone.
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(model, settings, autocast_adapter_dtype=True)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return (trainable, total) numbers; 4-bit weights count as numbers, tied ones once."""
    counts = [(count_elements(each), each.requires_grad) for each in model.parameters()]
    return sum(count for count, trainable in counts if trainable), sum(count for count, _ in counts)


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write adapter and tokenizer to ``folder``, which appears (or is replaced) when it is whole.

    The base is called what the model card calls it, so that no path of this machine is published.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # PEFT's "auto" would save whole embedding matrices for a pad token or for lm_head as target.
    model.save_pretrained(temporary, save_embedding_layers=False)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a card
    path = temporary / "adapter_config.json"
    settings = parse_json(path.read_text(encoding="utf-8"))
    base = settings["base_model_name_or_path"]
    settings["base_model_name_or_path"] = base_name(
        EMBEDDED if base == str(embedded.MODEL) else base
    )
    settings["target_modules"].sort()  # a set in PEFT: another order in every process
    write_json(path, settings)
    path = temporary / "tokenizer_config.json"
    settings = parse_json(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):  # how it was loaded here, no property of it
        settings.pop(key, None)
    write_json(path, settings)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on its base for evaluation: a PeftModel in evaluation mode.

    ``model`` is as ``load_base`` returns it for the tokenizer in ``folder``. ValueError when the
    folder holds no whole adapter, one of another type than LoRA, or one for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds no adapter: it has no adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        # PEFT would look for it on the Hub.
        raise ValueError(
            f"{folder / 'adapter_model.safetensors'} is missing: copy the folder again"
        )
    try:
        kind = parse_json((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'adapter_config.json'} is damaged ({error!r}): copy the folder again"
        ) from None
    if kind != _KIND:
        raise ValueError(
            f"{folder / 'adapter_config.json'} is of an adapter of type {kind!r}: only {_KIND} "
            f"adapters are loaded"
        )
    try:
        with _quiet_peft():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {folder} cannot be read ({_first_line(error)}): copy the folder again"
        ) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"the adapter in {folder} does not fit this {type(model).__name__} "
            f"({_first_line(error)}): load it on the base model that it was trained on"
        ) from error


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for a property by a name that is to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def _is_int8(model: Any) -> bool:
    return any(quantised_as(parameter) == "int8" for parameter in model.parameters())


def _first_line(error: BaseException) -> str:
    """The first line that says what is wrong, after a heading that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
