"""Semantic copies: rows that say the same in other words, as a model of sentences sees it.

Model2Vec embeds a row's question and its answer, SemHash compares the rows with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dollyllama.data.near import Content, Floats, Indices
from dollyllama.files import digest
from dollyllama.hub import hub_answers, root_line

#: What a Model2Vec model is made of. Its weights are safetensors.
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def find_embedder(path: str) -> Path:
    """The folder of the Model2Vec model at ``path``: a local one, or a copy of the Hub's.

    ValueError when it cannot be had, or what reads it is not installed.
    """
    where = f"data.embedder={path}"
    if find_spec("semhash") is None:
        raise ValueError(f"{where} needs SemHash: pip install -c constraints.txt -e '.[semantic]'")
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        if path.startswith((".", "/", "~")):
            raise ValueError(f"{where}: there is no folder {folder}")
        folder = _from_hub(path)
    for name in _FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{where} is no Model2Vec model: {folder} has no {name}")
    return folder


def _from_hub(path: str) -> Path:
    import huggingface_hub

    answers = hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                path, allow_patterns=list(_FILES), local_files_only=not answers
            )
        )
    except Exception as error:  # of the network, the Hub, the cache
        why = root_line(error) if answers else "it does not answer from here"
        raise ValueError(
            f"data.embedder={path}: the model cannot be had from the Hub ({why}): name a local "
            f"folder"
        ) from error


def describe_embedder(folder: Path) -> dict[str, str]:
    """What decides the pairs that are found: digests of the model's files, versions of packages."""
    return {name: digest(folder / name) for name in _FILES} | {
        name: version(name) for name in ("semhash", "model2vec")
    }


def find_semantic_copies(contents: Sequence[Content], embedder: Path, similarity: float) -> Indices:
    """Pairs of rows that say the same: (pairs, 2) int64, the smaller number first.

    contents: as of ``near.content``. embedder: as of ``find_embedder``. similarity: from which on
    two rows are copies, the mean of the cosines of their questions and of their answers. A row of
    which the embedder knows no word in either is never a copy. All are compared with all, so that
    the same rows are found each time: the time grows with the square of their number. ValueError
    when the model is damaged.
    """
    from model2vec import StaticModel
    from semhash import SemHash

    try:
        model = StaticModel.from_pretrained(embedder)
    except Exception as error:  # tokenizers raise no class of their own
        raise ValueError(
            f"data.embedder: the model in {embedder} cannot be read ({root_line(error)}): copy the "
            f"folder again"
        ) from error
    columns = {
        "asked": [f"{asked}\n{given}" for asked, given, _ in contents],
        "answer": [answer for _, _, answer in contents],
    }
    vectors = [
        # Left to itself it reads beginnings alone.
        _unit(model.encode(texts, max_length=None, use_multiprocessing=False))
        if texts
        else np.empty((0, 1))
        for texts in columns.values()
    ]
    known = np.flatnonzero(np.logical_and.reduce([each.any(1) for each in vectors]))
    if not len(known):
        return np.empty((0, 2), np.int64)
    records = [
        {"row": row} | {name: texts[row] for name, texts in columns.items()}
        for row in known.tolist()
    ]
    # SemHash's usual index is approximate and differs from run to run.
    found = SemHash.from_embeddings(
        np.concatenate(vectors, axis=1)[known],
        records,
        model,
        columns=list(columns),
        ann_backend="basic",
    ).self_deduplicate(similarity)
    pairs = [sorted((each.record["row"], each.duplicate_of["row"])) for each in found.filtered]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _unit(vectors: Floats) -> Floats:
    """Rows of length 1; those of length 0 stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)
