from __future__ import annotations

from dollyllama.evaluation.metric import Metric
from dollyllama.evaluation.table import compare_table

BEFORE = [
    Metric("loss/sql", 2.5, 0.05, 64),
    Metric("exact/sql", 0.01, 0.01, 100),
    Metric("stops/sql", 0.5, 0.05, 100),
    Metric("loss/code", 1.0, 0.1, 64),
    Metric("f1/code", 0.4, None, 1),
]
AFTER = [
    Metric("loss/sql", 0.75, 0.02, 64),
    Metric("exact/sql", 0.425, 0.0497, 100),
    Metric("stops/sql", 0.2, 0.04, 100),
    Metric("loss/code", 0.9, 0.1, 64),
    Metric("f1/code", 0.5, None, 1),
]


def test_before_and_after_stand_side_by_side() -> None:
    assert compare_table(BEFORE, AFTER).splitlines() == [
        "                  before          after   change                  n",
        "loss/sql   2.500 ± 0.050  0.750 ± 0.020   -1.750  better         64",
        "exact/sql    1.0 ± 1.0 %   42.5 ± 5.0 %  +41.5 %  better        100",
        "stops/sql   50.0 ± 5.0 %   20.0 ± 4.0 %  -30.0 %  worse         100",
        "loss/code  1.000 ± 0.100  0.900 ± 0.100   -0.100  within noise   64",
        "f1/code           40.0 %         50.0 %  +10.0 %                  1",
    ]


def test_swapping_before_and_after_turns_the_verdict() -> None:
    turned = {"better": "worse", "worse": "better"}
    there = [line.split() for line in compare_table(BEFORE, AFTER).splitlines()[1:]]
    back = [line.split() for line in compare_table(AFTER, BEFORE).splitlines()[1:]]
    for one, other in zip(there, back, strict=True):
        assert [turned.get(word) for word in one] == [
            word if word in turned else None for word in other
        ]


def test_a_change_that_rounds_to_none_has_no_minus() -> None:
    before = [Metric("rouge_l/code", 0.5, 0.01, 9), Metric("loss/code", 1.0, 0.01, 9)]
    after = [Metric("rouge_l/code", 0.4999, 0.01, 9), Metric("loss/code", 0.9999, 0.01, 9)]
    shares, losses = compare_table(before, after).splitlines()[1:]
    assert " +0.0 %  within noise" in shares
    assert " +0.000  within noise" in losses


def test_without_a_before_there_is_one_column() -> None:
    assert compare_table(None, AFTER[:2]).splitlines() == [
        "                   value    n",
        "loss/sql   0.750 ± 0.020   64",
        "exact/sql   42.5 ± 5.0 %  100",
    ]


def test_what_was_measured_once_has_a_dash() -> None:
    first, second = compare_table(BEFORE[:1], AFTER[1:2]).splitlines()[1:]
    assert first.split() == ["loss/sql", "2.500", "±", "0.050", "-", "64"]
    assert second.split() == ["exact/sql", "-", "42.5", "±", "5.0", "%", "100"]


def test_what_could_not_be_scored_is_counted_below() -> None:
    asked, scored = Metric("tokens/sql", 9.0, 1.0, 100), Metric("execution/sql", 0.5, 0.1, 97)
    others = [Metric("exact/sql", 0.5, 0.1, 100), Metric("diversity/sql", 0.5, 0.1, 40)]
    *_, last = compare_table(None, [scored, *others, asked]).splitlines()
    assert last == "not scored, for their references: execution/sql 3 of 100"
    assert compare_table([], [scored, *others, asked]).splitlines()[-1] == last
    assert "not scored" not in compare_table(None, [*others, asked])


def test_no_metrics_are_no_rows() -> None:
    assert len(compare_table([], []).splitlines()) == 1


def test_counts_keep_their_unit_and_are_neither_better_nor_worse() -> None:
    before, after = Metric("tokens/sql", 40.0, 1.0, 10), Metric("tokens/sql", 12.5, 1.0, 10)
    line = compare_table([before], [after]).splitlines()[1]
    assert line.split() == "tokens/sql 40.0 ± 1.0 12.5 ± 1.0 -27.5 10".split()


def test_the_metric_that_decides_goes_first() -> None:
    lines = compare_table(BEFORE, AFTER, primary="loss/code").splitlines()[1:]
    assert [line.split()[0] for line in lines][:2] == ["loss/code", "loss/sql"]


def test_the_parts_of_diversity_stay_off_the_screen() -> None:
    parts = [Metric(f"{name}/a", 0.5, 0.1, 9) for name in ("rep_2", "distinct_1", "diversity")]
    assert [line.split()[0] for line in compare_table(None, parts).splitlines()[1:]] == [
        "diversity/a"
    ]
