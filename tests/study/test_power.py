"""What a dry run promises is what the report of the same cells has."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from dollyllama.study.analyse import analyse
from dollyllama.study.power import power_lines
from dollyllama.study.records import read_sweep
from dollyllama.study.wording import size
from tests.study import record as study_record


def test_a_dry_run_promises_what_the_report_finds(tmp_path: Path) -> None:
    shifts = {"baseline": 0.0, "a": 0.05, "b": 0.08, "a+b": 0.33, "c": 0.1}
    variants = {
        name: {"shift": shift, "settings": {"lora__r": place + 1}}
        for place, (name, shift) in enumerate(shifts.items())
    }
    sweep = study_record.write_sweep(tmp_path / "sweep", variants, tips={"c": "a tip"})
    study = analyse(*read_sweep([sweep]))
    compared = [each.comparison for each in study.variants if each.comparison is not None]
    families = {
        "claims": [each for each in compared if each.variant == "c"],
        "interactions": study.joint,
        "other variants": [each for each in compared if each.variant != "c"],
    }
    lines = power_lines(study, seeds=3)
    assert len(lines) == 3
    for line, (name, family) in zip(lines, families.items(), strict=True):
        smallest = median(each.detectable for each in family if each.detectable is not None)
        found = size("loss/all", smallest)
        assert line.startswith(f"{name}, loss/all: 3 seeds find an effect of {found} 4 times in 5")
