"""Train an adapter: ``python train.py`` with any overrides; ``python train.py --help`` tells."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from dollyllama import launch


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def train(composed: DictConfig) -> float | None:
    return launch.task(composed)


if __name__ == "__main__":
    launch.main(train)
