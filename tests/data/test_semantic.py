"""Rows that say the same in other words, and what becomes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dollyllama import config
from dollyllama.config import Deduplicate
from dollyllama.data.prepare import PreparedData
from dollyllama.data.semantic import find_embedder, find_semantic_copies
from dollyllama.files import read_json_lines
from tests.data.build import make_data, make_source, write_embedder

WriteRows = Callable[..., Path]
Prepare = Callable[..., PreparedData]

MEANINGS = [
    *("how", "do does", "i one", "a an", "buy purchase", "car automobile", "boat ship"),
    *("go walk", "to", "the", "dealer seller", "shop store", "and", "pay", "ask", "bank"),
]
ROWS = [
    ("How do I buy a car", "Go to the dealer and pay"),
    ("How does one purchase an automobile", "Walk to the seller and pay"),
    ("How do I pay the bank", "Walk to the shop and ask"),
    ("How does one buy a ship", "Ask the bank"),
    ("Zzz", "Zzz zzz"),
    ("Qqq", "Qqq qqq"),
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("models") / "embedder", MEANINGS)


def test_copies_are_those_of_a_comparison_of_all_with_all(embedder: Path) -> None:
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(embedder)
    cosines = np.zeros((len(ROWS), len(ROWS)))
    for column in (0, 1):
        vectors = model.encode([row[column] for row in ROWS]).astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        cosines += vectors @ vectors.T / np.maximum(np.outer(norms, norms), 1e-12) / 2
    contents = [(asked, "", answer) for asked, answer in ROWS]
    for similarity in (0.5, 0.7, 0.9):
        found = find_semantic_copies(contents, embedder, similarity)
        expected = [
            [one, other]
            for one in range(len(ROWS))
            for other in range(one + 1, len(ROWS))
            if cosines[one, other] >= similarity
        ]
        assert [0, 1] in expected
        assert all(pair in expected for pair in found.tolist())
        # Each row of a pair is joined to something.
        assert {row for pair in found.tolist() for row in pair} == {
            row for pair in expected for row in pair
        }
    assert find_semantic_copies(contents, embedder, 0.9).tolist() == [[0, 1]]
    assert find_semantic_copies([], embedder, 0.9).shape == (0, 2)
    assert find_semantic_copies([("zzz", "", "qqq")] * 2, embedder, 0.9).shape == (0, 2)


def test_what_the_embedder_does_not_know_makes_no_copies(embedder: Path) -> None:
    contents = [("How do I buy a car", "", answer) for answer in ("zzz", "qqq rrr")]
    assert find_semantic_copies(contents, embedder, 0.5).tolist() == []


def test_texts_are_read_to_their_end(embedder: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = " ".join(["to the shop and"] * 400)
    asked = ("How do I buy a car", "")
    contents = [(*asked, f"{same} {' '.join([end] * 2000)}") for end in ("pay", "ask")]
    assert find_semantic_copies(contents, embedder, 0.9).tolist() == []
    assert find_semantic_copies([(*asked, same)] * 2, embedder, 0.9).tolist() == [[0, 1]]
    assert not caplog.records  # model2vec says so when it is told another length than its own


def test_of_rows_that_say_the_same_one_stays(
    write_rows: WriteRows, run: Prepare, embedder: Path
) -> None:
    rows = [{"prompt": asked, "response": answer} for asked, answer in ROWS]
    rows += [{"prompt": "How do I buy a  CAR", "response": "go to the dealer and pay"}]
    sources = {"a": make_source(write_rows(rows))}
    prepared = run(
        make_data(sources, deduplicate=Deduplicate.semantic, embedder=str(embedder), similarity=0.9)
    )
    refused = {each.row: (each.reason, each.detail) for each in prepared.rejected()}
    assert {row: reason for row, (reason, _) in refused.items()} == {
        0: "semantic_duplicate",  # the shorter answer
        6: "duplicate_row",
    }
    assert "a row 1" in refused[0][1]
    total = prepared.manifest["total"]
    assert total["rejected"]["semantic_duplicate"] == 1
    assert len(prepared.manifest["embedder"]["model.safetensors"]) == 64
    (cluster,) = read_json_lines(prepared.folder / "clusters.jsonl")
    assert [each["row"] for each in cluster["dropped"]] == [0, 6]
    # Without it they stay.
    near = run(make_data(sources, deduplicate=Deduplicate.near))
    assert {each.row for each in near.rejected()} == {6}


def test_another_embedder_makes_other_data(
    write_rows: WriteRows, run: Prepare, embedder: Path, tmp_path: Path
) -> None:
    """Another one in the same place, too."""
    sources = {"a": make_source(write_rows([{"prompt": a, "response": b} for a, b in ROWS]))}

    def fingerprint(folder: Path) -> str:
        return run(
            make_data(
                sources, deduplicate=Deduplicate.semantic, embedder=str(folder), similarity=0.9
            )
        ).fingerprint

    folder = tmp_path / "embedder"
    shutil.copytree(embedder, folder)
    before = fingerprint(folder)
    shutil.rmtree(folder)
    write_embedder(folder, MEANINGS, seed=1)
    assert fingerprint(folder) != before


def test_what_is_no_embedder_is_refused_by_name(embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"data.embedder={tmp_path}/none: there is no folder"):
        find_embedder(f"{tmp_path}/none")
    with pytest.raises(ValueError, match="cannot be had from the Hub"):
        find_embedder("nobody/nothing")
    copy = Path(shutil.copytree(embedder, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the model in {copy} cannot be read"):
        find_semantic_copies([("a", "", "b")], find_embedder(str(copy)), 0.9)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        find_embedder(str(copy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": 0.9}, "data.embedder is needed by data.deduplicate=semantic"),
        ({"embedder": "x"}, "data.similarity is needed by data.deduplicate=semantic"),
        (
            {"deduplicate": Deduplicate.near, "embedder": "x"},
            "data.embedder=x has no effect with data.deduplicate=near",
        ),
        ({"embedder": "x", "similarity": 1.0}, "data.similarity must be >= 0.5 and < 1"),
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data({"a": make_source("a")}, **({"deduplicate": Deduplicate.semantic} | changes))


def test_it_is_off_unless_asked_for() -> None:
    from dollyllama.launch import compose_run

    data = compose_run([]).data
    assert (data.deduplicate, data.embedder) == (config.Deduplicate.near, None)
