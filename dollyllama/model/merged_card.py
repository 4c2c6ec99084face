"""The model card of a merged model."""

from __future__ import annotations

from typing import Any

from dollyllama.card import base_name, config_rows, markdown_table, speaks_template
from dollyllama.data.prompt import END_MARKER


def merged_card(config: dict[str, Any], *, merge: dict[str, Any]) -> str:
    """Markdown with YAML front matter, from the run's config and the contents of merge.json."""
    base = base_name(config["model"]["path"])
    agreement = [
        (key.replace("_", " "), f"{value:.6g}") for key, value in merge["agreement"].items()
    ]
    scores = [
        (
            name,
            "" if pair[0] is None else f"{pair[0]:.3f}",
            "" if pair[1] is None else f"{pair[1]:.3f}",
        )
        for name, pair in merge["scores"].items()
    ]
    ends = f"it writes its response, then `{END_MARKER}` and end-of-sequence"
    if speaks_template(config):
        ends = "its prompts are in the tokenizer's own template"
    parts = [
        (
            f"---\nbase_model: {base}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
            "tags: [merged, dollyllama]\n---"
        ),
        f"# {base.rpartition('/')[2]}-dollyllama-merged",
        (
            f"`{base}` with a DollyLlama adapter merged into its {merge['base']} weights, "
            f"{merge['dtype']}. It loads with `AutoModelForCausalLM`; {ends}."
        ),
        "## Agreement with the adapter on its base",
        markdown_table(("measure", "value"), agreement),
    ]
    if merge["exceeded"]:
        limits = [f"`{name}` {merge['tolerance'][name]:g}" for name in merge["exceeded"]]
        parts.append(f"**Beyond the tolerance** of {' and '.join(limits)}; published all the same.")
    if scores:
        parts += ["## Scores", markdown_table(("metric", "adapter", "merged"), scores)]
    parts += ["## Training", markdown_table(("setting", "value"), config_rows(config))]
    return "\n\n".join(parts) + "\n"
