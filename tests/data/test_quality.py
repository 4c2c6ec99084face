from __future__ import annotations

import math
import re
import sqlite3
from contextlib import closing
from itertools import product
from random import Random

import pytest

from dollyllama.config import Grader, Quality, RowFormat, Rule
from dollyllama.data.clean import clean
from dollyllama.data.example import Example, Rejected
from dollyllama.data.formats import read_example
from dollyllama.data.quality import QUALITY, RULES, apply_rules, check_quality, read_tables
from dollyllama.data.sources import locate, read_rows
from dollyllama.embedded import EMBEDDED
from tests.data.build import make_example, make_source

SINGERS = "CREATE TABLE singer (Singer_ID INTEGER, Name VARCHAR, Age INTEGER)"
CONCERTS = "CREATE TABLE concert (Concert_ID INTEGER, Singer_ID INTEGER, Title VARCHAR)"
BOTH = f"{SINGERS}; {CONCERTS}"
ASK = "Write a Python function that adds two numbers."


def fault(
    rule: Quality, instruction: str, response: str, grader: Grader = Grader.text, context: str = ""
) -> str | None:
    return QUALITY[rule](make_example(instruction, response, context=context), grader)


def sql_fault(response: str, context: str = BOTH) -> str | None:
    return fault(Quality.sql_columns, "Which?", response, Grader.sql, context)


def test_every_rule_has_a_function() -> None:
    assert set(RULES) == set(Rule)
    assert set(QUALITY) == set(Quality)


# --- keeping rows apart -------------------------------------------------------------------------


def test_real_table_names_rejects_numbered_tables_alone() -> None:
    answers = {
        "SELECT a FROM table_name_12 WHERE b = 1": False,
        "SELECT a FROM table_1_2": False,
        "SELECT a FROM head": True,
        'SELECT week FROM games WHERE "week" = "week"': True,
    }
    examples = [make_example("i", answer, row=row) for row, answer in enumerate(answers)]
    kept, rejected = apply_rules(examples, [Rule.real_table_names])
    assert [example.response for example in kept] == [a for a, stays in answers.items() if stays]
    assert {each.reason for each in rejected} == {"real_table_names"}


def test_a_row_is_either_kept_or_rejected_with_its_place_and_the_first_rule_that_it_breaks() -> (
    None
):
    examples = [
        make_example("Say it.", "Here it is.", row=3),
        make_example("Say it.", "...", row=4),
        make_example("c", "...", row=7),
    ]
    kept, rejected = check_quality(examples, [Quality.length, Quality.no_answer], Grader.text)
    assert kept == examples[:1]
    assert [(each.source, each.row, each.reason) for each in rejected] == [
        ("a", 4, "no_answer"),
        ("a", 7, "no_answer"),
    ]
    assert all(each.detail for each in rejected)


def test_a_rule_that_is_off_drops_nothing() -> None:
    examples = [make_example("Say it.", "...")]
    for rule in set(Quality) - {Quality.no_answer}:
        assert check_quality(examples, [rule], Grader.text) == (examples, [])
    assert check_quality(examples, [], Grader.text) == (examples, [])
    assert apply_rules([make_example("i", "SELECT a FROM table_1")], [])[1] == []


def test_the_embedded_sample_has_none_of_the_faults() -> None:
    sources = {
        "code_alpaca_20k": (RowFormat.alpaca, Grader.code),
        "dolly_hhrlhf": (RowFormat.prompt_response, Grader.text),
        "grade_school_math_instructions": (RowFormat.grade_school_math, Grader.maths),
        "sql_create_context": (RowFormat.sql_create_context, Grader.sql),
    }
    for file, (row_format, grader) in sources.items():
        source = make_source("absent", file=file, format=row_format, grader=grader)
        place = locate(file, source, root=EMBEDDED)
        examples: list[Example] = []
        for number, row in enumerate(read_rows(place, name=file, split="train")):
            read = read_example(row, name=file, number=number, source=source)
            if isinstance(read, Rejected):
                continue
            cleaned = clean(*read, group_by=source.group_by)
            if not isinstance(cleaned, Rejected):
                examples.append(cleaned[0])
        assert examples
        assert check_quality(examples, Quality, grader)[1] == []


# --- any row ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Could you give me a recipe for pancakes?", "Sure."),
        ("Insult me.", "OK"),
        ("I want a parrot", "............"),
        ("How do planes fly?", "…"),
        ("Name the capital of France.", "N/A"),
        ("Write a haiku.", "TODO"),
        ("Run this program.\nprint('hi')", "<noinput>\nOutput:\nhi"),
        ("Read this text aloud.", "<nooutput>\nThat needs a loudspeaker."),
    ],
)
def test_an_answer_that_says_nothing_is_none(instruction: str, response: str) -> None:
    assert fault(Quality.no_answer, instruction, response)


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Is nursing a good career?", "yes"),
        ("How many legs has a spider?", "8"),
        ("What does the function return?", "None"),
        ("Sort the empty list.", "[]"),
        ("Draw a triangle of stars.", "*\n**\n***"),
        ("Which sign is missing in 3 _ 2 = 1?", "- (minus)"),
        ("What do I type to leave the prompt?", "exit"),
        ("Is the text an input or an output?", "Input"),
        ("Will it work?", "Sure, if the key is right."),
    ],
)
def test_a_short_answer_may_be_one(instruction: str, response: str) -> None:
    assert fault(Quality.no_answer, instruction, response, Grader.code) is None
    assert fault(Quality.length, instruction, response, Grader.code) is None


def test_length_has_a_floor_for_the_instruction_and_a_ceiling_for_the_answer() -> None:
    assert fault(Quality.length, "c", "Try again.")
    assert fault(Quality.length, "c?", "A letter.") is None
    assert fault(Quality.length, "Tell all.", "a" * 20_000) is None
    assert "20,001" in str(fault(Quality.length, "Tell all.", "a" * 20_001))


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Which team do you like?", "As an AI, I have no favourite team."),
        ("How are you?", "As a Large Language Model (LLM), I have no moods."),
        ("Whom shall I vote for?", "That is up to you, and as an AI language model, I stay out."),
        ("Can we marry?", "I may not feel love as an AI model that saw much text."),
        ("Tell me a joke", "I am a generative model. Jokes are beyond me."),
        ("Who won today?", "My knowledge cutoff is in spring, so look it up."),
    ],
)
def test_an_answer_that_calls_itself_a_model_is_dropped(instruction: str, response: str) -> None:
    assert fault(Quality.as_an_ai, instruction, response)


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("What is an LLM?", "A large language model is trained on text, as an AI must be."),
        ("Which tool is it?", "It works as an AI assistant inside the editor."),
        ("Are you a robot?", "As an AI, I have no body."),
        ("Imagine you are a machine and greet me.", "Hello, I am a virtual assistant."),
        ("Put it into French: I am a computer scientist", "Je suis informaticien."),
        ("Print a greeting.", 'print("Hello, I am your shop\'s guide!")'),
        ("Who are you?", "I am an airline pilot."),
    ],
)
def test_an_answer_about_models_stays(instruction: str, response: str) -> None:
    assert fault(Quality.as_an_ai, instruction, response) is None


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I cannot help with that.",
        "I cannot answer questions about that.",
        "Unfortunately, I can't answer that question.",
        "I'm unable to provide medical advice.",
        "I apologize, but I won't write this.",
        "Sorry, I am not able to complete the task.",
        "I apologize, but I cannot fulfill this request.",
        "I'm sorry. I can't help with that.",
        "I cannot and will not provide that.",
        "I'm sorry, but I can't, and won't, write this.",
    ],
)
def test_a_refusal_is_dropped(response: str) -> None:
    assert fault(Quality.refusal, "Do it.", response)


@pytest.mark.parametrize(
    "response",
    [
        "Unfortunately, the singer died in 2009.",
        "I can't believe that I found a new animal.",
        "I'm sorry that you are sad. Go for a walk.",
        "There is no single answer to this question.",
        "None, since append() returns nothing.",
        "Sorry, Monopoly and Scrabble are board games.",
        "It's not possible to predict the stock market.",
        "I'm sorry that you are sad. Go for a walk. I can't help you alone.",
        "Dear neighbour, I cannot help feeling that your dog dislikes me.",
        'print("Sorry, I cannot answer that")',
    ],
)
def test_what_only_sounds_like_a_refusal_stays(response: str) -> None:
    assert fault(Quality.refusal, "Do it.", response) is None


@pytest.mark.parametrize(
    "text", ["café", "“quoted” – and so on…", "Zoë’s naïve façade", "€5, 20 °C"]
)
def test_text_that_was_read_in_the_wrong_encoding_is_found(text: str) -> None:
    assert fault(Quality.mojibake, "Say it.", text) is None
    broken = text.encode().decode("cp1252", errors="replace")
    assert broken != text
    assert fault(Quality.mojibake, "Say it.", broken)
    assert fault(Quality.mojibake, broken, "Fine.")


@pytest.mark.parametrize(
    "text",
    [
        "NÃO VÁ",
        "« Il a dit : ÂME »",
        "São Paulo, Ângela, Âne",
        "ᎣᏏᏲ ਪੰਜਾਬੀ 日本 🙂",
        "x² ± ½ · µ",
        "\x85next line",
    ],
)
def test_other_letters_are_no_wrong_encoding(text: str) -> None:
    assert fault(Quality.mojibake, "Say it.", text) is None


def test_a_question_about_encodings_may_show_a_wrong_one() -> None:
    assert fault(Quality.mojibake, "Which encoding makes CafÃ© of Café?", "Latin-1.") is None


# --- text ---------------------------------------------------------------------------------------

SIGHTS = (
    "Plaza de la Villa, Palacio de los Reyes, Puerta del Sol, Casa de las Conchas, "
    "Calle del Arenal, Torre de los Lujanes, Iglesia de la Vera Cruz, Museo de la Ciudad"
)
QUESTION = "What is the best way to cook the potatoes that I have from my garden?"
FOREIGN = {
    "Spanish": "La mejor manera de cocinar las papas es ponerlas en el agua con un poco de sal, y "
    "luego dejarlas por veinte minutos, pero no más, para que no se rompan.",
    "French": "Le plus simple est de les mettre dans une casserole avec du sel et de les cuire sur "
    "le feu pour vingt minutes, mais pas plus, car elles ne sont pas très dures.",
    "German": "Am besten kocht man sie mit der Schale und etwas Salz, denn so werden sie nicht zu "
    "weich und sind auch für den Salat noch gut, der dann mit Essig gemacht wird.",
    "Russian": "Лучше всего варить картофель в мундире двадцать минут.",
    "Chinese": "最好的方法是把土豆连皮放在盐水里煮二十分钟。",
}


@pytest.mark.parametrize("language", FOREIGN)
def test_an_english_question_with_an_answer_in_another_language_is_found(language: str) -> None:
    answer = FOREIGN[language]
    assert fault(Quality.other_language, QUESTION, answer)
    assert fault(Quality.other_language, QUESTION, answer, Grader.code) is None
    assert fault(Quality.other_language, f"{QUESTION} Answer in {language}.", answer) is None
    assert fault(Quality.other_language, answer, answer) is None


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("What are the sights of the old town that you would tell me to see?", SIGHTS),
        ("Classify the list.", ", ".join(f"coal number {n}: non-renewable" for n in range(12))),
        (
            "What is the list of the songs of the singer?",
            "Spring Rain (春雨), Night Train (夜行列車)",
        ),
        ("What is the name of the island?", "Kahoʻolawe"),
        ("Qui était Clovis ?", FOREIGN["French"]),
    ],
)
def test_names_and_short_answers_are_no_other_language(instruction: str, response: str) -> None:
    assert fault(Quality.other_language, instruction, response) is None


def test_a_loop_at_the_end_is_found_wherever_it_began() -> None:
    for unit in ("and so on ", "the best of ", "7, 12, "):
        answer = f"It began well. {unit * 60}"
        for cut in range(len(unit)):
            assert fault(Quality.repeated_text, QUESTION, answer[: len(answer) - cut])
            assert fault(Quality.repeated_text, QUESTION, answer, Grader.code) is None


def test_a_sentence_that_fills_the_answer_is_found() -> None:
    said = "Put the pan on the stove and wait."
    others = [f"Then add ingredient number {n}, which is a good one." for n in range(4)]
    assert fault(Quality.repeated_text, QUESTION, f"{said} {others[0]} {said} {said} {said} Done.")
    assert fault(Quality.repeated_text, QUESTION, f"{said} {said} {said}") is None  # three times
    diluted = " ".join(f"{said} {other} {other[::-1]} {other * 2}" for other in others)
    assert fault(Quality.repeated_text, QUESTION, diluted) is None
    assert fault(Quality.repeated_text, "Write a song with a chorus.", f"{said}\n" * 5) is None


def test_a_list_with_like_entries_is_no_repetition() -> None:
    answer = "\n".join(f"Dish {n}: found in the kitchen" for n in range(12))
    assert fault(Quality.repeated_text, QUESTION, answer) is None


# --- SQL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [
        "no schema here",
        "SELECT 1",
        "CREATE TABLE t (a INTEGER",
        "CREATE TABLE (a, b) c",
        "CREATE TABEL t (a INTEGER)",
        "CREATE TABLE u (b INTEGER); CREATE TABEL t (a INTEGER)",
        "CREATE TABLE t a INTEGER, name)",
        "CREATE TABLE t [a INTEGER]",
        "CREATE TABLE t (a INTEGER), name",
        "CREATE TABLE t (a INTEGER) CREATE TABLE u (b INTEGER)",
        "CREATE TABLE t (a INTEGER,, name VARCHAR)",
        "CREATE TABLE t (a INTEGER, -- the last\n)",
        "CREATE TABLE t (, a INTEGER)",
        "CREATE TABLE t ()",
        "CREATE TABLE t (PRIMARY KEY (a))",
        "CREATE TABLE t",
        "CREATE TABLE t (a INTEGER); more",
    ],
)
def test_a_schema_that_cannot_be_read_is_dropped_once(context: str) -> None:
    assert fault(Quality.sql_schema, "Which?", "SELECT a FROM t", Grader.sql, context)
    assert sql_fault("SELECT a FROM t", context) is None
    assert fault(Quality.sql_schema, "Which?", "SELECT a FROM t", Grader.text, context) is None


@pytest.mark.parametrize(
    "context",
    [
        "CREATE TABLE t (a)",
        "CREATE TABLE t (2008 VARCHAR, order VARCHAR);",
        "CREATE TABLE t (a TEXT DEFAULT '(,, )' NOT NULL, b INTEGER CHECK (b IN (1, 2)));;",
        'create table `t` ([a b] numeric(8, 2), "c d" text) -- ,,',
        "CREATE TABLE t (a INTEGER PRIMARY KEY) WITHOUT ROWID",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "CREATE TABLE t AS SELECT 1 AS a",
        f"{SINGERS}; CREATE TRIGGER t AFTER INSERT ON singer BEGIN DELETE FROM singer; END",
        "CREATE TABLE t (a SERIAL, tags VARCHAR(10)[], grid INTEGER[3][3] NOT NULL)",
        "",
        " \n",
        f"BEGIN; DROP TABLE IF EXISTS t; {SINGERS}; INSERT INTO singer VALUES (1, 2, 3); COMMIT",
    ],
)
def test_a_schema_that_can_be_read_stays(context: str) -> None:
    assert fault(Quality.sql_schema, "Which?", "SELECT a FROM t", Grader.sql, context) is None


def test_a_list_of_columns_is_read_where_sqlite_reads_it() -> None:
    for kinds in product(["INTEGER", "", "NUMERIC(3, 2) NOT NULL", None], repeat=3):
        columns = ["" if kind is None else f"c{n} {kind}" for n, kind in enumerate(kinds)]
        context = f"CREATE TABLE t ({', '.join(columns)})"
        try:
            with closing(sqlite3.connect(":memory:")) as connection:
                connection.execute(context)
        except sqlite3.OperationalError:
            broken = True
        else:
            broken = False
        found = fault(Quality.sql_schema, "Which?", "SELECT 1", Grader.sql, context)
        assert bool(found) == broken, context


def test_a_table_that_is_made_twice_has_the_columns_of_both() -> None:
    context = "CREATE TABLE dorm (Name VARCHAR, name INTEGER); CREATE TABLE Dorm (Id VARCHAR)"
    assert read_tables(context) == {"dorm": {"name", "id", "rowid", "oid", "_rowid_", "rownum"}}
    assert fault(Quality.sql_schema, "Which?", "SELECT 1", Grader.sql, context) is None
    assert sql_fault("SELECT name FROM dorm WHERE ID = 3", context) is None


LACKING = {
    "SELECT Title FROM singer": None,  # another table's: a query of several tables may have it
    "SELECT country FROM singer": "column country",
    "SELECT T1.Title FROM singer AS T1": "column T1.Title",
    "SELECT T1.Name FROM singer AS T1 JOIN concert AS t2 ON T1.Singer_ID = T2.singer_id": None,
    "SELECT Name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.id": "column T1.id",
    "SELECT Name FROM singer WHERE YEAR = 1999": "column YEAR",
    "SELECT Name FROM singer WHERE Singer_ID IN (SELECT owner FROM concert)": "column owner",
    "SELECT COUNT(*) FROM singers": "table singers",
    "SELECT Name FROM singer WHERE Age > (SELECT AVG(Age) FROM singer)": None,
    'SELECT Name FROM singer WHERE Name = "Ann Lee"': None,
    "SELECT COUNT(*) AS n FROM concert GROUP BY Singer_ID ORDER BY n": None,
    "SELECT old.n FROM (SELECT Age AS n FROM singer) AS old": None,
    "WITH old AS (SELECT Age AS n FROM singer) SELECT n, old.n FROM old": None,
    "WITH old(years) AS (SELECT Age FROM singer) SELECT years FROM old": None,
    "SELECT T1.* FROM singer AS T1": None,
    "SELECT T1.Name FROM singer AS T1 UNION SELECT T1.Title FROM concert AS T1": None,
    "SELECT T1.Name FROM singer AS T1 UNION SELECT T1.Year FROM concert AS T1": "column T1.Year",
    "SELECT Name FROM singer ORDER BY Age DESC LIMIT 3": None,
    "SELECT rowid, oid, _rowid_, Name FROM singer": None,
    "SELECT value FROM json_each('[1]')": None,
    "SELECT Name, j.value FROM singer, json_each(singer.Name) AS j": None,
    "INSERT INTO singer VALUES (1, 2, 3)": None,
    "this is no query": None,
}


@pytest.mark.parametrize(("query", "lacking"), LACKING.items())
def test_names_that_the_schema_lacks_are_those_that_sqlite_misses(
    query: str, lacking: str | None
) -> None:
    found = sql_fault(query)
    assert found is None if lacking is None else found and lacking in found
    connection = sqlite3.connect(":memory:")
    connection.executescript(BOTH)
    try:
        connection.execute(query)
    except sqlite3.Error as error:
        missed = re.search(r"no such (?:column|table)", str(error))
        if "Title FROM singer" not in query:
            assert bool(missed) == (lacking is not None)
    else:
        assert lacking is None
    finally:
        connection.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT DATEDIFF(YEAR, Age, GETDATE()) FROM singer",
        "SELECT Name FROM singer WHERE TIMESTAMPDIFF(MONTH, Age, NOW()) > 5",
        "SELECT DATEADD(month, -1, Age) FROM singer",
        "SELECT datepart (year, Age) FROM singer",
        "SELECT DATE_TRUNC(month, Age) FROM singer",
        "SELECT CONVERT(VARCHAR, Age) FROM singer",
        "SELECT Name FROM singer WHERE ROWNUM <= 5",
    ],
)
def test_a_word_in_another_dialect_s_function_is_no_column(query: str) -> None:
    assert sql_fault(query) is None
    assert "column nme" in str(sql_fault(query.replace("FROM", ", nme FROM")))


@pytest.mark.parametrize(
    "more",
    [
        "CREATE VIEW old AS SELECT Age AS years FROM singer",
        "CREATE TABLE old AS SELECT Age AS years FROM singer",
        "ALTER TABLE singer ADD COLUMN years INTEGER",
        "ALTER SOMETHING that no parser knows",
    ],
)
def test_where_columns_cannot_be_told_none_is_lacking(
    more: str, caplog: pytest.LogCaptureFixture
) -> None:
    for query in ("SELECT years FROM old", "SELECT years FROM singer"):
        assert sql_fault(query, f"{SINGERS}; {more}") is None
        assert sql_fault(query, f"{SINGERS}; INSERT INTO singer VALUES (1, 2, 3)")
    assert not caplog.records


def test_only_answers_in_sql_are_asked_for_their_columns() -> None:
    assert fault(Quality.sql_columns, "Which?", "SELECT x FROM y", Grader.code, BOTH) is None


# --- code ---------------------------------------------------------------------------------------

SUM = "def add(a, b):\n    return a + b"
FLAT = "def add(numbers):\n total = 0\n for number in numbers:\n total += number\n return total"


@pytest.mark.parametrize(
    "answer",
    [
        FLAT,
        "def add(a, b)\n    return a + b",
        f"{SUM}\n\nprint(add(1, 2)) // prints 3",
        'import sys\n\nprint "no parentheses"',
        "def add(a, b):\n    try:\n        return a + b",
        "def add(a, b):\n    return “sum”",
        f"Here it is:\n\n```python\n{FLAT}\n```\nThat is all.",
        f"```py\n{SUM}\n```\n\n```py\n{FLAT}\n```",
    ],
)
def test_python_that_does_not_parse_is_found(answer: str) -> None:
    assert fault(Quality.python_syntax, ASK, answer, Grader.code)
    assert fault(Quality.python_syntax, ASK, answer, Grader.sql) is None


@pytest.mark.parametrize(
    "answer",
    [
        SUM,
        f"{SUM}\n\nOutput:\n3",
        f"{SUM}\n\n// Output: 3",
        f"You can write a function:\n\n{SUM}",
        f"{SUM}\n\nThe function adds both numbers and gives the sum.",
        "class Name:\n    <statements>",
        "Use the built-in sum().",
        f"```\n{FLAT}\n```",
        f"```python\n>>> sum([1, 2])\n3\n```\n{SUM}",
        f"  1. Write this:\n\n```python\n    {SUM.replace(chr(10), chr(10) + '    ')}\n```",
        "```python\n!pip install numpy\n```",
        "def f():\n    return '\\d'",
        f"import zlib\n{'(' * 500}",
    ],
)
def test_python_that_parses_or_stands_in_prose_stays(answer: str) -> None:
    assert fault(Quality.python_syntax, ASK, answer, Grader.code) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Write a function that adds two numbers.",
        "Translate this Python function into JavaScript.",
        "Write it in Python 2.",
        "Write a Python script that prints an HTML page.",
    ],
)
def test_only_what_was_to_be_python_alone_is_parsed(instruction: str) -> None:
    assert fault(Quality.python_syntax, instruction, FLAT, Grader.code) is None


# --- maths --------------------------------------------------------------------------------------


def maths_fault(response: str) -> str | None:
    return fault(Quality.maths_steps, "How many?", response, Grader.maths)


@pytest.mark.parametrize(
    "step",
    [
        "After 100 acts, 70 + 40 = 100 people came back.",
        "He must cook 4+4+6 = 18 sausages",
        "She had 50-8 = 44 rings left.",
        "They made $4200+$3000 = $8600",
        "The next game costs 3 games * 4 euros = 13 euros",
        "It needs 2 hours/day * 7 days = 15 hours",
        "So 1550 / 50 = 29 strokes",
        "each pays 2 / 12 = .125 dollars",
        "That is (3 + 4) x 5 = 23 in all",
        "She keeps 32 − 20 = 300.",
        "10 x 1,248 = 11,480 points",
        "He paid 200 * 15% = 40",
        "He paid 5 * 2 = 1000",
        "She has 2 * 3 = 600 of them",
        "They made 5 * 2 = 10000",
        "That is 3 * 4 = 12 = 13",
        "So 1/4 = 0.25 = 26%",
        "Thus 50% of 20 = 11",
        "Thus 10 % of $1,200 = $140",
        "So 10 / 5 = 3",
    ],
)
def test_a_step_that_does_not_add_up_is_found(step: str) -> None:
    assert maths_fault(f"First 1 + 1 = 2.\n{step}\nThe answer is 5.")
    assert fault(Quality.maths_steps, "How many?", step, Grader.text) is None


@pytest.mark.parametrize(
    "step",
    [
        "He has 70 + 40 = 110 of them",
        "2 + 3 * 4 = 14",
        "(2 + 3) * 4 = 20",
        "10 / 3 = 3.33 each",
        "20 / 3 = 6 full boxes",
        "50 x 20% = 10",
        "1/4 = 25%",
        "1/4 = 25 percent",
        "1/4 = 0.25 = 25%",
        "2/3 = 0.667 = 67%",
        "20% of 60 = 12",
        "15% of 50 = 8, rounded",
        "20% of 50 + 30 = 16",
        "half of 20% of 60 = 6",
        "30 * 4 = 120 minutes = 2 hours",
        "3 * 4 = 12 = 12.0",
        "3 * 2 = 6 = 12 / 2",
        "20 * 5 cents = $1",
        "5 * 3 = $15,000 (in thousands)",
        "600 x 30 = 18 000 watts",
        "2 * 3 = 1.2 million / 200,000",
        "5 + 5 = 20 / 2",
        "30 - 20 = 20 - 10 = 10",
        "2x + 7 = 15",
        "H + 4 - 10 = 25",
        "2C + 80 - 4C = 70",
        "100/5 = 5A/5",
        "38 - 32 = 32 + x - 32",
        "√(144) = 12",
        "2^3 + 1 = 9",
        "1 and 1/4 + 1 and 1/4 = 2 1/2",
        "500 / 2/5 = 200",
        "16,0000/10 = 16000",
        "14, 400 / 80 = 180",
        "He reads 10 pages on day 1 * 2 = 20 pages",
        "for his 25 + his 1 + 1 = 27 people",
        "20 + 10 more to the 29 + 24 already there = 83",
        "She left at 0900-0130 = 0730 hours",
        "17.5 + 52.5 + 19 = 89 pounds",
        ".8 + . 84 + .82 = 2.46",
        "5 / 0 = 0",
        "1 + = 2",
        "(1 + 2 = 4",
        "12/2(1+2) = 2",
        f"1{'0' * 40} + 1 = 3",
        "1" + "+1" * 200 + " = 3",
    ],
)
def test_a_step_that_adds_up_or_cannot_be_judged_stays(step: str) -> None:
    assert maths_fault(f"First 1 + 1 = 2.\nThen {step}\nThe answer is 5.") is None


def test_steps_are_judged_as_exact_arithmetic_judges_them() -> None:
    random = Random(5)
    for _ in range(500):
        parts = [str(random.randrange(1, 200))]
        for _ in range(random.randrange(1, 4)):
            parts += [random.choice(["+", "-", "*"]), str(random.randrange(1, 200))]
        if random.random() < 0.5 and len(parts) > 3:
            parts = ["(", *parts[:3], ")", *parts[3:]]
        right = eval("".join(parts))
        wrong = right + random.choice([-7, -1, 1, 3])
        shown = " ".join(parts).replace("*", random.choice("*x×"))
        assert maths_fault(f"It is {shown} = {right}") is None
        assert maths_fault(f"It is {shown} = {wrong}")


def test_division_may_be_rounded_in_the_last_digit_that_is_stated() -> None:
    for over in range(1, 60):
        for under in (3, 7, 9, 11):
            value = over / under
            for digits in (0, 1, 2):
                scale = 10**digits
                for near in (math.floor(value * scale), math.ceil(value * scale)):
                    stated = f"{near / scale:.{digits}f}"
                    assert maths_fault(f"each gets {over} / {under} = {stated}") is None
                off = f"{(math.ceil(value * scale) + 3) / scale:.{digits}f}"
                ratios = {float(off) / value / k for k in (1, 100, 0.01, 1000, 0.001)}
                if all(abs(ratio - 1) > 0.3 for ratio in ratios - {float(off) / value}):
                    assert maths_fault(f"each gets {over} / {under} = {off}")
