"""The card is true to the record, valid for the Hub, and usable as it stands."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from huggingface_hub import ModelCard

from dollyllama.card import base_name, config_rows, markdown_table, model_card
from dollyllama.data.prompt import format_prompt
from tests import run_record


def _card(*overrides: str, root: str | None = None, **changes: Any) -> str:
    parts: dict[str, Any] = {
        "data": run_record.data(root),
        "result": run_record.result(),
        "provenance": run_record.provenance(),
    }
    return model_card(run_record.config(*overrides), **{**parts, **changes})


def _code(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    metadata = ModelCard(_card("model=open_llama_7b_v2")).data
    assert metadata.base_model == "openlm-research/open_llama_7b_v2"
    assert metadata.library_name == "peft"
    assert metadata.pipeline_tag == "text-generation"
    assert metadata.datasets == ["b-mc2/sql-create-context", "openai/gsm8k"]
    assert metadata.license == "other"  # the sources differ
    assert "qlora" in metadata.tags
    found = {each.metric_name: each.metric_value for each in metadata.eval_results}
    assert found == {"loss/sql": 0.5, "exact/sql": 0.425}


def test_one_licence_of_all_sources_is_the_adapters() -> None:
    data = run_record.data(None)
    for source in data["sources"].values():
        source["licence"]["name"] = "CC-BY-4.0"
    assert ModelCard(_card(data=data)).data.license == "cc-by-4.0"


def test_metrics_stand_side_by_side_with_their_errors() -> None:
    assert "| exact/sql | 0.000 ± 0.010 | 0.425 ± 0.078 | 40 |" in _card()


def test_licences_stand_with_the_place_that_states_them() -> None:
    card = _card()
    assert "| CC-BY-4.0 | https://example.org/card \\| page | allowed | 100 | 15 |" in card
    assert "| MIT | https://example.org/LICENSE | allowed | 101 | 14 |" in card
    assert "Every source allows commercial use." in card


def test_an_unclear_licence_is_no_licence_of_the_adapters() -> None:
    data = run_record.data(None)
    for source in data["sources"].values():
        source["licence"] |= {"name": "CC-BY-4.0", "commercial": "unclear"}
    card = _card(data=data)
    assert ModelCard(card).data.license == "other"
    assert "| unclear | 100 | 15 |" in card
    assert "Commercial use is unclear for maths and sql." in card


def test_no_path_of_this_machine_gets_in() -> None:
    data = run_record.data("/home/some.person/data")
    data["sources"]["sql"]["upstream"] = "/home/some.person/data/sql.jsonl"
    card = _card("model=local", "model.path=/home/some.person/models/llama-x", data=data)
    assert "some.person" not in card
    assert 'base = "llama-x"  # a local folder' in card
    assert ModelCard(card).data.base_model == "llama-x"


def test_the_embedded_model_is_named_not_located() -> None:
    card = _card(root="embedded")
    assert ModelCard(card).data.base_model == "dollyllama/embedded"
    assert ModelCard(card).data.datasets is None
    assert "from dollyllama.embedded import MODEL" in card


def test_a_users_source_beside_the_sample_is_named() -> None:
    data = run_record.data("embedded")
    data["sources"]["sql"]["read_from"] = "/home/some.person/data/sql.jsonl"
    card = _card(data=data)
    assert ModelCard(card).data.datasets == ["b-mc2/sql-create-context"]
    (row,) = [line for line in card.splitlines() if line.startswith("| sql | b-mc2/")]
    assert "generated sample" not in row
    assert "| maths | DollyLlama's generated sample |" in card


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("embedded", "dollyllama/embedded"),
        ("openlm-research/open_llama_7b_v2", "openlm-research/open_llama_7b_v2"),
        ("gpt2", "gpt2"),
        ("../shared/models/stories260K", "stories260K"),
        ("~/models/x/", "x"),
        ("/x/y", "y"),
    ],
)
def test_a_base_model_is_called_by_its_id_or_its_folder(path: str, expected: str) -> None:
    assert base_name(path) == expected


@pytest.mark.parametrize("quantization", ["nf4_double", "nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("model", ["tiny", "open_llama_7b_v2"])
def test_the_code_to_load_it_is_python_with_the_prompt_trained_on(
    quantization: str, model: str
) -> None:
    tree = ast.parse(_code(_card(f"model={model}", f"quantization={quantization}")))
    (prompt,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "prompt"
    ]
    code = compile(ast.Expression(prompt), "card", "eval")
    assert eval(code, {"instruction": "Do it."}) == format_prompt("Do it.")


def test_the_code_to_load_it_states_the_quantization_trained_with() -> None:
    code = _code(_card("quantization=nf4_double"))
    assert 'bnb_4bit_quant_type="nf4"' in code
    assert "bnb_4bit_use_double_quant=True" in code
    assert "BitsAndBytesConfig" not in _code(_card("quantization=none"))


def test_a_run_without_evaluation_has_a_card_without_it() -> None:
    card = _card(result={**run_record.result(), "metrics": {}})
    assert "## Evaluation" not in card
    assert ModelCard(card).data.eval_results is None


def test_a_metric_without_a_value_is_left_blank() -> None:
    result = run_record.result()
    result["metrics"]["after"].append(run_record.metric("exact/maths", None, None))
    card = _card(result=result)
    assert "| exact/maths |  |  | 40 |" in card
    assert len(ModelCard(card).data.eval_results) == 2


def test_a_cell_cannot_break_the_table() -> None:
    assert markdown_table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


def test_the_repetition_penalty_is_told() -> None:
    rows = dict(config_rows(run_record.config("decoding=repetition_penalty")))
    assert "1.2" in rows["decoding"]
