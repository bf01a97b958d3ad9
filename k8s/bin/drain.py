"""The preStop hook of Ray's pods: lets a run finish what is in the engines. Standard library alone.

    python /app/k8s/bin/drain.py head      # SIGTERM to the run on this head, then wait for its end
    python /app/k8s/bin/drain.py worker    # tell Ray that this node goes, then wait while an engine here still answers

Kubernetes runs it before SIGTERM reaches `ray start`, which would take driver and engines with it at once. When a whole
cluster goes, the workers wait for the head's run to end; an idle worker, scaled down, goes at once. What Ray knows to
be going gets no new units. A run that ends because its head goes is not over: a mark beside the pid says so to
entrypoint.py, which lets KubeRay try again. Both give up after DRAIN_S seconds, which lie between `grace_s` and
terminationGracePeriodSeconds (a test keeps the three in order).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PID_FILE = Path(os.environ.get("RUN_PID_FILE", "/tmp/run.pid"))  # noqa: S108 – the container's own /tmp
EVICTED = PID_FILE.with_suffix(".evicted")
PROC = Path(os.environ.get("PROC", "/proc"))
LOOK_EVERY_S = 0.5


def main(role: str) -> int:
    """Drain this pod; 0 also when there was nothing to do."""
    wait_s = float(os.environ.get("DRAIN_S", "90"))
    if role == "worker":
        tell_ray(wait_s)
        wait_while(engines_here, wait_s)
        return 0
    try:
        run = int(PID_FILE.read_text())
        EVICTED.touch()
        os.kill(run, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return 0  # no run here, or it has just ended
    # Until the file is gone: the entrypoint removes it when the run has ended, and writes the exit code after that.
    wait_while(lambda: PID_FILE.exists() and alive(run), wait_s)
    return 0


def tell_ray(seconds: float) -> None:
    """Let Ray give this node no more work, if a node of Ray is here; whether that worked is in the pod's events."""
    told = raylet()
    if told is None:
        return
    address, node = told
    words = ["drain-node", "--address", address, "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "its pod goes", "--deadline-remaining-seconds", str(round(seconds))]
    with contextlib.suppress(subprocess.TimeoutExpired):  # the head may have gone before: then nobody needs to know
        subprocess.run((sys.executable, "-m", "ray.scripts.scripts", *words), check=False, timeout=seconds)  # noqa: S603


def raylet() -> tuple[str, str] | None:
    """The cluster's address and this node's id, from the command line of the one raylet that a pod has."""
    for process in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            flags = dict(
                word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word
            )
            if words[0].endswith("/raylet") and "node_id" in flags and "gcs-address" in flags:
                return flags["gcs-address"], flags["node_id"]
    return None


def engines_here() -> bool:
    """Whether one of Ray's actors lives in this pod; idle workers, and tasks that run again elsewhere, do not count."""
    for process in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended since
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::") and not title.startswith(b"ray::IDLE") and b"MapWorker" in title:
                return True
    return False


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_while(something: Callable[[], bool], seconds: float) -> None:
    """Wait while something holds, for so long at most."""
    until = time.monotonic() + seconds
    while something() and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    if sys.argv[1:] not in (["head"], ["worker"]):
        sys.stderr.write("drain.py: say head or worker\n")
        sys.exit(2)
    sys.exit(main(sys.argv[1]))
