from dollyllama.data.dedupe import drop_exact_duplicates
from tests.data.build import make_example

EXAMPLES = [
    make_example("Say hi.", "Hi", source="b", row=0),
    make_example("say  HI.\n", "hi", source="a", row=5),
    make_example("Say hi.", "Ho", source="a", row=1),
    make_example("Say hi.", "Hi", source="a", row=9),
]


def test_copies_within_and_across_sources_leave_one() -> None:
    kept, rejected = drop_exact_duplicates(EXAMPLES)
    assert [(each.source, each.row) for each in kept] == [("a", 1), ("a", 5)]
    assert [(each.source, each.row) for each in rejected] == [("a", 9), ("b", 0)]
    assert {each.reason for each in rejected} == {"duplicate_row"}


def test_the_order_of_rows_decides_nothing() -> None:
    assert drop_exact_duplicates(EXAMPLES) == drop_exact_duplicates(EXAMPLES[::-1])


def test_a_rejected_copy_names_the_one_that_stayed() -> None:
    kept, rejected = drop_exact_duplicates(EXAMPLES)
    assert all("a row 5" in each.detail and kept[1].id in each.detail for each in rejected)


def test_instruction_and_response_do_not_run_together() -> None:
    pair = [make_example("a b", "c", row=0), make_example("a", "b c", row=1)]
    assert drop_exact_duplicates(pair) == (pair, [])
