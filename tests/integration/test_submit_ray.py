"""Runs submitted to a real Ray by its job API, with a token: codes that arrive, a stop that drains, nothing without it.

This also is what k8s/bin/entrypoint.py and drain.py are tried on: how Ray stops a job, and what it knows of a node.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import free_ports
from tests.runs import data, write_texts

pytestmark = pytest.mark.slow  # until they were seen to pass: the machine they were written on had no room for a Ray
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-this-test-that-is-long-enough"
SECRET = "a-secret-of-the-laptop"
JOB_SERVER = Path(sys.prefix) / "job-server"  # what ray[default] brings: requirements/job-server.lock
PORTS = (
    "dashboard-agent-listen",
    "dashboard-agent-grpc",
    "runtime-env-agent",
    "metrics-export",
    "node-manager",
    "object-manager",
)
START_S = 180  # for Ray and its dashboard, on a machine that does much else at the moment


@dataclass(frozen=True, slots=True)
class Ray:
    """A head with dashboard and job API, and a worker node beside it."""

    url: str
    head: psutil.Process
    worker: psutil.Process
    folder: Path

    def submit(self, *words: str, token: str | None = TOKEN) -> tuple[int, str]:
        """Exit code and all that was said, of a command typed on a laptop."""
        with self.typed(*words, token=token) as process:
            said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def typed(self, *words: str, token: str | None = TOKEN) -> "subprocess.Popen[str]":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ |= {"RAY_ADDRESS": self.url, "PYTHONPATH": str(ROOT), "AWS_SECRET_ACCESS_KEY": SECRET}
        environ |= {"RAY_AUTH_TOKEN": token} if token else {}
        command = (sys.executable, "-m", "pipelines.submit", "+job=classify", "cluster=ray", "engine=simulated")
        return subprocess.Popen(
            (*command, "tracking=none", f"source.uri={self.folder}/corpus", *words),
            env=environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def jobs(self) -> list[dict[str, object]]:
        answer = requests.get(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        answer.raise_for_status()
        found: list[dict[str, object]] = answer.json()
        return [job for job in found if job["type"] == "SUBMISSION"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 401
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    folder = Path("/tmp") / f"submit-{os.getpid()}"  # short: Ray's sockets lie below it
    folder.mkdir()
    write_texts(folder / "corpus", [[f"text {shard} {row}" for row in range(200)] for shard in range(2)])
    gcs, dashboard, *others = free_ports(2 + 2 * len(PORTS))  # of two nodes
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    environ["PYTHONPATH"] = str(JOB_SERVER)
    environ |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_raylet_start_wait_time_s": "240"}
    start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=100000000")
    started: list[psutil.Popen] = []

    def node(*words: str) -> psutil.Process:
        # All named, as in k8s/base: a raylet waits 30 s for its agents to choose theirs, and ends if they take longer.
        ports = (f"--{name}-port={others.pop()}" for name in PORTS)
        command = (*start, *ports, *words)
        log = (folder / f"node-{len(started)}.log").open("w")
        started.append(psutil.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log))
        return psutil.Process(started[-1].pid)

    try:
        words = (f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}/ray", "--num-cpus=4")
        head = node("--head", "--include-dashboard=true", *words)
        url = f"http://127.0.0.1:{dashboard}"
        until(lambda: answers(f"{url}/api/version"))
        # A folder of its own, as on a machine of its own: the first task with a job's code on a node unpacks it anew,
        # and takes what lies in that place away, from under the jobs that are at work in it.
        worker = node(f"--address=127.0.0.1:{gcs}", "--num-cpus=0", f"--temp-dir={folder}/ray-of-worker")
        yield Ray(url, head, worker, folder)
    finally:
        processes = [each for one in started for each in (*psutil.Process(one.pid).children(recursive=True), one)]
        for one in started:
            one.terminate()
        _, alive = psutil.wait_procs(processes, timeout=20)
        for each in alive:
            each.kill()
        for one in started:
            one.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_without_the_token_nothing_is_submitted_and_one_line_says_what_to_do(ray: Ray) -> None:
    for token, said in ((None, "wants a token"), ("another", "refuses the token")):
        code, out = ray.submit("plan=false", "yes=true", f"sink.uri={ray.folder}/none", token=token)

        assert code == 2
        assert out.count("\n") == 1
        assert said in out
        assert "export RAY_AUTH_TOKEN" in out
    assert ray.jobs() == []


def test_a_run_is_planned_submitted_shown_and_ends_with_its_code_and_is_not_submitted_for_nothing(ray: Ray) -> None:
    sink = f"sink.uri={ray.folder}/done"

    code, out = ray.submit("yes=true", sink, "name=first")

    assert code == 0, out
    lines = out.splitlines()
    assert "about $" in out or "dollars not known" in out
    assert out.index("plan classify") < out.index("submitted as job first") < out.index("400 in = 400 ok + 0 errors")
    assert lines[-1].startswith("entrypoint: exit 0: done")
    assert len(data(ray.folder / "done")) == 400
    (log,) = (ray.folder / "done" / "runs").glob("*/run.log")
    assert "ray.data" in log.read_text()
    (job,) = ray.jobs()
    assert job["status"] == "SUCCEEDED"
    assert SECRET not in str(job) + out
    assert TOKEN not in str(job) + out

    code, out = ray.submit("yes=true", sink)
    assert code == 0, out
    assert out.splitlines()[-1] == "nothing to do: nothing is submitted"
    assert len(ray.jobs()) == 1


def test_a_run_with_too_many_errors_ends_as_stopped_for_ray_and_in_3_here(ray: Ray) -> None:
    write_texts(ray.folder / "empty", [["text", None]])
    words = (f"source.uri={ray.folder}/empty", f"sink.uri={ray.folder}/bad", "name=bad")

    code, out = ray.submit("plan=false", "yes=true", *words)

    assert code == 3, out
    assert next(job["status"] for job in ray.jobs() if job["submission_id"] == "bad") == "STOPPED"


def test_a_stop_lets_the_run_finish_what_it_has_and_both_commands_end_in_4(ray: Ray) -> None:
    slow = ("engine.simulated.latency_s=0.2", "unit.rows=20", "batching.max_num_seqs=2", "grace_s=100")
    sink = (f"sink.uri={ray.folder}/slow", "name=slow")
    following = ray.typed("plan=false", "yes=true", *sink, *slow)
    assert following.stdout is not None
    for line in following.stdout:
        if "engines ready" in line:
            break
    assert drain_sees_an_engine(ray)

    code, out = ray.submit("action=stop", *sink)

    assert code == 4, out
    assert "SIGTERM: finishing what is in the engines" in out
    rest = following.communicate(timeout=120)[0]
    assert following.returncode == 4, rest
    done = data(ray.folder / "slow")
    assert 0 < len(done) < 400
    assert len(done) % 20 == 0  # whole units, nothing torn
    code, out = ray.submit("action=status", *sink)
    assert code == 0
    assert "STOPPED" in out


def drain_sees_an_engine(ray: Ray) -> bool:
    """Whether k8s/bin/drain.py knows the processes of a real engine on this Ray, by their titles."""
    proc = ray.folder / "proc"
    proc.mkdir()
    for process in ray.head.children(recursive=True):
        (proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    look = "import sys; sys.path.insert(0, sys.argv[1]); import drain; print(drain.engines_here())"
    command = (sys.executable, "-c", look, str(ROOT / "k8s" / "bin"))
    done = subprocess.run(command, env={**os.environ, "PROC": str(proc)}, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_worker_that_goes_is_known_to_ray_as_draining(ray: Ray) -> None:
    (raylet,) = [each for each in ray.worker.children(recursive=True) if each.name() == "raylet"]
    proc = ray.folder / "worker"
    (proc / "17").mkdir(parents=True)
    (proc / "17" / "cmdline").write_bytes(b"\0".join(word.encode() for word in raylet.cmdline()))
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PROC": str(proc), "DRAIN_S": "60"}

    command = (sys.executable, str(ROOT / "k8s" / "bin" / "drain.py"), "worker")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    raylet.wait(60)  # nothing is at work on it, so Ray lets it go
    assert ray.head.is_running()
