"""What a column must hold for an expression of it to come to a given value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from random import Random

from sqlglot import exp

from dollyllama.evaluation.sqlite import Value

Number = int | float

#: From what an expression comes to, to what is inside of it.
Undo = Callable[[Value], Iterable[Value]]

_DATING_NAMES = frozenset("date datetime julianday strftime time unixepoch".split())
_LARGEST = 1e15
_LONGEST = 300
#: What each sign of ``strftime`` counts, the finest first.
_STEPS = {
    "S": timedelta(seconds=1),
    "M": timedelta(minutes=1),
    "H": timedelta(hours=1),
    "d": timedelta(days=1),
    "m": timedelta(days=31),
    "Y": timedelta(days=366),
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DAY = "2013-07-19 10:25:36"


def is_dating(node: exp.Expr) -> bool:
    """Whether ``node`` is a function that reads a date or a time."""
    if isinstance(node, exp.Anonymous):
        return node.name.lower() in _DATING_NAMES
    return isinstance(node, exp.TimeToStr | exp.Date)


def some_day(random: Random) -> str:
    """A date of a few years, one in three with a time."""
    day = date(random.randint(2008, 2013), random.randint(1, 12), random.randint(1, 28))
    hour = f" {random.randint(0, 23):02}:{random.randint(0, 59):02}:00"
    return f"{day}{hour if random.random() < 1 / 3 else ''}"


def reckoned(kind: type[exp.Expr], left: Value, right: Value) -> Number | None:
    """A sum of two numbers as SQLite has it; None where one is none, or too large."""
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    value: Number
    if kind is exp.Add:
        value = left + right
    elif kind is exp.Sub:
        value = left - right
    elif kind is exp.Mul:
        value = left * right
    elif not right or kind is exp.Mod:
        return None
    else:
        value = left / right
        if isinstance(left, int) and isinstance(right, int):
            value = int(value)
    return value if abs(value) < _LARGEST else None


def undo_sum(kind: type[exp.Expr], constants: Sequence[Number], *, is_left: bool) -> Undo:
    """For ``inside + constant`` or another sign; for ``constant + inside`` unless ``is_left``."""

    def undo(value: Value) -> list[Value]:
        if not isinstance(value, int | float):
            return [value]
        found = [x for number in constants for x in _solved(kind, value, number, is_left)]
        return [x for x in found if abs(x) < _LARGEST]

    return undo


def _solved(kind: type[exp.Expr], value: Number, number: Number, is_left: bool) -> list[Number]:
    """Values of the other side; whole ones around where none is whole."""
    whole = isinstance(value, int) and isinstance(number, int)
    if kind is exp.Add:
        return [value - number]
    if kind is exp.Sub:
        return [value + number] if is_left else [number - value]
    if kind is exp.Mul:
        return _shared(value, number)
    if kind is exp.Div:
        if not is_left:
            return _shared(number, value)
        last = abs(number) - 1
        return [value * number, value * number + last] if whole and last else [value * number]
    if not is_left:
        return [number - value]
    return [value, value + number, value + 5 * number] if 0 <= value < abs(number) else []


def _shared(value: Number, number: Number) -> list[Number]:
    if not number:
        return []
    if isinstance(value, float) or isinstance(number, float):
        return [value / number]
    share, rest = divmod(value, number)
    return [share, share + 1] if rest else [share]


def undo_function(
    node: exp.Expr, literal: Callable[[exp.Expr | None], Value]
) -> tuple[exp.Expr, Undo] | None:
    """What a function takes, and how it is undone; None for one that is not known.

    literal: the value that a node writes, or None.
    """
    undo: Undo | None = None
    if isinstance(node, exp.Paren | exp.Cast | exp.Round):
        undo = _itself
    elif isinstance(node, exp.Neg | exp.Abs):
        undo = _negated if isinstance(node, exp.Neg) else _of_either_sign
    elif isinstance(node, exp.Lower | exp.Upper):
        undo = _in_any_case
    elif isinstance(node, exp.Trim):
        undo = _among_spaces
    elif isinstance(node, exp.Length):
        undo = _of_length
    elif isinstance(node, exp.Substring):
        start, length = literal(node.args.get("start")), literal(node.args.get("length"))
        if isinstance(start, int) and (isinstance(length, int) or not node.args.get("length")):
            undo = _around(start, length if isinstance(length, int) else None)
    elif isinstance(node, exp.Date) and not node.args.get("expressions"):
        undo = _of_day
    elif isinstance(node, exp.TimeToStr):
        form = literal(node.args.get("format"))
        taken = node.this.this if isinstance(node.this, exp.TsOrDsToTimestamp) else node.this
        return (taken, _of_form(form)) if isinstance(form, str) else None
    return None if undo is None else (node.this, undo)


def _itself(value: Value) -> list[Value]:
    return [value]


def _negated(value: Value) -> list[Value]:
    return [-value] if isinstance(value, int | float) else []


def _of_either_sign(value: Value) -> list[Value]:
    return [value, *_negated(value)]


def _in_any_case(value: Value) -> list[Value]:
    if not isinstance(value, str):
        return [value]
    return [value.lower(), value.upper(), value.title()]


def _among_spaces(value: Value) -> list[Value]:
    return [value, f" {value} "] if isinstance(value, str) else [value]


def _of_length(value: Value) -> list[Value]:
    if not isinstance(value, int | float) or not 0 <= value <= _LONGEST:
        return []
    return [
        (letters * (1 + int(value) // 26))[: int(value)] for letters in (_LETTERS, _LETTERS[::-1])
    ]


def _around(start: int, length: int | None) -> Undo:
    """For ``substr``: the value in its place in a date, and in other text."""

    def undo(value: Value) -> list[Value]:
        text = str(value)
        if start == 0 or abs(start) > _LONGEST or (length is not None and len(text) > length):
            return []
        if start < 0:
            rest = -start - len(text)
            if rest < 0 or (rest > 0 and length != len(text)):
                return []
            return [f"{base}{text}{base[:rest]}" for base in (_DAY[:10], _LETTERS)]
        whole = length == len(text)
        return [
            base[: start - 1].ljust(start - 1, "-")
            + text
            + (base[start - 1 + len(text) :] if whole else "")
            for base in (_DAY, _LETTERS)
        ]

    return undo


def _of_day(value: Value) -> list[Value]:
    """The day of ``date``, its neighbours, and the day with a time."""
    try:
        day = date.fromisoformat((str(value) + "-01-01")[:10])  # of a year alone its first
        others = [str(day + timedelta(days=days)) for days in (1, -1)]
    except (ValueError, OverflowError):
        return []
    return [str(day), f"{day} 10:25:36", *others]


def _written(moment: datetime, signs: set[str]) -> list[Value]:
    return [str(moment) if signs & set("HMS") else str(moment.date())]


def _of_form(form: str) -> Undo:
    """For ``strftime``: dates that it writes so, differing in what it leaves out."""
    signs = {form[place + 1 : place + 2] for place, sign in enumerate(form) if sign == "%"}
    step = next((each for sign, each in _STEPS.items() if sign in signs), timedelta())

    def undo(value: Value) -> list[Value]:
        if not signs <= set("YmdHMS"):
            return []
        try:
            read = datetime.strptime(str(value), form)
        except ValueError:
            return []
        found: list[Value] = []
        for year, month, day in ((2009, 3, 5), (2012, 8, 21), (2012, 3, 21)):
            try:
                moment = read.replace(
                    year=read.year if "Y" in signs else year,
                    month=read.month if "m" in signs else month,
                    day=read.day if "d" in signs else day,
                )
            except ValueError:  # the 31st of a month that has none
                continue
            found += _written(moment, signs)
        if len(signs) > 1:  # of which no neighbour is written as a number
            for steps in (1, -1):
                with suppress(OverflowError):
                    found += _written(read + steps * step, signs)
        return found

    return undo
