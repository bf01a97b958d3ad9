"""A Ray that scenes share, in a process of its own whose environment its workers inherit.

`python -m tests.faults.cluster` prints the address, and then takes orders, one a line: `add` a node, `lose` it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults import seams

ROOT = Path.cwd()
STARTS = 3  # attempts: Ray gives its processes a time to start that is short on a machine that does much else


@dataclass(frozen=True)
class SharedRay:
    """The address, where its workers look for their faults, and the process behind it."""

    address: str
    armoury: Path
    process: "subprocess.Popen[str]"

    def order(self, word: str) -> None:
        """Add a node, or lose it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline())["done"] == word


@contextmanager
def shared_ray(armoury: Path, environment: Mapping[str, str]) -> Iterator[SharedRay]:
    """A Ray of four logical CPUs; gone at the end, with all its processes."""
    armoury.mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment = plain | worker_environment(armoury) | dict(environment)
    for _ in range(STARTS):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(armoury / "ray.log").open("w"),
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            break
        process.wait()
    assert line, (armoury / "ray.log").read_text()[-500:]
    try:
        yield SharedRay(json.loads(line)["address"], armoury, process)
    finally:
        all_of_it = processes(process.pid)
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(60)
        finally:
            for one in all_of_it:
                with suppress(psutil.Error):
                    one.kill()


def worker_environment(armoury: Path) -> dict[str, str]:
    """What makes Ray's workers look for their faults."""
    return {
        seams.VARIABLE: str(armoury),
        "FAULTS_WORKERS": "1",
        "PYTHONPATH": f"{ROOT / 'tests' / 'faults' / 'hook'}{os.pathsep}{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "240",  # 30 s are too few on a machine that does much else
        "OMP_NUM_THREADS": "1",
    }


def processes(root: int, words: str = "") -> list[psutil.Process]:
    """Processes below that of this pid, with these words in their command line.

    By descent, and not by their environment: the names that Ray and vLLM give themselves overwrite it.
    """
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.Error):
            if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def orphans(sessions: Collection[int], *, wait_s: float = 20) -> list[psutil.Process]:
    """Processes of these sessions (each driver leads one) that are there after so long."""
    deadline = time.monotonic() + wait_s
    while True:
        found = [one for one in psutil.process_iter() if _session(one) in sessions and _alive(one)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return -1


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": 2**28},
    )
    print(json.dumps({"address": cluster.address}), flush=True)
    nodes = []
    for line in sys.stdin:
        word = line.strip()
        if word == "add":
            nodes.append(cluster.add_node(num_cpus=4, object_store_memory=2**27))
        elif word == "lose":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print(json.dumps({"done": word}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
