"""What plans say of a run's dollars, beside what the run is billed: real engine, a short probe, one plan for each seed.

    python -m benchmarks.plan_actual [ROWS] [SEEDS] [WORKLOAD …]        (default: 800, 10, unique repeated mixed)

A seed draws the sample that is planned and probed, and nothing else. Each workload is run before its plans and once
more after them; the actual dollars are the mean of the two. Nothing is known of the output when it is planned. The load
of the machine (processes that want a core, over the last minute) is told beside each: where the two runs differ, or the
load is above what a run makes itself, it is not the plan that is off.
"""

import json
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.measure import REPOSITORY, circumstances, run_pipeline

ENGINE = ["model.max_num_seqs=64", "engine.kv_cache_gib=0.25", "model.max_model_len=1536", "tracking=none"]
SAMPLE, PROBE_S = 256, 10
CHOSEN = ["unique", "repeated", "mixed"]
RAW = Path("out") / "plan_actual.json"


def planned(words: list[str], seed: int, sink: Path) -> dict[str, Any]:
    """The plan's JSON document."""
    own = [f"seed={seed}", f"plan.sample={SAMPLE}", f"plan.probe_s={PROBE_S}", "format=json", f"sink.uri={sink}"]
    command = [sys.executable, "-m", "pipelines.plan", *words, *own]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def billed(words: list[str], rows: int, sink: Path) -> dict[str, Any]:
    """Dollars, device-seconds and their parts, of a run over all rows."""
    ended = run_pipeline(words, sink, memory=False)
    totals, bill = ended.summary["this_run"], ended.summary["bill"]
    if ended.exit_code or totals["rows_in"] != rows:
        raise RuntimeError(f"the run ended with {ended.exit_code}: {totals}")
    parts = {name: round(part["device_ns"] / 1e9, 1) for name, part in bill["parts"].items()}
    steady = {name: ended.summary[name] for name in ("steady_s", "startup_s")}
    seconds = float(bill["device_seconds"])
    return {"usd": bill["usd"], "device_s": seconds, "parts": parts, **steady, "load": os.getloadavg()[0]}


def compared(name: str, rows: int, seeds: int) -> dict[str, Any]:
    """One workload: two runs, and the plans between them."""
    with tempfile.TemporaryDirectory(prefix="plan-actual-") as base:
        folder = Path(base)
        words = [*workloads.write(name, folder, rows), *ENGINE]
        before = billed(words, rows, folder / "before")
        plans = []
        for seed in range(seeds):
            found = planned(words, seed, folder / "none")
            plans.append({"seed": seed, "forecast": found["forecast"], "probe": found["probe"]})
            plans[-1] |= {"expected": found["expected"], "load": os.getloadavg()[0]}
            usd, here = found["forecast"]["usd"], found["forecast"]["device_seconds"]
            print(f"{name} seed {seed}: {usd} {here['middle']:.1f} s", file=sys.stderr, flush=True)
        after = billed(words, rows, folder / "after")
    actual = (Decimal(before["usd"]) + Decimal(after["usd"])) / 2
    off, inside = [], 0
    for plan in plans:
        usd = {key: Decimal(value) for key, value in plan["forecast"]["usd"].items()}
        off.append(float(usd["middle"] / actual - 1))
        inside += usd["low"] <= actual <= usd["high"]
    return {"runs": [before, after], "usd": str(actual), "off": off, "inside": inside, "plans": plans}


def main(rows: int, seeds: int, names: list[str]) -> None:
    results = {}
    print("| workload | billed, two runs | planned, middle of the seeds | low to high | off | inside | load |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        found = results[name] = compared(name, rows, seeds)
        said = [plan["forecast"]["usd"] for plan in found["plans"]]
        low, middle, high = (
            sorted(Decimal(usd[key]) for usd in said)[len(said) // 2] for key in ("low", "middle", "high")
        )
        both = " and ".join(f"${Decimal(run['usd']):.5f}" for run in found["runs"])
        worst = f"{100 * min(found['off']):+.0f} % to {100 * max(found['off']):+.0f} %"
        load = [one["load"] for one in (*found["runs"], *found["plans"])]
        inside = f"{found['inside']} of {seeds} | {min(load):.0f} to {max(load):.0f}"
        print(f"| {name} | {both} | ${middle:.5f} | ${low:.5f} to ${high:.5f} | {worst} | {inside} |", flush=True)
    RAW.parent.mkdir(exist_ok=True)
    command = f"python -m benchmarks.plan_actual {rows} {seeds} {' '.join(names)}"
    told = {"benchmark": "plan_actual", "rows": rows, "sample": SAMPLE, "probe_s": PROBE_S, **circumstances(command)}
    RAW.write_text(json.dumps({**told, "results": results}, indent=1))
    short = {name: {key: found[key] for key in ("usd", "off", "inside")} for name, found in results.items()}
    print(json.dumps({**told, "results": short}))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        int(arguments[0]) if arguments else 800,
        int(arguments[1]) if arguments[1:] else 10,
        arguments[2:] or CHOSEN,
    )
