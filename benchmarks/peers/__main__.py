"""The pipeline beside its peers: the same rows, prompts and engine settings, one after the other, order rotated.

    python -m benchmarks.peers [ROWS] [WORKLOAD …]        (default: 300, all workloads)

Sides: the pipeline; `vllm.LLM.chat` in one process, which neither reads nor writes nor survives anything; `vllm
run-batch`; Ray Data's LLM processor; Daft's `prompt`, where it is installed; an asyncio client against `vllm serve`.
A side that does not get through is told with its error. The raw figures go to out/peers.json, which
`python -m benchmarks.peers.plot` draws.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.measure import circumstances
from benchmarks.peers.sides import SIDES, NotHere, Told

ENGINE = ["model.max_num_seqs=64", "engine.kv_cache_gib=0.25", "model.max_model_len=1536", "tracking=none"]
RAW = Path("out") / "peers.json"
HEAD = "| workload | side | rows/s | whole run, s | first answers on disk, s | prefilled | decoded | peak MiB |"


def line(workload: str, side: str, told: Told) -> str:
    """A row of the table; a dash for what the side does not tell."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    cells = (
        shown(told.rows_per_s, ".1f"),
        shown(told.wall_s, ".0f"),
        shown(told.first_s, ".0f"),
        shown(told.prefilled, ","),
        shown(told.decoded, ","),
        shown(told.peak_mib, ","),
    )
    return f"| {workload} | {side} | {' | '.join(cells)} |"


def main(rows: int, names: list[str]) -> None:
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    for turn, name in enumerate(names):
        order = list(SIDES)
        first = turn % len(order)
        for side in (*order[first:], *order[:first]):
            with tempfile.TemporaryDirectory(prefix="peers-") as folder:
                words = [*workloads.write(name, Path(folder), rows), *ENGINE]
                try:
                    told = SIDES[side](words, rows, Path(folder))
                except (NotHere, RuntimeError) as error:
                    results[name][side] = {"error": str(error)}
                    print(f"| {name} | {side} | did not get through: {str(error).splitlines()[-1][:200]} |", flush=True)
                    continue
            results[name][side] = asdict(told)
            print(line(name, side, told), flush=True)
    RAW.parent.mkdir(exist_ok=True)
    command = f"python -m benchmarks.peers {rows} {' '.join(names)}"
    said = {"benchmark": "peers", "rows": rows, "results": results, **circumstances(command)}
    RAW.write_text(json.dumps(said, indent=1))
    print(f"raw figures: {RAW}", file=sys.stderr)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = arguments[1:] or list(workloads.WORKLOADS)
    main(int(arguments[0]) if arguments else 300, chosen)
