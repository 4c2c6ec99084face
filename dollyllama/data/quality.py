"""Which rows are worth learning from: rules that name a fault in words, else let the row stay.

A row that a rule refuses is kept aside with its raw columns. Rules prefer a miss to a false alarm:
of the rows that each drops from the recipe's sources and their relatives, at least 95 in 100 have
the fault (``python -m benchmarks.quality FOLDER`` shows them).
"""

from __future__ import annotations

import ast
import logging
import re
import sqlite3
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import lru_cache
from itertools import chain, pairwise

import sqlglot
from sqlglot import Dialect, TokenType, exp
from sqlglot.errors import SqlglotError

from dollyllama.config import Grader, Quality, Rule
from dollyllama.data.example import Example, Rejected

#: None when the row may stay, else what is wrong with it. The grader is that of the row's source.
Check = Callable[[Example, Grader], str | None]


def apply_rules(
    examples: Iterable[Example], rules: Iterable[Rule]
) -> tuple[list[Example], list[Rejected]]:
    """Keep what every rule of the source lets pass; the reason of a rejection is the rule's name.

    A rejection's ``raw`` is left empty: whoever read the row has it.
    """
    return _keep(examples, [(rule.value, RULES[rule]) for rule in sorted(set(rules))])


def check_quality(
    examples: Iterable[Example], rules: Iterable[Quality], grader: Grader
) -> tuple[list[Example], list[Rejected]]:
    """Keep what every quality rule lets pass, in ``apply_rules``' shape.

    grader: that of the examples' source, which says what the answers should be.
    """

    def bound(check: Check) -> Callable[[Example], str | None]:
        return lambda example: check(example, grader)

    chosen = set(rules)
    return _keep(
        examples,
        [(rule.value, bound(check)) for rule, check in QUALITY.items() if rule in chosen],
    )


def _keep(
    examples: Iterable[Example], checks: list[tuple[str, Callable[[Example], str | None]]]
) -> tuple[list[Example], list[Rejected]]:
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for example in examples:
        for reason, check in checks:
            if (detail := check(example)) is not None:
                rejected.append(Rejected(example.source, example.row, reason, detail, {}))
                break
        else:
            kept.append(example)
    return kept, rejected


def _quoted(text: str) -> str:
    """A piece of a text on one line, for a message."""
    return repr(textwrap.shorten(text, 60, placeholder="…"))


# --- rules that one source asks for -------------------------------------------------------------


def real_table_names(example: Example) -> str | None:
    """The recipe's rule: no queries on WikiSQL's numbered tables, which teach no table name."""
    if "FROM table_" in example.response:
        return "the answer asks a table without a real name (FROM table_…)"
    return None


RULES: dict[Rule, Callable[[Example], str | None]] = {Rule.real_table_names: real_table_names}


# --- any row ------------------------------------------------------------------------------------

_SAYS_NOTHING = re.compile(r"(?:\.{2,}|…+|-+|_+|n/?a|tbd|todo|<?no ?(?:in|out)put>?)\.?", re.I)
_ONLY_ASSENTS = re.compile(r"(?:sure|ok|okay|of course|certainly|no problem|will do)[.!]*", re.I)
_LEFT_OVER = re.compile(r"<no ?(?:in|out)put>", re.I)


def no_answer(example: Example, grader: Grader) -> str | None:
    """Dots, "N/A" or a bare "Sure." for an answer, or a generator's ``<noinput>`` before it."""
    answer = example.response
    if left_over := _LEFT_OVER.match(answer):
        return f"the answer begins with {left_over[0]}, which whoever made it left there"
    if len(answer) <= 20 and (_SAYS_NOTHING.fullmatch(answer) or _ONLY_ASSENTS.fullmatch(answer)):
        return f"the answer says nothing: {_quoted(answer)}"
    return None


_SHORTEST_INSTRUCTION = 2  # characters
_LONGEST_RESPONSE = 20_000  # characters, ten times what 512 tokens hold


def length(example: Example, grader: Grader) -> str | None:
    """An instruction of one character or an answer of more than 20,000, which is a pasted text.

    Short answers stay: to a question that has one, "Yes" or "3" is right.
    """
    if len(example.question) < _SHORTEST_INSTRUCTION:
        return f"the instruction is a single character: {_quoted(example.question)}"
    if len(example.response) > _LONGEST_RESPONSE:
        return f"the answer has {len(example.response):,} characters"
    return None


_MODEL = (
    r"(?:just |only |merely )?an? (?:AI\b|artificial intelligence|(?:AI |large )*language model|"
    r"generative model|LLM\b|(?:AI |virtual )assistant|computer model)"
)
_AS_AN_AI = re.compile(
    rf"\bas {_MODEL}[^.!?\n]{{0,60}}?\bI\b|\bI\b[^.!?\n]{{0,80}}\bas {_MODEL}"
    rf"|\bI(?:['’]m| am) {_MODEL}"
    r"|\bmy (?:knowledge cut-?off|last (?:knowledge|training) update)\b",
    re.IGNORECASE,
)
_ABOUT_AI = re.compile(
    r"\b(?:AI|artificial intelligence|language models?|robots?|chat ?bots?|chatgpt|pretend|"
    r"imagine)\b",
    re.IGNORECASE,
)


def as_an_ai(example: Example, grader: Grader) -> str | None:
    """An answer that speaks of itself as a model ("As an AI language model, I …").

    It stays where the question is about such models, or asks for a part to be played.
    """
    said = _AS_AN_AI.search(example.response)
    if said is None or _ABOUT_AI.search(example.question):
        return None
    return f"the answer calls itself a model: {_quoted(said[0])}"


_CANNOT = (
    r"(?:can(?:no| no|['’])t|(?:am|['’]m) (?:unable|not able|not allowed) to|will not|won['’]t)"
)
_REFUSAL = re.compile(
    rf"(?:(?:(?:I['’]?m |I am )?(?:very |so |really )?(?:sorry|afraid)|unfortunately|"
    rf"I apologi[sz]e)[^.!?\n]{{0,40}}?(?:[.!] )?\bI ?{_CANNOT}|I ?{_CANNOT})"
    rf"(?:,? (?:and|or) {_CANNOT},?)?"
    r" (?:help|assist|answer|provide|fulfill?|comply|complete|generate|create|write|discuss|engage|"
    r"respond|do (?:that|this)|tell you|give you|support|participate)\b",
    re.IGNORECASE,
)


def refusal(example: Example, grader: Grader) -> str | None:
    """An answer that begins by declining ("I'm sorry, but I can't help …")."""
    if declined := _REFUSAL.match(example.response):
        return f"the answer declines: {_quoted(declined[0])}"
    return None


# What UTF-8 looks like when it is read as Latin-1 or Windows-1252; U+FFFD stands for what was lost.
_MOJIBAKE = re.compile(
    "\ufffd|[\x80-\x84\x86-\x9f]|Ã[\xa0-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|Â[\xa0-\xbf]|â€|ðŸ|ï»¿|ï¿½"
)
_ABOUT_ENCODINGS = re.compile(r"encod|unicode|utf-?(?:8|16)|mojibake|latin-?1", re.IGNORECASE)


def mojibake(example: Example, grader: Grader) -> str | None:
    """Characters that were read in the wrong encoding, or replaced because they could not be."""
    for text in (example.response, example.question):
        if not text.isascii() and (found := _MOJIBAKE.search(text)):
            if _ABOUT_ENCODINGS.search(example.question):
                return None
            around = text[max(found.start() - 20, 0) : found.end() + 20]
            return f"characters in the wrong encoding: {_quoted(around)}"
    return None


# --- text and worked answers --------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+")
_LETTER_OF_OTHER_SCRIPT = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")
# Frequent words that no other of these languages has: English; Spanish, French, German, Italian,
# Portuguese and Dutch, first those that names have as well ("Plaza de la Villa").
_ENGLISH = frozenset(
    """the and to that for it with be by not his are this have from they which you were her she
    there would their we been when who if out up what its about than into other some could these
    then any my how your does write give tell list please""".split()
)
_IN_NAMES = frozenset("de la el los las del les du des di della van het der von den le".split())
_FOREIGN = _IN_NAMES | frozenset(
    """que por con una su para es lo como más pero et est une dans qui pas sur au avec ce il sont
    plus ne se je vous nous pour und das zu mit sich auf für ist im dem nicht ein eine als auch
    werden aus dass sie wird bei ich che è sono non gli nel em um não uma os na dos é mais een en
    dat op te zijn voor niet aan""".split()
)
_ASKS_FOR_A_LANGUAGE = re.compile(
    r"translat|language|\b(?:spanish|french|german|italian|portuguese|dutch|latin|russian|chinese|"
    r"mandarin|cantonese|japanese|korean|arabic|hindi|urdu|bengali|tamil|hebrew|greek|turkish|"
    r"persian|polish|swedish|ukrainian|vietnamese|thai|kanji|cyrillic|emojis?)\b",
    re.IGNORECASE,
)
_READ = 800  # characters of a text that tell its language
_FOREIGN_KINDS = 4  # different words


def other_language(example: Example, grader: Grader) -> str | None:
    """An English question whose answer is in another language, where it asks for none.

    By script, or by the share of frequent words; not for code and SQL, whose words are their own.
    """
    if grader in (Grader.sql, Grader.code):
        return None
    answer = example.response[:_READ]
    words = _WORD.findall(answer.lower())
    foreign = [word for word in words if word in _FOREIGN]
    other_letters = 0 if answer.isascii() else len(_LETTER_OF_OTHER_SCRIPT.findall(answer))
    if other_letters >= 10 and other_letters > sum(map(len, words)) / 2:
        detail = "the question is English and the answer is in another script"
    elif (
        len(words) >= 20
        and len(foreign) >= len(words) / 4
        and len(set(foreign) - _IN_NAMES) >= _FOREIGN_KINDS
    ):
        if sum(word in _ENGLISH for word in words) > len(words) / 20:
            return None
        detail = "the question is English and the answer is in another language"
    else:
        return None
    asked = _WORD.findall(example.question[:_READ].lower())
    english = sum(word in _ENGLISH for word in asked)
    if english < len(asked) / 5 or _ASKS_FOR_A_LANGUAGE.search(example.question):
        return None
    return detail


_TAIL, _LONGEST_LOOP = 200, 50  # characters
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+")
_LONG_SENTENCE, _OFTEN = 20, 4  # characters, times
_WANTS_REPEATS = re.compile(
    r"repeat|\btimes\b|lyrics|song|poem|rhyme|chant|mantra|prayer|chorus", re.IGNORECASE
)


def repeated_text(example: Example, grader: Grader) -> str | None:
    """An answer that ends in a loop, or says one sentence or line at least four times.

    Its copies make up a quarter of it. Not for code and SQL, where an array of zeros may be right.
    """
    answer = example.response
    if grader in (Grader.sql, Grader.code) or len(answer) < _OFTEN * _LONG_SENTENCE:
        return None
    detail = None
    tail = answer[-_TAIL:]
    if len(tail) == _TAIL and any(
        tail[period:] == tail[:-period] for period in range(1, _LONGEST_LOOP + 1)
    ):
        detail = f"the answer ends in a loop: {_quoted(tail[-_LONGEST_LOOP:])}"
    else:
        counts = Counter(map(str.strip, _SENTENCE_END.split(answer)))
        sentence, times = counts.most_common(1)[0]
        copies = (times - 1) * len(sentence)
        if times >= _OFTEN and len(sentence) >= _LONG_SENTENCE and copies >= len(answer) / 4:
            detail = f"the answer says {times} times: {_quoted(sentence)}"
    if detail is None or _WANTS_REPEATS.search(example.question):
        return None
    return detail


# --- SQL ----------------------------------------------------------------------------------------

# Of a statement that it does not know it warns on stderr, in the middle of a progress bar.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

#: The columns of a schema's tables, all names in lower case; none where they cannot be told.
Tables = Mapping[str, frozenset[str]]
#: Columns that every table has: SQLite's number of a row by its three names, Oracle's.
_EVERYWHERE = frozenset({"rowid", "oid", "_rowid_", "rownum"})
#: Functions of other dialects one of whose arguments is a word, as in DATEDIFF(YEAR, hired, paid)
#: and CONVERT(VARCHAR, hired): the parser takes it for a column.
_TAKES_A_WORD = re.compile(
    r"\b(?:(?:DATE|TIME|DATETIME|TIMESTAMP)_?(?:DIFF|ADD|SUB|PART|NAME|TRUNC|BUCKET)|EXTRACT|"
    r"(?:TRY_)?CONVERT)\s*\(",
    re.IGNORECASE,
)
#: The brackets of an array, as in "tags VARCHAR(10)[]": SQLite quotes names in such.
_ARRAY = re.compile(r"(?<=[\w)])(?:\[[0-9]*\])+")


#: Two tokens between which an entry of a list is missing: the parser passes over it.
_NO_ENTRY = {
    (TokenType.L_PAREN, TokenType.COMMA),
    (TokenType.COMMA, TokenType.COMMA),
    (TokenType.COMMA, TokenType.R_PAREN),
}
_SQLITE = Dialect.get_or_raise("sqlite")
#: SQLite's words for what it cannot read, unlike what it reads and cannot do. Not "incomplete
#: input": the parser ends a trigger at the first semicolon in it.
_UNREADABLE = re.compile("syntax error|unrecognized token|unknown table option")


@lru_cache(maxsize=256)
def read_tables(context: str) -> Tables:
    """The tables that CREATE TABLE statements make; one that is made twice has the columns of both.

    Upstream wrote a table twice where a query names it twice. ValueError when they do not parse.
    """
    tables: dict[str, frozenset[str]] = {}
    for statement in _parse_schema(context):
        made = statement.this if isinstance(statement, exp.Create) else None
        if isinstance(made, exp.Schema):
            name = made.this.name.lower()
            columns = {column.name.lower() for column in made.expressions} - {""}
            if not columns:
                raise ValueError(f"the table {made.this.name} has no columns")
            tables[name] = tables.get(name, frozenset()) | columns | _EVERYWHERE
        elif isinstance(statement, exp.Create | exp.Alter | exp.Command):
            _check_statement(statement)
            tables[""] = frozenset()  # a view, a copy, new columns: no name is surely missing
        elif isinstance(statement, exp.Condition | exp.Alias | exp.Tuple):
            raise ValueError(f"{_quoted(statement.sql())} is no statement")
    if not tables:
        raise ValueError("it makes no table")
    return tables


def _parse_schema(context: str) -> list[exp.Expr | None]:
    """The statements of a schema; ValueError when the parser stops, or passes over a gap."""
    context = _ARRAY.sub("", context)
    try:
        tokens = _SQLITE.tokenize(context)
        statements = _SQLITE.parser().parse(tokens, context)
    except (SqlglotError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    kinds = [token.token_type for token in tokens]
    if not _NO_ENTRY.isdisjoint(pairwise(kinds)):
        raise ValueError("a list has a comma with nothing before or after it")
    return statements


def _check_statement(statement: exp.Create | exp.Alter | exp.Command) -> None:
    """ValueError for a table without columns, or a CREATE that SQLite cannot read either.

    The parser takes a CREATE that it does not know for a command, typing errors among them.
    """
    if isinstance(statement, exp.Create):
        source = statement.args.get("expression") or statement.args.get("clone")
        if statement.kind == "TABLE" and not source and not statement.args.get("properties"):
            raise ValueError(f"the table {statement.this.name} has no columns")
    elif isinstance(statement, exp.Command) and statement.name.upper() == "CREATE":
        with closing(sqlite3.connect(":memory:")) as connection:
            try:
                connection.execute(f"EXPLAIN {statement.sql()}")
            except sqlite3.Error as error:
                if _UNREADABLE.search(str(error)):
                    raise ValueError(str(error).splitlines()[0]) from error


def sql_schema(example: Example, grader: Grader) -> str | None:
    """A schema that does not parse, or makes no table; where there is none it is not missed."""
    if grader is not Grader.sql or not example.context.strip():
        return None
    try:
        read_tables(example.context)
    except ValueError as error:
        return f"the schema cannot be read: {error}"
    return None


def sql_columns(example: Example, grader: Grader) -> str | None:
    """A query that asks for a table or a column that the schema lacks.

    Names that the query makes itself are not looked into, nor are queries that do not parse: they
    may be another dialect's, and so may words in its functions. A double-quoted name that is no
    column is a text, as SQLite has it.
    """
    if grader is not Grader.sql:
        return None
    try:
        tables = read_tables(example.context)
        query = sqlglot.parse_one(example.response, read="sqlite")
    except (ValueError, SqlglotError, RecursionError):
        return None
    if not isinstance(query, exp.Query) or not all(tables.values()):
        return None
    made: set[str] = set()
    asked: list[exp.Table] = []
    columns: list[exp.Column] = []
    for node in query.walk():
        if isinstance(node, exp.Column):
            columns.append(node)
        elif isinstance(node, exp.Table):
            if not isinstance(node.this, exp.Identifier):
                return None  # a function, json_each say: its columns cannot be told
            asked.append(node)
        elif isinstance(node, exp.Alias | exp.CTE):
            made.add(node.alias.lower())
        elif isinstance(node, exp.TableAlias):
            made.update(column.name.lower() for column in node.columns)
    # One alias may stand for several tables, each in its own subquery.
    meant: dict[str, set[str]] = {}
    for table in asked:
        name = table.name.lower()
        if name in made:
            continue
        if name not in tables:
            return f"the answer asks the table {table.name}, which the schema lacks"
        for alias in (name, table.alias.lower()):
            meant.setdefault(alias, set()).add(name)
    everywhere = frozenset().union(*tables.values())
    takes_a_word = _TAKES_A_WORD.search(example.response)
    for column in columns:
        name = column.name.lower()
        if isinstance(column.this, exp.Star) or name in made:
            continue
        if not column.table:
            if takes_a_word and isinstance(column.parent, exp.Func):
                continue
            lacking = not column.this.quoted and name not in everywhere
        else:
            of = meant.get(column.table.lower(), set())
            lacking = bool(of) and not any(name in tables[table] for table in of)
        if lacking:
            return f"the answer uses the column {column.sql()}, which the schema lacks"
    return None


# --- code ---------------------------------------------------------------------------------------

_FENCED_PYTHON = re.compile(r"^```(?:python|py|python3)[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INTERACTIVE = re.compile(r"^\s*(?:>>>|\$ |!|%)", re.MULTILINE)
_ASKS_FOR_PYTHON = re.compile(r"\bpython(?! ?2)", re.IGNORECASE)
_ASKS_FOR_ANOTHER = re.compile(
    r"\b(?:java|javascript|js|c\+\+|c#|php|ruby|html|css|sql|bash|shell|golang|swift|kotlin|rust|perl|"
    r"typescript|scala|cython|python ?2)(?![\w+#])",
    re.IGNORECASE,
)
_HAS_PYTHON = re.compile(
    r"^(?:def \w+\s*\(|class \w+.*:|import \w|from \w[\w.]* import )", re.MULTILINE
)
_LINE_OF_CODE = re.compile(
    r"""\s*(?:(?:async\ )?(?:def|class|if|elif|for|while|with|import|from|except|print|return|raise
        |assert|yield|del|global)\b | (?:else|try|finally)\s*: | @\w | [A-Za-z_][\w.]*\(
        | [A-Za-z_][\w.,\ ]*(?:\[[^\]]*\])?\s*[-+*/]?=[^=])""",
    re.VERBOSE,
)


def python_syntax(example: Example, grader: Grader) -> str | None:
    """Python that does not parse: a block fenced as Python, or an answer that was to be Python.

    The latter has a definition or an import, its question asks for Python and names no other
    language, and the line that breaks is code: answers that mix code with prose or sample output
    stay.
    """
    if grader in (Grader.sql, Grader.maths):
        return None
    answer = example.response
    if "```" in answer:
        for block in _FENCED_PYTHON.findall(answer):
            code = textwrap.dedent(block)
            if not _INTERACTIVE.search(code) and (error := _syntax_error(code)):
                return f"a Python block does not parse: {error.msg} in line {error.lineno}"
        return None
    question = example.question
    if (
        not _HAS_PYTHON.search(answer)
        or not _ASKS_FOR_PYTHON.search(question)
        or _ASKS_FOR_ANOTHER.search(question)
    ):
        return None
    if (error := _syntax_error(answer)) and error.lineno:
        lines = answer.split("\n")
        broken = lines[min(error.lineno, len(lines)) - 1]
        if _LINE_OF_CODE.match(broken):
            return f"the Python does not parse: {error.msg} in line {error.lineno}"
    return None


def _syntax_error(code: str) -> SyntaxError | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in the answer is not ours
            ast.parse(code)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError):  # a null character; nested too deeply
        return None
    return None


# --- maths --------------------------------------------------------------------------------------

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]{1,15})(?:\.[0-9]{1,15})?+|\.[0-9]{1,15}"
_SIGN = r"-+*/x×÷−–"
# "4 apples + 3 pears = 7": words of one letter may be unknowns and stay.
_UNIT = re.compile(
    rf"(?<=[0-9%)])(?:[ -]?[a-z]{{2,}}+){{1,3}}(?:/(?:[ ]?[a-z]{{2,}}+)++)?+(?=[ ]?[{_SIGN})=])"
)
_EQUATION = re.compile(
    rf"(?<![0-9{_SIGN}()$€£% ])(?P<sum>(?:{_NUMBER}|[{_SIGN}()$€£% ])++)="
    rf"[ ]?+(?P<minus>[-−–]?)[$€£]?(?P<result>{_NUMBER})"
)
# What stands before a sum and makes it a part of something else: an operator, an exponent, half of
# a number, "1 and 1/4", "half of 2 + 4", "on day 1 * 2", "his 25 + his 1 + 1".
_PART_OF_MORE = re.compile(
    rf"[\^√=:_]\Z|[0-9],\Z|(?:\A|[^\w)])\.\Z|\b(?:and|day|week|month|year|step|level)\Z"
    rf"|(?:\bhalf|\bthirds?|\bquarters?|[0-9%])[ ]of\Z"
    rf"|[0-9)] ?[{_SIGN}] ?[0-9.,]*[a-zA-Z' ]*\Z"
)
# What stands behind a result and makes it a part: an operator, a fraction, digits, "million".
_GOES_ON = re.compile(
    rf"[ ]?[A-Za-z]?[ ]?[{_SIGN}(][ ]?[$(]*[0-9.A-Za-z]|[ ,]?[0-9]|[ ]?/"
    rf"|[ ]?[A-Za-z]+(?: [A-Za-z]+)?[ ]?[{_SIGN}][ ]?[$(]*[0-9]"
    r"|[ ]?(?:million|thousand|billion|hundred|dozen|k\b|m\b)"
)
_PIECE = re.compile(rf"[ $€£]*+(?:(?P<number>{_NUMBER})[ ]?(?P<percent>%?)|(?P<sign>[{_SIGN}()]))")
_SIGNS = {"x": "*", "×": "*", "÷": "/", "−": "-", "–": "-"}
_LONGEST_SUM = 120  # characters
#: "20% of 60 = 12": a product.
_PERCENT_OF = re.compile(rf"(?<=[0-9])[ ]?%[ ]of[ ](?=[$€£]?(?:{_NUMBER})[ ]?=)")
#: "= 12 = 13": two results of one sum.
_CHAIN = re.compile(
    rf"=[ ]?[$€£]?(?P<first>{_NUMBER})[ ]?%?[ ]?=[ ]?[$€£]?(?P<second>{_NUMBER})(?![.,]?[0-9])"
)
#: Lines in which a result may be off, and by what: "1/2 = 50%", "3 x 5 = $15,000" (in thousands).
_SCALES = (
    (re.compile(r"%|\bper ?cent|\bcents?\b|¢", re.I), (100.0, 0.01)),
    (re.compile(r"\bthousand|[0-9] ?[kK]\b|\bkilo|\bmilli", re.I), (1000.0, 0.001)),
)


def maths_steps(example: Example, grader: Grader) -> str | None:
    """A worked answer with a step that does not add up, as "70 + 40 = 100".

    Steps of numbers and units alone; rounding is allowed for, and a factor of 100 or 1000 in lines
    that speak of percent or thousands.
    """
    if grader is not Grader.maths:
        return None
    for line in example.response.split("\n"):
        if "=" not in line:
            continue
        scales = (1.0, *chain.from_iterable(by for where, by in _SCALES if where.search(line)))
        text = _PERCENT_OF.sub("% * ", _UNIT.sub("", line))
        for equation in _EQUATION.finditer(text):
            if not _adds_up(text, equation, scales):
                return f"a step does not add up: {_quoted(equation[0].strip())}"
        # Not without units: "= 120 minutes = 2" is right.
        for results in _CHAIN.finditer(line):
            first, second = results["first"], results["second"]
            if not _GOES_ON.match(line, results.end()) and not _is_stated(
                float(first.replace(",", "")), second, scales, exact=False
            ):
                return f"a step does not add up: {_quoted(results[0])}"
    return None


def _adds_up(text: str, equation: re.Match[str], scales: Iterable[float]) -> bool:
    """Whether the sum is its result; True as well where that cannot be told."""
    stated, result = equation["sum"], equation["result"]
    before = text[max(equation.start() - 30, 0) : equation.start()]
    glued = not stated.startswith(" ") and re.search(r"[\w.]\Z", before)
    if len(stated) > _LONGEST_SUM or glued or _PART_OF_MORE.search(before):
        return True
    if _GOES_ON.match(text, equation.end()):
        return True
    pieces = _pieces(stated)
    if pieces is None or len(pieces) < 3:
        return True
    value = _value(pieces)
    if value is None:
        return True
    exact = "/" not in pieces and "." not in stated and "%" not in stated
    return _is_stated(-value if equation["minus"] else value, result, scales, exact=exact)


def _is_stated(value: float, result: str, scales: Iterable[float], *, exact: bool) -> bool:
    """Whether a result says this value, times one of these scales.

    exact: it is not rounded, up or down; a value that needs no more digits never is.
    """
    decimals = len(result.partition(".")[2])
    wanted = float(result.replace(",", ""))
    for scaled in (value * scale for scale in scales):
        nearest = abs(scaled - round(scaled, decimals)) <= 1e-9 * max(abs(scaled), 1)
        rounding = 0.0 if exact or nearest else 10.0**-decimals * (1 + 1e-9)
        if abs(scaled - wanted) <= max(rounding, 1e-9, 1e-9 * abs(wanted)):
            return True
    return False


def _pieces(stated: str) -> list[float | str] | None:
    """Numbers and signs of a sum; None where it has something else, or numbers like "0130"."""
    pieces: list[float | str] = []
    position, end = 0, len(stated.rstrip())
    while position < end:
        piece = _PIECE.match(stated, position)
        if piece is None:
            return None
        position = piece.end()
        if number := piece["number"]:
            if len(number) > 1 and number[0] == "0" and number[1].isdigit():
                return None
            pieces.append(float(number.replace(",", "")) / (100 if piece["percent"] else 1))
        else:
            pieces.append(_SIGNS.get(piece["sign"], piece["sign"]))
    return pieces


def _value(pieces: list[float | str]) -> float | None:
    """The value of a sum; None where it is none, or a chain of divisions that reads two ways."""
    rest = list(reversed(pieces))

    def added() -> float:
        value = multiplied()
        while rest and rest[-1] in ("+", "-"):
            value = value + multiplied() if rest.pop() == "+" else value - multiplied()
        return value

    def multiplied() -> float:
        value, divided = single(), False
        while rest and rest[-1] in ("*", "/"):
            if rest.pop() == "*":
                value *= single()
            elif divided:
                raise ValueError
            else:
                value, divided = value / single(), True
        return value

    def single() -> float:
        piece = rest.pop()
        if isinstance(piece, float):
            return piece
        if piece != "(":
            raise ValueError
        value = added()
        if rest.pop() != ")":
            raise ValueError
        return value

    try:
        value = added()
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if rest else value


#: Rules for every source, in the order in which they are tried: the dear ones last.
QUALITY: dict[Quality, Check] = {
    Quality.no_answer: no_answer,
    Quality.length: length,
    Quality.as_an_ai: as_an_ai,
    Quality.refusal: refusal,
    Quality.mojibake: mojibake,
    Quality.other_language: other_language,
    Quality.repeated_text: repeated_text,
    Quality.sql_schema: sql_schema,
    Quality.sql_columns: sql_columns,
    Quality.python_syntax: python_syntax,
    Quality.maths_steps: maths_steps,
}
