"""Draw out/peers.json: rows a second of each side, start-up included, by workload.

python -m benchmarks.peers.plot [FILE]        (default: out/peers.svg)
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import RAW


def rate(said: dict[str, Any], workload: str, side: str) -> float | None:
    """Rows a second from the command to its end; None: it did not get through."""
    told = said["results"][workload][side]
    return None if "error" in told else said["rows"] / told["wall_s"]


def main(target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    said: dict[str, Any] = json.loads(RAW.read_text())
    workloads = list(said["results"])
    sides = list(dict.fromkeys(side for told in said["results"].values() for side in told))
    figure, axes = pyplot.subplots(figsize=(1.6 * len(workloads) + 2, 4), layout="constrained")
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        heights = [rate(said, workload, side) or 0.0 for workload in workloads]
        places = [place + (number - (len(sides) - 1) / 2) * width for place in range(len(workloads))]
        axes.bar(places, heights, width * 0.92, label=side)
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_ylabel("rows/s, start-up included")
    axes.set_title(f"{said['rows']} rows, {said['device']}, {said['date']}, commit {said['commit']}", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, metadata={"Date": None})
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out") / "peers.svg")
