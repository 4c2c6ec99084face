"""The data page: every row accounted for, safe with what rows say, and alive in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dollyllama import embedded
from dollyllama.__main__ import main
from dollyllama.config import GroupBy, RowFormat, Rule
from dollyllama.data.flow import FATES, STEPS, Ribbon, draw_flow, flow
from dollyllama.data.page import count_lengths, data_page, mark_changes, mark_run, token_texts
from dollyllama.data.prepare import PreparedData, prepare
from dollyllama.files import read_json_lines, write_json_lines
from tests import webpage
from tests.data.build import make_data, make_source, numbered_rows
from tests.webpage import HOSTILE, Elements

WriteRows = Callable[..., Path]

LINES = f"one\u2028two\u2029{HOSTILE}"

THINGS = "rivers|old clocks|sugar|Norway|tax law|violins|the moon|bees|concrete|chess".split("|")

WORDS = [
    *numbered_rows(60),
    {"prompt": LINES, "response": LINES},
    {"prompt": LINES, "response": ""},
    {"prompt": "Say number 3.", "response": "it is  3."},
    {"prompt": "Say number 4.", "response": "it is 4."},
    {"prompt": "SAY number 4.", "response": "it IS 4."},
    {"prompt": "y", "response": 5},
    {"prompt": "long " * 200, "response": "x"},
    # Nothing alike, or one of them held out would contaminate the others.
    *({"prompt": f"Describe {about}.", "response": f"{about} " * 99} for about in THINGS),
]
SQL = [
    {
        "question": f"How many of kind {number}?",
        "context": f"CREATE TABLE things_{number} (kind VARCHAR)",
        "answer": f"SELECT COUNT(*) FROM {'table' if number % 3 else 'things'}_{number}",
    }
    for number in range(60)
]


@pytest.fixture(scope="module")
def prepared(
    byte_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> PreparedData:
    """Two sources with rows for every way to be left out, and a line that is no JSON."""
    folder = tmp_path_factory.mktemp("rows")
    write_json_lines(folder / "words.jsonl", WORDS)
    with (folder / "words.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{HOSTILE}\n")
    write_json_lines(folder / "sql.jsonl", SQL)
    sql = {"format": RowFormat.sql_create_context, "group_by": GroupBy.context}
    sources = {
        "words": make_source(folder / "words.jsonl", weight=1.5),
        "sql": make_source(folder / "sql.jsonl", **sql, rules=[Rule.real_table_names], weight=0.5),
    }
    return prepare(make_data(sources), byte_tokenizer, seed=0, cache=folder / "cache")


@pytest.fixture(scope="module")
def html(prepared: PreparedData, byte_tokenizer: PreTrainedTokenizerFast) -> str:
    return data_page(prepared, byte_tokenizer)


def with_record(prepared: PreparedData, folder: Path, **files: list[Any]) -> PreparedData:
    """The same data with other records of what was left out."""
    for name in ("rejected", "clusters", "contamination"):
        rows = files.get(name, read_json_lines(prepared.folder / f"{name}.jsonl"))
        write_json_lines(folder / f"{name}.jsonl", rows)
    return dataclasses.replace(prepared, folder=folder)


def shown(source: str, row: int, text: str = "text") -> dict[str, Any]:
    return {"source": source, "row": row, "id": f"{row}", "instruction": text, "response": text}


# --- numbers ------------------------------------------------------------------------------------


def drawn_ribbons(html: str) -> list[Ribbon]:
    return [
        Ribbon(each["data-source"], each["data-start"], each["data-end"], int(each["data-rows"]))  # type: ignore[arg-type]
        for tag, each in Elements(html).found
        if tag == "path"
    ]


def test_as_many_rows_leave_a_node_of_the_flow_as_come_to_it(
    prepared: PreparedData, html: str
) -> None:
    into, out = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for each in drawn_ribbons(html):
        into[each.source, each.end] += each.rows
        out[each.source, each.start] += each.rows
    for source, read in (("words", len(WORDS) + 1), ("sql", len(SQL))):
        assert out[source, "read"] == read
        for step in STEPS[1:]:
            assert into[source, step] == out[source, step] > 0
    # Where they end is counted in what is there, not in the manifest.
    ends = Counter((each.source, each.reason) for each in prepared.rejected())
    trained = {(row.example.source, row.example.row) for row in prepared.train}
    ends += Counter((source, "trained") for source, _ in trained)
    ends += Counter((row.example.source, "held_out") for row in prepared.held_out)
    found = {key: rows for key, rows in into.items() if key[1] not in STEPS}
    undrawn = {source: found.pop((source, "not_drawn"), 0) for source in ("words", "sql")}
    assert found == dict(ends)
    assert undrawn["sql"] > 0
    assert {"unreadable_line", "wrong_type", "real_table_names", "empty_response"} <= {
        reason for _, reason in ends
    }


def test_the_table_says_what_the_flow_shows(html: str) -> None:
    table = html.partition('<table class="steps">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr class=\"\w+\">(.*?)</tr>", table, re.DOTALL)
    told = {}
    for row in rows:
        label = re.sub(r"<[^>]*>|−", "", row.partition("</th>")[0]).strip().replace(" ", "_")
        numbers = re.findall(r'<td class="n">(.*?)</td>', row)
        told[label] = [int(number.replace(",", "").replace("·", "0")) for number in numbers]
    into = Counter[str]()
    for each in drawn_ribbons(html):
        into[each.end] += each.rows
    assert told.pop("read") == [len(SQL), len(WORDS) + 1, len(SQL) + len(WORDS) + 1]
    assert {label: numbers[-1] for label, numbers in told.items() if numbers[-1]} == dict(into)
    assert all(sum(numbers[:-1]) == numbers[-1] for numbers in told.values())


def test_rows_that_are_lost_are_an_error(prepared: PreparedData) -> None:
    manifest = json.loads(json.dumps(prepared.manifest))
    manifest["sources"]["words"]["rows"]["fits"] -= 1
    with pytest.raises(AssertionError, match="words: fits does not add up"):
        flow(manifest)


def test_a_ribbon_is_as_thick_as_its_rows() -> None:
    """340 pixels for 400 rows; what leaves starts below what stays."""
    ribbons = [
        Ribbon("a", "read", "rules", 200),
        Ribbon("a", "read", "wrong_type", 100),
        Ribbon("b", "read", "rules", 100),
    ]
    drawn = draw_flow(ribbons, ["a", "b"])
    thick = [float(each) for each in re.findall(r"v([\d.]+)C", drawn)]
    assert thick == [170.0, 85.0, 85.0]
    starts = [float(each) for each in re.findall(r'd="M0\.0 ([\d.]+)C', drawn)]
    assert starts == [0.0, 170.0, 255.0]
    ends = [float(each) for each in re.findall(r"[\d.]+ ([\d.]+)v", drawn)]
    assert ends == [0.0, 255.0 + 22.0, 170.0]


def test_lengths_are_counted_without_what_was_cut() -> None:
    lengths = np.array([1, 16, 17, 497, 512, 512, 512], np.int32)
    bins = count_lengths(lengths, max_length=512, cut=2)
    assert len(bins) == 32
    assert [each for each in bins if each[2]] == [(1, 16, 2), (17, 32, 1), (497, 512, 2)]
    odd = count_lengths(np.array([100], np.int32), max_length=100, cut=0)
    assert odd[-1] == (97, 100, 1)


def test_lengths_and_tokens_are_those_of_the_rows(prepared: PreparedData, html: str) -> None:
    rows = [row for row in (*prepared.train, *prepared.held_out) if row.example.source == "words"]
    cut = sum(row.truncated for row in rows)
    median = np.median([len(row.ids) for row in rows])
    text = " ".join(" ".join(Elements(html).text).split())
    assert cut > 3
    assert f"words · {len(rows)} rows · median {median:.0f} · {cut} cut · 1 left out" in text
    learnt = sum(row.supervised for row in prepared.train if row.example.source == "words")
    assert f"{learnt:,} tokens with a loss" in text
    counted = re.findall(r"<title>[\d,]+ to [\d,]+ tokens: ([\d,]+) rows</title>", html)
    everything = len(prepared.train) + len(prepared.held_out)
    assert sum(int(each.replace(",", "")) for each in counted) == everything - cut


# --- samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_bytes", [True, False], ids=["bytes", "words"])
def test_the_texts_of_tokens_make_the_text(
    of_bytes: bool, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = Path(embedded.__file__).parent / "model"
    tokenizer = byte_tokenizer if of_bytes else AutoTokenizer.from_pretrained(model)
    ids = tokenizer("Größe 10 €,  two\n\n  spaces 😀 .")["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_character_belongs_to_its_last_token(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer("é€x")["input_ids"]
    assert token_texts(ids, byte_tokenizer) == ["<s>", "", "é", "", "", "€", "x"]
    assert token_texts(ids[:5], byte_tokenizer)[-1].startswith("\ufffd")


def test_samples_are_rows_with_their_mask(prepared: PreparedData, html: str) -> None:
    data = json.loads(Elements(html).raw["application/json"])
    rows = {
        (side, row.example.source, row.example.row): row
        for side, own in (("train", prepared.train), ("held_out", prepared.held_out))
        for row in own
    }
    keys = [(each["side"], each["source"], each["row"]) for each in data["samples"]]
    assert {key[:2] for key in keys} == {key[:2] for key in rows}
    assert any(each["truncated"] for each in data["samples"])
    for key, sample in zip(keys, data["samples"], strict=True):
        row = rows[key]
        assert sample["ids"] == list(row.ids)
        learnt = {place for start, stop in sample["spans"] for place in range(start, stop)}
        assert learnt == set(np.flatnonzero(row.labels != -100).tolist())


# --- rows to browse -----------------------------------------------------------------------------


def test_what_a_copy_changes_is_marked() -> None:
    assert mark_changes("It is 3.", "It is 30 now.") == [
        ("It is ", False),
        ("30 now", True),
        (".", False),
    ]
    assert mark_changes("same", "same") == [("same", False)]


def test_the_largest_clusters_come_first_and_all_are_counted(
    prepared: PreparedData, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    clusters = [
        {
            "kept": shown("sql", number),
            "why": "comes first",
            "dropped": [shown("sql", 900 + number)] * (1 + number % 40),
        }
        for number in range(200)
    ]
    clusters[7]["dropped"] = [shown("words", 5)]
    html = data_page(with_record(prepared, tmp_path, clusters=clusters), byte_tokenizer)
    section = html.partition('id="copies"')[2].partition("</section>")[0]
    sizes = [int(each) for each in re.findall(r">(\d+) left out<", section)]
    assert sizes[:5] == [40] * 5
    assert 12 <= len(sizes) <= 24
    dropped = sum(1 + number % 40 for number in range(200)) - 7
    assert f"200 clusters of rows that say the same; {dropped:,} rows are copies" in section
    assert "1 cluster reaches over several sources" in section
    assert "stays, as it comes first:" in section


def test_refused_rows_are_picked_from_every_source_and_the_others_counted(html: str) -> None:
    section = html.partition('id="reason-real_table_names"')[2].partition("</details>")[0]
    assert section.count("<article") == 12
    assert "28 more are in rejected.jsonl" in section
    rows = [int(each) for each in re.findall(r">row (\d+)<", section)]
    assert rows[0] < 10
    assert rows[-1] > 50


def test_contaminated_rows_are_shown_with_the_test_they_give_away(
    prepared: PreparedData, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    asked = "First, name a RIVER: which one?"
    found = [
        {"row": shown("words", 1, asked), "test": "a", "kind": "n-gram", "found": "name a river"},
        {"row": shown("words", 3), "test": HOSTILE, "kind": "near copy", "found": HOSTILE},
    ]
    html = data_page(with_record(prepared, tmp_path, contamination=found), byte_tokenizer)
    section = html.partition('id="contamination"')[2].partition("</section>")[0]
    text = " ".join(" ".join(Elements(f"<section {section}</section>").text).split())
    assert "2 training rows left the mix" in text
    assert "gives away a : name a river words row 1" in text
    assert section.count("First, <mark>name a RIVER</mark>: which one?") == 2
    assert text.count(HOSTILE) == 2


def test_a_run_of_words_is_marked_with_what_stands_around_it() -> None:
    assert mark_run("A, b-c d", "b c") == [("A, ", False), ("b-c", True), (" d", False)]
    assert mark_run("nothing", "b c") == [("nothing", False)]
    (before, run, after) = mark_run("x" * 1_000 + " b.c " + "y" * 1_000, "b c")
    assert run == ("b.c", True)
    assert before[0].startswith("… xx")
    assert after[0].endswith("yy …")
    assert len(before[0] + run[0] + after[0]) == 600 + 4


# --- the page -----------------------------------------------------------------------------------


def test_hostile_rows_are_shown_as_text(html: str) -> None:
    # The line that could not be read, and the row without an answer.
    webpage.check_that_nothing_hostile_is_alive(html, shown=2)


def test_a_hostile_sample_arrives_as_it_was_written(
    prepared: PreparedData, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    place = [row.example.response for row in prepared.train].index(LINES)
    alone = dataclasses.replace(prepared, train=prepared.train[place : place + 1])
    data = json.loads(Elements(data_page(alone, byte_tokenizer)).raw["application/json"])
    (sample,) = [each for each in data["samples"] if each["side"] == "train"]
    assert "".join(sample["texts"]).count(LINES) == 2


def test_nothing_is_asked_of_the_network(html: str) -> None:
    webpage.check_that_nothing_is_asked_of_the_network(html)


def test_links_lead_somewhere(html: str) -> None:
    elements = Elements(html).found
    names = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(names) == len(set(names))
    links = {str(attrs["href"])[1:] for tag, attrs in elements if tag == "a"}
    assert links <= set(names)
    assert "reason-wrong_type" in links


def test_figures_have_titles_and_tables_have_heads(html: str) -> None:
    webpage.check_that_figures_have_titles_and_tables_have_heads(html)


def test_many_sources_of_long_rows_are_a_few_megabytes_at_most(
    write_rows: WriteRows, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sources = {}
    for number in range(16):
        rows = [
            {"prompt": f"Tell {number} of {row}.", "response": f"{row} word " * 500}
            for row in range(60)
        ]
        rows += [{"prompt": "word " * 5_000, "response": ""} for _ in range(20)]
        sources[f"a_source_of_a_long_name_{number}"] = make_source(
            write_rows(rows, f"{number}.jsonl")
        )
    data = make_data(sources, max_length=2_048)
    html = data_page(prepare(data, byte_tokenizer, seed=0, cache=tmp_path / "c"), byte_tokenizer)
    assert len(html.encode()) < 3_000_000


def test_prepare_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prepare", "model=tiny", "data=sql", "data.root=embedded", "--examples=0"]
    assert main([*command, "--html", "--output", "out"]) == 0
    assert "out/data.html" in capsys.readouterr().out
    html = (tmp_path / "out/data.html").read_text(encoding="utf-8")
    assert "<title>Data: sql</title>" in html
    assert {each.end for each in drawn_ribbons(html)} >= {*STEPS[1:], *FATES[:2]}


# --- in a browser -------------------------------------------------------------------------------

#: Uses every control and notes what has come of it.
DRIVER = """
const notes = {};
const change = (id, value) => {
  find(id).value = value;
  find(id).dispatchEvent(new Event("change"));
};
notes.first = find("#place").textContent;
find("#previous").click(); notes.back = find("#place").textContent;
change("#source", "words"); notes.words = find("#about").textContent;
notes.learnt = findAll("#sample .learnt").map((each) => each.textContent).join("");
notes.masked = findAll("#sample .masked").map((each) => each.textContent).join("");
notes.title = find("#sample .learnt").title;
find("#cut").click(); notes.cut = find("#sample .note").textContent;
change("#side", "held_out"); find("#cut").click(); notes.held_out = find("#place").textContent;
find("#edges").click(); notes.edges = find("#sample").className;
const visible = (name) => !find(`#reason-${name}`).closest("details").hidden;
findAll("#source-chips input").find((each) => each.value === "sql").click();
notes.sql = [visible("real_table_names"), visible("wrong_type")];
location.hash = "#reason-wrong_type";
addEventListener("hashchange", () => {
  notes.unfolded = [visible("wrong_type"), find("#reason-wrong_type").closest("details").open];
  find("#theme").click(); notes.theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.notes = JSON.stringify(notes);
});
"""


def test_its_controls_work(tmp_path: Path, html: str) -> None:
    notes = webpage.notes_of(DRIVER, html, tmp_path)
    count = int(notes["first"].removeprefix("1 of "))
    assert notes["back"] == f"{count} of {count}"
    assert notes["words"].startswith("words row ")
    assert notes["masked"].startswith("<s>Below is an instruction")
    assert notes["masked"].endswith("### Response:↵\n")
    assert "### End" in notes["learnt"]
    assert re.fullmatch(r"token \d+, id \d+, with a loss", notes["title"])
    assert notes["cut"] == "✂ cut at 512 tokens"
    assert notes["held_out"].startswith("1 of ")
    assert notes["edges"] == "edges"
    assert notes["sql"] == [True, False]
    assert notes["unfolded"] == [True, True]
    assert notes["theme"] == "dark"


def test_a_browser_shows_hostile_rows_as_text(tmp_path: Path, html: str) -> None:
    dom = webpage.open_with_foreign_script(html, tmp_path)
    assert "<title>Data: sql, words</title>" in dom
    assert "<img" not in dom.partition('id="sample-data"')[0]
    assert "<img" not in dom.partition('id="refused"')[2]
