"""What `tune` finds beside the best cell of a whole grid, on an engine that works in steps, in virtual time.

    python -m benchmarks.tuning

The search is tune's own, and rows enter by the pipeline's own admission; candidates answer different rows, as they do
for tune. Devices: an H100 with 8 B weights in 16 bits, and two CPU cores with 0.1 B in 32 (docs/limits.md has the
formulas; neither was measured). Told: tokens/s of the two, how many candidates were run, and what share of the grid's
engine time they took.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.engine import EngineLost, Prompt, Sampling
from actors.replica import Replica
from actors.window import Window
from benchmarks.measure import circumstances
from benchmarks.step_engine import Device, StepEngine, VirtualTime
from pipelines.tuning import Sizes, Trial, best, first_sizes, search

H100 = Device(
    name="H100, 8 B",
    token_s=16e9 / 9.9e14,
    weights_s=16e9 / 3.35e12,
    kv_token_s=131e3 / 3.35e12,
    step_s=2e-3,
    kv_tokens=400_000,
    most_tokens=16_384,
)
CPU = Device(
    name="2 cores, 0.1 B",
    token_s=2.1e8 / 1.5e11,
    weights_s=5e8 / 2e10,
    kv_token_s=46e3 / 2e10,
    step_s=5e-3,
    kv_tokens=6_000,
    most_tokens=4_096,
)
PROFILES = {"labels": (150, 2), "chat": (300, 150), "long": (2000, 60)}  # mean tokens of prompt and answer
MOST = Sizes(max_num_seqs=256, max_num_batched_tokens=8_192)
GRID = [Sizes(max_num_seqs=2**s, max_num_batched_tokens=2**t) for s in range(2, 9) for t in range(8, 14)]
BATCHES = 8  # as tune.batches
FEWEST_ROWS = 32


@dataclass
class Bench:
    """One device and one kind of rows."""

    device: Device
    prompt: int
    output: int
    rows: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))
    spent_s: float = 0.0  # of the engine

    def measure(self, sizes: Sizes) -> Trial:
        """As a run of its own would: on the next rows."""
        loop = VirtualTime()
        try:
            tokens, seconds = loop.run_until_complete(self._answered(sizes, loop))
        except EngineLost as error:
            return Trial(sizes=sizes, tokens_per_s=None, why=str(error))
        finally:
            loop.close()
        self.spent_s += seconds
        return Trial(sizes=sizes, tokens_per_s=tokens / seconds)

    async def _answered(self, sizes: Sizes, loop: VirtualTime) -> tuple[int, float]:
        replica = Replica(
            lambda: StepEngine(self.device, sizes, self.output),
            window=Window(ordered=False),
            max_num_seqs=sizes.max_num_seqs,
            clock=loop.time,
        )
        numbers = [next(self.rows) for _ in range(max(FEWEST_ROWS, BATCHES * sizes.max_num_seqs))]
        outcomes = await asyncio.gather(*(replica.ask(self._prompt(number)) for number in numbers))
        answers = [outcome.answer for outcome in outcomes if outcome.answer]
        return sum(each.prompt_tokens + each.output_tokens for each in answers), replica.busy.device_seconds

    def _prompt(self, number: int) -> Prompt:
        length = random.Random(number).lognormvariate(0, 0.5) / 1.13 * self.prompt
        return Prompt(key=str(number), token_ids=(1,) * max(1, round(length)), sampling=Sampling(max_tokens=1024))


def compare(device: Device, profile: str) -> dict[str, object]:
    """Grid and search, one after the other."""
    prompt, output = PROFILES[profile]
    whole, ours = Bench(device, prompt, output), Bench(device, prompt, output)
    grid = {sizes: whole.measure(sizes).tokens_per_s or 0.0 for sizes in GRID}
    top = max(grid, key=lambda sizes: grid[sizes])
    first = first_sizes(device.kv_tokens, prompt + output, MOST)
    trials = search(ours.measure, first, MOST)
    found = best(trials)
    if found is None:
        raise SystemExit(f"no candidate lived on {device.name} with {profile}")
    again = (
        Bench(device, prompt, output).measure(found.sizes).tokens_per_s or 0.0
    )  # on the rows that the grid had first
    return {
        "device": device.name,
        "rows": profile,
        "grid_best": [top.max_num_seqs, top.max_num_batched_tokens, round(grid[top])],
        "found": [found.sizes.max_num_seqs, found.sizes.max_num_batched_tokens, round(again)],
        "ratio": round(again / grid[top], 3),
        "runs": len(trials),
        "grid_cells": len(GRID),
        "share_of_grids_time": round(ours.spent_s / whole.spent_s, 3),
    }


def main() -> None:
    results = []
    print("| device | rows | best of the grid | found by tune | ratio | runs of 42 | engine time of the grid's |")
    print("|---|---|---|---|---|---|---|")
    for device in (H100, CPU):
        for profile in PROFILES:
            told = compare(device, profile)
            results.append(told)
            print(f"| {' | '.join(str(value) for key, value in told.items() if key != 'grid_cells')} |", flush=True)
    print(json.dumps({"benchmark": "tuning", "results": results, **circumstances("python -m benchmarks.tuning")}))


if __name__ == "__main__":
    main()
