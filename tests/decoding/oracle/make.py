"""Ask the contrastive search of transformers 4.46.3, the last that had it, for its tokens.

In an environment of its own, since the project needs transformers 5:

    python3 -m venv oracle && oracle/bin/pip install transformers==4.46.3 torch==2.13.0 'numpy<2.5'
    oracle/bin/python tests/decoding/oracle/make.py

The model is the embedded one in float32. Prompts are stretches of the embedded sample, of 1 to 400
tokens. ``generate`` calls its contrastive search only for alpha > 0 and k > 1: here it is called
for all. Every third case stops at an end-of-sequence token, which is one that the model wrote.
"""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import GenerationMode

EMBEDDED = Path(__file__).parents[3] / "dollyllama" / "embedded"
OUTPUT = Path(__file__).with_name("contrastive.json.gz")

ALPHAS = (0.0, 0.2, 0.5, 0.6, 0.9, 1.0)
KS = (1, 2, 4, 8)
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 300, 400)
NEW_TOKENS = 16


def load_model() -> LlamaForCausalLM:
    """The embedded model, whose config transformers 4 reads by the names that it knows."""
    values = json.loads((EMBEDDED / "model/config.json").read_text(encoding="utf-8"))
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    del values["dtype"]
    model = LlamaForCausalLM(LlamaConfig(**values))
    weights = load_file(EMBEDDED / "model/model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.float().eval()


def read_ids() -> list[int]:
    """The sample's rows, one after another."""
    values = json.loads((EMBEDDED / "model/tokenizer.json").read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        tokenizer = Tokenizer.from_file(file.name)
    ids: list[int] = []
    for path in sorted((EMBEDDED / "data").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in itertools.islice(lines, 400):
                text = "\n".join(str(value) for value in json.loads(line).values())
                ids += tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def main() -> None:
    assert transformers.__version__ == "4.46.3", transformers.__version__
    model, ids = load_model(), read_ids()
    GenerationConfig.get_generation_mode = lambda *_: GenerationMode.CONTRASTIVE_SEARCH

    def search(prompt: list[int], alpha: float, k: int, eos: int | None) -> list[int]:
        settings = GenerationConfig(
            penalty_alpha=alpha,
            top_k=k,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=eos,
            pad_token_id=3,
        )
        given = torch.tensor([prompt])
        written = model.generate(
            given, attention_mask=torch.ones_like(given), generation_config=settings
        )
        return written[0, len(prompt) :].tolist()

    model.generation_config = GenerationConfig()
    cases = []
    for number, (alpha, k, length) in enumerate(itertools.product(ALPHAS, KS, LENGTHS)):
        start = number * 7919 % (len(ids) - length)
        prompt = ids[start : start + length]
        written, eos = search(prompt, alpha, k, None), None
        if number % 3 == 0:
            eos = written[NEW_TOKENS // 2]
            written = search(prompt, alpha, k, eos)
        cases.append({"alpha": alpha, "k": k, "prompt": prompt, "eos": eos, "written": written})
    text = json.dumps({"transformers": transformers.__version__, "cases": cases})
    OUTPUT.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{OUTPUT}: {len(cases)} cases")


if __name__ == "__main__":
    main()
