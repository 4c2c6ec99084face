"""Make the small model that comes with the project: tokenizer, pretraining, digests.

    python -m dollyllama.embedded.pretrain

trains ``model/`` again from generated text alone, seeded throughout: 9.2 M tokens. It needs a C++
compiler (torch.compile); two cores, shared with other work, took 48 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from dollyllama.data.example import join_input
from dollyllama.data.formats import FORMATS
from dollyllama.data.prompt import format_prompt, format_response
from dollyllama.embedded import MODEL
from dollyllama.embedded.corpus import documents
from dollyllama.embedded.sample import FILES
from dollyllama.embedded.tokenizer import BEGIN, END, PAD, save_tokenizer, train_tokenizer
from dollyllama.files import digest, write_text

SEED = 0
VOCAB_SIZE = 3072
POSITIONS = 512  # tokens; a training row is as long
BATCH_SIZE = 12  # rows
STEPS = 1500
WARMUP_STEPS = 60
#: Share of the steps at the end in which the rate falls to 0.
COOLDOWN = 0.4
LR, EMBEDDING_LR, WEIGHT_DECAY = 4e-3, 4e-3, 0.05
_TOKENIZER_DOCUMENTS = 12_000
_TOKENIZER_ROWS = 1_000


def tokenizer_texts() -> Iterator[str]:
    """What the pieces are made from: documents, and instructions in their prompt.

    So the template's words are pieces as well; the model is trained on the documents alone.
    """
    yield from itertools.islice(documents(SEED), _TOKENIZER_DOCUMENTS)
    for name, file in FILES.items():
        random = Random(f"tokenizer {SEED} {name}")
        for _ in range(_TOKENIZER_ROWS):
            fields = FORMATS[file.row_format].read(file.make(random))
            instruction = join_input(fields.instruction, fields.input)
            yield format_prompt(instruction) + format_response(fields.response)


def build_model(tokenizer: Any) -> Any:
    """A Llama of random weights: 6 layers, width 256, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=POSITIONS,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BEGIN),
            eos_token_id=tokenizer.token_to_id(END),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
    )


def batches(tokenizer: Any, *, seed: int, rows: int) -> Iterator[Tensor]:
    """Endless ids_BT, int64: documents one after another, each between <s> and </s>."""
    end = tokenizer.token_to_id(END)
    stream: list[int] = []
    size = rows * (POSITIONS + 1)
    source = documents(seed)
    while True:
        while len(stream) < size:
            for encoded in tokenizer.encode_batch(list(itertools.islice(source, 256))):
                stream += [*encoded.ids, end]
        yield torch.tensor(stream[:size]).view(rows, POSITIONS + 1)
        stream = stream[size:]


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: warm-up, constant, then linearly to 0."""
    return min((step + 1) / WARMUP_STEPS, 1.0, (steps - step) / (COOLDOWN * steps))


def build_optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (Jordan 2024), AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    return [
        torch.optim.Muon(
            matrices,
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            momentum=0.95,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=EMBEDDING_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model: Any, ids_BT: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten()
    )


def pretrain(folder: Path, *, steps: int) -> None:
    """Train tokenizer and model and write them to ``folder`` in Hugging Face format, bfloat16."""
    from tqdm import tqdm

    tokenizer = train_tokenizer(tokenizer_texts(), vocab_size=VOCAB_SIZE)
    save_tokenizer(tokenizer, folder, max_length=POSITIONS)
    model = build_model(tokenizer)
    compiled = torch.compile(model)
    optimizers = build_optimizers(model)
    full = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    fresh = list(itertools.islice(batches(tokenizer, seed=SEED + 1, rows=BATCH_SIZE), 4))
    stream = batches(tokenizer, seed=SEED + 2, rows=BATCH_SIZE)
    started = time.perf_counter()
    bar = tqdm(range(steps), unit="step", mininterval=30)
    for step in bar:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, lr in zip(groups, full, strict=True):
            group["lr"] = lr * rate(step, steps)
        loss = loss_of(compiled, next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            with torch.no_grad():
                held_out = sum(loss_of(compiled, ids).item() for ids in fresh) / len(fresh)
            assert math.isfinite(held_out)
            bar.write(f"step {step + 1}: loss {loss.item():.3f}, on fresh text {held_out:.3f}")
            save(model, folder)
    minutes = (time.perf_counter() - started) / 60
    print(f"{steps * BATCH_SIZE * POSITIONS:,} tokens in {minutes:.0f} minutes")


def save(model: Any, folder: Path) -> None:
    """Write weights in bfloat16, and the digest of every file to ``DIGESTS`` beside ``folder``."""
    from transformers import GenerationConfig

    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.save_pretrained(folder)
    lines = [f"{digest(path)}  {folder.name}/{path.name}\n" for path in sorted(folder.iterdir())]
    write_text(folder.parent / "DIGESTS", "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pretrain(arguments.output, steps=arguments.steps)


if __name__ == "__main__":
    main()
