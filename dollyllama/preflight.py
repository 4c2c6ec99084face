"""What a base model's own ``config.json`` says against a run, before anything heavy is imported.

The model as loaded is checked again in ``model``; this answers in milliseconds where it can, and is
silent about a model of the Hub that is not in the local cache.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dollyllama import config, distributed
from dollyllama.data.sources import locate
from dollyllama.embedded import EMBEDDED
from dollyllama.evaluation import sandbox
from dollyllama.files import parse_json
from dollyllama.weights import base_place, check_weights

#: The linear layers of a decoder block of the Llama family, and the head.
LLAMA_LINEARS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
)
_LLAMA_LIKE = frozenset({"llama", "mistral"})
_ALL_LINEAR = "all-linear"


def check(run: config.Run) -> None:
    """ValueError when the base model or the data cannot serve ``run``, as far as files tell."""
    folder = model_folder(run.model.path, run.model.revision)
    if folder is not None:
        about = _read_config(folder, run.model.path)
        where = f"model.path={run.model.path}"
        check_weights(folder, where, pickled_weights=run.model.pickled_weights)
        _check_positions(run, about)
        _check_targets(run, about)
    for name, source in run.data.sources.items():
        locate(name, source, root=run.data.root)


def check_processes(run: config.Run) -> None:
    """ValueError when the processes that share ``run`` cannot."""
    processes = distributed.processes()
    if processes == 1:
        return
    if run.trainer.accumulation % processes:
        raise ValueError(
            f"{processes} processes cannot share trainer.accumulation={run.trainer.accumulation} "
            f"batches a step: set a multiple of {processes} (and a smaller trainer.batch_size for "
            f"steps of the same size)"
        )
    if run.trainer.max_seconds is not None:
        raise ValueError(
            "trainer.max_seconds is found out by one process alone: set trainer.max_tokens"
        )
    if run.evaluation.merged:
        raise ValueError(
            "evaluation.merged=true merges in one process alone: set evaluation.merged=false, and "
            "`python -m dollyllama evaluate RUN evaluation.merged=true` afterwards"
        )


def check_sandbox(run: config.Run) -> None:
    """ValueError when the answers that ``run`` evaluates are to be run and cannot be here."""
    if run.evaluation.run_code and (reason := sandbox.available()) is not None:
        raise ValueError(
            f"evaluation.run_code=true, but programs cannot be run here: {reason}: set "
            f"evaluation.run_code=false"
        )


def require_model_folder(run: config.Run) -> Path:
    """``model_folder`` of a run's base. ValueError when it is nowhere on this machine."""
    folder = model_folder(run.model.path, run.model.revision)
    if folder is None:
        raise ValueError(f"model.path={run.model.path} is not in the Hub's cache: load it once")
    return folder


def model_folder(path: str, revision: str | None) -> Path | None:
    """Where a base model's files are: embedded, a local folder or a copy of a remote one, or the
    Hub's cache; else None.

    ValueError when a local place was named and is not there, or when it cannot have a revision.
    """
    local = base_place(path)
    if local.is_dir():
        if revision is not None:
            raise ValueError(
                f"model.revision={revision} has no effect on the local folder {local}: "
                f"set model.revision=null"
            )
        return local
    if path == EMBEDDED:
        raise ValueError(f"model.path={path}: this installation lacks its folder {local}")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(
            f"model.path={path}: there is no such folder; name a folder with config.json and "
            f"safetensors, or a Hub id as OWNER/NAME"
        )
    return _hub_snapshot(path, revision or "main")


def _hub_snapshot(hub_id: str, revision: str) -> Path | None:
    """The snapshot of a Hub repository in the local cache, laid out as huggingface_hub does."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def _read_config(folder: Path, path: str) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        about = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"model.path={path}: {folder} has no config.json, so it is no model in Hugging Face "
            f"format"
        ) from None
    except ValueError as error:
        raise ValueError(f"model.path={path}: {file} is damaged: {error}") from None
    if not isinstance(about, dict):
        raise ValueError(f"model.path={path}: {file} is damaged: it holds no JSON object")
    return about


def _check_positions(run: config.Run, about: dict[str, Any]) -> None:
    positions = about.get("max_position_embeddings")
    if isinstance(positions, int) and run.data.max_length > positions:
        raise ValueError(
            f"data.max_length={run.data.max_length} is beyond the {positions} positions of "
            f"{run.model.path}: set data.max_length={positions} or less"
        )


def _check_targets(run: config.Run, about: dict[str, Any]) -> None:
    """Check the targets' last names; a model of another family is left to the loaded model."""
    if about.get("model_type") not in _LLAMA_LIKE:
        return
    for target in run.lora.target_modules:
        name = target.rpartition(".")[2]
        if target != _ALL_LINEAR and name not in LLAMA_LINEARS:
            meant = get_close_matches(target, [*LLAMA_LINEARS, _ALL_LINEAR], n=1)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            raise ValueError(
                f"lora.target_modules matches no linear layer of {run.model.path}: {target}{hint} "
                f"It has {', '.join(LLAMA_LINEARS)}, and {_ALL_LINEAR} for all but the head"
            )
    # Llama's own default, where config.json does not say, is untied.
    if "lm_head" in {target.rpartition(".")[2] for target in run.lora.target_modules} and (
        about.get("tie_word_embeddings", False)
    ):
        raise ValueError(
            f"lora.target_modules names lm_head, but {run.model.path} ties its head to its input "
            f"embeddings, which an adapter would change apart: leave lm_head out, "
            f"target_modules=all_linear"
        )
