"""The small model and the sample data that come with the project, and the code that made them."""

from __future__ import annotations

from pathlib import Path

#: The path by which a config names the model and the sample data that come with the project.
EMBEDDED = "embedded"

DATA = Path(__file__).parent / "data"
MODEL = Path(__file__).parent / "model"
