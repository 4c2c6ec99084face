"""Run a study: ``python sweep.py`` ablates the tips; ``python sweep.py --help`` tells."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from dollyllama import launch


@hydra.main(config_path="conf", config_name="sweep", version_base="1.3")
def sweep(composed: DictConfig) -> float | None:
    return launch.task(composed)


if __name__ == "__main__":
    launch.main(sweep, sweeps=True)
