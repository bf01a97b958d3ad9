"""An engine that answers by hash: always the same, with timings and faults to order. For tests of scale and faults."""

import asyncio
import hashlib
import json
import math
import os
import random
import signal
import threading
import time
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.engine import Alternative, Answer, BadPrompt, EngineConfig, EngineLoad, EngineLost, Prompt

WORDS = ("river", "stone", "amber", "quiet", "north", "cedar", "lamp", "orbit")


class SimulatedEngine:
    """Answers as the protocol says. The same key, output contract and faults give the same answer, wherever asked."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._faults = config.simulated
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asked = 0
        self._lost: str | None = None
        self._in_flight: set[asyncio.Future[None]] = set()
        self._count_start()
        if self._faults.start_s > config.start_timeout_s:
            time.sleep(config.start_timeout_s)
            limit = f"{config.start_timeout_s:g} s (engine.start_timeout_s)"
            raise EngineLost(f"engine {config.model_name} did not start within {limit}: it was simulating its start")
        time.sleep(self._faults.start_s)

    async def answer(self, prompt: Prompt) -> Answer:
        """Answer after the simulated latency; see `Engine.answer`."""
        if self._lost:
            raise EngineLost(self._lost)
        faults, tokens = self._faults, prompt.token_ids
        if not tokens or (faults.bad_token_id is not None and faults.bad_token_id in tokens):
            raise BadPrompt(f"the simulated engine {self._config.model_name} cannot answer this prompt")
        self._asked += 1
        if faults.kill_token_id is not None and faults.kill_token_id in tokens:
            _kill_process(faults.kill_signal)
        if faults.kill_every_rows and self._asked % faults.kill_every_rows == 0:
            _kill_process(faults.kill_signal)
        if faults.stop_token_id is not None and faults.stop_token_id in tokens:
            os.kill(os.getpid(), signal.SIGSTOP)
        if faults.poison_token_id is not None and faults.poison_token_id in tokens:
            self._die("it met its poison token")
        if faults.die_every_rows and self._asked % faults.die_every_rows == 0:
            self._die(f"it dies every {faults.die_every_rows} rows")
        if faults.hang_token_id is not None and faults.hang_token_id in tokens:
            await self._sleep(math.inf)
        if faults.latency_s > 0:
            await self._take_time(prompt)
        return answer_by_hash(prompt, faults.output_tokens)

    def load(self) -> EngineLoad:
        """Rows that run and wait."""
        return EngineLoad(
            running=self._running,
            waiting=len(self._waiting),
            kv_usage=self._running / self._config.max_num_seqs,
            preemptions=0,
        )

    def close(self) -> None:
        """Calls in flight end with EngineLost."""
        self._lost = self._lost or f"engine {self._config.model_name} was closed"
        for waiter in list(self._in_flight):
            loop = waiter.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_fail, waiter, self._lost)

    def _count_start(self) -> None:
        if self._faults.starts_file is None:
            return
        starts = Path(self._faults.starts_file)
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(starts.read_text().splitlines()) <= self._faults.crash_starts:
            _kill_process(self._faults.kill_signal)

    def _die(self, why: str) -> None:
        self._lost = f"simulated engine {self._config.model_name} died: {why}"
        for waiter in list(self._in_flight):
            _fail(waiter, self._lost)
        raise EngineLost(self._lost)

    async def _take_time(self, prompt: Prompt) -> None:
        faults = self._faults
        while self._running >= self._config.max_num_seqs:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await self._until(turn)
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
        self._running += 1
        try:
            spread = faults.latency_spread * (2 * random.Random(prompt.key).random() - 1)  # noqa: S311
            await self._sleep(faults.latency_s * (1 + spread))
        finally:
            self._running -= 1
            while self._waiting:
                turn = self._waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = None if math.isinf(seconds) else loop.call_later(seconds, _wake, waiter)
        try:
            await self._until(waiter)
        finally:
            if timer:
                timer.cancel()

    async def _until(self, waiter: "asyncio.Future[None]") -> None:
        self._in_flight.add(waiter)
        try:
            await waiter
        finally:
            self._in_flight.discard(waiter)


def _kill_process(by: str) -> None:
    signal.pthread_kill(threading.get_ident(), signal.Signals[by])  # in this thread, as if it had done it
    time.sleep(60)  # should the signal need a moment


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _fail(waiter: "asyncio.Future[None]", why: str) -> None:
    if not waiter.done():
        waiter.set_exception(EngineLost(why))


def answer_by_hash(prompt: Prompt, output_tokens: int) -> Answer:
    """What the simulated engine says to this prompt: a pure function of key, constraint and sampling."""
    number = int.from_bytes(hashlib.blake2b(prompt.key.encode(), digest_size=8).digest())
    constraint = prompt.constraint
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    logprobs: tuple[float, ...] = ()
    tokens = max(1, min(output_tokens, prompt.sampling.max_tokens))
    if constraint.choices:
        text, tokens = constraint.choices[number % len(constraint.choices)], 1
    elif constraint.json_schema:
        text = json.dumps(smallest_document(_parsed(constraint.json_schema), number))
    else:
        text = " ".join(WORDS[number >> 3 * position & 7] for position in range(min(tokens, 16)))
    if prompt.alternatives:
        said = constraint.choices or (text.split(" ", maxsplit=1)[0], "else")
        share = 0.5 + number % 1000 / 2002  # of the one chosen: over a half, under 1
        rest = math.log((1 - share) / max(1, len(said) - 1))
        first = text if constraint.choices else said[0]
        others = [Alternative(text=other, logprob=rest) for other in said if other != first]
        position = (Alternative(text=first, logprob=math.log(share)), *others)[: prompt.alternatives]
        alternatives, logprobs = (position,) * tokens, (math.log(share),) * tokens
    return Answer(
        text=text,
        finish_reason="stop",
        prompt_tokens=len(prompt.token_ids),
        cached_tokens=0,
        output_tokens=tokens,
        token_logprobs=logprobs,
        alternatives=alternatives,
    )


@lru_cache(maxsize=32)
def _parsed(schema: str) -> Any:
    return json.loads(schema)


def smallest_document(schema: Any, number: int = 0) -> Any:
    """A small document valid under a JSON schema of the common types; `number` chooses among enumerated values."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return smallest_document(schema[key][0], number)
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: smallest_document(each, number) for name, each in schema.get("properties", {}).items()}
    if kind == "array":
        return [smallest_document(schema.get("items", {}), number) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        word = WORDS[number % len(WORDS)]
        return word.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        return _number_within(schema, number)
    return {"boolean": number % 2 == 1}.get(kind)


def _number_within(schema: dict[str, Any], number: int) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0 if schema.get("maximum", 0) >= 0 else None))
    if low is None:
        return schema["maximum"]  # type: ignore[no-any-return]
    low = low + 1 if "exclusiveMinimum" in schema and "minimum" not in schema else low
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10) - ("exclusiveMaximum" in schema))
    return low + number % (int(high - low) + 1) if high >= low else low  # type: ignore[no-any-return]
