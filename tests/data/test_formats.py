from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dollyllama.config import RowFormat
from dollyllama.data.example import Example, Rejected
from dollyllama.data.formats import FORMATS, MAX_ROW, check_columns, read_example
from dollyllama.data.prompt import format_prompt
from tests.data.build import make_data, make_source


def read(
    row: dict[str, Any], row_format: RowFormat, columns: dict[str, str] | None = None
) -> tuple[Example, tuple[str, ...]]:
    source = make_source("f", format=row_format, columns=columns or {})
    outcome = read_example(row, name="s", number=7, source=source)
    assert not isinstance(outcome, Rejected), outcome
    return outcome


def refuse(
    row: dict[str, Any], row_format: RowFormat, columns: dict[str, str] | None = None
) -> Rejected:
    source = make_source("f", format=row_format, columns=columns or {})
    outcome = read_example(row, name="s", number=7, source=source)
    assert isinstance(outcome, Rejected)
    return outcome


def check(
    rows: list[dict[str, Any]], row_format: RowFormat, columns: dict[str, str] | None = None
) -> None:
    source = make_source("f", format=row_format, columns=columns or {})
    check_columns(rows, name="s", location="f.jsonl", source=source)


def test_every_row_format_has_a_reader() -> None:
    assert set(FORMATS) == set(RowFormat)


def test_sql_row_reads_in_the_recipes_words() -> None:
    row = {
        "question": "How many heads are older than 56 ? ",
        "context": "CREATE TABLE head (age INTEGER, name VARCHAR); CREATE TABLE t (x VARCHAR)",
        "answer": "SELECT COUNT(*) FROM head WHERE age > 56",
    }
    example, _ = read(row, RowFormat.sql_create_context)
    assert example.instruction == (
        "Generate SQL query: How many heads are older than 56 ?, given the following schema: "
        "head (age INTEGER, name STRING); t (x STRING)"
    )
    assert example.response == row["answer"]
    assert example.context == row["context"]
    assert (example.source, example.row) == ("s", 7)


def test_a_column_named_like_the_type_keeps_its_name() -> None:
    row = {"question": "q", "context": "CREATE TABLE t (VARCHAR_id VARCHAR)", "answer": "a"}
    example, _ = read(row, RowFormat.sql_create_context)
    assert example.instruction.endswith("t (VARCHAR_id STRING)")


@pytest.mark.parametrize(
    "row",
    [
        {  # the schema does not execute: a column twice
            "question": "q",
            "context": "CREATE TABLE t (a VARCHAR, a VARCHAR)",
            "answer": "SELECT a FROM t",
        },
        {  # the answer asks for a column that the schema lacks
            "question": "q",
            "context": "CREATE TABLE t (a VARCHAR)",
            "answer": "SELECT b FROM t",
        },
        {  # damaged upstream
            "question": "q",
            "context": "CREATE TABLE t (week VARCHAR)",
            "answer": 'SELECT week FROM t WHERE "week" = "week"',
        },
    ],
)
def test_doubtful_sql_is_read_as_upstream_has_it(row: dict[str, Any]) -> None:
    example, repairs = read(row, RowFormat.sql_create_context)
    assert (example.context, example.response, repairs) == (row["context"], row["answer"], ())


def test_a_humaneval_row_keeps_what_its_tests_need() -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def one() -> int:\n    """One."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    example, _ = read(row, RowFormat.humaneval)
    assert example.instruction.startswith("Complete the following Python function.")
    assert example.instruction.endswith(row["prompt"])
    assert example.response == 'def one() -> int:\n    """One."""\n    return 1\n'
    assert json.loads(example.context) == {
        key: row[key] for key in ("prompt", "test", "entry_point")
    }


def test_alpaca_input_goes_below_the_instruction() -> None:
    row = {"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"}
    example, repairs = read(row, RowFormat.alpaca)
    assert (example.instruction, example.input) == ("Sort.", "[2, 1]")
    assert (example.question, example.response, repairs) == ("Sort.\n[2, 1]", "[1, 2]", ())


@pytest.mark.parametrize(
    "marker",
    ["No input.", "[noinput]", "< noinput >", "Noinput", "No input", "<noinputn>", "None", "N/A"],
)
def test_no_input_marker_is_left_out_and_counted(marker: str) -> None:
    row = {"instruction": "Sort.", "input": marker, "output": "x"}
    example, repairs = read(row, RowFormat.alpaca)
    assert (example.question, repairs) == ("Sort.", ("no_input_marker",))


@pytest.mark.parametrize("given", ["None = 1", "Na", "no input here", "na na"])
def test_an_input_that_only_looks_like_none_is_an_input(given: str) -> None:
    row = {"instruction": "What is it?", "input": given, "output": "x"}
    assert read(row, RowFormat.alpaca)[0].input == given


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}, {"input": " \n"}])
def test_alpaca_without_input_is_the_instruction_alone(given: dict[str, Any]) -> None:
    row = {"instruction": "Sort.", "output": "x", **given}
    assert read(row, RowFormat.alpaca)[0].question == "Sort."


def test_prompt_with_the_template_loses_it() -> None:
    row = {"prompt": format_prompt("Who?"), "response": "Me."}
    example, repairs = read(row, RowFormat.prompt_response)
    assert (example.instruction, repairs) == ("Who?", ("template_removed",))


def test_databricks_context_goes_below_the_instruction() -> None:
    row = {"instruction": "Who?", "context": "It was me.", "response": "You.", "category": "qa"}
    example, _ = read(row, RowFormat.databricks_dolly)
    assert (example.question, example.context) == ("Who?\nIt was me.", "")


def test_gsm8k_loses_calculator_notes_and_ends_in_a_sentence() -> None:
    row = {"question": "q", "answer": "16 - 3 = <<16-3=13>>13 eggs\n13 * 2 = 26\n#### 1,026"}
    example, _ = read(row, RowFormat.gsm8k)
    assert example.response == "16 - 3 = 13 eggs\n13 * 2 = 26\nThe answer is 1,026."


def as_messages(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


EXCHANGE = (("user", "Hi"), ("assistant", "Ho"))


def test_the_last_exchange_of_a_conversation_is_learnt_behind_the_others() -> None:
    row = as_messages(("system", "Be brief."), *EXCHANGE, ("user", "Say"), ("assistant", "So"))
    example, repairs = read(row, RowFormat.messages)
    assert (example.instruction, example.response) == ("Say", "So")
    assert example.history == (("system", "Be brief."), *EXCHANGE)
    assert repairs == ()


def test_system_words_stand_above_what_the_user_says_and_count_for_the_id() -> None:
    alone, _ = read(as_messages(*EXCHANGE), RowFormat.messages)
    told, _ = read(as_messages(("system", "Be brief."), *EXCHANGE), RowFormat.messages)
    joined, _ = read(as_messages(("user", "Be brief.\nHi"), EXCHANGE[1]), RowFormat.messages)
    assert told.question == "Be brief.\nHi"
    assert alone.id != told.id == joined.id


@pytest.mark.parametrize(
    "after",
    [
        [("user", "Again")],
        [("assistant", "And"), ("user", "Again")],
        [("tool", "7"), ("user", "Again"), ("assistant", "So")],
    ],
)
def test_what_follows_the_last_answer_or_is_out_of_turn_is_left_out(
    after: list[tuple[str, str]],
) -> None:
    example, repairs = read(as_messages(*EXCHANGE, *after), RowFormat.messages)
    assert (example.history, example.instruction, example.response) == ((), "Hi", "Ho")
    assert repairs == ("shortened_conversation",)


def test_sharegpt_names_of_roles_read_too() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert read(row, RowFormat.messages)[0].response == "Ho"


def test_roles_are_read_as_data_sets_call_them() -> None:
    said = [("developer", "Be brief."), ("Human", "Hi"), ("chatgpt", "Ho")]
    example, repairs = read(as_messages(*said), RowFormat.messages)
    assert (example.history, example.instruction, example.response, repairs) == (
        (("system", "Be brief."),),
        "Hi",
        "Ho",
        (),
    )
    rejected = refuse(as_messages(("alice", "Hi"), ("bob", "Ho")), RowFormat.messages)
    assert rejected.detail.endswith("but with alice, bob")


def test_content_in_parts_is_its_texts() -> None:
    row = as_messages(*EXCHANGE)
    alone, _ = read(row, RowFormat.messages)
    said = row["messages"][0]["content"]
    parts = [{"type": "text", "text": each} for each in ("Look:", said)]
    row["messages"][0]["content"] = parts[1:]
    assert read(row, RowFormat.messages) == (alone, ())
    row["messages"][0]["content"] = parts
    assert read(row, RowFormat.messages)[0].instruction == f"Look:\n{said}"
    parts.append({"type": "image_url", "image_url": "a.png"})
    rejected = refuse(row, RowFormat.messages)
    assert rejected.reason == "unreadable_conversation"
    assert rejected.detail == "a message has a part that is no text but image_url"


def test_a_conversation_may_be_json_in_a_text() -> None:
    row = as_messages(*EXCHANGE)
    told = {"messages": json.dumps(row["messages"])}
    assert read(told, RowFormat.messages) == read(row, RowFormat.messages)
    for text in ("Hello", '{"role": "user"}', "[" * 100_000):
        rejected = refuse({"messages": text}, RowFormat.messages)
        assert (rejected.reason, rejected.detail) == ("wrong_type", "messages is of type str")


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "x"}], ["x"], [{"role": "user", "content": None}]],
)
def test_a_conversation_without_an_exchange_is_rejected(messages: list[Any]) -> None:
    assert refuse({"messages": messages}, RowFormat.messages).reason == "unreadable_conversation"


def test_a_conversation_ends_before_the_first_call_of_a_tool() -> None:
    row = as_messages(*EXCHANGE, ("user", "Sum?"))
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    row["messages"] += [
        call,
        {"role": "tool", "content": "7"},
        *as_messages(EXCHANGE[1])["messages"],
    ]
    for words in (None, "", "Let me see."):
        call["content"] = words
        example, repairs = read(row, RowFormat.messages)
        assert (example.history, example.instruction, example.response) == ((), "Hi", "Ho")
        assert repairs == ("shortened_conversation",)
    rejected = refuse({"messages": row["messages"][2:]}, RowFormat.messages)
    assert rejected.detail.endswith("but with user, a call of a tool, tool")


def test_prompt_and_response_may_be_messages() -> None:
    row = as_messages(("system", "Be brief."), *EXCHANGE, ("user", "Say"), ("assistant", "So"))
    whole, _ = read(row, RowFormat.messages)
    told = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    assert read(told, RowFormat.prompt_response) == (whole, ())
    assert read({**told, "completion": "So"}, RowFormat.prompt_response) == (whole, ())
    rejected = refuse({**told, "completion": ["So"]}, RowFormat.prompt_response)
    assert rejected.detail == "a message must be an object, not str"


@pytest.mark.parametrize("value", [3, None, {"a": "b"}, True])
def test_a_field_that_is_no_text_is_rejected_with_its_row(value: Any) -> None:
    row = {"prompt": "p", "response": value}
    rejected = refuse(row, RowFormat.prompt_response)
    assert (rejected.reason, rejected.row, rejected.raw) == ("wrong_type", 7, row)
    assert "response" in rejected.detail


def test_wrong_columns_name_those_found_and_the_format_that_fits() -> None:
    rows = [{"prompt": "p", "response": "r"}]
    with pytest.raises(
        ValueError,
        match=r"alpaca does not fit f\.jsonl.*instruction.*prompt, res"
        r".*format=prompt_response would fit",
    ):
        check(rows, RowFormat.alpaca)


def test_two_columns_that_could_be_the_response_are_refused() -> None:
    rows = [{"instruction": "p", "response": "r", "output": "o"}]
    with pytest.raises(ValueError, match="output and response"):
        check(rows, RowFormat.alpaca)


# --- columns that the source names --------------------------------------------------------------


def named(**changes: str) -> dict[str, str]:
    return {"instruction": "question", "response": "answer"} | changes


def test_named_columns_read_as_the_source_says() -> None:
    row = {"question": "Who?", "hint": "It was me.", "answer": "You.", "schema": "t (a)", "x": 1}
    columns = named(input="hint", context="schema")
    example, repairs = read(row, RowFormat.columns, columns)
    alpaca, _ = read(
        {"instruction": "Who?", "input": "It was me.", "output": "You."}, RowFormat.alpaca
    )
    assert replace(example, context="") == alpaca
    assert (example.context, repairs) == ("t (a)", ())


@pytest.mark.parametrize("given", [{}, {"hint": None}, {"hint": ""}, {"hint": "N/A"}])
def test_a_named_input_may_be_missing_in_a_row(given: dict[str, Any]) -> None:
    row = {"question": "Who?", "answer": "You.", **given}
    example, _ = read(row, RowFormat.columns, named(input="hint"))
    assert example.question == "Who?"


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"answer": {"text": "You."}}, "answer.text"),
        ({"answer": {"best": {"text": "You."}}}, "answer.best.text"),
        ({"answers": {"text": ["You.", "Me."]}}, "answers.text.0"),
        ({"turns": [{"content": "Who?"}, {"content": "You."}]}, "turns.1.content"),
        ({"answer.text": "You.", "answer": {"text": "No."}}, "answer.text"),
    ],
)
def test_a_dot_reaches_into_objects_and_lists(row: dict[str, Any], path: str) -> None:
    row = {"question": "Who?", **row}
    assert read(row, RowFormat.columns, named(response=path))[0].response == "You."


@pytest.mark.parametrize("answer", ["You.", {"other": "You."}, None, [], {"text": None}])
def test_a_row_without_the_named_column_is_rejected_under_its_name(answer: Any) -> None:
    row = {"question": "Who?", "answer": answer}
    rejected = refuse(row, RowFormat.columns, named(response="answer.text"))
    assert (rejected.reason, rejected.detail) == ("wrong_type", "answer.text is missing")
    assert rejected.raw == row


@pytest.mark.parametrize("row_format", [RowFormat.columns, RowFormat.gsm8k])
def test_an_object_in_a_column_says_how_to_reach_into_it(row_format: RowFormat) -> None:
    row = {"question": "Who?", "answer": {"text": "You.", "score": 1}}
    columns = named() if row_format is RowFormat.columns else None
    detail = refuse(row, row_format, columns).detail
    assert detail.startswith("answer is an object")
    assert "answer.text, answer.score" in detail


def test_a_wrong_column_name_gets_the_nearest_and_all_that_there_are() -> None:
    rows: list[dict[str, Any]] = [
        {"question": "q", "answr": {"text": "a"}},
        {"question": "q", "hint": "h"},
    ]
    with pytest.raises(
        ValueError,
        match=r"data\.sources\.s\.columns\.response=answer\.text is no column of f\.jsonl: "
        r"did you mean answr\.text\? There are question, answr, answr\.text, hint$",
    ):
        check(rows, RowFormat.columns, named(response="answer.text"))


def test_a_column_name_that_is_like_none_gets_the_list() -> None:
    with pytest.raises(ValueError, match=r"f\.jsonl: There are question, answer$"):
        check([{"question": "q", "answer": "a"}], RowFormat.columns, named(input="zzz"))


def test_a_column_that_only_a_later_row_has_is_there() -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "hint": "h"}]
    check(rows, RowFormat.columns, named(input="hint"))


@pytest.mark.parametrize("row_format", [RowFormat.alpaca, RowFormat.columns])
def test_a_list_of_columns_in_an_error_is_cut(row_format: RowFormat) -> None:
    columns = named() if row_format is RowFormat.columns else None
    rows = [{f"c{number:03}": "x" for number in range(400)} | {"d" * 10_000: "x"}] * 2
    with pytest.raises(ValueError, match=r"c000, c001, .*, c019 and 381 more") as caught:
        check(rows, row_format, columns)
    assert "c020" not in str(caught.value)
    with pytest.raises(ValueError, match=rf" {'d' * 60}…") as caught:
        check([{"d" * 10_000: "x"}], row_format, columns)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("row_format", [RowFormat.alpaca, RowFormat.columns])
@pytest.mark.parametrize(
    ("key", "path"),
    [("data", "'.data[]'"), ("my data's", """'.["my data'"'"'s"][]'"""), ("2", """'.["2"][]'""")],
)
def test_a_file_that_is_one_object_says_where_its_rows_are(
    row_format: RowFormat, key: str, path: str
) -> None:
    columns = named() if row_format is RowFormat.columns else None
    row = {"version": "1", key: [{"question": "q", "answer": "a"}] * 400}
    with pytest.raises(ValueError, match="is one object") as caught:
        check([row], row_format, columns)
    assert str(caught.value) == (
        "data.sources.s: f.jsonl is one object, not rows (a JSON list, or an object a line), and "
        f"{key} holds a list of objects: write it by itself, e.g. jq -c {path} FILE > NEW.jsonl"
    )


ROW = {"question": "q", "answer": "a"}


@pytest.mark.parametrize("row_format", [RowFormat.alpaca, RowFormat.columns])
@pytest.mark.parametrize(
    ("row", "way"),
    [
        ({str(n): ROW for n in range(9)}, r"each key may hold one: .* jq -c '\.\[\]' FILE"),
        ({"q": {"0": "q"}, "a": {"0": "a"}}, "its keys are columns: write them"),
    ],
)
def test_a_file_that_is_an_object_of_objects_says_how_to_write_its_rows(
    row_format: RowFormat, row: dict[str, Any], way: str
) -> None:
    columns = named(instruction="text") if row_format is RowFormat.columns else None
    with pytest.raises(ValueError, match=f"is one object, not rows .*, and {way}"):
        check([row], row_format, columns)
    if row_format is RowFormat.columns:  # one that has some other objects is a row
        with pytest.raises(ValueError, match=r"text is no column of f\.jsonl: "):
            check([{**row, "n": 1}], row_format, columns)


def test_a_typing_error_in_a_place_inside_a_single_row_gets_the_nearest() -> None:
    row = {"q": {"text": "x"}, "a": {"text": "y"}}
    with pytest.raises(ValueError, match=r"did you mean q\.text\?"):
        check([row], RowFormat.columns, named(instruction="q.txt", response="a.text"))


def test_a_single_row_with_a_list_of_objects_is_told_of_the_format_that_fits() -> None:
    row = {"messages": [{"role": "user", "content": "q"}]}
    with pytest.raises(ValueError, match=r"format=messages would fit"):
        check([row], RowFormat.alpaca)


def test_columns_that_fit_no_format_are_told_of_the_one_that_takes_any() -> None:
    with pytest.raises(ValueError, match=r"columns are a, b; source@data\.sources\.\w+=columns"):
        check([{"a": "x", "b": "y"}], RowFormat.alpaca)


@pytest.mark.parametrize(
    ("row_format", "columns", "message"),
    [
        (RowFormat.alpaca, named(), r"s\.columns has no effect with .*format=alpaca"),
        (RowFormat.columns, {}, r"s\.columns\.instruction is missing"),
        (RowFormat.columns, {"instruction": "q"}, r"s\.columns\.response is missing"),
        (RowFormat.columns, named(inptu="x"), r"s\.columns\.inptu .*did you mean input\?"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused_before_anything_is_read(
    row_format: RowFormat, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^data\.sources\.{message}"):
        make_data({"s": make_source("/nowhere", format=row_format, columns=columns)})


def test_a_row_of_too_much_text_is_rejected_by_name() -> None:
    row = {"prompt": "p", "response": "x" * MAX_ROW}
    assert refuse(row, RowFormat.prompt_response).reason == "row_too_large"
    read({"prompt": "p", "response": "x" * (MAX_ROW - 1)}, RowFormat.prompt_response)


@pytest.mark.parametrize(
    ("reference", "history", "response"),
    [
        (None, [("user", "a")], ""),
        (["x"], [("user", "a"), ("assistant", "x")], ""),
        (["x", "y"], [("user", "a"), ("assistant", "x")], "y"),
        (["", "y", "more"], [("user", "a")], "y"),
        ("y", [("user", "a")], "y"),
    ],
)
def test_references_are_the_answers_of_turns(
    reference: Any, history: list[tuple[str, str]], response: str
) -> None:
    fields = FORMATS[RowFormat.turns].read({"turns": ["a", "b"], "reference": reference})
    assert (list(fields.history), fields.instruction, fields.response) == (history, "b", response)


@pytest.mark.parametrize("reference", [7, [None], {"a": "b"}])
def test_references_that_are_no_texts_are_refused(reference: Any) -> None:
    with pytest.raises(ValueError, match="reference holds something else"):
        FORMATS[RowFormat.turns].read({"turns": ["a", "b"], "reference": reference})
