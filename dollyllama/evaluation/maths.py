"""Whether a worked answer comes to the same number as the reference."""

from __future__ import annotations

import re
from fractions import Fraction

# With separators for thousands or without, decimals, or decimals alone. Atomic, so that nothing
# is given back: "12th" must not become 1.
_DECIMAL = r"(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.])                      # not within a name (x2) or a number
    (?:(?<![)\]%])(?P<minus>[-−]))? # in "10-5", "(2)-5" and "10 - 5" it subtracts
    (?:[$€£](?P<inner>[-−])?)?
    (?: (?P<whole>[0-9]+)[ ](?P<over>[0-9]+)/(?P<under>[0-9]+)(?![0-9.,/]*[0-9])   # 1 1/2
      | (?P<value>{_DECIMAL}) (?: (?:[eE](?P<power>[+-]?[0-9]{{1,2}})(?!\w))
                             | \s?/\s?[$€£]?(?P<divisor>{_DECIMAL}) )?
    )
    (?!(?:st|nd|rd|th)\b)
    """,
    re.VERBOSE,
)
_LATEX_FRACTION = re.compile(
    rf"\\[dt]?frac\s*(?:\{{\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}|([0-9])\s*([0-9]))"
)
_MARKER = re.compile(
    r"[#]{4}(?=\s*[-−$€£]*[0-9.]) | \\boxed\{ | \banswer\s*(?:is\b|:|=)", re.IGNORECASE | re.VERBOSE
)
_AT_ONCE = re.compile(r"(?:(?!\.\s)\W)*(?:[0-9]|not\b)")
# "not 5 but 7": what is denied is no answer.
_DENIED = re.compile(r"\W*not\b[^\n]{1,60}?\bbut\b", re.IGNORECASE)
# Thousands parted by spaces, which are told from two numbers only where one is stated.
_SPACED = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:[ \u00a0\u202f][0-9]{3})+(?![\w/]|,[0-9])")
_SENTENCE = re.compile(r"[.!?][)\]\"'*]*\s+(?=[A-Z])")
# "If n = 4, then the total is 20": what is given is no result.
_GIVEN = re.compile(r"\b(?:if|let|when|where|suppose|given)\b[^.=]{0,40}$", re.IGNORECASE)
_SUM = re.compile(r"[0-9\s+\-−*/x×÷().,$€£%=]*")

#: A longer number is noise from a model that does not stop, and slow to read.
_MAX_DIGITS = 100


def final_number(text: str) -> Fraction | None:
    """The number that a worked answer comes to, exactly; None when it has none.

    The stated one where there is one. Else it is what the last line's last equation comes to ("200
    x 5 = 1000 bags in 5 days"), unless that is given ("if n = 4") or a later sentence of that line
    has a number, and otherwise the last number of the text.

    Separators for thousands and signs of currency or percent do not count ("50 %" is 50, not 0.5);
    fractions, mixed numbers, 1.5e3 and LaTeX's 1{,}234 are read as such. A comma parts thousands
    and a point decimals, as in all the sources: "1.000,50" is not understood. Ordinals, numbers in
    words and digits within names are no numbers.
    """
    if (stated := stated_number(text)) is not None:
        return stated
    text = _plain(text)
    before, equals, result = text.rstrip().rpartition("\n")[2].rpartition("=")
    # The equation's sentence, from the number that it comes to, and those behind it.
    if equals and not _GIVEN.search(before) and (numbers := _numbers(result)):
        _, *later = _SENTENCE.split(result[numbers[0].end() :], maxsplit=1)
        if not (later and _numbers(later[0])):
            return _value(numbers[0])
    numbers = _numbers(text)
    return _value(numbers[-1]) if numbers else None


def stated_number(text: str) -> Fraction | None:
    """The number that an answer says is the answer; None when it says none.

    Behind the first "####" (as GSM8K's own grader has it: what follows may be the next question),
    else the last "\\boxed{", else the last "answer is" that a number follows at once, else the last
    one, it is the first number, or what a sum that begins there comes to ("the answer is 3 + 4 =
    7"). There 1 000 000 is one number, and of "not 5 but 7" the second counts.
    """
    text = _plain(text)
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    hashes = [each for each in markers if each.group() == "####"]
    boxes = [each for each in markers if each.group().startswith("\\")]
    at_once = [each for each in markers if _AT_ONCE.match(text, each.end())]
    chosen = [*hashes[:1], *boxes[-1:], *at_once[-1:], markers[-1]][0]
    rest = text[chosen.end() :]
    if denied := _DENIED.match(rest):
        rest = rest[denied.end() :]
    rest = _SPACED.sub(lambda spaced: re.sub(r"\s", "", spaced.group()), rest)
    begins = _SUM.match(rest)
    assert begins is not None
    # Of "3 + 4 = 7" the 7, of "42 = 6 x 7" the 42.
    sides = re.split(r"\.\s", begins.group())[0].split("=")
    found = [numbers for side in sides if (numbers := _numbers(side))]
    if len(found) > 1:
        return _value((found[0] if len(found[0]) == 1 else found[-1])[0])
    numbers = _numbers(rest)
    return _value(numbers[0]) if numbers else None


def grade(completion: str, reference: str) -> dict[str, float]:
    """Score a worked answer: ``exact``, its final number equals the reference's.

    ``exact_strict`` wants that number stated as the answer, which ``exact`` does not. Empty where
    the reference has no number: such a row cannot be scored.
    """
    wanted = final_number(reference)
    if wanted is None:
        return {}
    return {
        "exact": float(final_number(completion) == wanted),
        "exact_strict": float(stated_number(completion) == wanted),
    }


def _plain(text: str) -> str:
    """The text without LaTeX's way of writing fractions and thousands."""
    plain = re.sub(r"(?<=[0-9])(?:\{,\}|\\[,!])\s?(?=[0-9]{3}(?![0-9]))", ",", text)
    return _LATEX_FRACTION.sub(
        # A mixed number's whole part stands right before.
        lambda found: (
            f"{' ' if plain[: found.start()][-1:].isdigit() else ''}"
            f"{found[1] or found[3]}/{found[2] or found[4]}"
        ),
        plain,
    )


def _numbers(text: str) -> list[re.Match[str]]:
    return list(_NUMBER.finditer(text))


def _value(number: re.Match[str]) -> Fraction | None:
    """A number's value; None for a division by zero or more digits than anybody writes."""
    if len(number.group()) > _MAX_DIGITS:
        return None
    sign = -1 if number["minus"] or number["inner"] else 1
    if number["whole"] is None:
        value = Fraction(number["value"].replace(",", ""))
        divisor = Fraction((number["divisor"] or "1").replace(",", ""))
        value *= Fraction(10) ** int(number["power"] or 0)
        return sign * value / divisor if divisor else None
    over, under = int(number["over"]), int(number["under"])
    if under == 0:
        return None
    # "in 2 10/5" are two numbers: a mixed number's fraction is below one.
    whole = int(number["whole"]) if over < under else 0
    return sign * (whole + Fraction(over, under))
