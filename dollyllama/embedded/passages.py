"""Plain English: short passages of facts, and instructions about them with their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dollyllama.embedded import words


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody to write about."""

    name: str
    job: str
    city: str
    birthplace: str
    born: int
    pet: str
    pet_name: str
    likes: str

    @property
    def first(self) -> str:
        return self.name.split()[0]


def make_person(random: Random) -> Person:
    city, birthplace = random.sample(words.CITIES, 2)
    return Person(
        words.person(random),
        random.choice(words.JOBS),
        city,
        birthplace,
        random.randint(1930, 2005),
        random.choice(words.ANIMALS),
        random.choice(words.FIRST_NAMES),
        random.choice(words.SUBJECTS + words.GENRES),
    )


def describe(person: Person, random: Random) -> str:
    """Three to six facts about a person, in words that vary."""
    first = person.first
    facts = [
        random.choice(
            (
                f"{first} was born in {person.birthplace} in {person.born}.",
                f"{person.born} is the year in which {first} was born, in {person.birthplace}.",
            )
        ),
        random.choice(
            (
                f"{first} works as {words.article(person.job)} in {person.city}.",
                f"In {person.city} {first} has a job as {words.article(person.job)}.",
            )
        ),
        f"{first} has {words.article(person.pet)} called {person.pet_name}.",
        f"{first} likes {person.likes}.",
    ]
    random.shuffle(facts)
    opening = f"This is about {person.name}."
    return " ".join([opening, *facts[: random.randint(3, 4)]])


def story(random: Random) -> str:
    """A passage in which small things happen."""
    first, second = random.sample(words.FIRST_NAMES, 2)
    sentences = []
    for _ in range(random.randint(3, 7)):
        who = random.choice((first, first, second))
        thing, adjective = random.choice(words.THINGS), random.choice(words.ADJECTIVES)
        place, animal = random.choice(words.PLACES), random.choice(words.ANIMALS)
        sentences.append(
            random.choice(
                (
                    f"{who} went to the {place} on {random.choice(words.DAYS)}.",
                    f"There was {words.article(adjective)} {thing} in the {place}.",
                    f"{who} {random.choice(words.VERBS_PAST)} the {adjective} {thing}.",
                    f"{first} and {second} met near the {place}.",
                    f'"I like the {thing}," said {who}.',
                    f"The {animal} was {adjective} and {random.choice(words.ADJECTIVES)}.",
                    f"It was {words.article(adjective)} day in {random.choice(words.MONTHS)}.",
                    f"{who} asked the {random.choice(words.JOBS)} about the {thing}.",
                    (
                        f"Then they took the {random.choice(words.VEHICLES)} to "
                        f"{random.choice(words.CITIES)}."
                    ),
                )
            )
        )
    return " ".join(sentences)


@dataclass(frozen=True, slots=True)
class Task:
    instruction: str
    response: str


def _about_person(random: Random) -> Task:
    person = make_person(random)
    text = describe(person, random)
    first = person.first
    choices = [
        (f"Where was {first} born?", f"{first} was born in {person.birthplace}.", "born"),
        (f"When was {first} born?", f"{first} was born in {person.born}.", "born"),
        (f"Where does {first} work?", f"{first} works in {person.city}.", person.job),
        (
            f"What is the job of {first}?",
            f"{first} works as {words.article(person.job)}.",
            person.job,
        ),
        (
            f"What is the name of the {person.pet} of {first}?",
            f"The {person.pet} of {first} is called {person.pet_name}.",
            person.pet_name,
        ),
        (f"What does {first} like?", f"{first} likes {person.likes}.", "likes"),
    ]
    question, answer, _ = random.choice([each for each in choices if each[2] in text])
    return Task(f"{question}\n{text}", answer)


def _classify(random: Random) -> Task:
    one, two = random.sample(sorted(words.CATEGORIES), 2)
    mixed = [(word, one) for word in random.sample(words.CATEGORIES[one], 2)]
    mixed += [(word, two) for word in random.sample(words.CATEGORIES[two], 2)]
    random.shuffle(mixed)
    names = words.listing([word for word, _ in mixed])
    return Task(
        random.choice(
            (
                (
                    f"Tell which of these is {words.article(one)} and which is "
                    f"{words.article(two)}: {names}."
                ),
                f"Sort these into {words.plural(one)} and {words.plural(two)}: {names}.",
            )
        ),
        "\n".join(
            f"{kind.capitalize()}: {words.listing([word for word, of in mixed if of == kind])}."
            for kind in (one, two)
        ),
    )


def _odd_one_out(random: Random) -> Task:
    one, two = random.sample(sorted(words.CATEGORIES), 2)
    odd = random.choice(words.CATEGORIES[two])
    names = [*random.sample(words.CATEGORIES[one], 3), odd]
    random.shuffle(names)
    return Task(
        f"Which word does not belong with the others: {words.listing(names)}?",
        f"{odd} does not belong with the others. It is {words.article(two)}, and the others are "
        f"{words.plural(one)}.",
    )


def _make_list(random: Random) -> Task:
    items = random.sample(words.THINGS + words.FRUITS, random.randint(3, 5))
    place = random.choice(words.PLACES)
    who = random.choice(words.FIRST_NAMES)
    return Task(
        f"Make a list of what {who} takes to the {place}: {words.listing(items)}.",
        "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1)),
    )


def _rewrite(random: Random) -> Task:
    who, thing = words.person(random), random.choice(words.THINGS)
    verb, adjective = random.choice(words.VERBS_PAST), random.choice(words.ADJECTIVES)
    place = random.choice(words.PLACES)
    plain = f"{who} {verb} the {adjective} {thing} at the {place}"
    task, answer = random.choice(
        (
            ("Rewrite this sentence as a question", f"Is it true that {plain}?"),
            ("Write this sentence in capital letters", plain.upper() + "."),
            ("Say politely that you do not believe this", f"I am sorry, but I doubt that {plain}."),
            ("Report this sentence as news", f"News: {plain}, as we have heard today."),
        )
    )
    return Task(f"{task}: {plain}.", answer)


def _extract(random: Random) -> Task:
    people = [make_person(random) for _ in range(random.randint(2, 3))]
    what = random.choice(("city", "job"))
    text = " ".join(
        f"{each.name} is {words.article(each.job)} from {each.city}." for each in people
    )
    noun = words.plural(what)
    return Task(
        f"Extract the names and {noun} from this text.\n{text}",
        "\n".join(f"{each.name}: {getattr(each, what)}" for each in people),
    )


def _compare(random: Random) -> Task:
    first, second = random.sample(words.FIRST_NAMES, 2)
    one, two = random.sample(range(16, 90), 2)
    word = random.choice(("older", "younger"))
    older = first if one > two else second
    answer = older if word == "older" else ({first, second} - {older}).pop()
    ages = {first: one, second: two}
    return Task(
        f"{first} is {one} years old and {second} is {two} years old. Who is {word}?",
        f"{answer} is {word}, with {ages[answer]} years.",
    )


_KINDS: tuple[tuple[Callable[[Random], Task], int], ...] = (
    (_about_person, 5),
    (_classify, 2),
    (_odd_one_out, 1),
    (_make_list, 2),
    (_rewrite, 2),
    (_extract, 2),
    (_compare, 1),
)


def make_task(random: Random) -> Task:
    kinds = [kind for kind, _ in _KINDS]
    return random.choices(kinds, [weight for _, weight in _KINDS])[0](random)
