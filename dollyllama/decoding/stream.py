"""Decoding as a stream of tokens: strategies write one token a row, ``collect`` says who goes on.

A strategy is a generator. It yields the next token of each row that still runs (ids_B, int64) and
is sent the rows to keep (positions among those, int64), or None when all go on; it drops the
others' cache, so that a row that has finished costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor

#: The next token of every running row, and back the rows that run on.
Stream = Generator[Tensor, Tensor | None, None]

#: What the running rows have written so far -> which of them are finished.
Stop = Callable[[list[list[int]]], list[bool]]


def left_padded_positions(mask_BT: Tensor) -> Tensor:
    """Position ids of left-padded rows: the first real token is at 0, and so is the padding."""
    return (mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def follow(
    stream: Stream, *, limits: Sequence[int], stop: Stop, written: list[list[int]]
) -> Iterator[list[tuple[int, bool]]]:
    """Run ``stream`` until every row is finished or has its limit of tokens, step by step.

    limits: the most tokens a row may write, at least 1 each. written: an empty list for each row,
    to which its tokens are appended, the one that finishes it included. Yields after each step the
    rows that wrote a token, and whether that was their last.
    """
    running = list(range(len(limits)))
    token_B = next(stream)
    while True:
        for row, token in zip(running, token_B.tolist(), strict=True):
            written[row].append(token)
        finished = stop([written[row] for row in running])
        done = [
            finished[place] or len(written[row]) >= limits[row] for place, row in enumerate(running)
        ]
        yield list(zip(running, done, strict=True))
        keep = [place for place, last in enumerate(done) if not last]
        if not keep:
            stream.close()
            return
        everyone = len(keep) == len(running)
        running = [running[place] for place in keep]
        token_B = stream.send(None if everyone else torch.tensor(keep, device=token_B.device))


def collect(stream: Stream, *, limits: Sequence[int], stop: Stop) -> list[list[int]]:
    """Run ``stream`` to its end as ``follow`` does; return what each row wrote."""
    written: list[list[int]] = [[] for _ in limits]
    for _ in follow(stream, limits=limits, stop=stop, written=written):
        pass
    return written
