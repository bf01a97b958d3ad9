"""Beginnings: how much of the prompts that entered an engine is a beginning shared with another, and how far their
order lets a prefix cache find it.

Counted in full blocks of the KV memory, as prefix caches do; the last token of a prompt is computed in any case.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 16  # of an engine that says nothing of its blocks: vLLM's default on GPUs
_REGISTERS = 4096  # of the sketch: it counts to 1.6 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What was seen. Tokens since the host started."""

    tokens: int = 0  # of prompts
    in_blocks: int = 0  # of these, in full blocks that a cache may hold
    after_one_alike: int = 0  # of these, in blocks that the prompt which entered just before begins with as well
    block: int = BLOCK_TOKENS
    sketch: bytes = bytes(_REGISTERS)  # of the different blocks, each with all before it (HyperLogLog)


class Beginnings:
    """Looks at prompts in the order in which they enter an engine. Costs 1 to 2 µs for each block that is not shared
    with the prompt before."""

    def __init__(self, block: int | None) -> None:
        self._block = block or BLOCK_TOKENS
        self._before = b""  # the newest prompt's blocks
        self._chains: list[bytes] = []  # hash of each of them with all before it
        self._registers = bytearray(_REGISTERS)
        self._tokens = self._blocks = self._alike = 0

    def enters(self, token_ids: Sequence[int]) -> None:
        """A prompt enters the engine."""
        blocks, width = max(0, len(token_ids) - 1) // self._block, self._block * 4
        here = struct.pack(f"<{blocks * self._block}i", *token_ids[: blocks * self._block])
        alike = 0
        while alike < min(blocks, len(self._chains)):
            place = slice(alike * width, (alike + 1) * width)
            if here[place] != self._before[place]:
                break
            alike += 1
        chains = self._chains[:alike]
        for number in range(alike, blocks):
            before = chains[-1] if chains else b""
            chains.append(hashlib.blake2b(before + here[number * width : (number + 1) * width], digest_size=8).digest())
            self._count(int.from_bytes(chains[-1], "little"))
        self._before, self._chains = here, chains
        self._tokens += len(token_ids)
        self._blocks += blocks
        self._alike += alike

    def _count(self, chain: int) -> None:
        register, rest = chain % _REGISTERS, chain // _REGISTERS
        rank = 53 - rest.bit_length()  # zeros before the first one of 52 bits, and that one
        if rank > self._registers[register]:
            self._registers[register] = rank

    def so_far(self) -> Begun:
        """All of it."""
        return Begun(
            tokens=self._tokens,
            in_blocks=self._blocks * self._block,
            after_one_alike=self._alike * self._block,
            block=self._block,
            sketch=bytes(self._registers),
        )


def different(sketches: Iterable[bytes]) -> float:
    """How many different blocks several sketches have seen together; estimated (Flajolet et al. 2007, figure 3)."""
    registers = np.zeros(_REGISTERS, np.uint8)
    for sketch in sketches:
        registers = np.maximum(registers, np.frombuffer(sketch, np.uint8))
    raw = 0.7213 / (1 + 1.079 / _REGISTERS) * _REGISTERS**2 / np.sum(2.0 ** -registers.astype(np.float64))
    empty = int(np.count_nonzero(registers == 0))
    return float(_REGISTERS * np.log(_REGISTERS / empty)) if raw <= 2.5 * _REGISTERS and empty else float(raw)
