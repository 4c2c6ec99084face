"""How numbers are told: precision, units, signs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dollyllama.study import wording
from dollyllama.study.analyse import Comparison, Spread
from dollyllama.study.compare import Effect, Verdict

EFFECT = Effect(0.0312, 3, 200, standard_error=0.002, low=0.0265, high=0.037, p=0.001)


def test_a_change_is_as_precise_as_its_interval() -> None:
    assert wording.change("loss/all", EFFECT) == "+0.0312 (+0.0265 to +0.0370)"
    wide = replace(EFFECT, low=-0.2, high=0.26)
    assert wording.change("loss/all", wide) == "+0.031 (−0.200 to +0.260)"
    assert wording.change("score/all", EFFECT) == "+3.12 (+2.65 to +3.70) points"
    assert wording.change("tokens/sql", replace(wide, value=-2.0)) == "−2.00 (−0.20 to +0.26)"
    assert wording.change("loss/all", Effect(-0.00004, 1, 200)) == "0.000"
    assert wording.change("loss/all", Effect(0.0, 3, 200, 0.0, 0.0, 0.0, 1.0)) == "0, exactly"


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("loss/sql", "0.412"), ("execution/sql", "41.2 %"), ("tokens/sql", "0.4")],
)
def test_values_have_their_unit(metric: str, shown: str) -> None:
    assert wording.level(metric, 0.412) == shown


def test_costs_show_their_range_where_there_is_one() -> None:
    assert wording.cost("training_seconds", Spread(61.2, 60, 62.4, 3)) == "61.2 (60.0 to 62.4) s"
    assert wording.cost("peak_memory_mib", Spread(1434, 1434, 1434, 3)) == "1,434 MiB"
    assert wording.cost("adapter_bytes", Spread(2**21, 2**21, 2**21, 1)) == "2.00 MiB"
    assert wording.amount("training_seconds", 5.126) == "5.13"


def comparison(effect: Effect | None, **fields: object) -> Comparison:
    made = Comparison("a", "loss/all", primary=True, effect=effect, relevant=0.01)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_findings_are_told_with_their_number() -> None:
    clear = comparison(EFFECT, corrected_p=0.01, verdict=Verdict.supported)
    assert wording.told(clear, start="without it ") == (
        "without it loss/all is higher by 0.0312 (0.0265 to 0.0370)"
    )
    assert wording.told(clear).startswith("loss/all is higher by")
    down = replace(EFFECT, value=-0.0312, low=-0.037, high=-0.0265)
    better = comparison(down, corrected_p=0.01, verdict=Verdict.contradicted)
    assert wording.told(better) == "loss/all is lower by 0.0312 (0.0265 to 0.0370)"
    assert wording.told(replace(better, relevant=0.05)) == (
        "loss/all is lower by 0.0312 (0.0265 to 0.0370), less than the 0.0500 that matters"
    )


def test_no_difference_is_told_with_what_would_have_been_found() -> None:
    small = replace(EFFECT, value=0.001, low=-0.003, high=0.005, p=0.5)
    undecided = comparison(small, corrected_p=0.6, verdict=Verdict.undecided, detectable=0.0125)
    assert wording.told(undecided) == (
        "no difference detected: +0.0010 (−0.0030 to +0.0050); smallest detectable effect 0.013"
    )
    nothing = comparison(small, corrected_p=0.6, verdict=Verdict.not_supported)
    assert wording.told(nothing) == (
        "no difference that matters: +0.0010 (−0.0030 to +0.0050), within ±0.0100"
    )


def test_an_effect_that_correction_overrules_is_not_called_none() -> None:
    clear = comparison(EFFECT, corrected_p=0.07, verdict=Verdict.undecided, detectable=0.05)
    assert wording.told(clear) == (
        "+0.0312 (+0.0265 to +0.0370), which the correction for many comparisons overrules; "
        "smallest detectable effect 0.050"
    )


def test_what_no_effect_could_be_is_not_called_detectable() -> None:
    share = comparison(EFFECT, metric="exact/sql", baseline=0.4, detectable=1.01)
    assert wording.detectable(share) == "no possible effect would have been found"
    assert wording.detectable(replace(share, detectable=0.99)) == (
        "smallest detectable effect 99.0 points"
    )
    loss = comparison(EFFECT, baseline=0.4, detectable=0.41)
    assert wording.detectable(loss) == "no possible improvement would have been found"
    assert wording.detectable(replace(loss, detectable=0.3)) == "smallest detectable effect 0.300"
    length = replace(loss, metric="tokens/sql")
    assert wording.detectable(length) == "smallest detectable effect 0.4"


def test_the_interval_of_a_value_ends_where_values_do() -> None:
    few = Effect(0.02, 3, 12, standard_error=0.03, low=-0.04, high=0.08)
    assert wording.level_with_interval("exact/sql", few) == "2.0 % (0.0 to 8.0 %)"
    many = replace(few, value=0.98, low=0.93, high=1.03)
    assert wording.level_with_interval("exact/sql", many) == "98.0 % (93.0 to 100.0 %)"
    assert wording.level_with_interval("loss/sql", replace(many, high=2.5)).endswith("to 2.500)")


def test_both_p_values_are_told_where_they_differ() -> None:
    effect = replace(EFFECT, p=0.008)
    assert wording.p_values(comparison(effect, corrected_p=0.067)) == "0.008, corrected 0.067"
    assert wording.p_values(comparison(effect, corrected_p=0.008)) == "0.008"
    assert wording.p_values(comparison(effect)) == "0.008"
    assert wording.p_values(comparison(None)) == ""


def test_what_cannot_be_told_says_so() -> None:
    assert "one seed cannot tell that from" in wording.told(comparison(Effect(0.5, 1, 200)))
    assert "2 examples cannot" in wording.told(comparison(Effect(0.5, 3, 2)))
    assert wording.told(comparison(None, missing="it has no finished cell")) == (
        "nothing to compare: it has no finished cell"
    )
    nothing = Effect(1e-17, 3, 200, 0.0, -1e-17, 1e-17, 1.0)
    assert wording.told(comparison(nothing, corrected_p=1.0)) == (
        "no difference in loss/all in any seed or example"
    )
    assert wording.probability(0.0001) == "< 0.001"
    assert wording.probability(0.05) == "0.050"
