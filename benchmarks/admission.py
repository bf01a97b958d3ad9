"""What each rule by which rows enter an engine is worth, on an engine that works in steps, in virtual time.

    python -m benchmarks.admission

`fixed`: as many rows as the window holds at first, whatever comes. `narrower`: fewer once the engine has thrown rows
out. `predicted`: besides, no more than are predicted to fit the KV memory until they end. `all`: besides, more where
the engine has nothing left to begin with while rows wait. Devices and lengths are those of benchmarks/tuning.py and
more, reckoned and not measured. Told: tokens/s, how often a row was thrown out, steps.
"""

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from actors.engine import EngineLoad, Prompt, Sampling
from actors.replica import Replica
from actors.window import Window
from benchmarks.measure import circumstances
from benchmarks.step_engine import Device, StepEngine, VirtualTime
from benchmarks.tuning import CPU, H100
from pipelines.tuning import Sizes

LOOK_S = 0.5  # as a host looks
L4 = Device(
    name="L4, 8 B in 8 bits",
    token_s=1.6e10 / 2.4e14,
    weights_s=8e9 / 3e11,
    kv_token_s=6.5e4 / 3e11,
    step_s=3e-3,
    kv_tokens=80_000,
    most_tokens=16_384,
)
SEEN: Mapping[str, Callable[[EngineLoad], EngineLoad | None]] = {
    "fixed": lambda load: None,
    "narrower": lambda load: replace(load, kv_tokens=None, waiting=1),
    "predicted": lambda load: replace(load, waiting=1),
    "all": lambda load: load,
}


@dataclass(frozen=True)
class Case:
    """Rows, and the engine that answers them."""

    name: str
    device: Device
    sizes: Sizes
    prompt: int  # tokens, mean
    output: int  # tokens, mean
    rows: int
    most_output: int = 4096  # tokens


CASES = (
    Case("short labels", H100, Sizes(max_num_seqs=256, max_num_batched_tokens=8192), 25, 1, 40_000, most_output=1),
    Case("chat", H100, Sizes(max_num_seqs=256, max_num_batched_tokens=8192), 300, 150, 6_000),
    Case("long prompts", H100, Sizes(max_num_seqs=512, max_num_batched_tokens=8192), 2000, 60, 3_000),
    Case("long answers", H100, Sizes(max_num_seqs=1024, max_num_batched_tokens=8192), 300, 1000, 6_000),
    Case("both long", H100, Sizes(max_num_seqs=1024, max_num_batched_tokens=8192), 1000, 500, 6_000),
    Case("chat", L4, Sizes(max_num_seqs=512, max_num_batched_tokens=8192), 300, 400, 4_000),
    Case("chat", CPU, Sizes(max_num_seqs=32, max_num_batched_tokens=2048), 300, 150, 600),
    Case("long prompts", CPU, Sizes(max_num_seqs=16, max_num_batched_tokens=4096), 2000, 60, 300),
)


@dataclass(frozen=True)
class Told:
    """What came of a case under one rule."""

    tokens_per_s: int
    thrown_out: int
    steps: int
    seconds: float


def answered(
    case: Case, seen: Callable[[EngineLoad], EngineLoad | None], prompts: Sequence[Prompt] | None = None
) -> Told:
    """All rows, with what admission is let see of the engine's load. `prompts`: the case's, in another order."""
    loop = VirtualTime()
    try:
        return loop.run_until_complete(_answered(case, seen, prompts or prompts_of(case), loop))
    finally:
        loop.close()


async def _answered(
    case: Case, seen: Callable[[EngineLoad], EngineLoad | None], prompts: Sequence[Prompt], loop: VirtualTime
) -> Told:
    engine = StepEngine(case.device, case.sizes, case.output)
    replica = Replica(
        lambda: engine, window=Window(ordered=False), max_num_seqs=case.sizes.max_num_seqs, clock=loop.time
    )

    async def look() -> None:
        while True:
            if (load := seen(engine.load())) is not None:
                replica.admission.see(load)
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(*(replica.ask(prompt) for prompt in prompts))
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    answers = [outcome.answer for outcome in outcomes if outcome.answer]
    tokens = sum(each.prompt_tokens + each.output_tokens for each in answers)
    return Told(round(tokens / loop.time()), engine.preemptions, engine.steps, round(loop.time(), 1))


def prompts_of(case: Case) -> list[Prompt]:
    """The rows of a case."""
    return [_prompt(case, number) for number in range(case.rows)]


def _prompt(case: Case, number: int) -> Prompt:
    length = random.Random(number).lognormvariate(0, 0.5) / 1.13 * case.prompt
    tokens = (1,) * max(1, round(length))
    return Prompt(key=str(number), token_ids=tokens, sampling=Sampling(max_tokens=case.most_output))


def main() -> None:
    results = []
    print(f"| device | rows (mean prompt, answer) | {' | '.join(SEEN)} |")
    print(f"|{'---|' * (2 + len(SEEN))}")
    for case in CASES:
        told = {rule: answered(case, seen) for rule, seen in SEEN.items()}
        cells = [f"{each.tokens_per_s:,} ({each.thrown_out}, {each.steps})" for each in told.values()]
        print(f"| {case.device.name} | {case.name} ({case.prompt}, {case.output}) | {' | '.join(cells)} |", flush=True)
        rules = {rule: vars(each) for rule, each in told.items()}
        results.append({"device": case.device.name, "rows": case.name, **rules})
    print(json.dumps({"benchmark": "admission", "results": results, **circumstances("python -m benchmarks.admission")}))


if __name__ == "__main__":
    main()
