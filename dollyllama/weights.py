"""Where a base model is, and which files hold its weights: safetensors, or pickles by the user's
leave alone.

A pickle can hold code. Those of weights are read by torch's ``weights_only`` reader, which makes
tensors and nothing else, and only where ``model.pickled_weights`` says so. Nothing heavy is
imported, so that a refusal answers at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dollyllama import embedded, remote
from dollyllama.explain import one_line
from dollyllama.files import check_inner, parse_json

#: What transformers looks for in a folder, in this order; an index names the files themselves.
_SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_CONVERSION = (
    "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
    "[each.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for each in (M, T)]"
)


def base_place(path: str) -> Path:
    """Where ``model.path`` is here: the embedded folder, a copy of a remote one, or as it stands.

    A server is asked once in a process, which so meets one base. ValueError as of ``remote.local``.
    """
    return embedded.MODEL if path == embedded.EMBEDDED else _local(path)


_local = cache(remote.local)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights in ``folder`` from; none where it finds none.

    ValueError when an index of them is damaged, or names files elsewhere.
    """
    for name in (*_SAFE, *PICKLED):
        path = folder / name
        if path.is_file():
            return _named_in(path) if path.suffix == ".json" else [path]
    return []


def pickled(files: Iterable[Path]) -> list[str]:
    """The names of those files that are no safetensors, whatever an index calls them."""
    return sorted(file.name for file in files if file.suffix != ".safetensors")


def check_weights(folder: Path, where: str, *, pickled_weights: bool) -> None:
    """ValueError when the weights in ``folder`` are not to be read; ``where`` begins its line."""
    if (folder / "adapter_config.json").is_file():
        # transformers would go on to the base that this file names, wherever that is.
        raise ValueError(f"{where} holds an adapter (adapter_config.json): name a model's folder")
    names = pickled(weight_files(folder))
    if names and not pickled_weights:
        raise ValueError(refusal(folder, where, names))


def refusal(source: Path | str, where: str, names: list[str]) -> str:
    """Why pickled weights are not read, and what can be done."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{where}: {names[0]}{more} is pickled, which can hold code: name the new folder after "
        f"`{conversion(source)}`, or of a base have tensors alone read, with "
        f"model.pickled_weights=true in place of model.pickled_weights=false"
    )


def conversion(source: Path | str) -> str:
    """The command that writes a model in safetensors files to ``target_of`` it."""
    return f'python -c "{_CONVERSION}" {shlex.quote(str(source))} {shlex.quote(target_of(source))}'


def target_of(source: Path | str) -> str:
    """A new folder, below the working one, for the conversion of a model."""
    return f"{Path(source).name}-safetensors"


def _named_in(index: Path) -> list[Path]:
    try:
        named = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        for name in named:
            check_inner(name)
        return [index.parent / name for name in sorted(named)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({one_line(str(error))}): copy it again") from None
