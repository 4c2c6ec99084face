"""The model card of an adapter, made from what its run folder records and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dollyllama.config import Commercial, PromptFormat
from dollyllama.data.licences import commercial_use
from dollyllama.data.prompt import END_MARKER, format_prompt
from dollyllama.embedded import DATA, EMBEDDED
from dollyllama.evaluation.metric import DETAILS, LENGTHS

#: Licence ids that the Hub knows, by the names that configs use.
_HUB_LICENCES = {
    name.lower(): name.lower()
    for name in (
        "Apache-2.0",
        "BSD-3-Clause",
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "CC0-1.0",
        "MIT",
        "bigscience-openrail-m",
    )
}
_METRIC_TYPES = {"exact": "exact_match"}


def model_card(
    config: dict[str, Any],
    *,
    data: dict[str, Any],
    result: dict[str, Any],
    provenance: dict[str, Any],
) -> str:
    """Return the card as Markdown with YAML front matter.

    config, data, result, provenance: the contents of the run folder's ``config.yaml``,
    ``data.json``, ``result.json`` and ``provenance.json``. No path of this machine gets in.
    """
    name = f"{base_name(config['model']['path']).rpartition('/')[2]}-dollyllama"
    parts = [
        f"# {name}",
        (
            f"A QLoRA adapter for `{base_name(config['model']['path'])}`, trained and evaluated "
            "with DollyLlama. Everything below is read from the run's record."
        ),
        "## Use",
        f"```python\n{_loading_code(config)}\n```",
        *(
            []
            if speaks_template(config)
            else [f"The model writes its response, then `{END_MARKER}`."]
        ),
        *_evaluation(result),
        "## Training data",
        _data_table(data),
        (
            "The licences are those that the sources state, at the places named; that of the base "
            f"model applies as well. {commercial_use(data['sources'])}"
        ),
        "## Training",
        markdown_table(("setting", "value"), [*config_rows(config), *_cost_rows(result)]),
        *_origin(provenance),
    ]
    return _front_matter(config, data, result, name) + "\n\n".join(parts) + "\n"


def base_name(path: str) -> str:
    """What to call a base model outside this machine: its Hub id, or its folder's own name."""
    if path == EMBEDDED:
        return "dollyllama/embedded"
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) is not None
    return path if is_hub_id else PurePosixPath(path).name


def config_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings that matter, as pairs of a label and a short text."""
    model, quantization, lora = config["model"], config["quantization"], config["lora"]
    optimizer, schedule, trainer = config["optimizer"], config["schedule"], config["trainer"]
    data, decoding = config["data"], config["decoding"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    units = {"epochs": "epochs", "max_steps": "steps", "max_tokens": "tokens", "max_seconds": "s"}
    length = next(
        f"{trainer[key]:g} {unit}" for key, unit in units.items() if trainer[key] is not None
    )
    return [
        ("base model", f"{base_name(model['path'])}{revision}, {model['dtype']}"),
        (
            "quantization",
            _join(
                quantization["method"],
                "double" if quantization["double"] else None,
                _labelled("compute in", quantization["compute_dtype"]),
            ),
        ),
        (
            "adapter",
            _join(
                lora["variant"],
                f"r {lora['r']}",
                f"alpha {lora['alpha']:g}",
                f"dropout {lora['dropout']:g}",
                f"on {' '.join(lora['target_modules'])}",
            ),
        ),
        (
            "precision",
            _join(
                f"float32: {config['precision']['upcast']}",
                "autocast" if config["precision"]["autocast"] else None,
            ),
        ),
        (
            "optimizer",
            _join(
                optimizer["name"],
                f"lr {optimizer['lr']:g}",
                _labelled("weight decay", optimizer["weight_decay"] or None),
                f"{schedule['name']} schedule",
                f"warm-up {schedule['warmup_ratio']:g}",
            ),
        ),
        (
            "batches",
            _join(
                f"{trainer['batch_size']} × {trainer['accumulation']}",
                trainer["batching"],
                length,
                _labelled("gradient norm at most", trainer["max_grad_norm"]),
            ),
        ),
        (
            "data",
            _join(
                ", ".join(sorted(data["sources"])),
                f"at most {data['max_length']} tokens",
                f"loss on {data['loss_on']}",
            ),
        ),
        (
            "decoding",
            _join(
                decoding["strategy"],
                *(
                    _labelled(key, decoding[key])
                    for key in ("temperature", "top_p", "repetition_penalty", "alpha", "k")
                ),
                f"at most {decoding['max_new_tokens']} tokens",
            ),
        ),
        ("seed", str(config["seed"])),
    ]


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _labelled(label: str, value: Any) -> str | None:
    if value is None:
        return None
    return f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what would break a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def with_error(metric: dict[str, Any] | None) -> str:
    """A metric as ``0.412 ± 0.021``: its value and standard error."""
    if metric is None or metric["value"] is None:
        return ""
    error = metric["standard_error"]
    return f"{metric['value']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _front_matter(
    config: dict[str, Any], data: dict[str, Any], result: dict[str, Any], name: str
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    sources = data["sources"]
    upstream = {
        source: _upstream(about["upstream"])
        for source, about in sources.items()
        if not _is_sample(about, data)
    }
    evaluated = [
        EvalResult(
            task_type="text-generation",
            dataset_type=upstream.get(source, source),
            dataset_name=f"{source}, held out",
            metric_type=_METRIC_TYPES.get(what, what),
            metric_name=metric["name"],
            metric_value=metric["value"],
        )
        for metric in result["metrics"].get("after", [])
        if metric["value"] is not None
        for what, _, source in [metric["name"].partition("/")]
        if what not in {*DETAILS, *LENGTHS}
    ]
    datasets = [path for path in sorted(set(upstream.values())) if "/" in path]
    metadata = ModelCardData(
        base_model=base_name(config["model"]["path"]),
        datasets=datasets or None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["qlora", "lora", "dollyllama"],
        model_name=name,
        eval_results=evaluated or None,
        **_licence(data),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n"


def _upstream(path: str) -> str:
    """A data set's Hub id without its configuration, or the name of a local file."""
    return base_name(path.partition(":")[0])


def _licence(data: dict[str, Any]) -> dict[str, Any]:
    """One licence when the sources clearly agree on one that the Hub knows; else a pointer."""
    licences = [source["licence"] for source in data["sources"].values()]
    names = {licence["name"].lower() for licence in licences}
    clear = all(licence["commercial"] != Commercial.unclear for licence in licences)
    if clear and len(names) == 1 and (known := _HUB_LICENCES.get(names.pop())):
        return {"license": known}
    return {"license": "other", "license_name": "those-of-the-sources-see-training-data"}


def _loading_code(config: dict[str, Any]) -> str:
    model, quantization = config["model"], config["quantization"]
    imports = ["import torch", "from peft import PeftModel"]
    names = ["AutoModelForCausalLM", "AutoTokenizer"]
    arguments = [f"dtype=torch.{model['dtype']}", 'device_map="auto"']
    if quantization["method"] != "none":
        names.append("BitsAndBytesConfig")
        arguments.append(f"quantization_config={_quantization_code(quantization)}")
    if model["revision"]:
        arguments.append(f'revision="{model["revision"]}"')
    imports.append(f"from transformers import {', '.join(names)}")
    if model["path"] == EMBEDDED:
        imports.append("from dollyllama.embedded import MODEL")
        base = "base = str(MODEL)  # comes with the project"
    else:
        named = base_name(model["path"])
        note = "" if named == model["path"] else "  # a local folder when this was trained"
        base = f'base = "{named}"{note}'
    prompt, stop, shown = _prompt_code(config)
    lines = [
        *imports,
        "",
        'adapter = "."  # this folder, or its id on the Hub',
        base,
        "tokenizer = AutoTokenizer.from_pretrained(adapter)",
        "model = AutoModelForCausalLM.from_pretrained(",
        "    base,",
        *(f"    {argument}," for argument in arguments),
        ")",
        "if len(tokenizer) > model.get_input_embeddings().num_embeddings:",
        "    model.resize_token_embeddings(len(tokenizer))",
        "model = PeftModel.from_pretrained(model, adapter).eval()",
        "",
        'instruction = "Name three uses of a teapot."',
        *prompt,
        "output = model.generate(",
        f"    **inputs, max_new_tokens={config['decoding']['max_new_tokens']}, do_sample=False,",
        *stop,
        ")",
        'written = output[0, inputs["input_ids"].shape[1] :]',
        "response = tokenizer.decode(written, skip_special_tokens=True)",
        shown,
    ]
    return "\n".join(lines)


def speaks_template(config: dict[str, Any]) -> bool:
    """Whether prompts are in the tokenizer's own template, without our end marker."""
    return bool(config.get("data", {}).get("prompt", PromptFormat.alpaca) == PromptFormat.chat)


def _prompt_code(config: dict[str, Any]) -> tuple[list[str], list[str], str]:
    """Lines that ask an instruction, arguments that stop the answer, and the line that shows it."""
    if speaks_template(config):
        asked = [
            "inputs = tokenizer.apply_chat_template(",
            '    [{"role": "user", "content": instruction}], add_generation_prompt=True,',
            '    return_tensors="pt", return_dict=True,',
            ").to(model.device)",
        ]
        return asked, [], "print(response.strip())"
    before, after = format_prompt("\0").split("\0")
    asked = [
        f"prompt = {_literal(before)} + instruction + {_literal(after)}",
        'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
    ]
    stop = [f'    stop_strings=["{END_MARKER}"], tokenizer=tokenizer,']
    return asked, stop, f'print(response.partition("{END_MARKER}")[0].strip())'


def _literal(text: str) -> str:
    """A Python string literal in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _quantization_code(quantization: dict[str, Any]) -> str:
    if quantization["method"] == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        "BitsAndBytesConfig(\n"
        "        load_in_4bit=True,\n"
        f'        bnb_4bit_quant_type="{quantization["method"]}",\n'
        f"        bnb_4bit_use_double_quant={bool(quantization['double'])},\n"
        f"        bnb_4bit_compute_dtype=torch.{quantization['compute_dtype']},\n"
        "    )"
    )


def _evaluation(result: dict[str, Any]) -> list[str]:
    before = {metric["name"]: metric for metric in result["metrics"].get("before", [])}
    after = {metric["name"]: metric for metric in result["metrics"].get("after", [])}
    names = [
        name for name in dict.fromkeys([*before, *after]) if name.partition("/")[0] not in DETAILS
    ]
    if not names:
        return []
    rows = [
        (
            name,
            with_error(before.get(name)),
            with_error(after.get(name)),
            str((after.get(name) or before[name])["n"]),
        )
        for name in names
    ]
    return [
        "## Evaluation",
        (
            "On held-out rows, none of whose groups was trained on: value ± standard error over "
            "the examples, for the base model (before) and with the adapter (after). These errors "
            "leave out how much another seed would change the result."
        ),
        markdown_table(("metric", "before", "after", "examples"), rows),
    ]


def _is_sample(source: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a source's rows are the project's own, whatever data set they stand for."""
    own = Path(source.get("read_from", DATA)).is_relative_to(DATA)
    return bool(data["settings"]["root"] == EMBEDDED and own)


def _data_table(data: dict[str, Any]) -> str:
    rows = [
        (
            name,
            "DollyLlama's generated sample"
            if _is_sample(source, data)
            else _upstream(source["upstream"]),
            source["licence"]["name"],
            source["licence"]["stated_at"],
            source["licence"]["commercial"],
            f"{source['rows']['trained']:,}",
            f"{source['rows']['evaluated']:,}",
        )
        for name, source in sorted(data["sources"].items())
    ]
    header = (
        "source",
        "data set",
        "licence",
        "stated at",
        "commercial use",
        "training rows",
        "held-out rows",
    )
    return markdown_table(header, rows)


def _cost_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if parameters := result.get("parameters"):
        share = parameters["trainable"] / parameters["total"]
        rows.append(
            (
                "trainable parameters",
                f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2%})",
            )
        )
    if train := result.get("train"):
        rows += [
            ("steps", f"{train['steps']:,}"),
            ("tokens", f"{train['tokens']:,}, {train['supervised_tokens']:,} of them with loss"),
            ("time", f"{train['seconds']:,.0f} s, {train['tokens_per_second']:,.0f} tokens/s"),
            ("peak memory", f"{train['peak_memory_mib']:,.0f} MiB"),
        ]
    return rows


def _origin(provenance: dict[str, Any]) -> list[str]:
    code, packages = provenance["code"], provenance["packages"]
    commit = code["commit"] or "outside of a checkout"
    dirty = ", with uncommitted changes" if code["dirty"] else ""
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "transformers", "peft", "bitsandbytes", "datasets")
        if packages.get(name)
    )
    return [
        "## Origin",
        (
            f"Trained {provenance['started'][:10]} on {provenance['device']['name']} with "
            f"DollyLlama {code['version'] or ''} ({commit}{dirty}), Python {provenance['python']}, "
            f"{versions}."
        ),
    ]
