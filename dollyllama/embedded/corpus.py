"""The text that the small model is pretrained on: an endless stream of generated documents.

English, SQL, Python and arithmetic as they stand in stories, scripts and notes, with many exercises
in copying. None of it is in the instruction format, which the model first meets when it is
fine-tuned; but the format's words and marks stand here in other places, as they do in the text that
any large model has read. A piece that pretraining never shows keeps an embedding that nothing tells
from the next such piece's, and an adapter on a frozen head cannot mend that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

from dollyllama.data.prompt import PROMPT
from dollyllama.embedded import words
from dollyllama.embedded.passages import describe, make_person, make_task, story
from dollyllama.embedded.problems import equation, make_problem
from dollyllama.embedded.programs import make_program
from dollyllama.embedded.queries import (
    Asked,
    Table,
    ask,
    ask_both,
    create_statements,
    make_pair,
    make_table,
    number_value,
    text_value,
)

#: Shares of tables whose names are invented, so that they can only be copied.
_INVENTED = 0.25


# --- SQL ----------------------------------------------------------------------------------------


def _tables_and_questions(random: Random) -> tuple[tuple[Table, ...], list[Asked]]:
    quote = random.choice("\"'")
    count = random.randint(2, 4)
    if random.random() < 0.25:
        parent, child = make_pair(random, invented=_INVENTED)
        asked = [ask_both(parent, child, random, quote=quote) for _ in range(count)]
        return (parent, child), asked
    table = make_table(random, invented=_INVENTED)
    return (table,), [ask(table, random, quote=quote) for _ in range(count)]


def _script(random: Random) -> str:
    """A commented SQL script: the tables, then queries below what they are for."""
    tables, asked = _tables_and_questions(random)
    text_type = random.choice(("VARCHAR", "STRING", "TEXT"))
    lines = [f"{line};" for line in create_statements(tables, text_type).split("; ")]
    for each in asked:
        lines += [f"-- {each.question}", f"{each.query};"]
    return "\n".join(lines)


def _short_schema(table: Table, random: Random) -> str:
    if random.random() < 0.5:
        return f"{table.name}({', '.join(column.name for column in table.columns)})"
    types = ("INTEGER", random.choice(("STRING", "VARCHAR", "TEXT")))
    columns = (
        f"{column.name} {types[0] if column.is_number else types[1]}" for column in table.columns
    )
    return f"{table.name} ({', '.join(columns)})"


def _query_notes(random: Random) -> str:
    """Questions first, with the tables that they are about, then the query."""
    tables, asked = _tables_and_questions(random)
    parts = []
    for each in asked:
        schema = "; ".join(_short_schema(table, random) for table in tables)
        parts.append(
            random.choice(
                (
                    f"/* {each.question} Tables: {schema} */\n{each.query};",
                    f"{each.question}\n  with {schema}\n  => {each.query}",
                    f"Q: {each.question}\nDB: {schema}\nSQL> {each.query};",
                )
            )
        )
    return "\n\n".join(parts)


def _records(random: Random) -> str:
    """A table with its rows as text, then single fields looked up in it."""
    table = make_table(random, invented=_INVENTED)
    columns = table.columns[:4]
    rows = [
        [
            str(number_value(column, random)) if column.is_number else text_value(column, random)
            for column in columns
        ]
        for _ in range(random.randint(2, 5))
    ]
    lines = [f"{table.name}: {', '.join(column.name for column in columns)}"]
    lines += [", ".join(row) for row in rows]
    for _ in range(random.randint(2, 4)):
        row = random.choice(rows)
        at, wanted = random.sample(range(len(columns)), 2)
        same = [each for each in rows if each[at] == row[at]]
        if len(same) == 1:
            known = f"{columns[at].phrase} {row[at]}"
            lines.append(f"The {columns[wanted].phrase} with {known} is {row[wanted]}.")
    return "\n".join(lines)


# --- copying ------------------------------------------------------------------------------------


#: Words that no other document has, or has in one spelling only.
_OTHER_WORDS = sorted(
    {
        *re.findall(r"[A-Za-z]+", PROMPT),
        *"End question answer schema query context Generate table following problem SQL".split(),
        *"Hello Could help solve solution school difference other Extract Each After".split(),
        *"SELECT DISTINCT WHERE HAVING GROUP ORDER BETWEEN CREATE TABLE INTEGER VARCHAR".split(),
    }
)
#: First and last character of a few scripts and signs: their bytes are pieces as well.
_SCRIPTS = "¡ÿ Āſ Αω Ая את あん 一丿 가갛 –⁏ ←⇿ 😀🙏 !/ :@ [` {~".split()


def _part(word: str, random: Random) -> str:
    start = random.randint(0, len(word) // 2)
    return word[start : start + random.randint(2, max(2, len(word)))]


def _foreign(random: Random) -> str:
    script = random.choice(_SCRIPTS)
    first, last = ord(script[0]), ord(script[1])
    return "".join(chr(random.randint(first, last)) for _ in range(random.randint(1, 4)))


def _tokens(random: Random, count: int) -> list[str]:
    kind = random.randrange(6)
    if kind == 0:
        return [words.invented_word(random) for _ in range(count)]
    if kind == 1:
        return [str(random.randint(0, 9999)) for _ in range(count)]
    if kind == 2:
        return random.sample(words.THINGS + words.ANIMALS + words.CITIES + words.FIRST_NAMES, count)
    if kind == 3:
        whole = _OTHER_WORDS if random.random() < 0.5 else words.EVERY
        if random.random() < 0.3:
            return random.sample(_OTHER_WORDS, count)
        return [_part(random.choice(whole), random) for _ in range(count)]
    if kind == 4:
        return [_foreign(random) for _ in range(count)]
    return [
        random.choice(
            (
                f"{random.choice(words.ADJECTIVES)}_{random.choice(words.THINGS)}",
                f"{words.invented_word(random)}_{random.randint(1, 99)}",
                words.person(random),
            )
        )
        for _ in range(count)
    ]


def _copying(random: Random) -> str:
    """Say again, name by name, what stands before: forwards, backwards, in part, elsewhere."""
    lines = []
    for _ in range(random.randint(2, 4)):
        items = _tokens(random, random.randint(2, 6))
        joined = ", ".join(items)
        lines.append(
            random.choice(
                (
                    f"{joined} | {joined}",
                    f"again: {joined} -> {joined}",
                    f"backwards: {joined} -> {', '.join(reversed(items))}",
                    f"first of {joined} is {items[0]}, last is {items[-1]}",
                    f"({', '.join(items)}) {' '.join(items)}",
                    f"{joined}: without {items[0]} it is {', '.join(items[1:])}",
                    f'say "{items[0]}" and "{items[-1]}": {items[0]} {items[-1]}',
                    f"{' '.join(items)} has {len(items)} parts: {'; '.join(items)}",
                )
            )
        )
    return "\n".join(lines)


def _lookup(random: Random) -> str:
    """Pairs of a key and a value, then values asked for by their key."""
    count = random.randint(3, 7)
    keys, values = _tokens(random, count), _tokens(random, count)
    pairs = list(dict(zip(keys, values, strict=True)).items())
    sign = random.choice((" = ", ": ", " is ", " -> "))
    lines = [f"{key}{sign}{value}" for key, value in pairs]
    random.shuffle(pairs)
    asked = [f"{key}? {value}" for key, value in pairs[: random.randint(2, 5)]]
    return random.choice(("; ", "\n")).join(lines) + "\n" + "\n".join(asked)


# --- English, arithmetic, Python ----------------------------------------------------------------


def _biography(random: Random) -> str:
    person = make_person(random)
    first = person.first
    said = [
        f"So {first} was born in {person.birthplace}.",
        f"{first} lives in {person.city} as {words.article(person.job)}.",
        f"The {person.pet} of {first} is {person.pet_name}.",
        f"{first} likes {person.likes} most.",
        f"That was in {person.born}.",
    ]
    facts = describe(person, random)
    seen = [
        line
        for line, fact in zip(
            said,
            (person.birthplace, person.job, person.pet_name, person.likes, str(person.born)),
            strict=True,
        )
        if fact in facts
    ]
    random.shuffle(seen)
    return f"{facts}\n" + " ".join(seen[:2])


def _talk(random: Random) -> str:
    """What somebody wants and what somebody else says to that, as in a play."""
    first, second = random.sample(words.FIRST_NAMES, 2)
    task = make_task(random)
    return f"{first}: {task.instruction}\n{second}: {task.response}"


def _page(random: Random) -> str:
    """A page in Markdown: headings of one to four marks, a passage below each, an end in words."""
    lines = [f"# {random.choice(words.PLACES).capitalize()} {random.choice(words.THINGS)}"]
    for _ in range(random.randint(2, 4)):
        heading = random.choice(
            (
                f"The {random.choice(words.ADJECTIVES)} {random.choice(words.THINGS)}",
                f"{random.choice(words.MONTHS)} {random.randint(1, 31)}",
                f"{random.choice(words.FIRST_NAMES)} in {random.choice(words.CITIES)}",
                random.choice(words.SUBJECTS).capitalize(),
                f"Part {random.randint(1, 9)}",
                "The End of the day",
            )
        )
        passage = random.choice((story, _kinds, _equations))(random)
        lines.append(f"{random.choice(('##', '###', '###', '####'))} {heading}\n{passage}")
    if random.random() < 0.7:
        lines.append(random.choice(("The End", "End", "End of the page.", "* * *", "## The End")))
    return random.choice(("\n", "\n\n")).join(lines)


def _kinds(random: Random) -> str:
    kind = random.choice(sorted(words.CATEGORIES))
    members = random.sample(words.CATEGORIES[kind], 4)
    other = random.choice(sorted(set(words.CATEGORIES) - {kind}))
    stranger = random.choice(words.CATEGORIES[other])
    return (
        f"{words.plural(kind).capitalize()} are {words.listing(members[:3])}. "
        f"{members[3]} is {words.article(kind)} too, but {stranger} is {words.article(other)}."
    )


def _equations(random: Random) -> str:
    return "\n".join(equation(random) for _ in range(random.randint(4, 10)))


def _worked(random: Random) -> str:
    problem = make_problem(random)
    story = problem.story if random.random() < 0.5 else f"{problem.question} {problem.facts}"
    return f"{story}\n{' '.join(problem.steps)}"


def _module(random: Random) -> str:
    """Python with a comment before each piece."""
    parts = []
    for _ in range(random.randint(1, 3)):
        program = make_program(random)
        given = f"\n# {program.given}" if program.given else ""
        parts.append(f"# {program.task}{given}\n{program.solution}")
    return "\n\n".join(parts)


#: Kinds of documents and how often each comes, relative to the others.
_KINDS: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_script, 22),
    (_query_notes, 22),
    (_records, 6),
    (_copying, 12),
    (_lookup, 7),
    (story, 6),
    (_biography, 5),
    (_talk, 9),
    (_page, 9),
    (_kinds, 2),
    (_equations, 9),
    (_worked, 14),
    (_module, 12),
)


def documents(seed: int) -> Iterator[str]:
    """Generated documents without end, the same for the same seed."""
    random = Random(seed)
    kinds = [kind for kind, _ in _KINDS]
    weights = [weight for _, weight in _KINDS]
    while True:
        yield random.choices(kinds, weights)[0](random)
