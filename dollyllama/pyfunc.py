"""A merged model as MLflow's python_function flavour: how it is written, and how MLflow loads it.

The folder holds the merged weights, this package's own code and MLflow's metadata; nothing in it is
pickled. ``_load_pyfunc`` is the name that MLflow asks a loader module for.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dollyllama.config import Decoding, PromptFormat, Strategy

#: The distributions that ``_load_pyfunc`` and ``predict`` import.
_NEEDED = ("mlflow-skinny", "omegaconf", "pandas", "peft", "tokenizers", "torch", "transformers")

#: What a caller may choose for one prediction; what is left out is as the run has it.
_PARAMS = {
    "strategy": "string",
    "max_new_tokens": "long",
    "temperature": "double",
    "top_p": "double",
    "repetition_penalty": "double",
    "alpha": "double",
    "k": "long",
    "q": "double",
    "seed": "long",
}


def write_model(
    merged: Path,
    output: Path,
    *,
    prompt: PromptFormat,
    decoding: Decoding,
    batch_size: int,
    seed: int,
) -> None:
    """Write the MLflow model ``output``, a new folder; the folder ``merged`` moves into it.

    prompt: the format trained on. decoding, batch_size, seed: how it answers where the caller does
    not say.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # lock files of the working folder are not ours
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Unnamed: MLflow takes lists only then.
    text = Schema([ColSpec("string")])
    params = ParamSchema([ParamSpec(name, kind, default=None) for name, kind in _PARAMS.items()])
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / "dollyllama"
        data = Path(temporary) / "merged"  # in place of the weights, which MLflow would copy
        package = Path(__file__).parent
        shutil.copytree(package, code, ignore=_only_code)
        data.mkdir()
        mlflow.pyfunc.save_model(
            output,
            loader_module=__name__,
            data_path=data,
            code_paths=[code],
            signature=ModelSignature(inputs=text, outputs=text, params=params),
            input_example=["Name a bird."],
            # "+cpu" and the like name a build that an index may not have.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _NEEDED],
            model_config={
                "prompt": str(prompt),
                "decoding": {
                    key: None if value is None else str(value) if key == "strategy" else value
                    for key, value in asdict(decoding).items()
                },
                "batch_size": batch_size,
                "seed": seed,
            },
        )
    merged.rename(output / "data" / "merged")
    about = Model.load(output)
    about.model_size_bytes = sum(
        file.stat().st_size for file in output.rglob("*") if file.is_file()
    )
    about.save(output / "MLmodel")


def _only_code(folder: str, names: list[str]) -> set[str]:
    """Of what a folder of the package holds, all but folders without code and what is no code."""
    return {
        name
        for name in names
        if not name.endswith(".py") and not (Path(folder) / name / "__init__.py").is_file()
    }


def _load_pyfunc(data_path: str, model_config: dict[str, Any]) -> Answers:
    """What MLflow calls to load the model, on CUDA where it answers."""
    import torch

    from dollyllama.model.load import load_merged, load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = model_config["decoding"]
    return Answers(
        load_merged(Path(data_path), device),
        load_tokenizer(data_path, None),
        prompt=PromptFormat(model_config["prompt"]),
        decoding=Decoding(**{**values, "strategy": Strategy(values["strategy"])}),
        batch_size=model_config["batch_size"],
        seed=model_config["seed"],
    )


class Answers:
    """A model that answers instructions; ``predict`` is MLflow's name for it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompt: PromptFormat,
        decoding: Decoding,
        batch_size: int,
        seed: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._decoding = decoding
        self._batch_size = batch_size
        self._seed = seed

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Answers in the order of the instructions, without template and end marker.

        model_input: a pandas DataFrame of one column, unnamed or ``instruction``. ValueError for
        another column, an empty instruction, and for params that contradict each other.
        """
        from dollyllama.data.example import Question
        from dollyllama.data.prompt import build_prompt
        from dollyllama.decoding.generate import generate

        (column,) = model_input.columns
        if isinstance(column, str) and column != "instruction":
            raise ValueError(f"the first column is {column}: name it instruction")
        instructions = model_input[column].tolist()
        for number, instruction in enumerate(instructions):
            if not instruction.strip():
                raise ValueError(f"instruction {number} is empty")
        given = {name: value for name, value in (params or {}).items() if value is not None}
        seed = given.pop("seed", self._seed)
        completions = generate(
            self._model,
            self._tokenizer,
            [build_prompt(Question(each), self._prompt, self._tokenizer) for each in instructions],
            choose(self._decoding, given),
            batch_size=self._batch_size,
            seed=seed,
        )
        return [completion.text for completion in completions]


def choose(default: Decoding, given: Mapping[str, Any]) -> Decoding:
    """``default`` with what was given; with another strategy, its values are to be given too.

    ValueError in one line for what the strategy lacks or has no use for.
    """
    if "strategy" not in given:
        return replace(default, **given)
    if given["strategy"] not in list(Strategy):
        raise ValueError(f"strategy={given['strategy']}: there are {', '.join(Strategy)}")
    strategy = Strategy(given["strategy"])
    if strategy is default.strategy:
        return replace(default, **{**given, "strategy": strategy})
    return Decoding.of(**{"max_new_tokens": default.max_new_tokens, **given, "strategy": strategy})
