import numpy as np

from dollyllama.data.dedupe import Cluster, clusters_of, exact_key, first_copies, why_kept
from tests.data.build import make_example


def test_case_and_white_space_make_no_other_row_and_the_source_neither() -> None:
    copies = [
        make_example("Say hi.", "Hi", source="b", row=0),
        make_example("say  HI.\n", "hi", source="a", row=5),
    ]
    assert len({exact_key(each) for each in copies}) == 1
    others = [
        make_example("Say hi.", "Ho"),
        make_example("Say", "hi. Hi"),
        make_example("Say hi.", "Hi", history=(("user", "Before."),)),
    ]
    assert len({exact_key(each) for each in (*copies, *others)}) == 4


def test_an_input_apart_is_the_same_as_one_below() -> None:
    pair = [make_example("Add.\n1 and 2", "3"), make_example("Add.", "3", input="1 and 2")]
    assert len({exact_key(each) for each in pair}) == 1


def test_the_first_row_stands_for_its_copies() -> None:
    keys = np.array([7, 3, 7, 2**64 - 1, 3, 7], np.uint64)
    assert first_copies(keys).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_copies(np.empty(0, np.uint64)).tolist() == []


def test_clusters_name_the_row_that_stays_wherever_it_stands() -> None:
    kept = np.array([4, 1, 2, 2, 4, 4, 6])
    assert clusters_of(kept) == [Cluster(4, [0, 5]), Cluster(2, [3])]


def test_why_a_row_stays() -> None:
    truncated = np.array([True, False, True, False, True])
    lengths = np.array([9, 4, 9, 5, 8])
    assert why_kept(Cluster(1, [0, 2]), truncated, lengths) == "is not cut"
    assert why_kept(Cluster(3, [0, 1]), truncated, lengths) == "has the longest response"
    assert why_kept(Cluster(0, [2, 4]), truncated, lengths) == "comes first"
