"""An engine that works in steps as vLLM's does, in virtual time: its speed follows from sizes, lengths and a device.

A step takes one token of each row that decodes and fills up with chunks of prompts, max_num_batched_tokens in all; it
lasts as long as its arithmetic or its reading of weights and KV, whichever is longer, and a constant. Rows are let in
while max_num_seqs and the KV memory have room for their prompts; a row for whose next token there is none is thrown out
and computed again later.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from actors.engine import Answer, EngineLoad, EngineLost, Prompt
from pipelines.tuning import Sizes


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self._now = max(self._now, loop._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device with a model on it."""

    name: str
    token_s: float  # arithmetic of a token
    weights_s: float  # to read all weights once
    kv_token_s: float  # to read the KV of one token
    step_s: float  # of a step beside these
    kv_tokens: int  # that the KV memory holds
    most_tokens: int  # of a step: with more, its activations do not fit and the engine does not start


def output_of(prompt: Prompt, mean: float) -> int:
    """Tokens of the answer to this prompt: drawn by its key, log-normal."""
    drawn = random.Random(prompt.key).lognormvariate(0, 0.6) / 1.2
    return max(1, min(prompt.sampling.max_tokens, round(drawn * mean)))


@dataclass(slots=True, eq=False)
class _Row:
    prompt: int  # tokens
    output: int
    ended: "asyncio.Future[None]"
    computed: int = 0  # of the prompt, and what was said before it was thrown out
    said: int = 0
    again: int = 0  # said before: to be computed like a prompt

    @property
    def context(self) -> int:
        return self.computed + self.said - self.again


@dataclass(slots=True)
class StepEngine:
    """See the module. `mean_output`: tokens of an answer, drawn by its key."""

    device: Device
    sizes: Sizes
    mean_output: float
    waiting: "deque[_Row]" = field(default_factory=deque)
    running: list[_Row] = field(default_factory=list)
    preemptions: int = 0
    steps: int = 0
    told: tuple[int, int] = (0, 0)  # rows that ran and waited when the last step had ended
    stepping: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        if self.sizes.max_num_batched_tokens > self.device.most_tokens:
            raise EngineLost(f"out of memory: {self.sizes.max_num_batched_tokens} tokens in a step")

    async def answer(self, prompt: Prompt) -> Answer:
        """See `Engine.answer`."""
        output = output_of(prompt, self.mean_output)
        row = _Row(len(prompt.token_ids), output, asyncio.get_running_loop().create_future())
        self.waiting.append(row)
        if self.stepping is None or self.stepping.done():
            self.stepping = asyncio.create_task(self._work())
        await row.ended
        return Answer(
            text="", finish_reason="stop", prompt_tokens=row.prompt, cached_tokens=0, output_tokens=row.output
        )

    def load(self) -> EngineLoad:
        """See `Engine.load`: as of its last step, as vLLM tells it."""
        return EngineLoad(
            running=self.told[0],
            waiting=self.told[1],
            kv_tokens=self.device.kv_tokens,
            preemptions=self.preemptions,
        )

    def close(self) -> None:
        """See `Engine.close`."""

    async def _work(self) -> None:
        while self.running or self.waiting:
            seconds = self._step()
            waiting = len(self.waiting)  # who comes during the step waits for its end
            await asyncio.sleep(seconds)
            ended = [row for row in self.running if row.said >= row.output]
            self.running = [row for row in self.running if row.said < row.output]
            self.told = len(self.running), waiting
            for row in ended:
                row.ended.set_result(None)

    def _step(self) -> float:
        """Seconds that it takes."""
        self.steps += 1
        left, kv = self.sizes.max_num_batched_tokens, sum(row.context for row in self.running)
        decoding = [row for row in self.running if row.computed >= row.prompt + row.again][:left]
        while kv + len(decoding) > self.device.kv_tokens and len(self.running) > 1:
            out = self.running.pop()
            kv -= out.context
            out.computed, out.again = 0, out.said
            self.waiting.appendleft(out)
            self.preemptions += 1
            decoding = [row for row in decoding if row is not out]
        for row in decoding:
            row.said += 1
        left -= len(decoding)
        computing = [row for row in self.running if row.computed < row.prompt + row.again]
        while self.waiting and len(self.running) < self.sizes.max_num_seqs and left > len(computing):
            row = self.waiting[0]
            if kv + len(decoding) + row.prompt + row.again > self.device.kv_tokens and self.running:
                break
            kv += row.prompt + row.again
            self.running.append(self.waiting.popleft())
            computing.append(row)
        prefilled = 0
        for row in computing:
            chunk = min(left - prefilled, row.prompt + row.again - row.computed)
            row.computed, prefilled = row.computed + chunk, prefilled + chunk
            if row.computed >= row.prompt + row.again:
                row.said += 1  # the first token comes of the last prompt token
        arithmetic = self.device.token_s * (len(decoding) + prefilled)
        reading = self.device.weights_s + self.device.kv_token_s * kv
        return self.device.step_s + max(arithmetic, reading)
