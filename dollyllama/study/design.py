"""Designs of experiments with several factors of two levels."""

from __future__ import annotations

from collections.abc import Sequence

#: Generators of two-level designs of resolution V or more by their number of factors (Box, Hunter
#: & Hunter 2005, Statistics for Experimenters, table 6.22); with fewer factors all combinations.
_GENERATORS = {
    5: "a b c d abcd",
    6: "a b c d e abcde",
    7: "a b c d e f abcdef",
    8: "a b c d e f abcd abef",
}


def fractional_factorial(factors: Sequence[str]) -> str:
    """A two-level design for these ablations, as an axis of lists of them, the baseline first.

    In it main effects and interactions of two factors stand apart from each other. ValueError for
    one factor, or more than eight.
    """
    from pyDOE3 import fracfact, fullfact

    names = list(factors)
    if not 2 <= len(names) <= max(_GENERATORS):
        raise ValueError(f"sweep.factors: a design is for 2 to {max(_GENERATORS)} of them")
    generators = _GENERATORS.get(len(names))
    design = fracfact(generators) if generators else 2 * fullfact([2] * len(names)) - 1
    chosen = [[name for name, sign in zip(names, row, strict=True) if sign > 0] for row in design]
    if [] not in chosen:  # the mirrored design holds the baseline, and is as good
        chosen = [[name for name in names if name not in row] for row in chosen]
    chosen.sort(key=lambda row: (len(row), row))
    return ",".join(f"[{','.join(row or ['baseline'])}]" for row in chosen)
