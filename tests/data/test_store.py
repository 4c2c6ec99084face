"""What is written to a store is what comes back, wherever parts begin and end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dollyllama.config import LossOn, RowFormat
from dollyllama.data.example import Split
from dollyllama.data.ingest import Job, build_store, find_source
from dollyllama.data.near import content, shingle
from dollyllama.data.store import Corpus, Rows, Store, lengths_of, sources_of
from dollyllama.data.tokens import encode_all
from tests.data.build import make_data, make_source

CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief — «ça va»."},
            {"role": "user", "content": f"Ask {number}\u2028twice"},
            {"role": "assistant", "content": f"Answer {number}"},
            {"role": "user", "content": f"And then {number}?"},
            {"role": "assistant", "content": "🙂" * (number + 1)},
        ]
    }
    for number in range(23)
]
BROKEN = [{"messages": [{"role": "user", "content": "Alone."}]}, {"messages": "text"}]


@pytest.fixture
def job(write_rows: Callable[..., Path]) -> Job:
    path = write_rows([*CHATS[:11], *BROKEN, *CHATS[11:]], "chats.jsonl")
    source = make_source(path, format=RowFormat.messages)
    return find_source(make_data({"chats": source}, loss_on=LossOn.full_text), "chats", source)


@pytest.fixture
def store(
    job: Job,
    byte_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    monkeypatch.setattr("dollyllama.data.ingest.PART_ROWS", 4)
    return build_store(job, tmp_path / "store", byte_tokenizer, lambda rows: None)


def test_rows_come_back_as_they_were_encoded(
    store: Store, job: Job, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = Corpus({"chats": store, "again": store})
    assert len(corpus) == 2 * len(CHATS)
    assert corpus.names == ["again", "chats"]
    for side, loss_on in ((Split.train, LossOn.full_text), (Split.held_out, LossOn.response)):
        examples = [corpus.example(place) for place in range(23, 46)]
        expected, _ = encode_all(
            examples,
            byte_tokenizer,
            prompt=job.data.prompt,
            max_length=job.data.max_length,
            loss_on=loss_on,
            overlong=job.data.overlong,
        )
        assert [corpus.encoded(place, side) for place in range(23, 46)] == expected
    first = corpus.example(23)
    assert (first.source, first.row) == ("chats", 0)
    assert first.history == (
        ("system", "Be brief — «ça va»."),
        ("user", "Ask 0\u2028twice"),
        ("assistant", "Answer 0"),
    )
    assert [corpus.at(place)[1] for place in range(23)] == [*range(11), *range(13, 25)]
    assert json.loads(corpus.raw(22)) == CHATS[-1]


def test_columns_and_lists_span_the_parts(store: Store, tmp_path: Path) -> None:
    corpus = Corpus({"chats": store})
    rows = [corpus.encoded(place, Split.train) for place in range(len(corpus))]
    assert corpus.column("tokens").tolist() == [len(row.ids) for row in rows]
    assert corpus.column("supervised").tolist() == [row.supervised for row in rows]
    assert corpus.column("id").tolist() == [int(row.example.id, 16) for row in rows]
    values, offsets = corpus.lay_out("shingles", tmp_path)
    expected, ends = shingle([content(row.example) for row in rows])
    assert np.array_equal(values, expected)
    assert np.array_equal(offsets, ends)


def test_refused_rows_keep_their_place_and_text(store: Store) -> None:
    refused = list(store.refused())
    assert [(row, reason) for row, reason, _, _ in refused] == [
        (11, "unreadable_conversation"),
        (12, "wrong_type"),
    ]
    assert [json.loads(raw) for *_, raw in refused] == BROKEN
    assert store.rows["read"] == len(CHATS) + len(BROKEN)


def test_rows_are_a_sequence_in_their_own_order(store: Store) -> None:
    corpus = Corpus({"a": store, "b": store})
    places = np.array([30, 2, 2, 45])
    rows = Rows(corpus, places, Split.train, corpus.column("tokens")[places])
    assert [each.example.row for each in rows] == [7, 2, 2, 24]
    assert sources_of(rows) == ["b", "a", "a", "b"] == sources_of(list(rows))
    assert lengths_of(rows) == lengths_of(list(rows))
    assert rows[1:3] == rows[1:3]
    assert rows[1:3] != rows[2:4]
    assert [each.example.row for each in rows[-2:]] == [2, 24]


def test_a_damaged_part_is_named_and_a_missing_store_refused(store: Store, tmp_path: Path) -> None:
    assert store.damaged() == []
    file = store.folder / "00002.kept.arrow"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert store.damaged() == [file.name]
    with pytest.raises(ValueError, match="holds no prepared source"):
        Store(tmp_path / "nowhere")
