"""A model made again from what a run needs and keeps: its base, its adapter, both merged."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from dollyllama import config, distributed, preflight, provenance, record
from dollyllama.files import damaged, parse_json
from dollyllama.model.adapter import attach_adapter, load_adapter
from dollyllama.model.load import load_base, load_merged, load_tokenizer
from dollyllama.model.merge import Base, write_merged
from dollyllama.model.precision import upcast
from dollyllama.model.shard import shard_base
from dollyllama.record import Status
from dollyllama.weights import base_place


def restore(run_config: config.Run, folder: Path) -> tuple[Any, Any]:
    """Load what the run in ``folder`` trained: (model in evaluation mode, tokenizer).

    ValueError when it has no adapter yet, or adapter or base model cannot be had or are others now.
    """
    adapter = require_adapter(folder)
    check_base(run_config, folder)
    check_adapter(folder)
    tokenizer = load_tokenizer(str(adapter), None)
    model = load_model(run_config, tokenizer, choose_device(run_config.device))
    return load_adapter(model, adapter), tokenizer


def require_adapter(folder: Path) -> Path:
    """Where the adapter of the run in ``folder`` is. ValueError that says how to come by one."""
    adapter = folder / "adapter"
    if adapter.is_dir():
        return adapter
    try:
        status = parse_json((folder / "result.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError):
        status = None
    if status == Status.finished:
        raise ValueError(f"{folder} is finished, but its adapter is gone: copy the folder again")
    raise ValueError(f"{folder} has no adapter yet: python train.py resume={folder} goes on")


def restore_merged(
    run_config: config.Run,
    folder: Path,
    tokenizer: Any,
    *,
    base: Base = Base.quantised,
    dtype: config.Dtype | None = None,
) -> Any:
    """The run's merged model as ``merge`` makes it, from files that are gone again, unverified.

    dtype: the run's when None. ValueError when it cannot be merged.
    """
    # In the run's folder: the temporary one of the system may be small, or in memory.
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder) as temporary:
        merged = Path(temporary) / "merged"
        write_merged(
            preflight.require_model_folder(run_config),
            folder / "adapter",
            merged,
            tokenizer=tokenizer,
            base=base,
            base_dtype=run_config.model.dtype,
            quantization=run_config.quantization,
            dtype=dtype or run_config.model.dtype,
            max_shard_bytes=2**31,
        )
        return load_merged(merged, choose_device(run_config.device))


def load_model(run_config: config.Run, tokenizer: Any, device: torch.device) -> Any:
    """The base as it is trained on: quantised, upcast, and in shares where the config says so."""
    sharded = run_config.model.sharded and distributed.processes() > 1
    model = load_base(
        run_config.model.path,
        run_config.model.revision,
        pickled_weights=run_config.model.pickled_weights,
        dtype=run_config.model.dtype,
        quantization=run_config.quantization,
        device=torch.device("cpu") if sharded else device,
        tokenizer=tokenizer,
    )
    upcast(model, run_config.precision.upcast)
    if sharded:
        shard_base(model, device)
    return model.eval()


def put_adapter(run_config: config.Run, base: Any) -> Any:
    """Put a new adapter, drawn from the run's seed, on a base."""
    lora = run_config.lora
    return attach_adapter(
        base,
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        variant=lora.variant,
        targets=lora.target_modules,
        seed=run_config.seed,
    )


def choose_device(wish: config.Device) -> torch.device:
    """CUDA where it answers, unless the config asks for a CPU; a GPU for each process of a run."""
    if not torch.cuda.is_available() or wish is config.Device.cpu:
        return torch.device("cpu")
    if distributed.processes() == 1:
        return torch.device("cuda")
    device = torch.device("cuda", distributed.number_here())
    torch.cuda.set_device(device)
    return device


#: The names of a base's files less its tokenizer's, which an adapter brings along.
_DECISIVE = re.compile(r"(generation_)?config\.json|.*\.(safetensors|bin|index\.json)")


def check_base(
    run_config: config.Run, folder: Path, base_model: dict[str, Any] | None = None
) -> None:
    """ValueError when the base model is not the one that the run in ``folder`` was trained on.

    Told by the digests of a local folder's weights and config; weights too large for a digest are
    told by their size. base_model: what provenance says of the base now, where that is known.
    """
    trained_on = record.read(folder, "provenance.json", "base_model")["base_model"]
    if trained_on is None or "files" not in trained_on:
        return
    place = str(base_place(run_config.model.path))
    base_model = base_model or provenance.describe_weights(place, run_config.model.revision)
    here = base_model.get("files", {})
    for name, file in trained_on["files"].items():
        if not _DECISIVE.fullmatch(name):
            continue
        if here.get(name) != file:
            what = "differs" if name in here else "is missing"
            raise ValueError(
                f"{folder} was trained on another base model than {place} is now: {name} {what}; "
                f"put the folder back as it was"
            )


def check_adapter(folder: Path) -> None:
    """ValueError when the adapter is not the one that the run in ``folder`` trained.

    A run that kept no digests of it passes.
    """
    trained = record.read(folder, "provenance.json", "base_model").get("adapter", {})
    for name in damaged(folder / "adapter", trained):
        path = folder / "adapter" / name
        if not path.exists():
            raise ValueError(f"{path} is missing: copy the folder again")
        raise ValueError(
            f"the adapter of {folder} is not the one that was trained: {name} differs; put the "
            f"file back as it was"
        )
