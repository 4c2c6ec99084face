from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dollyllama import embedded
from dollyllama.model.load import load_tokenizer
from tests.decoding.build import make_tokenizer


@pytest.fixture(scope="session")
def model() -> Any:
    """The embedded model in float32, where a row's answer does not hang on its batch."""
    return AutoModelForCausalLM.from_pretrained(embedded.MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(str(embedded.MODEL), None)


@pytest.fixture(scope="session")
def bytes_tokenizer() -> Any:
    """One token a byte."""
    return make_tokenizer()


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """The engine's thread and the test's would have two pools of threads for so small a model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
