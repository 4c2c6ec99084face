"""The small model and the sample data that come with the project, and the code that made them."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
MODEL = Path(__file__).parent / "model"
