"""Contrastive search beside greedy search and the classic way, on a Llama of 110 M parameters.

    python -m benchmarks.decode

One process, random weights: the cost of a token does not depend on what it is. The classic
way is that of transformers 4.46.3, the last that had contrastive search: k copies of the cache, a
pass over k rows, and the chosen copy kept. "generate" is greedy search by transformers' own
``generate``, as it is today. Ours run as this project's verbs run them, under ``fast_inference``.
Each side reads the same prompt and then writes the same number of tokens. Ours take turns token by
token, as machines change their speed within a round, the others after them; a first round does not
count. Time a token leaves out reading the prompt and the first token, before which weights are
packed. Ratios are taken within a round, and shown as median and range over the rounds.
Peak memory is that of a process of its own for each side, above what the loaded model takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from dollyllama.decoding.contrastive import contrastive_tokens, largest_similarity, pick
from dollyllama.decoding.generate import greedy, next_tokens
from dollyllama.decoding.penalty import adaptive, fixed
from dollyllama.decoding.stream import Stream
from dollyllama.fast.attach import fast_inference
from dollyllama.latency.measure import peak, reset_peak

ALPHA, K, Q = 0.6, 4, 1.0
#: Times a token that are compared.
RATIOS = (
    ("contrastive", "greedy"),
    ("contrastive", "generate"),
    ("adaptive", "greedy"),
    ("classic", "contrastive"),
)


@torch.no_grad()
def classic(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Stream:
    """Contrastive search with k copies of the cache, for prompts without padding."""
    cache = DynamicCache(config=model.config)
    rows = len(ids_BT)
    out = model(input_ids=ids_BT, past_key_values=cache, use_cache=True, output_hidden_states=True)
    context_BTD, logits_BV = out.hidden_states[-1], out.logits[:, -1].float()
    k_B = torch.full((rows,), K, device=ids_BT.device)
    alpha_B = torch.full_like(k_B, ALPHA, dtype=torch.float64)
    every_B = torch.arange(rows, device=ids_BT.device)
    while True:
        probability_BK, candidate_BK = logits_BV.softmax(dim=-1).topk(K, dim=-1)
        cache.batch_repeat_interleave(K)
        out = model(
            input_ids=candidate_BK.view(-1, 1),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        hidden_BKD = out.hidden_states[-1].view(rows, K, -1)
        # As there, the context is copied for each candidate and its length taken anew.
        copied_BTD = normalize(context_BTD.repeat_interleave(K, dim=0), dim=-1)
        penalty_BK = largest_similarity(
            normalize(hidden_BKD.reshape(rows * K, 1, -1), dim=-1),
            copied_BTD,
            copied_BTD.new_ones(copied_BTD.shape[:2], dtype=torch.bool),
        ).view(rows, K)
        chosen_B = pick(probability_BK, penalty_BK, k_B, alpha_B)
        context_BTD = torch.cat([context_BTD, hidden_BKD[every_B, chosen_B][:, None]], dim=1)
        cache.batch_select_indices(every_B * K + chosen_B)
        logits_BV = out.logits.view(rows, K, -1)[every_B, chosen_B].float()
        yield candidate_BK[every_B, chosen_B]


#: A model, prompts and where they are no padding -> the tokens.
STREAMS: dict[str, Callable[[Any, Tensor, Tensor], Stream]] = {
    "greedy": lambda model, ids, mask: next_tokens(model, ids, mask, greedy),
    "contrastive": lambda model, ids, mask: contrastive_tokens(model, ids, mask, fixed(ALPHA, K)),
    "adaptive": lambda model, ids, mask: contrastive_tokens(model, ids, mask, adaptive(Q)),
    "classic": classic,
}
OURS = ("greedy", "contrastive", "adaptive")
SIDES = (*STREAMS, "generate")


class Arrivals(BaseStreamer):  # type: ignore[misc]
    """The tokens that ``generate`` chose at each step, and when."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.steps.append(value.flatten().tolist())
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def make_model(positions: int, dtype: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2_048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    return model.cuda() if torch.cuda.is_available() else model


#: Tokens by step, and seconds a step.
Written = tuple[list[list[int]], float]


def write(
    sides: Sequence[str], model: Any, *, batch: int, context: int, tokens: int
) -> list[Written]:
    """Write ``tokens`` tokens behind random prompts, several of ``OURS`` in turns or one of all."""
    generator = torch.Generator().manual_seed(context)
    ids_BT = torch.randint(3, 32_000, (batch, context), generator=generator).to(model.device)
    if sides[0] == "generate":
        return [by_generate(model, ids_BT, tokens)]
    with nullcontext() if sides[0] == "classic" else fast_inference(model):
        streams = [STREAMS[side](model, ids_BT, torch.ones_like(ids_BT)) for side in sides]
        written = [[next(stream).tolist(), stream.send(None).tolist()] for stream in streams]
        seconds = [0.0] * len(streams)
        order = list(range(len(streams)))
        for _ in range(tokens - 2):
            for each in order:
                start = time.perf_counter()
                written[each].append(streams[each].send(None).tolist())
                seconds[each] += time.perf_counter() - start
            order.reverse()
        for stream in streams:
            stream.close()
    return [(steps, took / (tokens - 2)) for steps, took in zip(written, seconds, strict=True)]


def by_generate(model: Any, ids_BT: Tensor, tokens: int) -> Written:
    arrivals = Arrivals()
    model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
        streamer=arrivals,
    )
    first, last = arrivals.times[2], arrivals.times[-1]  # before them came the prompt
    return arrivals.steps[1:], (last - first) / (tokens - 2)


def peak_mib(side: str, *, dtype: str, batch: int, context: int, tokens: int) -> float:
    """Peak memory of decoding, in MiB above the loaded model, in this process."""
    model = make_model(context + tokens, dtype)
    write([side], model, batch=1, context=8, tokens=3)  # what any first pass takes
    before = reset_peak(model.device)
    if before is None:
        return math.nan
    write([side], model, batch=batch, context=context, tokens=tokens)
    return (peak(model.device) - before) / 2**20


def measure_memory(dtype: str, batch: int, context: int, tokens: int) -> dict[str, float]:
    """Each side's peak in MiB, in a process of its own."""
    peaks = {}
    for side in SIDES:
        case = json.dumps({"dtype": dtype, "batch": batch, "context": context, "tokens": tokens})
        command = [sys.executable, "-m", "benchmarks.decode", "--memory-of", side, "--case", case]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side] = float(done.stdout.splitlines()[-1])
    return peaks


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_mib(arguments.memory_of, **arguments.case))
        return
    model = make_model(max(arguments.contexts) + arguments.tokens, arguments.dtype)
    count = sum(weights.numel() for weights in model.parameters())
    mib = sum(weights.nbytes for weights in model.parameters()) / 2**20
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{count / 1e6:.0f} M parameters, {arguments.dtype} ({mib:.0f} MiB), alpha {ALPHA}, k {K}, "
        f"adaptive q {Q}, {device}, {torch.get_num_threads()} threads, {arguments.tokens} tokens, "
        f"{arguments.rounds} rounds"
    )
    print(
        f"{'batch':>5} {'context':>7} {'greedy ms':>9}  "
        + "".join(f"{f'{one} / {other}':<24}" for one, other in RATIOS)
        + f"peak MiB beside the model: {', '.join(SIDES)}"
    )
    for batch in arguments.batches:
        for context in arguments.contexts:
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            differ = 0
            for number in range(arguments.rounds + 1):
                tokens = {}
                for sides in (OURS, ("classic",), ("generate",)):
                    made = write(
                        sides, model, batch=batch, context=context, tokens=arguments.tokens
                    )
                    for side, (steps, took) in zip(sides, made, strict=True):
                        tokens[side] = steps
                        if number:
                            seconds[side].append(took)
                if tokens["contrastive"] != tokens["classic"]:
                    differ += 1

            peaks = measure_memory(arguments.dtype, batch, context, arguments.tokens)
            ratios = [
                [first / second for first, second in zip(seconds[one], seconds[other], strict=True)]
                for one, other in RATIOS
            ]
            print(
                f"{batch:>5} {context:>7} {statistics.median(seconds['greedy']) * 1e3:>9.1f}  "
                + "".join(f"{spread(each):<24}" for each in ratios)
                + ", ".join(f"{peak:.0f}" for peak in peaks.values())
                + (f"; in {differ} rounds other tokens than the classic way's" if differ else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
