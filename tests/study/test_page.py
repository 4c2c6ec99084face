"""The page: whole, by itself, safe with what models write, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dollyllama.study.analyse import analyse
from dollyllama.study.page import page
from dollyllama.study.records import read_sweep
from tests import webpage
from tests.study import record as study_record
from tests.webpage import HOSTILE, Elements

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "attention_only": {"shift": 0.2, "settings": {"lora__target_modules": ["q_proj"]}},
    "rank_8": {"shift": 0.001, "settings": {"lora__r": 8}, "answers": [HOSTILE, "plain"]},
    "nucleus": {
        "chance": 0.3,
        "trained_by": "baseline.seed_0",
        "settings": {"decoding__strategy": "nucleus"},
    },
    "wild": {"status": "diverged", "error": HOSTILE, "settings": {"lora__r": 99}},
}


def write(folder: Path, **plan: Any) -> Path:
    tips = {"attention_only": "adapt all linear layers", "rank_8": HOSTILE}
    return study_record.write_sweep(
        folder, VARIANTS, **{"tips": tips, "left_out": {HOSTILE: HOSTILE}, **plan}
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write(tmp_path_factory.mktemp("page") / "sweep")
    return page(analyse(*read_sweep([folder])))


def test_every_element_is_closed_and_none_is_a_strangers(html: str) -> None:
    # As a claim, as what was left out with its reason, and as the reason of three failures.
    webpage.check_that_nothing_hostile_is_alive(html, shown=6)


def test_hostile_answers_arrive_as_they_were_written(html: str) -> None:
    data = json.loads(Elements(html).raw["application/json"])
    answers = [answer["text"] for answer in data["answers"]["rank_8"]]
    assert answers.count(HOSTILE) == len(answers) / 2
    assert data["answers"].keys() == {"baseline", "attention_only", "rank_8", "nucleus"}
    assert {len(own) for own in data["answers"].values()} == {len(data["questions"])}
    assert len(data["questions"]) == 40
    assert data["heads"]["sql"] == "execution"


def test_nothing_is_asked_of_the_network(html: str) -> None:
    webpage.check_that_nothing_is_asked_of_the_network(html)


def test_verdicts_come_first(html: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', html)
    assert " ".join(sections) == "verdicts effects curves cost sources samples cells origin"
    assert "Of 2 tips: 1 supported, 1 " in html


def test_figures_have_titles_and_tables_have_heads(html: str) -> None:
    webpage.check_that_figures_have_titles_and_tables_have_heads(html)


def test_a_page_is_made_of_whatever_there_is(tmp_path: Path) -> None:
    """Nothing finished, one run, no metric named, no answers."""
    nothing = study_record.write_sweep(tmp_path / "a", {"baseline": {"status": "running"}})
    assert "Nothing is compared" in page(analyse(*read_sweep([nothing])))
    one = study_record.write_cell(tmp_path / "one")
    assert 'id="samples"' in page(analyse(*read_sweep([one])))
    (one / "samples.jsonl").unlink()
    unnamed = {"evaluation": {**study_record.config()["evaluation"], "primary": None}}
    other = study_record.write_cell(tmp_path / "two", settings=unnamed)
    both = page(analyse(*read_sweep([other, one])))
    assert "No metric was named to decide" in both
    shutil.rmtree(one)
    assert "baseline" in page(analyse(*read_sweep([other])))


def test_a_study_of_75_cells_is_a_few_megabytes_at_most(tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {"baseline": {}}
    for number in range(24):
        variants[f"variant_{number}"] = {
            "settings": {"lora__r": number + 1},
            "answers": ["word " * 400],
            "examples": 12,
        }
    study = analyse(*read_sweep([study_record.write_sweep(tmp_path, variants)]))
    assert len(study.cells) == 75
    assert len(page(study).encode()) < 3_000_000


def test_the_page_comes_alive_in_a_browser(tmp_path: Path, html: str) -> None:
    dom = webpage.open_in_browser(html, tmp_path)
    assert "<title>Study: sweep</title>" in dom
    assert len(re.findall(r"<option value=", dom)) == 2 * 4 + 5
    assert "1 of 40" in dom
    assert re.search(r'<pre id="prompt">Show row 0 of code\.</pre>', dom)
    assert (
        len(re.findall(r'class="wide family"[^>]* hidden', dom))
        == len(re.findall(r'name="family"', dom)) - 1
    )
    assert dom.count("<button") == 3 + len(re.findall(r'<th scope="col"[^>]*><button', dom))


#: Uses every control and notes what has come of it.
DRIVER = """
const notes = {};
const buttons = findAll(".sortable thead button");
const sort = (title) => buttons.find((each) => each.textContent === title).click();
const losses = () => findAll(".sortable tbody tr").map((row) => row.cells[3].dataset.key);
sort("loss/all"); notes.rising = losses();
sort("loss/all"); notes.falling = losses();
sort("variant"); notes.by_name = find(".sortable tbody th").textContent;
const box = findAll("#curves input").find((each) => each.value === "rank_8");
const curve = findAll(".curve").find((each) => each.dataset.curve === "rank_8");
notes.curve = [curve.hasAttribute("hidden")];
box.click(); notes.curve.push(curve.hasAttribute("hidden"), curve.classList.contains("ink2"));
box.click(); notes.curve.push(curve.hasAttribute("hidden"));
find("#theme").click(); notes.theme = document.documentElement.dataset.theme;
const choose = (id, value) => {
  find(id).value = value;
  find(id).dispatchEvent(new Event("change"));
};
choose("#source", "sql"); notes.sql = find("#place").textContent;
find("#previous").click(); notes.back = find("#place").textContent;
choose("#left", "rank_8"); choose("#right", "rank_8"); find("#differing").click();
notes.same = find("#place").textContent;
choose("#right", "baseline"); notes.differ = find("#place").textContent;
notes.marked = findAll("#left-answer mark").length > 0;
findAll("#family-chips input")[1].click();
notes.families = findAll(".family").map((each) => each.hidden);
document.documentElement.dataset.notes = JSON.stringify(notes);
"""


def test_its_controls_work(tmp_path: Path, html: str) -> None:
    notes = webpage.notes_of(DRIVER, html, tmp_path)
    rising = [float(value) for value in notes["rising"] if value]
    assert rising == sorted(rising)
    assert notes["rising"][-3:] == ["", "", ""]
    assert notes["falling"][:12] == notes["rising"][:12][::-1]
    assert notes["by_name"] == "attention_only"
    assert notes["curve"] == [True, False, True, True]
    assert notes["theme"] == "dark"
    assert (notes["sql"], notes["back"]) == ("1 of 10", "10 of 10")
    assert (notes["same"], notes["differ"]) == ("none", "10 of 10")
    assert notes["marked"]
    assert notes["families"].count(False) == 1
    assert not notes["families"][1]


def test_the_policy_keeps_foreign_scripts_out(tmp_path: Path, html: str) -> None:
    webpage.open_with_foreign_script(html, tmp_path)


def test_a_browser_shows_a_hostile_answer_as_text(tmp_path: Path) -> None:
    variants = {"baseline": {"answers": [HOSTILE]}, "b": {"settings": {"lora__r": 8}}}
    sweep = study_record.write_sweep(tmp_path / "sweep", variants, seeds=(0,))
    dom = webpage.open_in_browser(page(analyse(*read_sweep([sweep]))), tmp_path)
    assert "<img" not in dom.partition('id="sample-data"')[0]
    pane = re.search(r'<pre id="left-answer">(.*?)</pre>', dom, re.DOTALL)
    assert pane is not None
    shown = re.sub(r"</?mark>", "", pane[1])
    assert shown.startswith("&lt;/script&gt;&lt;img src=x onerror=")
