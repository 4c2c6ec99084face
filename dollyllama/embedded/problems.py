"""Arithmetic in words: a story, the steps that solve it, the number they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dollyllama.embedded import words


@dataclass(frozen=True, slots=True)
class Problem:
    """steps: one sentence each with its equation, the last one comes to ``answer``."""

    story: str
    steps: tuple[str, ...]
    answer: int

    @property
    def facts(self) -> str:
        """The story without its last sentence."""
        return self.story.removesuffix(self.question).rstrip()

    @property
    def question(self) -> str:
        """The story's last sentence."""
        return self.story.rpartition(". ")[2]


def _things(random: Random) -> str:
    return words.plural(random.choice(words.THINGS + words.FRUITS))


def _gain_and_loss(random: Random) -> Problem:
    who, what = random.choice(words.FIRST_NAMES), _things(random)
    start, more = random.randint(5, 60), random.randint(2, 40)
    gone = random.randint(1, start + more - 1)
    gain = random.choice(("buys", "finds", "gets", "makes"))
    loss = random.choice(("gives away", "loses", "sells", "breaks"))
    middle, end = start + more, start + more - gone
    return Problem(
        f"{who} has {start} {what}. {who} {gain} {more} more and then {loss} {gone}. "
        f"How many {what} does {who} have now?",
        (
            f"First {who} has {start} + {more} = {middle} {what}.",
            f"Then {who} has {middle} - {gone} = {end} {what}.",
        ),
        end,
    )


def _price(random: Random) -> Problem:
    who, one, two = random.choice(words.FIRST_NAMES), *random.sample(words.THINGS, 2)
    n, m, p, q = (random.randint(2, 9) for _ in range(4))
    total = n * p + m * q
    return Problem(
        f"A {one} costs ${p} and a {two} costs ${q}. {who} buys {n} {words.plural(one)} and {m} "
        f"{words.plural(two)}. How much does {who} pay?",
        (
            f"The {words.plural(one)} cost {n} x {p} = ${n * p}.",
            f"The {words.plural(two)} cost {m} x {q} = ${m * q}.",
            f"Together that is {n * p} + {m * q} = ${total}.",
        ),
        total,
    )


def _shared(random: Random) -> Problem:
    who, what = random.choice(words.FIRST_NAMES), _things(random)
    people, each = random.randint(2, 9), random.randint(2, 12)
    extra = random.randint(1, 20)
    total = people * each
    group = random.choice(("friends", "children", "neighbours", "guests", "cousins"))
    return Problem(
        f"{who} has {total + extra} {what}. {who} keeps {extra} and shares the rest equally among "
        f"{people} {group}. How many {what} does each of them get?",
        (
            f"{who} shares {total + extra} - {extra} = {total} {what}.",
            f"Each of them gets {total} / {people} = {each} {what}.",
        ),
        each,
    )


def _rate(random: Random) -> Problem:
    who = random.choice(words.FIRST_NAMES)
    hours, days, pay = random.randint(2, 9), random.randint(2, 7), random.randint(5, 20)
    job = random.choice(words.JOBS)
    daily = hours * pay
    return Problem(
        f"{who} works as {words.article(job)} for {hours} hours a day and earns ${pay} an hour. "
        f"How much does {who} earn in {days} days?",
        (
            f"In one day {who} earns {hours} x {pay} = ${daily}.",
            f"In {days} days {who} earns {days} x {daily} = ${days * daily}.",
        ),
        days * daily,
    )


def _compare(random: Random) -> Problem:
    first, second = random.sample(words.FIRST_NAMES, 2)
    what, start, times = _things(random), random.randint(2, 20), random.randint(2, 5)
    other = start * times
    return Problem(
        f"{first} has {start} {what}. {second} has {times} times as many. How many {what} do they "
        "have together?",
        (
            f"{second} has {times} x {start} = {other} {what}.",
            f"Together they have {start} + {other} = {start + other} {what}.",
        ),
        start + other,
    )


def _boxes(random: Random) -> Problem:
    place, what = random.choice(words.PLACES), _things(random)
    boxes, each, sold = random.randint(3, 12), random.randint(2, 12), 0
    total = boxes * each
    sold = random.randint(1, total - 1)
    return Problem(
        f"The {place} has {boxes} boxes with {each} {what} in each box. It sells {sold} {what}. "
        f"How many {what} are left?",
        (
            f"There are {boxes} x {each} = {total} {what} in the boxes.",
            f"After the sale {total} - {sold} = {total - sold} {what} are left.",
        ),
        total - sold,
    )


def _journey(random: Random) -> Problem:
    who, vehicle = random.choice(words.FIRST_NAMES), random.choice(words.VEHICLES)
    start, end = random.sample(words.CITIES, 2)
    speed, hours, rest = random.randint(20, 90), random.randint(2, 6), random.randint(5, 90)
    way = speed * hours
    return Problem(
        f"{who} travels from {start} to {end} by {vehicle} at {speed} km an hour for {hours} hours "
        f"and then walks {rest} km. How long is the whole way in km?",
        (
            f"By {vehicle} it is {speed} x {hours} = {way} km.",
            f"The whole way is {way} + {rest} = {way + rest} km.",
        ),
        way + rest,
    )


def _age(random: Random) -> Problem:
    first, second, third = random.sample(words.FIRST_NAMES, 3)
    age, older, younger = random.randint(10, 50), random.randint(1, 20), random.randint(1, 9)
    middle = age + older
    return Problem(
        f"{first} is {age} years old. {second} is {older} years older than {first}. {third} is "
        f"{younger} years younger than {second}. How old is {third}?",
        (
            f"{second} is {age} + {older} = {middle} years old.",
            f"{third} is {middle} - {younger} = {middle - younger} years old.",
        ),
        middle - younger,
    )


_KINDS: tuple[Callable[[Random], Problem], ...] = (
    _gain_and_loss,
    _price,
    _shared,
    _rate,
    _compare,
    _boxes,
    _journey,
    _age,
)


def make_problem(random: Random) -> Problem:
    return random.choice(_KINDS)(random)


def equation(random: Random) -> str:
    """One line of arithmetic, right."""
    a, b = random.randint(0, 99), random.randint(0, 99)
    sign = random.choice("+-x/")
    if sign == "+":
        return f"{a} + {b} = {a + b}"
    if sign == "-":
        return f"{a + b} - {b} = {a}"
    a, b = random.randint(1, 12), random.randint(1, 20)
    return f"{a} x {b} = {a * b}" if sign == "x" else f"{a * b} / {b} = {a}"
