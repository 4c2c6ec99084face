"""Tables, questions about them and the queries that answer them.

A question says everything that its query needs, by fixed conventions (``COUNT(*)``, aliases T1 and
T2, no ``ASC``), so that an exact match is a fair measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dollyllama.embedded import words

#: Entity: its columns with the kind of value each holds. Numbers are kinds from .. to.
_ENTITIES = """
airport: name=city city=city country=country runways=1..6 opening_year=1920..2020 passengers=100..9000
album: title=thing artist=person genre=genre release_year=1950..2023 tracks=5..30 sales=100..9000
apartment: street=last city=city rooms=1..9 rent=300..4000 floor=1..20 owner=person
artist: name=person country=country birth_year=1900..2005 style=genre age=18..90 awards=0..20
athlete: name=person country=country sport=word height=150..210 weight=45..120 medals=0..12
author: name=person nationality=country books=1..60 birth_year=1850..1995 prize=level
bank: name=last city=city branches=1..80 customers=100..9000 assets=100..9000 founded=1850..2015
book: title=thing author=person pages=80..900 price=5..90 language=word publisher=last year=1900..2023
bridge: name=city river=word length=50..3000 height=10..300 material=material built=1850..2020
building: name=last city=city floors=1..90 height=10..400 architect=person opened=1900..2022
bus: route=1..99 driver=person seats=20..80 colour=colour model=word city=city
car: model=word maker=last colour=colour price=500..9000 year=1980..2024 doors=2..5 horsepower=50..400
city: name=city country=country population=100..9000 area=20..900 mayor=person elevation=1..2000
club: name=word members=10..500 city=city president=person founded=1900..2020 budget=100..9000
company: name=last industry=word employees=5..900 revenue=100..9000 city=city founder=person
concert: theme=word venue=place year=1990..2024 audience=50..5000 singer=person price=5..150
course: title=subject teacher=person credits=1..12 level=level students=5..200 room=1..400
customer: name=person city=city age=18..90 country=country status=level orders=0..60 balance=0..900
dentist: name=person city=city patients=10..900 experience=1..40 salary=900..9000
doctor: name=person speciality=subject hospital=city age=28..70 patients=10..900 salary=900..9000
dog: name=first breed=word age=1..15 weight=2..70 owner=person colour=colour
driver: name=person age=18..70 team=word wins=0..90 points=0..400 country=country
employee: name=person job=job salary=900..9000 age=18..66 city=city department=subject bonus=0..900
farm: name=word owner=person hectares=5..900 cows=0..300 city=city income=100..9000
festival: name=word city=city month=month visitors=100..9000 artists=2..80 sponsor=last
film: title=thing director=person genre=genre year=1930..2024 rating=1..10 budget=100..9000 length=60..240
flight: origin=city destination=city airline=last distance=100..9000 price=30..900 day=day
garden: name=word city=city trees=1..300 area=10..900 gardener=person flowers=10..900
guest: name=person country=country room=1..400 nights=1..30 paid=50..3000 arrival=day
horse: name=first breed=word age=1..30 owner=person races=0..60 colour=colour
hotel: name=word city=city rooms=5..400 stars=1..5 price=30..900 manager=person
invoice: number=100..999 customer=person amount=10..5000 status=status month=month city=city
lake: name=word country=country depth=2..900 area=5..900 fish=1..60
lawyer: name=person city=city cases=1..300 fee=50..900 age=25..70
library: name=last city=city books=500..9000 members=50..5000 opened=1850..2020
machine: model=word maker=last price=100..9000 weight=5..900 year=1970..2024 material=material
game: winner=person loser=person stadium=city year=1960..2024 minutes=30..300 score=0..9
member: name=person age=16..80 level=level city=city points=0..900 job=job
mountain: name=word country=country height=500..8800 climbers=0..900 first_ascent=1800..2000
museum: name=last city=city visitors=100..9000 paintings=10..900 ticket_price=2..40
nurse: name=person ward=subject shift=day age=20..66 salary=900..6000
purchase: customer=person product=thing quantity=1..90 status=status day=day total=5..900
painting: title=thing painter=person year=1500..2020 value=100..9000 style=word museum=city
patient: name=person age=1..95 doctor=person city=city weight=30..140 status=status
pilot: name=person age=22..65 flights=10..900 airline=last country=country salary=900..9000
player: name=person team=city position=word goals=0..90 age=16..42 matches=0..300
product: name=thing price=1..900 colour=colour stock=0..900 maker=last material=material
project: title=word leader=person budget=100..9000 status=status members=2..40 month=month
restaurant: name=word city=city chef=person tables=3..80 rating=1..10 style=country
river: name=word country=country length=20..6000 bridges=0..90 depth=1..60
school: name=last city=city students=50..3000 teachers=5..200 founded=1800..2015 principal=person
ship: name=first port=city tonnage=100..9000 captain=person built=1900..2020 flag=country
singer: name=person country=country songs=3..300 age=16..80 genre=genre net_worth=1..900
song: title=thing singer=person genre=genre year=1950..2024 minutes=2..12 votes=10..900
stadium: name=city city=city capacity=500..9000 opened=1900..2022 team=word
store: name=word city=city sales=100..9000 manager=person workers=2..90 opened=1950..2023
student: name=person age=16..40 city=city major=subject grade=1..10 credits=0..180
supplier: name=last country=country products=1..90 rating=1..10 phone=100..999
teacher: name=person subject=subject age=22..68 salary=900..6000 school=city classes=1..9
team: name=word city=city coach=person wins=0..60 losses=0..60 founded=1880..2015
ticket: number=100..999 price=5..300 seat=1..400 buyer=person show=word day=day
train: name=word origin=city destination=city speed=60..320 wagons=2..30 price=5..300
truck: model=word colour=colour load=1..40 driver=person year=1980..2024 city=city
village: name=word country=country houses=10..900 population=20..3000 elevation=1..2500
vote: candidate=person city=city ballots=10..9000 party=word year=1990..2024
warehouse: city=city manager=person boxes=10..900 area=50..5000 status=status
worker: name=person job=job wage=8..60 hours=10..60 city=city years=0..40
writer: name=person country=country novels=1..60 age=20..95 genre=genre
"""
#: What may stand before a column's name, so that few tables look the same.
_NUMBER_PREFIXES = "total average minimum maximum last first base final current previous".split()
_TEXT_PREFIXES = "home main first second old new local former official current".split()
#: What a table may be called instead of its entity's name.
_TABLE_FORMS = ("{}", "{}", "{}", "{}", "{}s", "{}_list", "{}_info", "{}_data", "all_{}s", "my_{}")


@dataclass(frozen=True, slots=True)
class Column:
    """kind: ``number``, or the kind of text it holds; low, high: bounds of a number."""

    name: str
    kind: str
    low: int = 0
    high: int = 0

    @property
    def phrase(self) -> str:
        return self.name.replace("_", " ")

    @property
    def is_number(self) -> bool:
        return self.kind == "number"


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    entity: str
    columns: tuple[Column, ...]

    @property
    def entities(self) -> str:
        return words.plural(self.entity)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in English and its query, without a semicolon."""

    question: str
    query: str


def _parse(text: str) -> dict[str, tuple[Column, ...]]:
    entities = {}
    for line in text.strip().splitlines():
        entity, _, rest = line.partition(": ")
        columns = []
        for part in rest.split():
            name, _, kind = part.partition("=")
            low, dots, high = kind.partition("..")
            columns.append(
                Column(name, "number", int(low), int(high)) if dots else Column(name, kind)
            )
        entities[entity] = tuple(columns)
    return entities


ENTITIES = _parse(_ENTITIES)

_POOLS = {
    "city": words.CITIES,
    "country": words.COUNTRIES,
    "colour": words.COLOURS,
    "day": words.DAYS,
    "first": words.FIRST_NAMES,
    "genre": words.GENRES,
    "job": words.JOBS,
    "last": words.LAST_NAMES,
    "level": words.LEVELS,
    "material": words.MATERIALS,
    "month": words.MONTHS,
    "place": words.PLACES,
    "status": words.STATES,
    "subject": words.SUBJECTS,
}


def text_value(column: Column, random: Random) -> str:
    if column.kind == "person":
        return words.person(random)
    if column.kind == "thing":
        return f"the {random.choice(words.ADJECTIVES)} {random.choice(words.THINGS)}"
    if column.kind == "word":
        return words.invented_word(random)
    return random.choice(_POOLS[column.kind])


def number_value(column: Column, random: Random) -> int:
    return random.randint(column.low, column.high)


def make_table(random: Random, *, invented: float = 0.0) -> Table:
    """A table of at least three columns, two numbers and two texts among them where they exist.

    invented: the share of tables whose names are made-up words, which can only be copied.
    """
    while True:
        table = _draw_table(random, invented)
        kinds = {column.is_number for column in table.columns}
        if len(table.columns) >= 3 and len(kinds) == 2:
            return table


def _draw_table(random: Random, invented: float) -> Table:
    entity = random.choice(list(ENTITIES))
    available = list(ENTITIES[entity])
    numbers = [column for column in available if column.is_number]
    texts = [column for column in available if not column.is_number]
    chosen = random.sample(numbers, min(2, len(numbers))) + random.sample(texts, min(2, len(texts)))
    rest = [column for column in available if column not in chosen]
    chosen += random.sample(rest, min(len(rest), random.choice((0, 0, 1, 2))))
    random.shuffle(chosen)
    form = random.choice(_TABLE_FORMS)
    if random.random() < invented:
        entity, form = words.invented_word(random), "{}"
        chosen = [
            Column(
                words.invented_word(random) if random.random() < 0.7 else column.name,
                column.kind,
                column.low,
                column.high,
            )
            for column in chosen
        ]
    columns = []
    for column in chosen:
        prefix = ""
        if random.random() < 0.2 and "_" not in column.name:
            prefix = random.choice(_NUMBER_PREFIXES if column.is_number else _TEXT_PREFIXES) + "_"
        columns.append(Column(prefix + column.name, column.kind, column.low, column.high))
    if random.random() < 0.3:
        columns.insert(0, Column(f"{entity}_id", "number", 1, 99))
    unique = {column.name: column for column in columns}
    return Table(form.format(entity), entity, tuple(unique.values()))


def make_pair(random: Random, *, invented: float = 0.0) -> tuple[Table, Table]:
    """Two tables, the second of which refers to the first by ``<entity>_id``."""
    parent = make_table(random, invented=invented)
    child = make_table(random, invented=invented)
    while child.entity == parent.entity:
        child = make_table(random, invented=invented)
    key = Column(f"{parent.entity}_id", "number", 1, 99)
    own = tuple(column for column in parent.columns if column.name != key.name)[:3]
    other = tuple(column for column in child.columns if column.name != key.name)[:3]
    return (
        Table(parent.name, parent.entity, (key, *own)),
        Table(child.name, child.entity, (*other, key)),
    )


def create_statements(tables: tuple[Table, ...], text_type: str = "VARCHAR") -> str:
    """``CREATE TABLE`` for each table, as sql-create-context writes them: one line."""
    return "; ".join(
        f"CREATE TABLE {table.name} ("
        + ", ".join(
            f"{column.name} {'INTEGER' if column.is_number else text_type}"
            for column in table.columns
        )
        + ")"
        for table in tables
    )


# --- conditions ---------------------------------------------------------------------------------

_COMPARISONS = (
    (">", ("above", "more than", "greater than", "over")),
    ("<", ("below", "less than", "smaller than", "under")),
    (">=", ("at least", "no less than")),
    ("<=", ("at most", "no more than")),
)


def _condition(
    column: Column, random: Random, alias: str = "", quote: str = '"'
) -> tuple[str, str]:
    """How English and SQL restrict ``column``: ("city Oslo", 'city = "Oslo"')."""
    name = alias + column.name
    if not column.is_number:
        text = text_value(column, random)
        return f"{column.phrase} {text}", f"{name} = {quote}{text}{quote}"
    value = number_value(column, random)
    if random.random() < 0.2:
        return f"{column.phrase} {value}", f"{name} = {value}"
    sign, phrases = random.choice(_COMPARISONS)
    return f"{column.phrase} {random.choice(phrases)} {value}", f"{name} {sign} {value}"


# --- kinds of questions: a table and a source of randomness to a question and its query -----------


def _two(table: Table, random: Random) -> tuple[Column, Column]:
    first, second = random.sample(table.columns, 2)
    return first, second


def _number(table: Table, random: Random) -> Column:
    return random.choice([column for column in table.columns if column.is_number])


def _text(table: Table, random: Random) -> Column:
    return random.choice([column for column in table.columns if not column.is_number])


def _other(table: Table, random: Random, *used: Column) -> Column:
    return random.choice([column for column in table.columns if column not in used])


def _select_one(table: Table, random: Random, quote: str) -> Asked:
    column = random.choice(table.columns)
    question = random.choice(
        (
            f"What is the {column.phrase} of each {table.entity}?",
            f"List the {column.phrase} of all {table.entities}.",
            f"Show the {column.phrase} of every {table.entity}.",
            f"Give me the {column.phrase} for all {table.entities}.",
        )
    )
    return Asked(question, f"SELECT {column.name} FROM {table.name}")


def _select_two(table: Table, random: Random, quote: str) -> Asked:
    first, second = _two(table, random)
    question = random.choice(
        (
            f"What are the {first.phrase} and {second.phrase} of each {table.entity}?",
            f"List the {first.phrase} and {second.phrase} of all {table.entities}.",
            f"Show the {first.phrase} and the {second.phrase} of every {table.entity}.",
        )
    )
    return Asked(question, f"SELECT {first.name}, {second.name} FROM {table.name}")


def _select_where(table: Table, random: Random, quote: str) -> Asked:
    column, by = _two(table, random)
    english, sql = _condition(by, random, quote=quote)
    question = random.choice(
        (
            f"What is the {column.phrase} of the {table.entity} with {english}?",
            f"Find the {column.phrase} of {table.entities} with {english}.",
            f"Show the {column.phrase} of all {table.entities} with {english}.",
            f"Which {column.phrase} belongs to the {table.entity} with {english}?",
        )
    )
    return Asked(question, f"SELECT {column.name} FROM {table.name} WHERE {sql}")


def _select_where_two(table: Table, random: Random, quote: str) -> Asked:
    first, second = _two(table, random)
    column = _other(table, random, first, second)
    joint, keyword = random.choice((("and", "AND"), ("and", "AND"), ("or", "OR")))
    one, sql_one = _condition(first, random, quote=quote)
    two, sql_two = _condition(second, random, quote=quote)
    question = random.choice(
        (
            f"What is the {column.phrase} of the {table.entity} with {one} {joint} {two}?",
            f"Find the {column.phrase} of {table.entities} with {one} {joint} {two}.",
        )
    )
    where = f"{sql_one} {keyword} {sql_two}"
    return Asked(question, f"SELECT {column.name} FROM {table.name} WHERE {where}")


def _count(table: Table, random: Random, quote: str) -> Asked:
    question = random.choice(
        (
            f"How many {table.entities} are there?",
            f"Count the {table.entities}.",
            f"What is the number of {table.entities}?",
        )
    )
    return Asked(question, f"SELECT COUNT(*) FROM {table.name}")


def _count_where(table: Table, random: Random, quote: str) -> Asked:
    english, sql = _condition(random.choice(table.columns), random, quote=quote)
    question = random.choice(
        (
            f"How many {table.entities} have {english}?",
            f"Count the {table.entities} with {english}.",
            f"What is the number of {table.entities} with {english}?",
        )
    )
    return Asked(question, f"SELECT COUNT(*) FROM {table.name} WHERE {sql}")


_AGGREGATES = (("average", "AVG"), ("largest", "MAX"), ("smallest", "MIN"), ("total", "SUM"))


def _aggregate(table: Table, random: Random, quote: str) -> Asked:
    column = _number(table, random)
    word, function = random.choice(_AGGREGATES)
    question = random.choice(
        (
            f"What is the {word} {column.phrase} of all {table.entities}?",
            f"Find the {word} {column.phrase} of the {table.entities}.",
            f"Give the {word} {column.phrase} over all {table.entities}.",
        )
    )
    return Asked(question, f"SELECT {function}({column.name}) FROM {table.name}")


def _aggregate_where(table: Table, random: Random, quote: str) -> Asked:
    column = _number(table, random)
    word, function = random.choice(_AGGREGATES)
    english, sql = _condition(_other(table, random, column), random, quote=quote)
    question = random.choice(
        (
            f"What is the {word} {column.phrase} of {table.entities} with {english}?",
            f"Find the {word} {column.phrase} of all {table.entities} with {english}.",
        )
    )
    return Asked(question, f"SELECT {function}({column.name}) FROM {table.name} WHERE {sql}")


def _order(table: Table, random: Random, quote: str) -> Asked:
    column, by = _two(table, random)
    order, keyword = random.choice((("ascending order", ""), ("descending order", " DESC")))
    question = random.choice(
        (
            f"List the {column.phrase} of all {table.entities} in {order} of {by.phrase}.",
            f"Show the {column.phrase} of every {table.entity} sorted by {by.phrase} in {order}.",
        )
    )
    return Asked(question, f"SELECT {column.name} FROM {table.name} ORDER BY {by.name}{keyword}")


def _superlative(table: Table, random: Random, quote: str) -> Asked:
    by = _number(table, random)
    column = _other(table, random, by)
    word, keyword = random.choice((("highest", " DESC"), ("lowest", "")))
    question = random.choice(
        (
            f"What is the {column.phrase} of the {table.entity} with the {word} {by.phrase}?",
            f"Find the {column.phrase} of the {table.entity} that has the {word} {by.phrase}.",
        )
    )
    order = f"ORDER BY {by.name}{keyword} LIMIT 1"
    return Asked(question, f"SELECT {column.name} FROM {table.name} {order}")


def _top(table: Table, random: Random, quote: str) -> Asked:
    by = _number(table, random)
    column = _other(table, random, by)
    count = random.randint(2, 9)
    question = (
        f"List the {column.phrase} of the {count} {table.entities} with the highest {by.phrase}."
    )
    order = f"ORDER BY {by.name} DESC LIMIT {count}"
    return Asked(question, f"SELECT {column.name} FROM {table.name} {order}")


def _distinct(table: Table, random: Random, quote: str) -> Asked:
    column = _text(table, random)
    if random.random() < 0.5:
        return Asked(
            f"How many different values of {column.phrase} do the {table.entities} have?",
            f"SELECT COUNT(DISTINCT {column.name}) FROM {table.name}",
        )
    return Asked(
        f"What are the different values of {column.phrase} of the {table.entities}?",
        f"SELECT DISTINCT {column.name} FROM {table.name}",
    )


def _group(table: Table, random: Random, quote: str) -> Asked:
    column = _text(table, random)
    if random.random() < 0.5:
        return Asked(
            f"How many {table.entities} are there for each {column.phrase}?",
            f"SELECT {column.name}, COUNT(*) FROM {table.name} GROUP BY {column.name}",
        )
    number = _number(table, random)
    word, function = random.choice(_AGGREGATES)
    return Asked(
        f"What is the {word} {number.phrase} of the {table.entities} for each {column.phrase}?",
        f"SELECT {column.name}, {function}({number.name}) FROM {table.name} GROUP BY {column.name}",
    )


def _having(table: Table, random: Random, quote: str) -> Asked:
    column = _text(table, random)
    count = random.randint(2, 20)
    return Asked(
        f"Which {column.phrase} is shared by more than {count} {table.entities}?",
        f"SELECT {column.name} FROM {table.name} GROUP BY {column.name} HAVING COUNT(*) > {count}",
    )


def _between(table: Table, random: Random, quote: str) -> Asked:
    by = _number(table, random)
    column = _other(table, random, by)
    low, high = sorted((number_value(by, random), number_value(by, random)))
    return Asked(
        f"Find the {column.phrase} of {table.entities} with {by.phrase} between {low} and {high}.",
        f"SELECT {column.name} FROM {table.name} WHERE {by.name} BETWEEN {low} AND {high}",
    )


def _like(table: Table, random: Random, quote: str) -> Asked:
    by = _text(table, random)
    column = _other(table, random, by)
    part = random.choice(text_value(by, random).split())
    return Asked(
        f"Show the {column.phrase} of {table.entities} whose {by.phrase} contains {part}.",
        f"SELECT {column.name} FROM {table.name} WHERE {by.name} LIKE {quote}%{part}%{quote}",
    )


def _above_average(table: Table, random: Random, quote: str) -> Asked:
    by = _number(table, random)
    column = _other(table, random, by)
    word, sign = random.choice((("above", ">"), ("below", "<")))
    inner = f"SELECT AVG({by.name}) FROM {table.name}"
    return Asked(
        f"What is the {column.phrase} of {table.entities} with {by.phrase} {word} the average?",
        f"SELECT {column.name} FROM {table.name} WHERE {by.name} {sign} ({inner})",
    )


_Kind = Callable[[Table, Random, str], Asked]
_KINDS: tuple[tuple[_Kind, int], ...] = (
    (_select_one, 3),
    (_select_two, 3),
    (_select_where, 6),
    (_select_where_two, 4),
    (_count, 2),
    (_count_where, 4),
    (_aggregate, 3),
    (_aggregate_where, 3),
    (_order, 3),
    (_superlative, 3),
    (_top, 1),
    (_distinct, 2),
    (_group, 3),
    (_having, 1),
    (_between, 2),
    (_like, 2),
    (_above_average, 1),
)


def ask(table: Table, random: Random, *, quote: str = '"') -> Asked:
    """A question about one table and its query; ``quote`` stands around text values."""
    kinds = [kind for kind, _ in _KINDS]
    kind = random.choices(kinds, [weight for _, weight in _KINDS])[0]
    return kind(table, random, quote)


def ask_both(parent: Table, child: Table, random: Random, *, quote: str = '"') -> Asked:
    """A question that needs two tables, joined by the parent's key."""
    key = parent.columns[0]
    wanted = random.choice(parent.columns[1:])
    asked = random.choice(child.columns[:-1])
    join = f"FROM {parent.name} AS T1 JOIN {child.name} AS T2 ON T1.{key.name} = T2.{key.name}"
    if random.random() < 0.3:
        return Asked(
            f"List the {wanted.phrase} of each {parent.entity} and the {asked.phrase} of its "
            f"{child.entity}.",
            f"SELECT T1.{wanted.name}, T2.{asked.name} {join}",
        )
    english, sql = _condition(asked, random, alias="T2.", quote=quote)
    return Asked(
        f"What is the {wanted.phrase} of the {parent.entity} whose {child.entity} has {english}?",
        f"SELECT T1.{wanted.name} {join} WHERE {sql}",
    )
