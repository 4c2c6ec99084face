"""A saved adapter, read as what it does to each weight of its base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dollyllama.files import parse_json

_PREFIX = "base_model.model."

#: PEFT's ``init_lora_weights`` of adapters whose base is the checkpoint itself.
_PLAIN = (True, False, "gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter does to one weight (out, in): A (r, in), B (out, r), float32.

    magnitude: DoRA's, (out,), or None. pissa: whether the weight loses its ``r`` first singular
    vectors before, as PiSSA's base does.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None
    pissa: bool

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.b), self.a.shape[1]


def read_updates(folder: Path) -> dict[str, Update]:
    """The adapter in ``folder`` by the name of the weight that it changes.

    LoRA, rsLoRA, DoRA and PiSSA (Hu et al. 2021, arXiv:2106.09685; arXiv:2312.03732; Liu et al.
    2024, arXiv:2402.09353; Meng et al. 2024, arXiv:2404.02948), each weight with the r and the
    alpha that PEFT's ``rank_pattern`` and ``alpha_pattern`` give it. ValueError for a damaged
    adapter, and for one that changes its base in another way.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = parse_json((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        alpha, patterns = settings["lora_alpha"], settings.get("alpha_pattern") or {}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {folder} cannot be read: copy the folder again"
        ) from error
    start = settings.get("init_lora_weights", True)
    if start not in (*_PLAIN, "pissa"):
        raise ValueError(
            f"the adapter in {folder} has init_lora_weights={start}, whose base cannot be made "
            f"again from the checkpoint: save it with PEFT's path_initial_model_for_weight_"
            f"conversion, as LoRA on the checkpoint itself"
        )
    updates = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        a = tensors.pop(key).float()
        b = tensors.pop(f"{module}.lora_B.weight", None)
        if b is None:
            raise ValueError(f"the adapter in {folder} lacks {module}.lora_B.weight: copy it again")
        magnitude = tensors.pop(f"{module}.lora_magnitude_vector", None)
        if settings.get("use_dora") and magnitude is None:
            raise ValueError(
                f"the adapter in {folder} lacks {module}.lora_magnitude_vector: copy it again"
            )
        name = module.removeprefix(_PREFIX)
        r = len(a)
        updates[f"{name}.weight"] = Update(
            a=a,
            b=b.float(),
            scaling=_find(patterns, name, alpha)
            / (math.sqrt(r) if settings.get("use_rslora") else r),
            magnitude=None if magnitude is None else magnitude.float().flatten(),
            pissa=start == "pissa",
        )
    if tensors:
        raise ValueError(
            f"the adapter in {folder} holds {min(tensors)}, which is no low-rank update of a "
            f"linear layer: only those can be merged"
        )
    return updates


def _find(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first pattern that matches the end of a name, from a dot on, as in PEFT."""
    matches = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    return patterns.get(next(matches, ""), otherwise)
