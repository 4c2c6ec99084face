"""What prompts are and how long, asked from the event loop while the engine has a tokenizer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

from dollyllama.config import PromptFormat
from dollyllama.data.example import Question
from dollyllama.data.prompt import Stretches, build_prompt
from dollyllama.data.tokens import encode_prompts
from dollyllama.serving.refusal import Refusal


class PromptCounter:
    """Builds prompts in the format trained on, and counts tokens as decoding does.

    positions: a prompt must have fewer tokens than this.
    """

    def __init__(self, tokenizer: Any, positions: int, prompt_format: PromptFormat) -> None:
        # Tokenizers are changed by use and may not be used by two threads at once.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._one_at_a_time = asyncio.Lock()
        self._positions = positions
        self._format = prompt_format

    def build(self, question: Question) -> Stretches:
        """The prompt of a conversation. Raises Refusal where the chat template refuses it."""
        try:
            return build_prompt(question, self._format, self._tokenizer)
        except ValueError as error:
            raise Refusal(422, "invalid_value", str(error), param="messages") from None

    async def count(self, prompts: Sequence[str | Stretches], *, param: str) -> int:
        """The tokens of all prompts together.

        Raises Refusal for one that leaves no room for an answer. param: the field it came from.
        """
        async with self._one_at_a_time:
            encoded = await asyncio.to_thread(encode_prompts, prompts, self._tokenizer)
        longest = max(len(ids) for ids in encoded)
        if longest >= self._positions:
            raise Refusal(
                413,
                "context_length_exceeded",
                f"the prompt has {longest} tokens and the model {self._positions} positions, "
                f"prompt and answer together: shorten it",
                param=param,
            )
        return sum(len(ids) for ids in encoded)
