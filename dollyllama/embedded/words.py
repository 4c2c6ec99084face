"""The words that the generated texts are made of, and names nobody has seen before."""

from __future__ import annotations

from random import Random

FIRST_NAMES = (
    "Ada Alan Amir Anna Astrid Ben Bruno Carla Chen Clara Dana David Diego Elena Emma Erik Farah "
    "Felix Fern Grace Hana Henry Ines Ivan Jade James Julia Kai Karim Lena Leo Lily Lucas Maria "
    "Marta Mei Mike Mona Nadia Nils Nina Olga Omar Oscar Paul Petra Priya Ravi Rosa Ruth Sam Sara "
    "Sofia Tara Theo Tom Uma Vera Victor Wanda Yara Yusuf Zoe"
).split()
LAST_NAMES = (
    "Adams Baker Berg Bishop Brown Carter Cohen Cooper Costa Cruz Dubois Evans Fischer Fox Garcia "
    "Gray Gruber Hall Hansen Hill Ito Jones Khan Kim Klein Kumar Lang Lopez Marsh Meyer Mills "
    "Mori Nash Novak Olsen Owen Park Perez Reed Rossi Rowe Sato Shaw Silva Singh Smith Stone Tran "
    "Turner Vogel Walker Ward Weber West Wood Young"
).split()
CITIES = (
    "Accra Athens Austin Berlin Bern Bogota Boston Bristol Cairo Chicago Cork Dallas Delhi Denver "
    "Dublin Geneva Hanoi Helsinki Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Miami Milan "
    "Munich Nairobi Naples Oslo Paris Porto Prague Quito Riga Rome Seattle Seoul Sofia Tokyo "
    "Toronto Turin Vienna Warsaw York Zurich"
).split()
COUNTRIES = (
    "Argentina Austria Belgium Brazil Canada Chile China Denmark Egypt Finland France Germany "
    "Ghana Greece India Ireland Italy Japan Kenya Mexico Norway Peru Poland Portugal Spain Sweden "
    "Turkey Vietnam"
).split()
COLOURS = "black blue brown gold green grey orange pink purple red silver white yellow".split()
ANIMALS = (
    "bear bird cat cow dog duck fox frog goat hen horse lion mouse owl pig rabbit sheep"
).split()
FRUITS = "apple banana cherry fig grape lemon lime mango melon orange peach pear plum".split()
VEHICLES = "bike boat bus car ferry plane ship taxi train tram truck van".split()
TOOLS = "axe brush drill hammer knife ladder needle rake saw shovel spade wrench".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GENRES = "blues classical country disco folk jazz metal opera pop rock soul swing".split()
SUBJECTS = "art biology chemistry drama geography history law maths medicine music physics".split()
JOBS = "baker chef clerk doctor driver engineer farmer guard lawyer nurse pilot teacher".split()
MATERIALS = (
    "brick clay copper cotton glass gold iron leather paper silk steel stone wood wool"
).split()
STATES = "active cancelled closed delayed draft failed finished new open paid pending sold".split()
LEVELS = "basic bronze expert gold high junior low medium premium senior silver standard".split()
THINGS = (
    "bag ball basket bell blanket book bottle bowl box bread button cake candle card chair clock "
    "coat coin cup door envelope flower fork hat jar key kite lamp letter map marble mirror "
    "muffin notebook pen pencil photo pillow plate poster ribbon ring rope scarf seed shell shirt "
    "shoe spoon stamp sticker table ticket towel toy umbrella vase watch window"
).split()
ADJECTIVES = (
    "big bright busy calm cheap clean clever cold cosy dark deep dry empty famous fast fresh "
    "happy heavy honest kind large light long loud narrow new noisy old plain proud quick quiet "
    "rich sharp short shy simple small soft strong sweet tall thin tired warm wide wild wise "
    "young"
).split()
PLACES = (
    "bakery beach bridge castle church farm forest garden harbour hill hospital hotel kitchen "
    "lake library market mountain museum office park river school shop square station street "
    "theatre tower village"
).split()
VERBS_PAST = (
    "bought built carried cleaned counted drew dropped fixed found gave hid kept lost made moved "
    "opened packed painted saw shared showed sold stored threw took washed wrapped"
).split()

#: What a category holds: for questions about kinds of things.
CATEGORIES: dict[str, list[str]] = {
    "animal": ANIMALS,
    "city": CITIES,
    "colour": COLOURS,
    "country": COUNTRIES,
    "fruit": FRUITS,
    "job": JOBS,
    "material": MATERIALS,
    "month": MONTHS,
    "tool": TOOLS,
    "vehicle": VEHICLES,
}

#: All of the above.
EVERY = tuple(
    sorted(
        {
            *FIRST_NAMES,
            *LAST_NAMES,
            *(word for kind in CATEGORIES.values() for word in kind),
            *COLOURS,
            *DAYS,
            *GENRES,
            *SUBJECTS,
            *STATES,
            *LEVELS,
            *THINGS,
            *ADJECTIVES,
            *PLACES,
            *VERBS_PAST,
        }
    )
)

_ONSETS = (
    "b bl br c ch cl cr d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk st t tr v w z".split()
)
_VOWELS = "a e i o u ai ea ee oa oo ou".split()
_CODAS = "b ck d ft g l lm ll m n nd ng nk p r rd rk rn s sh sk st t th x".split()


def plural(noun: str) -> str:
    """The regular English plural of the nouns used here, and the few irregular ones."""
    irregular = {"mouse": "mice", "sheep": "sheep", "person": "people", "knife": "knives"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def listing(words: list[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def person(random: Random) -> str:
    return f"{random.choice(FIRST_NAMES)} {random.choice(LAST_NAMES)}"


def invented_word(random: Random) -> str:
    """A pronounceable word of one to three syllables that has most likely never been written."""
    syllables = random.choices((1, 2, 3), (3, 5, 1))[0]
    word = ""
    for number in range(syllables):
        word += random.choice(_ONSETS) + random.choice(_VOWELS)
        if number == syllables - 1 or random.random() < 0.3:
            word += random.choice(_CODAS)
    return word
