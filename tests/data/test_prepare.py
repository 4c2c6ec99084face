from __future__ import annotations

import datetime
import errno
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dollyllama.config import Data, Deduplicate, GroupBy, LossOn, Quality, RowFormat, Rule
from dollyllama.data.ingest import find_source, make_part, read_questions
from dollyllama.data.prepare import EmptySide, PreparedData, check, prepare
from dollyllama.data.show import count_table, show_examples
from dollyllama.data.store import write_part
from dollyllama.files import read_json_lines
from dollyllama.launch import compose_run
from tests.data.build import make_data, make_source, numbered_rows

WriteRows = Callable[..., Path]
Prepare = Callable[..., PreparedData]

SQL = [
    {
        "question": f"How many of kind {number}?",
        "context": f"CREATE TABLE things_{number % 20} (kind VARCHAR)",
        "answer": f"SELECT COUNT(*) FROM things_{number % 20} WHERE kind = {number}",
    }
    for number in range(60)
]
DIRT = [
    {"prompt": "Say number 3.", "response": "it is  3."},  # a copy of row 3
    {"prompt": "", "response": "x"},
    {"prompt": "y", "response": " "},
    {"prompt": "y", "response": 5},
    {"prompt": " ".join(map(str, range(300))), "response": "x"},
    {"prompt": "A long answer, please.", "response": "word " * 5_200},
    {"prompt": "Read this\u2028twice. ", "response": "Yes.\r\n"},
]


@pytest.fixture
def mix(write_rows: WriteRows) -> Data:
    """Two sources with every kind of dirt."""
    sql = [*SQL, {**SQL[0], "answer": "SELECT x FROM table_1"}]
    return make_data(
        {
            "words": make_source(write_rows([*numbered_rows(60), *DIRT], "words.jsonl")),
            "sql": make_source(
                write_rows(sql, "sql.jsonl"),
                format=RowFormat.sql_create_context,
                group_by=GroupBy.context,
                rules=[Rule.real_table_names],
            ),
        }
    )


def test_every_row_read_is_used_or_rejected_with_a_reason(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    rejected = Counter(each.source for each in prepared.rejected())
    used = {
        (each.example.source, each.example.row) for each in (*prepared.train, *prepared.held_out)
    }
    for name, source in prepared.manifest["sources"].items():
        rows = source["rows"]
        assert rows["read"] == sum(name == s for s, _ in used) + rejected[name]
        assert sum(source["rejected"].values()) == rejected[name]
    assert prepared.manifest["total"]["rows"]["read"] == 60 + len(DIRT) + 61
    assert prepared.manifest["total"]["rejected"] == {
        "duplicate_row": 1,
        "empty_instruction": 1,
        "empty_response": 1,
        "prompt_too_long": 1,
        "real_table_names": 1,
        "wrong_type": 1,
    }


def test_rejected_rows_carry_the_row_as_upstream_has_it(mix: Data, run: Prepare) -> None:
    raw = {each.reason: each.raw for each in run(mix).rejected() if each.source == "words"}
    assert raw["duplicate_row"] == DIRT[0]
    assert raw["prompt_too_long"] == DIRT[4]


def test_steps_add_up(mix: Data, run: Prepare) -> None:
    for source in run(mix).manifest["sources"].values():
        rows = source["rows"]
        steps = ["read", "rules", "cleaned", "quality", "fits", "deduplicated"]
        assert [rows[step] for step in steps] == sorted(
            (rows[step] for step in steps), reverse=True
        )
        assert rows["deduplicated"] == rows["train"] + rows["held_out"]
        assert rows["train"] == rows["trained_distinct"] + rows["not_drawn"]
        assert rows["quality"] - rows["fits"] == source["rejected"].get("prompt_too_long", 0)


def test_token_counts_are_those_of_the_examples(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    counted = prepared.manifest["total"]["tokens"]["train"]
    labels = [label for each in prepared.train for label in each.labels]
    assert counted["tokens"] == len(labels)
    assert counted["supervised"] == sum(label != -100 for label in labels)
    assert counted["truncated"] == sum(each.truncated for each in prepared.train)
    both = prepared.manifest["sources"]["words"]["tokens"].values()
    assert sum(part["truncated"] for part in both) == 1


def test_repairs_are_counted(mix: Data, run: Prepare) -> None:
    assert run(mix).manifest["sources"]["words"]["repaired"] == {"line_ends": 1}


def test_no_group_key_is_in_two_splits(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    train, held = (
        {each.example.group for each in side} for side in (prepared.train, prepared.held_out)
    )
    assert train
    assert held
    assert not train & held


def test_the_order_of_sources_changes_nothing(mix: Data, run: Prepare) -> None:
    turned = make_data(dict(reversed(mix.sources.items())))
    assert list(turned.sources) != list(mix.sources)
    other, own = run(turned, cache="other"), run(mix)
    assert other.manifest == own.manifest
    assert (other.train, other.held_out) == (own.train, own.held_out)
    assert list(other.rejected()) == list(own.rejected())


def test_the_split_is_the_same_for_every_seed_and_the_order_is_not(mix: Data, run: Prepare) -> None:
    zero, one = run(mix, seed=0), run(mix, seed=1)
    assert zero.held_out == one.held_out
    assert zero.train != one.train
    assert {each.example for each in zero.train} == {each.example for each in one.train}


def test_cached_data_are_the_fresh_data(
    mix: Data, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = run(mix)
    monkeypatch.setattr("dollyllama.data.ingest.make_part", None)
    assert run(mix) == fresh


@pytest.mark.parametrize(
    "name",
    [
        *("mixes/*/manifest.json", "mixes/*/train.npy", "mixes/*/digests.json"),
        *("mixes/*/rejected.jsonl", "sources/*/store.json", "sources/*/00000.json"),
        *("sources/*/00000.kept.arrow", "sources/*/00000.refused.arrow"),
    ],
)
def test_a_damaged_cache_is_found_and_made_again(
    mix: Data, run: Prepare, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    fresh = run(mix)
    cache = tmp_path / "cache"

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    def damaged() -> list[str]:
        return check(mix, byte_tokenizer, seed=0, cache=cache)

    before = files()
    assert damaged() == []
    (path, *_) = sorted(cache.glob(name))
    path.write_bytes(path.read_bytes()[:-9])
    # The note of a part is needed for a part that is made again, and for nothing else.
    assert name.endswith("00000.json") or path.parent.name in str(damaged())
    again = run(mix)
    assert (again.train, again.held_out, again.manifest) == (
        fresh.train,
        fresh.held_out,
        fresh.manifest,
    )
    assert damaged() == []
    assert name.endswith("00000.json") or files() == before


def test_a_preparation_that_was_killed_goes_on_behind_its_last_part(
    write_rows: WriteRows, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollyllama.data.ingest.PART_ROWS", 10)
    monkeypatch.setattr("dollyllama.device.os.sched_getaffinity", lambda pid: {0})
    data = make_data({"a": make_source(write_rows(numbered_rows(60)))})
    seen: list[int] = []

    def count(job: Any, chunk: Any, tokenizer: Any) -> Any:
        if len(seen) == 3:
            seen.append(-1)
            raise KeyboardInterrupt
        seen.append(chunk.first)
        return make_part(job, chunk, tokenizer)

    monkeypatch.setattr("dollyllama.data.ingest.make_part", count)
    with pytest.raises(KeyboardInterrupt):
        run(data)
    killed = run(data)
    assert seen == [0, 10, 20, -1, 30, 40, 50]
    fresh = run(data, cache="other")
    assert (killed.train, killed.manifest) == (fresh.train, fresh.manifest)


@pytest.mark.slow
def test_workers_and_their_lock_go_with_a_preparation_that_was_killed(
    write_rows: WriteRows, tmp_path: Path
) -> None:
    write_rows(numbered_rows(40))
    script = tmp_path / "prepare.py"
    script.write_text(
        """
import os, sys, time
from pathlib import Path
from dollyllama import embedded
from dollyllama.data import ingest
from dollyllama.data.prepare import prepare
from tests.data.build import make_data, make_source
from transformers import AutoTokenizer

ingest.PART_ROWS = 5
os.sched_getaffinity = lambda pid: {0, 1}
make_part = ingest.make_part

def slow(*arguments):
    Path(sys.argv[1], f"worker-{os.getpid()}").touch()
    time.sleep(float(sys.argv[2]))
    return make_part(*arguments)

ingest.make_part = slow
data = make_data({"a": make_source(Path(sys.argv[1], "rows.jsonl"))})
tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL)
print(len(prepare(data, tokenizer, seed=0, cache=Path(sys.argv[1], "cache")).train))
""",
        encoding="utf-8",
    )

    def start(seconds: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path), seconds]
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            command,
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    killed = start("600")
    while len(workers := list(tmp_path.glob("worker-*"))) < 2:
        time.sleep(0.05)
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    out, _ = start("0").communicate(timeout=600)
    assert int(out) > 20
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name.removeprefix("worker-")), 0)


def test_only_the_source_that_changed_is_read_again(
    mix: Data, run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(mix)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('{"prompt": "More?", "response": "More."}\n')
    seen: list[str] = []

    def count(job: Any, chunk: Any, tokenizer: Any) -> Any:
        seen.append(job.name)
        return make_part(job, chunk, tokenizer)

    monkeypatch.setattr("dollyllama.data.ingest.make_part", count)
    run(make_data(mix.sources, max_rows=50, held_out=0.1), seed=1)
    assert seen == ["words"]


def test_several_processes_make_what_one_makes(
    mix: Data, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(mix)
    monkeypatch.setattr("dollyllama.data.ingest.PART_ROWS", 7)
    monkeypatch.setattr("dollyllama.device.os.sched_getaffinity", lambda pid: {0, 1, 2})
    shared = run(mix, cache="other")
    assert (shared.train, shared.held_out) == (alone.train, alone.held_out)
    assert shared.manifest == alone.manifest
    assert list(shared.rejected()) == list(alone.rejected())


def test_what_one_process_prepares_another_waits_for(
    mix: Data, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Four at once: each part is written once, and all have the same data."""
    context = multiprocessing.get_context("fork")
    written = context.Value("i", 0)

    def count(*arguments: Any) -> None:
        with written.get_lock():
            written.value += 1
        write_part(*arguments)

    results = context.Queue()

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dollyllama.data.ingest.write_part", count)
            prepared = prepare(mix, byte_tokenizer, seed=0, cache=tmp_path)
            results.put([each.example.id for each in prepared.train])

    workers = [context.Process(target=work) for _ in range(4)]
    for each in workers:
        each.start()
    orders = [results.get(timeout=60) for _ in workers]
    for each in workers:
        each.join()
    assert all(order == orders[0] for order in orders)
    assert written.value == len(mix.sources)


def test_a_source_that_cannot_be_prepared_says_so_from_another_process(
    write_rows: WriteRows, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollyllama.data.ingest.PART_ROWS", 5)
    monkeypatch.setattr("dollyllama.device.os.sched_getaffinity", lambda pid: {0, 1})
    data = make_data({"a": make_source(write_rows(numbered_rows(20)), format=RowFormat.gsm8k)})
    with pytest.raises(ValueError, match="it wants the column question"):
        run(data)


def test_near_copies_are_left_out_across_sources_and_named(
    write_rows: WriteRows, run: Prepare
) -> None:
    texts = [
        "The lighthouse keeper counts the ships that pass before dawn and writes them in a book",
        "A recipe for plum cake asks for six eggs, a pound of flour and a spoon of cinnamon",
        "Two engines pull the night train across the mountains while the passengers sleep",
    ]
    rows = [{"prompt": f"Go on: {text}.", "response": f"{text}, as ever."} for text in texts]
    rows += numbered_rows(300)
    copy = [{"prompt": f"Continue: {texts[1]}!", "response": f"{texts[1]}, as always."}]
    sources = {
        "a": make_source(write_rows(rows, "a.jsonl")),
        "b": make_source(write_rows([*copy, *numbered_rows(300, 1000)], "b.jsonl")),
    }
    near = run(make_data(sources, deduplicate=Deduplicate.near))
    assert near.manifest["total"]["rejected"]["near_duplicate"] >= 1
    (cluster,) = [
        each
        for each in read_json_lines(near.folder / "clusters.jsonl")
        if "plum cake" in each["kept"]["instruction"]
    ]
    assert {(each["source"], each["row"]) for each in [cluster["kept"], *cluster["dropped"]]} == {
        ("a", 1),
        ("b", 0),
    }
    assert cluster["why"] == "has the longest response"
    exact = run(make_data(sources))
    assert "near_duplicate" not in exact.manifest["total"]["rejected"]
    # Copies that stay are on one side.
    sides = {
        side
        for side, rows in (("train", exact.train), ("held_out", exact.held_out))
        for each in rows
        if "plum cake" in each.example.instruction
    }
    assert len(sides) == 1


def test_the_fingerprint_follows_settings_files_seed_and_tokenizer(
    mix: Data, run: Prepare, tmp_path: Path
) -> None:
    prints = {run(mix).fingerprint, run(mix, seed=1).fingerprint}
    prints.add(run(make_data(mix.sources, loss_on=LossOn.full_text)).fingerprint)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('{"prompt": "More?", "response": "More."}\n')
    prints.add(run(mix).fingerprint)
    assert len(prints) == 4


def test_weights_touch_the_training_side_alone(write_rows: WriteRows, run: Prepare) -> None:
    path = write_rows(numbered_rows(80))
    once, twice, half = (
        run(make_data({"a": make_source(path, weight=weight)})) for weight in (1.0, 2.0, 0.5)
    )
    assert once.held_out == twice.held_out == half.held_out
    assert len(twice.train) == 2 * len(once.train)
    rows = half.manifest["sources"]["a"]["rows"]
    assert rows["read"] == rows["trained"] + rows["evaluated"] + rows["not_drawn"]


@pytest.mark.parametrize(
    ("rows", "changes", "side", "losses", "way_out"),
    [
        (
            numbered_rows(20),
            {"max_length": 8},
            "training",
            "20 prompt_too_long",
            "raise data.max_length=8",
        ),
        (
            numbered_rows(5),
            {"held_out": 0.99},
            "training",
            "5 held_out",
            "lower data.held_out=0.99",
        ),
        (
            [{"prompt": f"Say {n}.", "response": "..."} for n in range(4)] + [*DIRT[1:5], DIRT[2]],
            {"quality": list(Quality), "max_length": 300},
            "training",
            "4 no_answer, 2 empty_response, 1 empty_instruction, 2 for other reasons",
            "leave no_answer out of data.quality",
        ),
        (
            [{"prompt": f"Say {n}.", "response": n} for n in range(4)],
            {},
            "training",
            "4 wrong_type",
            "mend those rows, first row 0 of a: ",
        ),
        (
            numbered_rows(20),
            {"held_out": 1e-9},
            "held-out",
            "20 training",
            "raise data.held_out=1e-09",
        ),
        (
            [*numbered_rows(2), *({"prompt": "", "response": "x"} for _ in range(5))],
            {"held_out": 1e-9},
            "held-out",
            "5 empty_instruction, 2 training",
            "mend those rows, first row 2 of a: nothing but white space",
        ),
    ],
)
def test_an_empty_side_is_an_error_that_says_where_the_rows_went(
    write_rows: WriteRows,
    run: Prepare,
    rows: list[dict[str, Any]],
    changes: dict[str, Any],
    side: str,
    losses: str,
    way_out: str,
) -> None:
    with pytest.raises(EmptySide) as error:
        run(make_data({"a": make_source(write_rows(rows))}, **changes))
    went = f"{len(rows)} rows of data.sources (a): {losses}; {way_out}"
    assert f"the mix has no {side} example: {went}" in str(error.value)


def test_an_empty_side_is_one_short_line_whatever_the_mix(
    write_rows: WriteRows, run: Prepare
) -> None:
    rows = [{"prompt": f"Say\n{n}.", "response": n} for n in range(4)]
    source = make_source(write_rows(rows))
    names = [f"a_source_with_a_long_name_{number}" for number in range(20)]
    with pytest.raises(EmptySide) as error:
        run(make_data(dict.fromkeys(names, source)))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_a_rule_that_takes_every_row_is_named_with_its_source(
    write_rows: WriteRows, run: Prepare
) -> None:
    rows = [{**row, "response": "SELECT x FROM table_1"} for row in numbered_rows(9)]
    sources = {
        "a": make_source(write_rows([DIRT[1]], "a.jsonl")),
        "b": make_source(write_rows(rows, "b.jsonl"), rules=[Rule.real_table_names]),
    }
    with pytest.raises(EmptySide, match=r"9 real_table_names, 1 .*out of data\.sources\.b\.rules"):
        run(make_data(sources))


def test_weights_that_draw_no_row_are_named(write_rows: WriteRows, run: Prepare) -> None:
    source = make_source(write_rows(numbered_rows(20)), weight=0)
    with pytest.raises(EmptySide, match=r"not_drawn, \d held_out; raise the sources' weights"):
        run(make_data({"a": source}))


def made_up_words(name: str, count: int) -> str:
    return " ".join(f"{name}{number}" for number in range(count))


def test_contamination_by_a_benchmark_that_takes_every_row_is_named(
    write_rows: WriteRows, run: Prepare
) -> None:
    source = make_source(write_rows(numbered_rows(30)))
    message = r"\): \d\d contaminated, \d+ held_out; leave out data\.benchmarks\.same, which"
    with pytest.raises(EmptySide, match=message):
        run(make_data({"a": source}, benchmarks={"same": source}))


@pytest.mark.parametrize("benchmarks", [False, True])
def test_contamination_by_held_out_rows_that_takes_every_row_is_named(
    write_rows: WriteRows, run: Prepare, benchmarks: bool
) -> None:
    rows = [
        {
            "prompt": f"{made_up_words(f'topic{topic}word', 100)} {number}",
            "response": made_up_words(f"answer{topic}to{number}word", 60),
        }
        for topic in range(6)
        for number in range(10)
    ]
    other = make_source(write_rows(numbered_rows(3), "other.jsonl"))
    data = make_data(
        {"a": make_source(write_rows(rows))},
        benchmarks={"other": other} if benchmarks else {},
        held_out=0.3,
        max_length=4096,
    )
    way_out = f"set data.decontaminate=false{' benchmarks=none' if benchmarks else ''}$"
    with pytest.raises(EmptySide, match=rf"\): \d\d contaminated, \d+ held_out; {way_out}"):
        run(data)


def test_an_empty_side_is_an_error_the_second_time_too(write_rows: WriteRows, run: Prepare) -> None:
    data = make_data({"a": make_source(write_rows(numbered_rows(20)))}, held_out=1e-9)
    for _ in range(2):
        with pytest.raises(ValueError, match="no held-out example"):
            run(data)


def test_columns_that_json_lacks_are_kept_in_words(run: Prepare, tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "prompt": ["Say one.", "Say two.", "Say three.", "Say four.", ""],
            "response": ["One.", "Two.", "Three.", "Four.", "Nothing."],
            "made": [datetime.datetime(2026, 1, day) for day in range(1, 6)],
            "bytes": [b"\xff\x00"] * 5,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    data = make_data({"a": make_source(tmp_path / "rows.parquet")}, held_out=0.5)
    (rejected,) = run(data).rejected()
    assert rejected.raw["made"] == "2026-01-05 00:00:00"


def test_a_full_disk_is_named_with_the_way_out(
    mix: Data, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dollyllama.data.ingest.write_part", fail)
    with pytest.raises(ValueError, match=r"No space left on device.*DOLLYLLAMA_CACHE=FOLDER"):
        run(mix)


def test_progress_names_its_stages(mix: Data, run: Prepare) -> None:
    seen: list[str] = []
    run(mix, progress=lambda stage, done, total: seen.append(stage))
    assert list(dict.fromkeys(seen)) == [
        "looking at the files",
        "reading, cleaning, tokenising",
        "finding copies",
        "looking for contamination",
        "mixing",
    ]


def test_the_manifest_states_licence_place_and_digests(mix: Data, run: Prepare) -> None:
    source = run(mix).manifest["sources"]["words"]
    assert source["licence"]["name"] == "MIT"
    assert source["licence"]["stated_at"] == "its card"
    assert list(source["digests"]) == ["words.jsonl"]


# --- contamination ---

POEM = (
    "the old harbour clock struck nine while seven tired sailors counted their wages twice over "
    "beside a heap of wet nets"
)

ANSWERS = (
    "most of the larger ones are built of steel now and burn oil in place of the coal of old",
    "and then a boy came running down the quay with a letter for the eldest of them in his hand",
)


def with_benchmark(write_rows: WriteRows, **changes: Any) -> Data:
    rows = [
        *numbered_rows(300),
        {"prompt": f"Repeat this line: {POEM}.", "response": "Very well."},
        {"prompt": "Name a harbour.", "response": f"In the story {POEM}, as I remember."},
        {"prompt": "What do you know of the ships?", "response": f"I know that {ANSWERS[0]}."},
        {"prompt": "And what else of the boy?", "response": f"This: {ANSWERS[1]}!"},
    ]
    turns = ["Tell me of ships.", f"Now continue: {POEM}!"]
    test = [{"turns": turns, "reference": list(ANSWERS)}]
    return make_data(
        {"a": make_source(write_rows(rows, "a.jsonl"))},
        benchmarks={"bench": make_source(write_rows(test, "bench.jsonl"), format=RowFormat.turns)},
        **changes,
    )


def test_rows_that_give_a_benchmark_away_leave_the_training_side(
    write_rows: WriteRows, run: Prepare
) -> None:
    prepared = run(with_benchmark(write_rows, held_out=0.3))
    found = read_json_lines(prepared.folder / "contamination.jsonl")
    by_row = {each["row"]["row"]: each for each in found if each["test"] == "bench row 0"}
    trained = {each.example.row for each in prepared.train}
    held_out = {each.example.row for each in prepared.held_out}
    assert by_row.keys() | held_out >= {300, 301, 302, 303}
    assert by_row.keys() & {300, 301}
    assert by_row.keys() & {302, 303}
    assert not trained & {300, 301, 302, 303}
    assert all(POEM in by_row[row]["question"] for row in by_row.keys() - {302})
    assert all(by_row[row]["found"] == ANSWERS[row - 302] for row in by_row.keys() & {302, 303})
    rejected = [each for each in prepared.rejected() if each.reason == "contaminated"]
    assert by_row.keys() <= {each.row for each in rejected}
    assert prepared.manifest["sources"]["a"]["gives_away"]["bench"] == len(by_row)
    assert all(each.raw["prompt"] for each in rejected)


def test_a_short_benchmark_question_is_found_in_a_turn_and_in_an_input(
    write_rows: WriteRows, run: Prepare
) -> None:
    asked = "Which tall lighthouses guard the northern fjords of Norway?"  # under 13 words

    def chat(*questions: str) -> dict[str, Any]:
        turns = [[("user", each), ("assistant", f"About {each}")] for each in questions]
        return {"messages": [{"role": r, "content": c} for pair in turns for r, c in pair]}

    def other(number: int) -> str:
        return f"How do people of region {number} bake loaf {number * 7} with {number * 3} grains?"

    chats = [chat(other(number), other(number + 500)) for number in range(100)]
    chats += [chat(asked, other(997)), chat(other(998), asked), chat(other(999), asked, other(1))]
    alpaca = [
        {"instruction": other(number), "input": other(number + 200), "output": "So."}
        for number in range(1000, 1100)
    ]
    alpaca += [
        {"instruction": "Answer the following question.", "input": asked, "output": "A few."},
        {"instruction": "Tell me a story.", "input": f"It asks: {other(7)}", "output": "Once."},
    ]
    data = make_data(
        {
            "chats": make_source(write_rows(chats, "c.jsonl"), format=RowFormat.messages),
            "alpaca": make_source(write_rows(alpaca, "a.jsonl"), format=RowFormat.alpaca),
        },
        benchmarks={
            "bench": make_source(
                write_rows([{"turns": [asked]}], "bench.jsonl"), format=RowFormat.turns
            )
        },
        held_out=0.05,
    )
    prepared = run(data)
    found = read_json_lines(prepared.folder / "contamination.jsonl")
    by_bench = {
        (each["row"]["source"], each["row"]["row"])
        for each in found
        if each["test"] == "bench row 0"
    }
    held_out = {(each.example.source, each.example.row) for each in prepared.held_out}
    planted = {("chats", 100), ("chats", 101), ("chats", 102), ("alpaca", 100)}
    assert by_bench == planted - held_out
    assert len(by_bench) >= 3


def test_conversations_with_one_opening_are_on_one_side_of_the_split(
    write_rows: WriteRows, run: Prepare
) -> None:
    def chat(opening: str, question: str) -> dict[str, Any]:
        said = [opening, f"It is {opening}.", question, f"Yes, {question}."]
        roles = ["user", "assistant"] * 2
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]}

    rows = [
        chat(f"What is number {number}?", f"And is {number * 31 + step} a relative of it?")
        for number in range(200)
        for step in range(2)
    ]
    source = make_source(write_rows(rows, "chats.jsonl"), format=RowFormat.messages)
    prepared = run(make_data({"chats": source}, deduplicate=Deduplicate.none, decontaminate=False))
    held_out = {each.example.row // 2 for each in prepared.held_out}
    trained = {each.example.row // 2 for each in prepared.train}
    assert held_out
    assert trained
    assert not held_out & trained


def test_contamination_is_left_in_where_asked_for(write_rows: WriteRows, run: Prepare) -> None:
    with pytest.raises(ValueError, match="nothing looks for"):
        with_benchmark(write_rows, decontaminate=False)
    data = make_data(with_benchmark(write_rows).sources, decontaminate=False)
    assert "contaminated" not in run(data).manifest["total"]["rejected"]


def test_a_benchmark_that_cannot_be_read_is_named_as_one(
    write_rows: WriteRows, run: Prepare
) -> None:
    data = with_benchmark(write_rows)
    data.benchmarks["bench"].format = RowFormat.gsm8k
    with pytest.raises(ValueError, match=r"data\.benchmarks\.bench\.format=gsm8k does not fit"):
        run(data)


# --- what a reader sees -------------------------------------------------------------------------


def test_the_table_shows_each_rejection(mix: Data, run: Prepare) -> None:
    table = count_table(run(mix).manifest)
    (line,) = [line for line in table.splitlines() if "real_table_names" in line]
    assert line.split() == ["-", "real_table_names", "-1", "·", "-1"]
    assert "recipe" not in table


def test_a_source_of_which_nothing_is_left_is_told(write_rows: WriteRows, run: Prepare) -> None:
    fine = make_source(write_rows(numbered_rows(20)))
    empty = make_source(
        write_rows([{"prompt": "", "response": f"{n}"} for n in range(3)], "b.jsonl")
    )
    table = count_table(run(make_data({"fine": fine, "empty": empty})).manifest)
    assert "warning: no row of empty is left (3 empty_instruction)" in table
    assert "of fine" not in table


def test_masked_tokens_are_marked(
    write_rows: WriteRows, run: Prepare, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = run(make_data({"a": make_source(write_rows(numbered_rows(20)))}))
    text = show_examples(prepared, byte_tokenizer, 1, colour=False)
    response = prepared.train[0].example.response
    assert f"### Response:\n›{response}\n### End</s>" in text
    coloured = show_examples(prepared, byte_tokenizer, 1, colour=True)
    assert f"\x1b[0m{response}" in coloured


# --- the real files -----------------------------------------------------------------------------


def _count(path: Path) -> int:
    return sum(1 for line in gzip.decompress(path.read_bytes()).split(b"\n") if line)


def test_the_recipes_rows_add_up_on_the_shared_files(shared: Path, tmp_path: Path) -> None:
    """The three small sources whole; SQL by its 941-row sample, whose numbers the README gives."""
    files = shared / "data"
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "open_llama_v2")
    data = make_data(
        {
            "code": make_source(files / "code_alpaca_20k.jsonl.gz", format=RowFormat.alpaca),
            "maths": make_source(
                files / "grade_school_math_instructions.jsonl.gz",
                format=RowFormat.grade_school_math,
                group_by=GroupBy.longest_line,
            ),
            "sql": make_source(
                files / "sql_create_context_sample.jsonl.gz",
                format=RowFormat.sql_create_context,
                group_by=GroupBy.context,
                rules=[Rule.real_table_names],
            ),
        },
        max_rows=300,
        held_out=0.02,
    )
    prepared = prepare(data, tokenizer, seed=0, cache=tmp_path)
    sources = prepared.manifest["sources"]
    assert sources["code"]["rows"]["read"] == _count(files / "code_alpaca_20k.jsonl.gz") == 19_021
    assert sources["code"]["rejected"]["empty_response"] == 5
    assert sources["code"]["repaired"]["no_input_marker"] == 23
    assert sources["maths"]["repaired"] == {"repeated_instruction": 219}
    real = [
        json.loads(line)
        for line in gzip.decompress((files / "sql_create_context_sample.jsonl.gz").read_bytes())
        .decode()
        .split("\n")
        if line and "FROM table_" not in line
    ]
    assert sources["sql"]["rows"]["rules"] == len(real)
    assert len(prepared.train) == 300


def test_spiders_own_file_is_read_for_its_questions(tmp_path: Path) -> None:
    """``dev.json`` is a list of rows with the query's tokens and its parse besides."""
    row = {
        "db_id": "concert_singer",
        "query": "SELECT count(*) FROM singer",
        "query_toks": ["SELECT", "count", "(", "*", ")", "FROM", "singer"],
        "question": "How many singers do we have?",
        "sql": {"from": {"table_units": [["table_unit", 1]], "conds": []}, "limit": None},
    }
    path = tmp_path / "spider_validation.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    source = compose_run(["benchmarks=standard"]).data.benchmarks["spider_dev"]
    job = find_source(make_data({"spider": source}, root=str(tmp_path)), "spider_dev", source)
    assert read_questions(job) == [
        ("spider_dev row 0", ("How many singers do we have?", "", "SELECT count(*) FROM singer"))
    ]
