"""A host's process: who it is, how the one before it ended, and the end of one that does not move."""

import os
import re
import signal
import socket
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.evidence import Birth, Death

TAIL_BYTES = 64 * 1024  # of a log that is looked at
KILL_TIMEOUT_S = 60.0  # for a task on another node that ends a process there
_SIGNAL = re.compile(r"\*\*\* (SIG[A-Z]+) received")  # Ray's workers write it before they die of one that they can see
_NOISE = re.compile(
    r"\s|:|\*\*\*|PC: |Stack |Extension modules|Current thread|Thread 0x|\[[^]]*\] logging\.cc|\[failure_"
)


def birth() -> Birth:
    """The process that this is called in, a Ray actor's."""
    context = ray.get_runtime_context()
    return Birth(
        replica=context.get_actor_id() or "",
        process=f"{socket.gethostname()}:{os.getpid()}",
        node=context.get_node_id(),
        pid=os.getpid(),
        start_ticks=_start_ticks(os.getpid()) or 0,
        logs=tuple(path for path in (_open_file(1), _open_file(2)) if path),
    )


def death_of(dead: Birth, node: str) -> Death:
    """How a process ended that is no more, seen from `node`: by its node's end, or as its log says."""
    if dead.node != node:
        if not any(each["NodeID"] == dead.node and each["Alive"] for each in ray.nodes()):
            return Death(cause="preempted", words=f"its node {dead.node[:8]} is gone")
        return Death(cause="crashed", words=f"its process died on node {dead.node[:8]}, where its log is")
    tails = [_tail(Path(log)) for log in dead.logs]
    signals = [found for tail in tails for found in _SIGNAL.findall(tail)]
    if signals:
        how = f"its process died of {signals[-1]}"
    else:
        how = "its process was killed (SIGKILL: from outside, or for want of memory)"
    said = [line.strip()[:200] for tail in tails for line in _last_lines(tail)]
    return Death(cause="crashed", words=f"{how}; its log ends: {' | '.join(said)}" if said else how)


def end(victim: Birth) -> None:
    """Kill this process where it is, if it is still there; Ray starts its actor again.

    By a task on its node and SIGKILL, which ends a stopped process too: `ray.kill` asks the process itself.
    """
    there = NodeAffinitySchedulingStrategy(node_id=victim.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_end_here).options(scheduling_strategy=there)
    ray.get(task.remote(victim.pid, victim.start_ticks), timeout=KILL_TIMEOUT_S)


def _end_here(pid: int, start_ticks: int) -> None:
    if _start_ticks(pid) == start_ticks:
        os.kill(pid, signal.SIGKILL)


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name before it may hold blanks


def _open_file(descriptor: int) -> str | None:
    try:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return str(file) if file.is_file() else None


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _last_lines(tail: str) -> list[str]:
    return [line for line in tail.splitlines() if line.strip() and not _NOISE.match(line)][-2:]
