"""How near the memory that a run is expected to take comes to what it takes.

    python -m benchmarks.memory [--tokenizer FOLDER] [--steps 3]

Each case is a real run in a process of its own; its ``result.json`` has the peak as expected before
training and as measured after it. The embedded model trains on its sample with batches of several
sizes, with and without activation checkpointing, packed and padded; with a tokenizer, a Llama of
100 M parameters with random weights trains on the same rows. Cases in whose view the one constant
of ``training/heap.py`` was chosen are marked; the others judge it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.sweep import run as run_script

FITTED = "fitted"
#: What both models are tried with, and whether the embedded one was used to fit the constant.
CASES: dict[str, tuple[str, ...]] = {
    "4 packed": ("trainer.batch_size=4",),
    "16 packed": ("trainer.batch_size=16",),
    "64 packed": ("trainer.batch_size=64",),
    "64 packed, checkpointing": (
        *("trainer.batch_size=64", "trainer.activation_checkpointing=true"),
    ),
    "32 padded": ("trainer.batch_size=32", "trainer.batching=padded"),
    "8 x 2 grouped, checkpointing": (
        *("trainer.batch_size=8", "trainer.accumulation=2", "trainer.batching=length_grouped"),
        "trainer.activation_checkpointing=true",
    ),
    "16 packed, DoRA": ("trainer.batch_size=16", "lora=dora"),
    "16 packed, not quantised": ("trainer.batch_size=16", "ablation=no_quantization"),
}
FITTED_TO = list(CASES)[:4]
LARGE_CASES = ("4 packed", "16 packed", "32 padded", "8 x 2 grouped, checkpointing")
#: A Llama of 100 M parameters.
SHAPE = {
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, help="of the larger model, of 32,000 ids at most")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    given = parser.parse_args()
    print(f"{'case':44}{'expected':>10}{'measured':>10}{'error':>8}")
    errors = []
    with tempfile.TemporaryDirectory() as temporary:
        models = {"embedded": ("model=tiny", list(CASES))}
        if given.tokenizer is not None:
            path = Path(temporary) / "model"
            make_model(path, given.tokenizer)
            models["100 M"] = (f"model=local model.path={path}", list(LARGE_CASES))
        for model, (overrides, names) in models.items():
            for name in names:
                title = f"{model}, {name}"
                if given.only not in title:
                    continue
                fitted = model == "embedded" and name in FITTED_TO
                expected, measured = run(
                    [*overrides.split(), *CASES[name]], Path(temporary) / title, given.steps
                )
                error = expected / measured - 1
                if not fitted:
                    errors.append(abs(error))
                mark = f" ({FITTED})" if fitted else ""
                print(
                    f"{title + mark:44}{expected:10,.0f}{measured:10,.0f}{error:8.1%}", flush=True
                )
    if errors:
        print(f"largest error of those that nothing was fitted to: {max(errors):.1%}; in MiB")


def run(overrides: list[str], folder: Path, steps: int) -> tuple[float, float]:
    """Peak memory of a run in MiB, expected and measured. SystemExit when it fails.

    This process stays small, because a child begins with its parent's peak.
    """
    run_script(
        "train.py",
        [
            *(*overrides, "tracking=files", "evaluation=none"),
            *("trainer.epochs=null", f"trainer.max_steps={steps}"),
            *("trainer.checkpoint_steps=null", "trainer.keep_checkpoints=null"),
            f"hydra.run.dir='{folder}'",
        ],
    )
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result["expected_memory_mib"], result["train"]["peak_memory_mib"]


def make_model(folder: Path, tokenizer: Path) -> None:
    """Write the larger model, in a process of its own, which takes the memory with it."""
    code = (
        "import sys, torch\n"
        "from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])\n"
        f"shape = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, **{SHAPE})\n"
        "LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(sys.argv[1])\n"
        "tokenizer.save_pretrained(sys.argv[1])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tokenizer)], check=True, capture_output=True
    )


if __name__ == "__main__":
    main()
