"""Lengths: what a row will take of an engine's KV memory, from what rows took that were answered."""

from actors.beginnings import BLOCK_TOKENS
from actors.engine import Answer

LEAST_ROWS = 16  # answered, before they tell anything
RECENT_ROWS = 1000  # about so many make the means: what comes first in a corpus may not be like what comes last


class Lengths:
    """Means over the rows that were answered. `block`: tokens of a block of the KV memory; None: a usual one."""

    def __init__(self, block: int | None = None) -> None:
        self._part_of_a_block = (block or BLOCK_TOKENS) / 2  # a row's last one is half empty, on average
        self._rows = 0
        self._output = self._output_squared = 0.0  # tokens, and their squares
        self._own = 1.0  # share of a prompt's tokens that were not in the engine's cache

    def see(self, answer: Answer) -> None:
        """A row was answered."""
        self._rows += 1
        weight = 1 / min(self._rows, RECENT_ROWS)
        own = 1 - answer.cached_tokens / answer.prompt_tokens if answer.prompt_tokens else 1.0
        self._output += weight * (answer.output_tokens - self._output)
        self._output_squared += weight * (answer.output_tokens**2 - self._output_squared)
        self._own += weight * (own - self._own)

    def kv_tokens(self, rows: int, prompt_tokens: int) -> float | None:
        """Predicted tokens of KV memory of so many rows with so many prompt tokens, while others follow as they leave.

        They are their prompts, but for what these share with others, and what has been written of their answers: of a
        row that is looked at at some moment, E[d²] / 2 E[d] for answers of d tokens, since long ones are in for longer
        (the mean age in renewal theory). None: too few rows were answered to tell.
        """
        if self._rows < LEAST_ROWS:
            return None
        written = self._output_squared / (2 * self._output) if self._output else 0.0
        return prompt_tokens * self._own + rows * (written + self._part_of_a_block)
