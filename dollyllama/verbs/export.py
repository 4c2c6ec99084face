"""``export``: a trained run as the model of another tool."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from dollyllama.verbs.merge import making, read_options, write_verified
from dollyllama.verbs.parser import run_parser


def main(arguments: Sequence[str]) -> int:
    """merge a run as merge does, and write it as an MLflow model that answers instructions"""
    command = run_parser("export", main.__doc__)
    command.add_argument("--format", choices=["mlflow"], required=True, help="mlflow")
    given, run_config = read_options(command, arguments)
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError("export --format mlflow needs mlflow: pip install -e '.[mlflow]'")

    from dollyllama.pyfunc import write_model

    with making(given.output) as folder:
        folder.mkdir()
        if not write_verified(run_config, given, folder / "merged"):
            return 1
        write_model(
            folder / "merged",
            folder / "model",
            prompt=run_config.data.prompt,
            decoding=run_config.decoding,
            batch_size=run_config.evaluation.batch_size,
            seed=run_config.seed,
        )
        (folder / "model").rename(given.output)
    print(f"\n{given.output}")
    return 0
