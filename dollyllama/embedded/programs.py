"""Small programming tasks in Python and their solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dollyllama.embedded import words


@dataclass(frozen=True, slots=True)
class Program:
    """task: what is asked, a sentence. given: data or code that it is about, or ""."""

    task: str
    given: str
    solution: str


def _function(random: Random) -> Program:
    name = f"{random.choice(words.ADJECTIVES)}_{random.choice(words.THINGS)}"
    n = random.randint(2, 20)
    argument = random.choice(("x", "n", "value", "number"))
    english, body = random.choice(
        (
            (f"multiplies its argument by {n}", f"{argument} * {n}"),
            (f"adds {n} to its argument", f"{argument} + {n}"),
            (f"subtracts {n} from its argument", f"{argument} - {n}"),
            (f"returns the remainder of its argument divided by {n}", f"{argument} % {n}"),
            (f"raises its argument to the power of {n}", f"{argument} ** {n}"),
            (f"tells whether its argument is greater than {n}", f"{argument} > {n}"),
            (f"tells whether its argument is divisible by {n}", f"{argument} % {n} == 0"),
        )
    )
    opening = random.choice(("Write", "Create", "Define"))
    return Program(
        f"{opening} a Python function {name} that takes {argument} and {english}.",
        "",
        f"def {name}({argument}):\n    return {body}",
    )


def _list_function(random: Random) -> Program:
    items = words.plural(random.choice(words.THINGS + words.ANIMALS))
    n = random.randint(2, 30)
    english, name, body = random.choice(
        (
            (f"the sum of a list of {items}", f"sum_{items}", f"sum({items})"),
            (f"the length of a list of {items}", f"count_{items}", f"len({items})"),
            (f"the largest of a list of {items}", f"largest_{items}", f"max({items})"),
            (f"the smallest of a list of {items}", f"smallest_{items}", f"min({items})"),
            (f"a sorted list of {items}", f"sort_{items}", f"sorted({items})"),
            (f"a list of {items} in reverse order", f"reverse_{items}", f"{items}[::-1]"),
            (f"the first {n} of a list of {items}", f"first_{items}", f"{items}[:{n}]"),
            (f"the last {n} of a list of {items}", f"last_{items}", f"{items}[-{n}:]"),
            (f"a list of {items} without repeats", f"unique_{items}", f"sorted(set({items}))"),
            (
                f"those of a list of {items} that are greater than {n}",
                f"filter_{items}",
                f"[item for item in {items} if item > {n}]",
            ),
            (
                f"a list of {items} with each multiplied by {n}",
                f"scale_{items}",
                f"[item * {n} for item in {items}]",
            ),
        )
    )
    opening = random.choice(("Write a function that returns", "Create a function to return"))
    return Program(f"{opening} {english}.", "", f"def {name}({items}):\n    return {body}")


def _numbers(random: Random) -> list[int]:
    return [random.randint(0, 60) for _ in range(random.randint(3, 6))]


def _on_list(random: Random) -> Program:
    numbers = _numbers(random)
    task, result = random.choice(
        (
            ("Sort the given list in ascending order.", sorted(numbers)),
            ("Sort the given list in descending order.", sorted(numbers, reverse=True)),
            ("Reverse the given list.", numbers[::-1]),
            ("Find the largest number of the given list.", max(numbers)),
            ("Find the smallest number of the given list.", min(numbers)),
            ("Return the first element of the given list.", numbers[0]),
            ("Return the last element of the given list.", numbers[-1]),
            ("Count the elements of the given list.", len(numbers)),
        )
    )
    return Program(task, str(numbers), str(result))


def _on_words(random: Random) -> Program:
    chosen = random.sample(words.THINGS + words.ANIMALS + words.FRUITS, random.randint(3, 5))
    task, result = random.choice(
        (
            ("Sort the given words by alphabet.", sorted(chosen)),
            ("Reverse the order of the given words.", chosen[::-1]),
            ("Turn the given words into upper case.", [word.upper() for word in chosen]),
            ("Join the given words with a comma.", ",".join(chosen)),
            ("Return the first of the given words.", chosen[0]),
            ("Give the length of each of the given words.", [len(word) for word in chosen]),
        )
    )
    return Program(task, str(chosen), str(result) if isinstance(result, list) else result)


def _loop(random: Random) -> Program:
    start = random.randint(0, 9)
    end = start + random.randint(3, 40)
    step = random.randint(2, 5)
    task, head = random.choice(
        (
            (f"Print the numbers from {start} to {end}.", f"range({start}, {end + 1})"),
            (
                f"Print every number from {start} to {end} in steps of {step}.",
                f"range({start}, {end + 1}, {step})",
            ),
            (
                f"Print the numbers from {end} down to {start}.",
                f"range({end}, {start - 1}, -1)",
            ),
        )
    )
    name = random.choice(("i", "n", "number"))
    return Program(f"Write a Python loop. {task}", "", f"for {name} in {head}:\n    print({name})")


def _dictionary(random: Random) -> Program:
    kind = random.choice(sorted(words.CATEGORIES))
    keys = random.sample(words.CATEGORIES[kind], random.randint(2, 4))
    values = {key: random.randint(1, 60) for key in keys}
    name = f"{kind}_{random.choice(('counts', 'prices', 'scores', 'sizes'))}"
    pairs = words.listing([f"{key} to {value}" for key, value in values.items()])
    entries = ", ".join(f'"{key}": {value}' for key, value in values.items())
    return Program(
        f"Create a Python dictionary {name} that maps {pairs}.", "", f"{name} = {{{entries}}}"
    )


def _class(random: Random) -> Program:
    name = random.choice(words.THINGS + words.ANIMALS).capitalize()
    fields = random.sample(("name", "colour", "weight", "price", "age", "owner", "size"), 2)
    return Program(
        f"Write a Python class {name} with the attributes {fields[0]} and {fields[1]}.",
        "",
        f"class {name}:\n    def __init__(self, {fields[0]}, {fields[1]}):\n"
        f"        self.{fields[0]} = {fields[0]}\n        self.{fields[1]} = {fields[1]}",
    )


def _string(random: Random) -> Program:
    text = f"{random.choice(words.ADJECTIVES)} {random.choice(words.THINGS)}"
    task, result = random.choice(
        (
            ("Turn the given text into upper case.", text.upper()),
            ("Replace the spaces of the given text by underscores.", text.replace(" ", "_")),
            ("Split the given text into words.", str(text.split())),
            ("Give the first word of the given text.", text.split()[0]),
            ("Give the number of words of the given text.", str(len(text.split()))),
        )
    )
    return Program(task, text, result)


_KINDS: tuple[tuple[Callable[[Random], Program], int], ...] = (
    (_function, 3),
    (_list_function, 3),
    (_on_list, 2),
    (_on_words, 2),
    (_loop, 1),
    (_dictionary, 2),
    (_class, 1),
    (_string, 1),
)


def make_program(random: Random) -> Program:
    kinds = [kind for kind, _ in _KINDS]
    return random.choices(kinds, [weight for _, weight in _KINDS])[0](random)
