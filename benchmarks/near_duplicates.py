"""How many edited copies of real rows are found, what is joined wrongly, in what time and memory.

    python -m benchmarks.near_duplicates DATA_FOLDER [--copies 2000] [--seed 11] [--show 100]
    python -m benchmarks.near_duplicates DATA_FOLDER --embedder MODEL_FOLDER [--similarity 0.95]
    python -m benchmarks.near_duplicates DATA_FOLDER --rows 10000000

DATA_FOLDER holds the recipe's four data sets and the benchmarks as gzip JSON Lines with upstream's
columns: see FILES and TESTS. Copies of random rows are edited in one of the ways of EDITS, in up to
15 % of their words (a frame apart, which is no content), and lie among the rows of their source. A
planted row that is joined to a real one is joined rightly when that is its origin or
in the origin's cluster. The thresholds were chosen with seeds 0 and 3.

datatrove stands beside it where it is installed (``pip install datatrove spacy``). With
``--embedder`` what ``data.deduplicate=semantic`` finds stands beside it, and the pairs shown
are those that only the embedder finds.

With ``--rows`` the stage runs by itself in a process of its own, over made-up shingles in a file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from dollyllama.card import markdown_table
from dollyllama.config import RowFormat
from dollyllama.data.contamination import find_contamination
from dollyllama.data.example import Example
from dollyllama.data.formats import FORMATS
from dollyllama.data.near import (
    Content,
    Copies,
    Floats,
    Indices,
    Shingles,
    cluster_of,
    content,
    find_copies,
    kept_of,
    shingle,
    shingle_weights,
    split_words,
)
from dollyllama.data.semantic import find_semantic_copies

FILES = {
    "sql": ("sql_create_context.jsonl.gz", RowFormat.sql_create_context),
    "code": ("code_alpaca_20k.jsonl.gz", RowFormat.alpaca),
    "dolly": ("dolly_hhrlhf.jsonl.gz", RowFormat.prompt_response),
    "maths": ("grade_school_math_instructions.jsonl.gz", RowFormat.grade_school_math),
}
#: Benchmarks and the column of their questions.
TESTS = {
    "gsm8k_test": "question",
    "eval/humaneval": "prompt",
    "eval/mt_bench_question": "turns",
    "eval/vicuna_bench_question": "turns",
}
#: The recipe's rows.
RECIPE = 72_763
SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Origin:
    """A row to copy. bare: its question without the frame; words: of other rows of its source."""

    source: str
    content: Content
    bare: str
    words: Sequence[str]


#: (random numbers, row, share of its words to edit) -> the copy, or None where it cannot be so.
Edit = Callable[[random.Random, Origin, float], Content | None]


# --- edits ---------------------------------------------------------------------------------------


def change_case(rng: random.Random, origin: Origin, share: float) -> Content:
    change = rng.choice([str.upper, str.lower, str.title])
    question, given, answer = origin.content
    return change(question), change(given), change(answer)


def change_punctuation(rng: random.Random, origin: Origin, share: float) -> Content:
    def change(text: str) -> str:
        marks = ["", "!", " -", ";"]
        return "".join(
            rng.choice(marks) if mark in ",.;:!?'\"" and rng.random() < 0.5 else mark
            for mark in text
        )

    question, given, answer = origin.content
    return change(question), change(given), change(answer)


def _replace_words(
    rng: random.Random,
    origin: Origin,
    share: float,
    eligible: Callable[[str], bool],
    new: Callable[[str], str],
) -> Content | None:
    texts = [re.split(r"(\w+)", text) for text in origin.content]  # every second piece is a word
    places = [(text, at) for text in texts for at in range(1, len(text), 2)]
    allowed = [(text, at) for text, at in places if eligible(text[at])]
    if not allowed:
        return None
    edits = max(1, int(share * len(places)))
    for text, at in rng.sample(allowed, min(edits, len(allowed))):
        text[at] = new(text[at])
    question, given, answer = ("".join(text) for text in texts)
    return question, given, answer


def change_numbers(rng: random.Random, origin: Origin, share: float) -> Content | None:
    def other(number: str) -> str:
        return str(rng.randrange(1, 10 ** min(len(number) + 1, 6)))

    return _replace_words(rng, origin, share, str.isdecimal, other)


def change_words(rng: random.Random, origin: Origin, share: float) -> Content | None:
    return _replace_words(rng, origin, share, lambda _: True, lambda _: rng.choice(origin.words))


def change_order(rng: random.Random, origin: Origin, share: float) -> Content:
    def swap(text: str) -> str:
        pieces = re.split(r"(\w+)", text)
        words = len(pieces) // 2
        for _ in range(max(1, int(share / 2 * words)) if words > 1 else 0):
            at = 2 * rng.randrange(words - 1) + 1
            pieces[at], pieces[at + 2] = pieces[at + 2], pieces[at]
        return "".join(pieces)

    question, given, answer = origin.content
    return swap(question), swap(given), swap(answer)


FRAMES = (
    "{}",
    "Q: {}\nA:",
    "Task description:\n{}\nOutput:",
    "Kindly have a look at what follows and come up with a fitting reply to it.\n\n{}",
    "You are a careful assistant. Here is what the user wants to know today: {} Take your time.",
    "{}\n\nThink about it first, then reply with the final result only, and nothing else.",
)


def change_frame(rng: random.Random, origin: Origin, share: float) -> Content:
    _, given, answer = origin.content
    return rng.choice(FRAMES).format(origin.bare), given, answer


def add_sentence(rng: random.Random, origin: Origin, share: float) -> Content:
    question, given, answer = origin.content
    count = max(1, int(share * len(split_words(" ".join(origin.content)))))
    sentence = " ".join(rng.choices(origin.words, k=count)).capitalize() + "."
    if rng.random() < 0.5:
        return f"{question} {sentence}", given, answer
    return question, given, f"{answer} {sentence}"


def truncate(rng: random.Random, origin: Origin, share: float) -> Content | None:
    question, given, answer = origin.content
    count = max(1, int(share * len(split_words(" ".join(origin.content)))))
    pieces = re.split(r"(\s+)", answer)
    if len(pieces) // 2 < count:
        return None
    return question, given, "".join(pieces[: len(pieces) - 2 * count])


COLUMNS = "spalte nombre valeur prezzo datum ort klasse edad ciudad poids longueur farbe".split()


def translate_columns(rng: random.Random, origin: Origin, share: float) -> Content | None:
    if origin.source != "sql":
        return None
    question, given, answer = origin.content
    unquoted = re.sub(r"\"[^\"]*\"|'[^']*'", "", answer)
    names = [name for name in dict.fromkeys(re.findall(r"\w{4,}", unquoted)) if not name.isupper()]
    if not names:
        return None
    left = SHARE * len(split_words(question + " " + answer))
    for place, name in enumerate(rng.sample(names, len(names))):
        uses = len(re.findall(rf"\b{name}\b", answer)) * len(split_words(name))
        if place and uses > left:
            continue
        new = "_".join(rng.sample(COLUMNS, len(split_words(name)) or 1))
        answer = re.sub(rf"\b{name}\b", new, answer)
        left -= uses
    return question, given, answer


EDITS: dict[str, Edit] = {
    "case": change_case,
    "punctuation": change_punctuation,
    "numbers": change_numbers,
    "words": change_words,
    "word order": change_order,
    "paraphrased frame": change_frame,
    "added sentence": add_sentence,
    "truncated": truncate,
    "translated column names": translate_columns,
}


@dataclass(frozen=True, slots=True)
class Planted:
    """A copy: the way of its edit, the row that it copies, and the share of words edited."""

    edit: str
    origin: int
    content: Content
    edited: float


def plant(rows: Sequence[Origin], copies: int, seed: int) -> list[Planted]:
    """Edit copies of random rows, equally many each way, the sources equally likely."""
    rng = random.Random(seed)
    of_source: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of_source.setdefault(row.source, []).append(number)
    planted: list[Planted] = []
    for place in range(copies):
        name = list(EDITS)[place * len(EDITS) // copies]
        while True:
            origin = rng.choice(of_source[rng.choice(list(of_source))])
            copy = EDITS[name](rng, rows[origin], rng.uniform(0, SHARE))
            if copy is None or copy == rows[origin].content:
                continue
            old, new = (split_words(" ".join(each)) for each in (rows[origin].content, copy))
            edited = Levenshtein.distance(old, new) / max(len(old), 1)
            if edited <= SHARE or name == "paraphrased frame":
                planted.append(Planted(name, origin, copy, edited))
                break
    return planted


# --- real rows -----------------------------------------------------------------------------------


def read_json(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def read_rows(folder: Path) -> list[Origin]:
    """The recipe's rows, exact copies left out: SQL on real table names, code, dolly, maths."""
    problems = [row["question"] for row in read_json(folder / "gsm8k_train.jsonl.gz")]
    problems += [row["question"] for row in read_json(folder / "gsm8k_test.jsonl.gz")]
    by_end: dict[str, list[str]] = {}
    for problem in problems:
        for end in {problem[:15], problem[-15:]}:
            by_end.setdefault(end, []).append(problem)

    def bare(source: str, question: str) -> str:
        if source == "sql":
            return question.removeprefix("Generate SQL query: ")
        if source != "maths":
            return question
        ends = {line[:15] for line in re.split(r"\n|: ", question)}
        ends |= {line[-15:] for line in question.split("\n")}
        inside = [each for end in ends for each in by_end.get(end, []) if each in question]
        return max(inside, key=len, default=question)

    rows: list[Origin] = []
    for source, (file, form) in FILES.items():
        contents: dict[tuple[str, ...], Content] = {}
        for number, row in enumerate(read_json(folder / file)):
            fields = FORMATS[form].read(row)
            if source == "sql" and "FROM table_" in fields.response:
                continue
            example = Example(
                source, number, fields.instruction, fields.response, fields.context, ""
            )
            own = content(example)
            contents.setdefault(tuple(split_words("\0".join(own))), own)
        rng = random.Random(source)
        sample = rng.sample(list(contents.values()), 1000)
        words = [word for own in sample for text in own for word in split_words(text)]
        rows += [Origin(source, own, bare(source, own[0]), words) for own in contents.values()]
    return rows


def shingle_all(contents: Sequence[Content]) -> tuple[Shingles, Indices]:
    parts = [shingle(contents[start : start + 2048]) for start in range(0, len(contents), 2048)]
    sizes = np.concatenate([np.diff(offsets) for _, offsets in parts])
    values = np.concatenate([values for values, _ in parts])
    return values, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined:
    """Real rows that each planted one is joined to, and those that its origin stands for."""

    found: list[set[int]]
    right: list[set[int]]
    seconds: float


def ours(real: Sequence[Origin], planted: Sequence[Planted]) -> tuple[Joined, Copies]:
    """Join by ``near``, shingles included; and the pairs of real rows."""
    start = time.process_time()
    values, offsets = shingle_all([row.content for row in real] + [row.content for row in planted])
    numbers = {name: number for number, name in enumerate(FILES)}
    names = [row.source for row in real] + [real[row.origin].source for row in planted]
    weights = shingle_weights(values, offsets, np.array([numbers[name] for name in names]))
    copies = find_copies(values, offsets, weights)
    seconds = time.process_time() - start
    within = copies.pairs[:, 1] < len(real)
    among_real = Copies(copies.pairs[within], copies.similarity[within])
    clusters = cluster_of(among_real.pairs, len(real))
    found: list[set[int]] = [set() for _ in planted]
    for first, second in copies.pairs[~within].tolist():
        if first < len(real):
            found[second - len(real)].add(first)
    right = _members(clusters, clusters[[row.origin for row in planted]])
    return Joined(found, right, seconds), among_real


def semantic(
    real: Sequence[Origin],
    planted: Sequence[Planted],
    near: Joined,
    near_real: Copies,
    embedder: Path,
    similarity: float,
) -> tuple[Joined, Indices]:
    """Join by ``near`` and what an embedder finds besides, cluster by cluster as ``prepare`` does.

    Also the pairs of real rows, (pairs, 2), that only the embedder finds.
    """
    contents = [row.content for row in real] + [row.content for row in planted]
    start = time.process_time()
    more = find_semantic_copies(contents, embedder, similarity)
    seconds = near.seconds + time.process_time() - start
    found = [(row, len(real) + place) for place, rows in enumerate(near.found) for row in rows]
    near_pairs = np.concatenate([near_real.pairs, np.array(found, np.int64).reshape(-1, 2)])
    among_real = more[more[:, 1] < len(real)]
    all_rows = cluster_of(np.concatenate([near_pairs, more]), len(contents))
    real_rows = cluster_of(np.concatenate([near_real.pairs, among_real]), len(real))
    joined = Joined(
        _members(all_rows[: len(real)], all_rows[len(real) :]),
        _members(real_rows, real_rows[[row.origin for row in planted]]),
        seconds,
    )
    near_clusters = cluster_of(near_real.pairs, len(real))
    new = near_clusters[among_real[:, 0]] != near_clusters[among_real[:, 1]]
    return joined, among_real[new]


def _members(clusters: Indices, asked: Indices) -> list[set[int]]:
    """The rows of each cluster asked for; clusters: of each row."""
    members: dict[int, set[int]] = {}
    for row, cluster in enumerate(clusters.tolist()):
        members.setdefault(cluster, set()).add(row)
    return [members.get(cluster, set()) for cluster in asked.tolist()]


def datasketch(real: Sequence[Origin], planted: Sequence[Planted]) -> Joined:
    """Join by datasketch's MinHashLSH as its manual has it: words and word pairs of the text."""
    from datasketch import MinHash, MinHashLSH

    def shingles(own: Content) -> list[bytes]:
        words = split_words("\n".join(own))
        return [each.encode() for each in words + [" ".join(two) for two in pairwise(words)]]

    start = time.process_time()
    lsh = MinHashLSH(threshold=0.6, num_perm=128)
    rows = [row.content for row in real] + [row.content for row in planted]
    hashes = MinHash.bulk(map(shingles, rows), num_perm=128)
    for row in range(len(real)):
        lsh.insert(row, hashes[row])

    def like(row: int) -> set[int]:
        return {each for each in lsh.query(hashes[row]) if hashes[each].jaccard(hashes[row]) >= 0.6}

    found = [like(len(real) + place) for place in range(len(planted))]
    for row in range(len(real)):
        lsh.query(hashes[row])
    seconds = time.process_time() - start
    return Joined(found, [like(row.origin) | {row.origin} for row in planted], seconds)


def datatrove(real: Sequence[Origin], planted: Sequence[Planted], scratch: Path) -> Joined:
    """Join by datatrove's MinHash with its own settings: runs of five words, 14 bands of 8.

    Its hash is sha1, as its usual one does not take text with each xxhash.
    """
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger

    logger.remove()
    rows = [row.content for row in real] + [row.content for row in planted]
    documents = [Document("\n".join(own), str(row)) for row, own in enumerate(rows)]
    settings = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    signatures, buckets, clusters = (
        str(scratch / each) for each in ("signatures", "buckets", "clusters")
    )
    start = time.process_time()
    MinhashDedupSignature(signatures, config=settings).run(documents)
    for number in range(settings.num_buckets):
        stage = MinhashDedupBuckets(signatures, buckets, config=settings)
        stage.run(rank=number, world_size=settings.num_buckets)
    MinhashDedupCluster(buckets, clusters, config=settings, save_cluster_id=True).run()
    seconds = time.process_time() - start
    joined = np.fromfile(Path(clusters, "000000.clusters"), "<u4").reshape(-1, 2)
    cluster_of_row = np.arange(len(rows)) + len(rows)
    cluster_of_row[joined[:, 0]] = joined[:, 1]
    return Joined(
        _members(cluster_of_row[: len(real)], cluster_of_row[len(real) :]),
        _members(cluster_of_row[: len(real)], cluster_of_row[[row.origin for row in planted]]),
        seconds,
    )


def recall_table(planted: Sequence[Planted], joins: dict[str, Joined]) -> str:
    """Recall and precision, %, by way of edit."""

    def row(name: str, places: Sequence[int]) -> list[str]:
        edited = statistics.median(planted[place].edited for place in places)
        cells = [name, str(len(places)), f"{100 * edited:.0f}"]
        for joined in joins.values():
            hits = sum(planted[place].origin in joined.found[place] for place in places)
            pairs = sum(len(joined.found[place]) for place in places)
            right = sum(len(joined.found[place] & joined.right[place]) for place in places)
            cells += [f"{100 * hits / len(places):.1f}", f"{100 * right / max(pairs, 1):.1f}"]
        return cells

    head = ["edit", "copies", "words edited, median %"]
    head += [f"{name}: {what}" for name in joins for what in ("recall", "precision")]
    rows = [
        row(edit, [place for place, each in enumerate(planted) if each.edit == edit])
        for edit in EDITS
    ]
    return markdown_table(head, [*rows, row("all", range(len(planted)))])


def show_pairs(
    real: Sequence[Origin], pairs: Indices, similarity: Floats | None, count: int, seed: int
) -> None:
    """Print a sample of the pairs of real rows, the least similar first where that is known."""
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    if similarity is not None:
        chosen = chosen[np.argsort(similarity[chosen], kind="stable")]
    for place in chosen:
        print("" if similarity is None else f"\n{similarity[place]:.2f}")
        for row in pairs[place]:
            question, _, answer = (text.replace("\n", " ")[:200] for text in real[row].content)
            print(f"  {real[row].source} {row}: {question} -> {answer}")


def contamination_table(folder: Path, real: Sequence[Origin]) -> str:
    """Training rows that give away a question of a benchmark, by benchmark and source."""
    tests: list[tuple[str, Content]] = []
    for name, column in TESTS.items():
        for row in read_json(folder / f"{name}.jsonl.gz"):
            turns = row[column] if isinstance(row[column], list) else [row[column]]
            tests += [(name, (turn, "", "")) for turn in turns]
    values, offsets = shingle_all([row.content for row in real])
    numbers = {name: number for number, name in enumerate(FILES)}
    weights = shingle_weights(values, offsets, np.array([numbers[row.source] for row in real]))
    start = time.process_time()
    found = find_contamination(
        [own for _, own in tests],
        np.arange(len(real)),
        lambda rows: [real[row].content for row in rows],
        values,
        offsets,
        weights,
    )
    print(f"{len(tests)} questions against {len(real)} rows: {time.process_time() - start:.1f} s")
    counts = Counter((tests[each.test][0], real[each.row].source, each.kind) for each in found)
    rows = []
    for (name, source, kind), count in sorted(counts.items()):
        given_away = {
            each.test
            for each in found
            if (tests[each.test][0], real[each.row].source, each.kind) == (name, source, kind)
        }
        rows.append([name, source, kind, str(count), str(len(given_away))])
    return markdown_table(["benchmark", "source", "found by", "rows", "questions"], rows)


# --- time and memory -----------------------------------------------------------------------------


def make_shingles(file: Path, rows: int, seed: int) -> Indices:
    """Write made-up shingles of rows, 64 each, one row in a hundred a copy of the one before.

    Words follow Zipf's law, as real ones do; in a copy a tenth is another.
    """
    rng = np.random.default_rng(seed)
    sizes = []
    with file.open("wb") as out:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            rank = np.exp(rng.random((count, 64)) * np.log(2**28)).astype(np.uint32)
            rank[99::100] = np.where(
                rng.random((count // 100, 64)) < 0.1, rank[99::100], rank[98::100]
            )
            values = rank * np.uint32(2654435761) >> np.uint32(2)
            values[:, 32:] |= np.uint32(2 << 30)  # half is the question, half the answer
            values.sort(axis=1)
            new = np.diff(values, axis=1, prepend=values[:, :1] ^ np.uint32(1)) != 0
            out.write(values[new].tobytes())
            sizes.append(new.sum(1))
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


def measure(file: Path, offsets: Path) -> None:
    """Run the stage over shingles in a file and print its time, memory and finds."""
    ends = np.load(offsets)
    values = np.memmap(file, np.uint32, mode="r")
    source = np.arange(len(ends) - 1) * 4 // (len(ends) - 1)
    before = peak_mib()
    start, wall = time.process_time(), time.perf_counter()
    copies = find_copies(values, ends, shingle_weights(values, ends, source.astype(np.int16)))
    clusters = cluster_of(copies.pairs, len(ends) - 1)
    nothing = np.zeros(len(clusters), np.int64)
    kept = kept_of(clusters, nothing > 0, nothing)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    print(
        f"{len(clusters):,} rows, {len(values):,} shingles: {seconds:.1f} s of processor time, "
        f"{wall:.1f} s; peak {peak_mib():,} MiB resident, {before:,} before; "
        f"{len(copies.pairs):,} pairs, {int((kept != np.arange(len(kept))).sum()):,} rows to drop"
    )


def peak_mib() -> int:
    """What this process has had resident at most (Linux); ``getrusage`` counts its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def measure_apart(values: Path, offsets: Indices) -> None:
    ends = values.with_suffix(".npy")
    np.save(ends, offsets)
    code = "import sys; from pathlib import Path; from benchmarks.near_duplicates import measure; "
    code += "measure(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, str(values), str(ends)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--show", type=int, default=0, help="pairs of real rows to print")
    parser.add_argument("--embedder", type=Path, help="a Model2Vec model's folder")
    parser.add_argument("--similarity", type=float, default=0.95, help="from which rows are copies")
    parser.add_argument("--rows", type=int, help="only measure the stage on so many made-up rows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        values = Path(scratch, "values")
        if given.rows:
            measure_apart(values, make_shingles(values, given.rows, given.seed))
            return
        real = read_rows(given.folder)
        planted = plant(real, given.copies, given.seed)
        print(f"{len(real)} real rows, {len(planted)} planted copies, seed {given.seed}\n")
        own, copies = ours(real, planted)
        theirs = datasketch(real, planted)
        joins = {"ours": own, "datasketch": theirs}
        if find_spec("datatrove"):
            joins["datatrove"] = datatrove(real, planted, Path(scratch))
        if given.embedder:
            joins["semantic"], unseen = semantic(
                real, planted, own, copies, given.embedder, given.similarity
            )
        print(recall_table(planted, joins))
        print("\nprocessor time, shingles included:")
        for name, joined in joins.items():
            ratio = joined.seconds / own.seconds
            print(f"  {name} {joined.seconds:.1f} s, {ratio:.1f} times ours")
        clusters = cluster_of(copies.pairs, len(real))
        dropped = Counter(row.source for place, row in enumerate(real) if clusters[place] != place)
        print(f"real rows in clusters beyond the first, by source: {dict(sorted(dropped.items()))}")
        if given.embedder:
            apart = Counter(real[row].source for row in unseen[:, 1])
            print(f"real rows that the embedder finds besides: {dict(sorted(apart.items()))}")
            show_pairs(real, unseen, None, given.show, given.seed)
            return
        print(f"\n{contamination_table(given.folder, real)}\n")
        flat, offsets = shingle_all([row.content for row in real])
        places = np.arange(RECIPE) % len(real)
        starts, sizes = offsets[places], np.diff(offsets)[places]
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        taken = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
        flat[taken].tofile(values)
        measure_apart(values, ends)
        show_pairs(real, copies.pairs, copies.similarity, given.show, given.seed)


if __name__ == "__main__":
    main()
