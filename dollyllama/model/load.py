"""The tokenizer with its pad token, and the base model, quantised or not, from one path.

A path is "embedded" (the model that comes with the project), a local folder, a URL of one (which is
copied first), or a Hub id. All go through the same ``from_pretrained``. A file that is damaged is
the user's to mend, so it is a ValueError of one line; so is a checkpoint that lacks weights, which
transformers would draw at random and train on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dollyllama.config import Dtype, Quantization, QuantizationMethod
from dollyllama.embedded import EMBEDDED
from dollyllama.hub import hub_answers, root_line
from dollyllama.model.quantised import find_kept, load_or_quantise
from dollyllama.weights import PICKLED, base_place, check_weights, refusal

PAD_TOKEN = "[PAD]"

#: How bases are quantised that are kept.
_KEPT = (QuantizationMethod.nf4, QuantizationMethod.fp4)

#: Files of which a tokenizer has at least one.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

#: Names under which vocabularies keep a token for padding, though the tokenizer's files forget it.
_PAD_NAMES = (PAD_TOKEN, "<pad>", "<|pad|>", "<|finetune_right_pad_id|>")


def load_tokenizer(path: str, revision: str | None) -> Any:
    """Load the fast tokenizer at ``path``, with a pad token of its own.

    A pad token that is also end-of-sequence teaches the model never to stop, because collators mask
    padding by its id; one that is also ``<unk>`` hides real unknown tokens. So a tokenizer with
    such a pad token, or without any, gets a token of its vocabulary that is there for padding, else
    ``[PAD]`` as a new one, for which ``load_base`` adds a row. ValueError when the tokenizer cannot
    be had, is a slow one or has no end-of-sequence.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, "tokenizer", path, revision)
    if not tokenizer.is_fast:
        raise ValueError(
            f"model.path={path}: its tokenizer {type(tokenizer).__name__} is not a fast one: "
            f"add a tokenizer.json to the folder"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model.path={path}: its tokenizer has no end-of-sequence token, so no model can learn "
            f"to stop: set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id in {None, tokenizer.eos_token_id, tokenizer.unk_token_id}:
        vocabulary = tokenizer.get_vocab()
        known = next((name for name in _PAD_NAMES if name in vocabulary), PAD_TOKEN)
        tokenizer.add_special_tokens({"pad_token": known})
    return tokenizer


def load_base(
    path: str,
    revision: str | None,
    *,
    pickled_weights: bool,
    dtype: Dtype,
    quantization: Quantization,
    device: torch.device,
    tokenizer: Any,
) -> Any:
    """Load the causal language model at ``path`` on ``device``, frozen and in evaluation mode.

    pickled_weights: whether those may be read, tensors alone, where there are no safetensors.
    dtype: that of what is not quantised: embeddings, head and norms (and all of it without
    quantisation). A base in 4 bits is quantised once for CPUs, kept, and mapped from then on
    (``quantised``). The embeddings grow to ``len(tokenizer)`` rows, never shrink. Its calls keep no
    cache unless asked to, its ``generate`` does. ValueError when the model cannot be had, is no
    causal one, is damaged, lacks weights or has pickled ones that are not to be read.
    """
    local = _local_folder(path, revision)
    if local is not None:
        check_weights(local, f"model.path={path}", pickled_weights=pickled_weights)
    safe = None if pickled_weights else True
    load = partial(_load_whole, dtype=dtype, device=device, use_safetensors=safe)
    wanted = quantization_config(quantization)
    quantise = partial(load, path, revision, quantization_config=wanted)
    # A GPU quantises 7B in three seconds, in which the checkpoint's digest could not be taken.
    if device.type == "cpu" and quantization.method in _KEPT:
        with _quiet():
            model = load_or_quantise(
                _base_folder(path, revision),
                _settings(dtype, quantization),
                load=lambda folder: load(str(folder), None),
                quantise=quantise,
            )
        # An adapter's config calls its base by this name, wherever the weights came from.
        model.name_or_path = model.config._name_or_path = str(local or path)
    else:
        model = quantise()
    _keep_unpacked(model)
    model.requires_grad_(False)
    _resize_embeddings(model, len(tokenizer))
    ends = end_tokens(tokenizer, model.generation_config)
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = ends
    model.config.use_cache = False
    model.generation_config.use_cache = True
    return model


def end_tokens(tokenizer: Any, generation_config: Any) -> int | list[int]:
    """The tokens behind which an answer ends: the tokenizer's, and those that the base has too.

    Chat models often end a turn with another token than a text (Llama 3's ``<|eot_id|>``). What a
    base says only in its model's config may be no more than that config's default.
    """
    own: int = tokenizer.eos_token_id
    if getattr(generation_config, "_from_model_config", False):
        return own
    others = generation_config.eos_token_id
    others = others if isinstance(others, list) else [others]
    ends = [own, *(each for each in others if each not in (None, own))]
    return own if len(ends) == 1 else ends


def find_kept_base(folder: Path, dtype: Dtype, quantization: Quantization) -> Path | None:
    """Where ``load_base`` keeps the checkpoint in ``folder`` in 4 bits; None where it does not."""
    if quantization.method not in _KEPT:
        return None
    return find_kept(folder, _settings(dtype, quantization))


def _settings(dtype: Dtype, quantization: Quantization) -> dict[str, Any]:
    """What decides the bits of a kept base beside its checkpoint."""
    wanted = quantization_config(quantization)
    assert wanted is not None
    return {"quantization": wanted.to_dict(), "dtype": dtype}


def read_model_config(path: Path | str, revision: str | None = None) -> Any:
    """What ``config.json`` of a model says; a class of the model's own is refused, not run."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)


def load_merged(folder: Path, device: torch.device) -> Any:
    """Load a merged model as anybody would: in its own dtype, in evaluation mode.

    ValueError when the folder holds none.
    """
    from transformers import AutoModelForCausalLM

    check_weights(folder, str(folder), pickled_weights=False)
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False
            )
    except Exception as error:  # as below
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = _sentence(error)
        raise ValueError(f"{folder} is no model that transformers can load ({why})") from error
    return model.to(device).eval()


def quantization_config(quantization: Quantization) -> Any | None:
    """What transformers calls the quantisation: a BitsAndBytesConfig, or None without one.

    Dettmers et al. 2023, arXiv:2305.14314. ``lm_head`` is left as it is by transformers' default.
    """
    from transformers import BitsAndBytesConfig

    match quantization.method:
        case QuantizationMethod.none:
            return None
        case QuantizationMethod.int8:
            return BitsAndBytesConfig(load_in_8bit=True)
        case QuantizationMethod.nf4 | QuantizationMethod.fp4:
            assert quantization.compute_dtype is not None  # config.Quantization sees to it
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=str(quantization.method),
                bnb_4bit_use_double_quant=quantization.double,
                bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
            )


def _load_whole(
    path: str, revision: str | None, *, dtype: Dtype, device: torch.device, **more: Any
) -> Any:
    """``AutoModelForCausalLM`` at ``path``. ValueError when it is damaged or lacks weights."""
    from transformers import AutoModelForCausalLM

    model, info = _from_pretrained(
        AutoModelForCausalLM,
        "model",
        path,
        revision,
        dtype=getattr(torch, dtype),
        device_map={"": device},
        attn_implementation="sdpa",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told apart below: transformers' own error is a table
        **more,
    )
    _require_whole(path, info)
    return model


def _from_pretrained(auto: Any, what: str, path: str, revision: str | None, **settings: Any) -> Any:
    """``auto.from_pretrained`` for each kind of path, in silence, with errors of one line."""
    from pickle import UnpicklingError

    local = _local_folder(path, revision)
    where = f"model.path={path}"
    if local is not None:
        if what == "model" and not (local / "config.json").is_file():
            raise ValueError(
                f"{where}: the folder {local} has no config.json, so it holds no model in Hugging "
                f"Face format"
            )
        place, answers = str(local), False
    else:
        import huggingface_hub

        place, answers = path, hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        with _quiet():
            # Without an answer only the cache is asked: five retries take 23 s and print ten lines.
            return auto.from_pretrained(
                place,
                revision=revision,
                local_files_only=not answers,
                trust_remote_code=False,  # else it would ask at a terminal
                **settings,
            )
    except UnpicklingError as error:
        names = [path.name for path in sorted(local.glob("*.bin"))] if local else []
        raise ValueError(
            f"{where}: {', '.join(names) or 'its .bin files'}: pickled objects other than tensors, "
            f"which could run code, are not loaded: get the weights as safetensors"
        ) from error
    except Exception as error:  # tokenizers' own are no better, and a wrong value raises any
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if settings.get("use_safetensors") and local is None:
            _refuse_pickled(path, revision, local_files_only=not answers)
        if local is not None:
            found = any((local / name).is_file() for name in _VOCABULARIES)
            if what == "tokenizer" and not found:
                raise ValueError(
                    f"{where}: {local} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the "
                    f"model's into it"
                ) from error
            why = f"the {what} in {local} cannot be read ({_sentence(error)})"
            raise ValueError(f"{where}: {why}: copy the folder again") from error
        why = _sentence(error) if answers else "it does not answer from here"
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"{where}: the {what}{at} cannot be had from the Hub ({why}): "
            f"set model.path=FOLDER to a local copy, or use model=tiny"
        ) from error


def _refuse_pickled(path: str, revision: str | None, *, local_files_only: bool) -> None:
    """ValueError when the reason why a model of the Hub does not load is that it is pickled."""
    from transformers.utils import has_file

    with suppress(OSError):
        names = [
            name
            for name in PICKLED
            if has_file(path, name, revision=revision, local_files_only=local_files_only)
        ]
        if names:
            raise ValueError(refusal(path, f"model.path={path}", names))


def _local_folder(path: str, revision: str | None) -> Path | None:
    """The folder that ``path`` names, or a copy of it; None for a Hub id.

    ValueError when it is not there.
    """
    local = base_place(path)
    if not local.is_dir():
        if local.exists():
            raise ValueError(f"model.path={path} is a file: name the folder that it is in")
        if path == EMBEDDED or path.startswith((".", "/", "~")):
            raise ValueError(f"model.path={path}: there is no folder {local}")
        return None
    if revision is not None:
        raise ValueError(
            f"model.revision={revision} has no effect on a local folder: set model.revision=null"
        )
    return local


def _base_folder(path: str, revision: str | None) -> Path | None:
    """Where ``from_pretrained`` would find the model's files now; None when it would not.

    Of a Hub id that is the snapshot of the newest commit, where the Hub answers.
    """
    local = _local_folder(path, revision)
    if local is not None:
        return local
    import huggingface_hub
    from transformers.utils import cached_file

    answers = hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        found = cached_file(path, "config.json", revision=revision, local_files_only=not answers)
    except (OSError, ValueError):
        return None  # loading says why
    return None if found is None else Path(found).parent


def _sentence(error: BaseException) -> str:
    """The first sentence of what went wrong, without its full stop."""
    return root_line(error).split(". ")[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no advice and no conversion of other people's checkpoints in the background."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _require_whole(path: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint some of whose weights transformers has just drawn at random."""
    missing = sorted(info["missing_keys"])
    misshapen = sorted(name for name, *_ in info["mismatched_keys"])
    if not missing and not misshapen:
        return
    what = "are missing" if missing else "have another shape than config.json says"
    names = missing or misshapen
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise ValueError(
        f"model.path={path}: weights {what} in the checkpoint ({names[0]}{others}): "
        f"config.json and the weights do not belong together; copy both again"
    )


def _keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    The first call in evaluation mode would lay the weights out for a kernel without a backward
    pass, round their scales to bfloat16 (another base model), and leave them so: training after an
    evaluation would pass no gradient through them, without an error. It also fails on widths that
    32 does not divide. bitsandbytes 0.50, ``Linear4bit.forward``.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def _resize_embeddings(model: Any, rows: int) -> None:
    """Grow embeddings and head to ``rows``; each new row is the mean of the old ones.

    So a new token's logit is the mean logit, which never wins (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"). transformers' way to the same adds a little noise,
    from the global generator.
    """
    old = model.get_input_embeddings().num_embeddings
    if rows <= old:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    layers = {id(layer.weight): layer for layer in _embedding_layers(model)}  # tied: one weight
    with torch.no_grad():
        for layer in layers.values():
            weight = layer.weight
            weight[old:] = weight[:old].mean(dim=0, dtype=torch.float32).to(weight.dtype)


def _embedding_layers(model: Any) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]
