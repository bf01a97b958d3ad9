"""The entrypoint of a RayJob: runs a command, and tells KubeRay what its exit code means. Standard library alone.

    python /app/k8s/bin/entrypoint.py python -m pipelines.run +job=… …

KubeRay knows three ends of a Ray job. FAILED is tried again on a new cluster while `backoffLimit` lasts; SUCCEEDED and
STOPPED are final. So of a run's exit codes

    0       becomes SUCCEEDED
    1, 2    become FAILED: a store that was away, an engine that did not start, a head that was lost; retry is resume
    3, 4    become STOPPED: done with too many errors, or stopped by budget, deadline or signal. A new cluster would
            find nothing else in the first case, and spend the money that was denied in the second
    4       of a head that was evicted becomes FAILED after all: nobody wanted the run to end, so the next one goes on

The code itself is in the log's last line, in the output's manifest, and, while this container's end is remembered, in
its termination message. SIGTERM is handed on to the run, which then drains; `pid` is where drain.py finds it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

FINAL = {3: "done, with more errors than max_error_rate allows", 4: "stopped before the end; the same command goes on"}
TERMINATION_MESSAGE = Path(os.environ.get("TERMINATION_MESSAGE", "/dev/termination-log"))
PID_FILE = Path(os.environ.get("RUN_PID_FILE", "/tmp/run.pid"))  # noqa: S108 – the container's own /tmp
EVICTED = PID_FILE.with_suffix(".evicted")  # drain.py's mark: the head goes
STOPPED = 4
STOPPED_WITHIN_S = 60.0  # for Ray to answer a request to stop with a signal


def main(command: list[str]) -> int:
    """Run the command; the exit code with which the job ends."""
    stopping = threading.Event()  # Ray stops this job: because somebody asked it to, or because this process did
    EVICTED.unlink(missing_ok=True)
    early: list[int] = []  # signals from before there was a child
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: object) -> None:
        stopping.set()
        for child in children:
            if child.poll() is None:
                child.send_signal(number)
        if not children:
            early.append(number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, hand_on)
    child = subprocess.Popen(command)  # noqa: S603 – the RayJob's own command line
    children.append(child)
    for number in early:
        child.send_signal(number)
    PID_FILE.write_text(str(child.pid))
    code = child.wait()
    PID_FILE.unlink(missing_ok=True)
    code = code if code >= 0 else 128 - code  # killed by a signal, as a shell tells it
    meaning = FINAL.get(code, "done" if code == 0 else "failed")
    note(code, meaning)
    say(f"exit {code}: {meaning}")
    if code == STOPPED and EVICTED.exists():
        say("the head goes, and nobody asked the run to end: it has failed for KubeRay, which tries again")
        return 128 + signal.SIGTERM
    if code not in FINAL or stopping.is_set() or stopped_by_ray(stopping):
        return code
    say("Ray did not stop this job; it ends as SUCCEEDED, which is better than being tried again")
    return 0


def stopped_by_ray(stopping: threading.Event) -> bool:
    """Ask Ray to stop the job that this process is the entrypoint of, and wait until it does; whether it did."""
    metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    job = metadata.get("job_submission_id")
    if not job:
        return False
    asking = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--no-wait", job],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    # Ray's signal ends the asking too, which is a child of the job: how that ended says nothing.
    stopped = stopping.wait(STOPPED_WITHIN_S)
    if asking.poll() is None:
        asking.kill()
    asking.wait()
    return stopped


def note(code: int, meaning: str) -> None:
    """Leave the code where `kubectl describe pod` shows it, if there is such a place."""
    if TERMINATION_MESSAGE.exists():
        TERMINATION_MESSAGE.write_text(json.dumps({"exit_code": code, "meaning": meaning}))


def say(text: str) -> None:
    """One line into the job's log."""
    sys.stdout.write(f"entrypoint: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        say("no command: entrypoint.py python -m pipelines.run +job=…")
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
