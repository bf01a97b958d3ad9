"""What pods start: exit codes reach KubeRay as what they mean, a drain waits for its run, nights do not overlap."""

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_api import TOKEN, Document, Kubernetes, kubernetes

BIN = Path(__file__).resolve().parents[3] / "k8s" / "bin"
RUN_THAT_DRAINS = (
    "import signal, sys, time\n"
    "def stop(number, frame): print('draining', flush=True); sys.exit(4)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "print('at work', flush=True)\n"
    "time.sleep(60)\n"
)


def start(folder: Path, script: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    environ = {**os.environ, "RUN_PID_FILE": str(folder / "run.pid"), "TERMINATION_MESSAGE": str(folder / "end")}
    environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    command = (sys.executable, str(BIN / script), *words)
    return subprocess.Popen(
        command, env=environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_of(code: int) -> list[str]:
    return [sys.executable, "-c", f"print('answers'); raise SystemExit({code})"]


@pytest.mark.parametrize(("code", "becomes"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 0)])
def test_outside_of_ray_a_run_that_ended_on_purpose_is_no_failure_and_all_codes_are_told(
    tmp_path: Path, code: int, becomes: int
) -> None:
    (tmp_path / "end").touch()
    (tmp_path / "run.evicted").touch()  # by a run before it

    process = start(tmp_path, "entrypoint.py", *run_of(code))
    said, _ = process.communicate(timeout=60)

    assert process.returncode == becomes
    assert said.startswith("answers\n")
    assert f"entrypoint: exit {code}: " in said
    assert json.loads((tmp_path / "end").read_text())["exit_code"] == code


@pytest.mark.parametrize("code", [3, 4])
def test_in_a_job_of_ray_a_run_that_ended_on_purpose_stays_until_ray_stops_it(tmp_path: Path, code: int) -> None:
    job = json.dumps({"metadata": {"job_submission_id": "mine"}})
    # No Ray is there to be asked: the test sends the signal that Ray would.
    process = start(
        tmp_path, "entrypoint.py", *run_of(code), RAY_JOB_CONFIG_JSON_ENV_VAR=job, RAY_ADDRESS="127.0.0.1:1"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "answers\n"
    assert process.stdout.readline().startswith(f"entrypoint: exit {code}: ")
    assert process.poll() is None

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)

    assert process.returncode == code
    assert said == ""


def test_a_job_that_ray_stops_drains_its_run_and_asks_nobody_to_be_stopped(tmp_path: Path) -> None:
    job = json.dumps({"metadata": {"job_submission_id": "mine"}})
    words = (sys.executable, "-c", RUN_THAT_DRAINS)
    process = start(tmp_path, "entrypoint.py", *words, RAY_JOB_CONFIG_JSON_ENV_VAR=job, RAY_ADDRESS="127.0.0.1:1")
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)  # less than it would wait for Ray's answer

    assert process.returncode == 4
    assert said.startswith("draining\nentrypoint: exit 4: ")


def test_a_run_that_was_killed_has_failed(tmp_path: Path) -> None:
    process = start(tmp_path, "entrypoint.py", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    said, _ = process.communicate(timeout=60)

    assert process.returncode == 137
    assert "entrypoint: exit 137: failed" in said


def test_a_head_that_goes_waits_for_its_run(tmp_path: Path) -> None:
    process = start(tmp_path, "entrypoint.py", sys.executable, "-c", RUN_THAT_DRAINS)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"

    drained = start(tmp_path, "drain.py", "head", DRAIN_S="30").wait(60)

    assert drained == 0
    assert not (tmp_path / "run.pid").exists()
    said, _ = process.communicate(timeout=60)
    assert said.startswith("draining\nentrypoint: exit 4: ")
    assert process.returncode == 143  # nobody asked for its end, so KubeRay is to try again


def test_a_run_that_does_not_end_is_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = start(tmp_path, "entrypoint.py", sys.executable, "-c", deaf)
    assert process.stdout is not None
    assert process.stdout.readline() == "deaf\n"
    pid = int((tmp_path / "run.pid").read_text())

    drained = start(tmp_path, "drain.py", "head", DRAIN_S="1").wait(30)

    assert drained == 0
    assert (tmp_path / "run.pid").exists()
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_head_without_a_run_goes_at_once(tmp_path: Path) -> None:
    assert start(tmp_path, "drain.py", "head", DRAIN_S="600").wait(30) == 0


@pytest.mark.parametrize(("title", "waits"), [("ray::IDLE", False), ("ray::MapWorker(MapBatches(EngineHost))", True)])
def test_a_worker_waits_for_an_engine_and_for_nothing_else(tmp_path: Path, title: str, waits: bool) -> None:
    process_folder = tmp_path / "proc" / "17"
    process_folder.mkdir(parents=True)
    (process_folder / "cmdline").write_text(title)

    draining = start(tmp_path, "drain.py", "worker", DRAIN_S="600", PROC=str(tmp_path / "proc"))

    if waits:
        with pytest.raises(subprocess.TimeoutExpired):
            draining.wait(1.5)
        (process_folder / "cmdline").unlink()  # the engine's process has ended
    assert draining.wait(30) == 0


# ------------------------------------------------------------------------------------------------- the schedule


def rayjob(name: str, status: str | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"uid-of-{name}", "labels": {"app.kubernetes.io/name": "batch-pipelines"}}
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}
    return document if status is None else {**document, "status": {"jobDeploymentStatus": status}}


TEMPLATE = rayjob("template", "Suspended", suspend=True, entrypoint="python", backoffLimit=1)


def schedule(there: Kubernetes, token: str = TOKEN, **environment: str) -> tuple[int, str]:
    """One night, by a process that finds server, token and authority as it would in a pod."""
    account = there.ca.parent  # its ca.crt lies there already
    (account / "token").write_text(token)
    (account / "namespace").write_text("batch-pipelines\n")
    environ = {
        **os.environ,
        "SERVICE_ACCOUNT": str(account),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(there.port),
        "LOOK_EVERY_S": "0.05",
        **environment,
    }
    command = (sys.executable, str(BIN / "schedule.py"), "template", "nightly")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def night(folder: Path, *jobs: Document) -> AbstractContextManager[Kubernetes]:
    return kubernetes(folder, *jobs, strict=False)  # these RayJobs are no more than what a schedule looks at


def test_the_first_night_makes_a_rayjob_of_the_template(tmp_path: Path) -> None:
    with night(tmp_path, TEMPLATE) as there:
        code, said = schedule(there, QUEUE_NAME="gpus")

    assert (code, said) == (0, "schedule: nightly is made\n")
    made = there.jobs["nightly"]
    assert made["spec"] == {"entrypoint": "python", "backoffLimit": 1}
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "batch-pipelines"
    assert "status" not in made


@pytest.mark.parametrize("status", ["Running", "Initializing", "Retrying", "Suspended", None])
def test_a_night_whose_predecessor_is_at_work_makes_nothing(tmp_path: Path, status: str | None) -> None:
    with night(tmp_path, TEMPLATE, rayjob("nightly", status)) as there:
        code, said = schedule(there)

    assert code == 0
    assert said.startswith("schedule: nightly is at work")
    assert there.asked == ["GET /nightly"]


@pytest.mark.parametrize("status", ["Complete", "Failed", "ValidationFailed"])
def test_a_run_that_has_ended_gives_its_name_to_the_next(tmp_path: Path, status: str) -> None:
    with night(tmp_path, TEMPLATE, rayjob("nightly", status)) as there:
        code, _ = schedule(there)

    assert code == 0
    assert there.asked == [
        "GET /nightly",
        "DELETE /nightly",
        "GET /nightly",  # its pods drain
        "GET /nightly",
        "GET /template",
        "POST ",
    ]
    assert there.jobs["nightly"]["metadata"]["uid"] != "uid-of-nightly"


def test_without_its_template_a_schedule_fails_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with night(tmp_path) as there:
        code, said = schedule(there)

    assert code == 1
    assert said == ("schedule: failed: there is no RayJob template to make nightly from: apply k8s/overlays/nightly\n")


def test_an_api_server_that_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    with night(tmp_path, TEMPLATE) as there:
        code, said = schedule(there, token="another")

    assert code == 1
    assert said.startswith("schedule: failed: GET /apis/ray.io/v1/namespaces/batch-pipelines/rayjobs/nightly: 401 ")
    assert said.count("\n") == 1


def test_a_schedule_without_a_token_says_so(tmp_path: Path) -> None:
    with night(tmp_path, TEMPLATE) as there:
        code, said = schedule(there, SERVICE_ACCOUNT=str(tmp_path / "none"))

    assert code == 1
    assert "the pod needs automountServiceAccountToken" in said
    assert there.asked == []


def test_a_schedule_trusts_no_server_but_its_clusters_own(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    with night(tmp_path, TEMPLATE) as there, night(tmp_path / "another") as another:
        another.ca.rename(there.ca)
        code, said = schedule(there)

    assert code == 1
    assert "SSLCertVerificationError" in said
    assert there.asked == []
