"""Submitting to KubeRay, against a stand-in for the API server: what is created and shown, with which code it ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines import kube, storage, submit
from pipelines.accounts import run_summary
from pipelines.accounts.run_summary import RunSummary
from pipelines.compose import compose
from pipelines.rayjob import manifest, pool_hardware
from pipelines.submission import Submission, submission
from tests.kubernetes_api import Document, Kubernetes, against_kuberay, kubernetes
from tests.unit.k8s.test_overlays import words_of_the_run

RUN = ("+job=classify", "cluster=kuberay", "cluster.overlay=dev", "engine=simulated", "tracking=none")
PLACES = ("source.uri=s3://bucket/in", "sink.uri=s3://bucket/out")
pytestmark = pytest.mark.timeout(120)  # what is followed here ends after a few looks
HALF = b"Running entrypoint\nhalf of a li"
LOG = b"Running entrypoint\nhalf of a line\nentrypoint: exit %d: as it is\n"


def status(state: str, job: str | None = None) -> Document:
    return {"jobDeploymentStatus": state, **({"jobStatus": job} if job else {})}


def pod(name: str, of: str = "batch-pipelines") -> Document:
    metadata = {
        "name": name,
        "labels": {"batch.kubernetes.io/job-name": of},
        "creationTimestamp": f"2026-01-0{name[-1]}T00:00:00Z",
    }
    return {"metadata": metadata, "status": {"phase": "Running"}}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    monkeypatch.setattr(kube, "LOOK_EVERY_S", 0.01)
    with kubernetes(tmp_path) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


class Shell:
    """Types commands, and keeps what they said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, places: tuple[str, ...] = PLACES) -> int:
        with pytest.raises(SystemExit) as end:
            submit.main([*RUN, *places, *words])
        self.out, self.err = self._capsys.readouterr()
        return int(end.value.code or 0)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def asked(*words: str, **more: Any) -> Submission:
    line = [*RUN, *PLACES, *words]
    (config,) = compose(line)
    return submission(config, line, **more)


# ------------------------------------------------------------------------------------------------- what is submitted


def test_a_dry_run_prints_what_kuberay_allows_and_asks_no_cluster(
    typed: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0123456789secret")

    code = typed("dry_run=true", "name=tonight")

    assert (code, typed.err) == (0, "")
    (made,) = yaml.safe_load_all(typed.out)
    against_kuberay(made)
    assert made["metadata"]["name"] == "tonight"
    assert words_of_the_run(made["spec"]["entrypoint"]) == [*RUN, *PLACES]
    assert "0123456789secret" not in typed.out


@pytest.mark.parametrize("word", ["source.include=['**/*a b*']", 'job.gold="it\'s $HOME `x` \\\\ ;"', "seed=7"])
def test_a_word_comes_through_the_shells_on_its_way_as_it_was_typed(word: str) -> None:
    made = manifest(asked(word)).rayjob

    assert words_of_the_run(made["spec"]["entrypoint"]) == [*RUN, *PLACES, word]


def test_a_folder_of_ones_own_travels_as_a_config_map_from_which_the_same_config_is_composed(tmp_path: Path) -> None:
    (tmp_path / "mine" / "job").mkdir(parents=True)
    (tmp_path / "mine" / "job" / "triage.yaml").write_text(
        'messages: [{role: user, content: "{{ text }}"}]\noutput: {kind: text, column: answer}\n'
    )
    line = ["+job=triage", *RUN[1:], *PLACES, "--config-dir", str(tmp_path / "mine")]
    (here,) = compose(line)

    made = manifest(submission(here, line))

    assert made.config_map is not None
    kubernetes_validate.validate(made.config_map, "1.37", strict=True)
    against_kuberay(made.rayjob)
    head = made.rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [each["configMap"] for each in head["volumes"] if "configMap" in each]
    (mount,) = [each["mountPath"] for each in head["containers"][0]["volumeMounts"] if each["name"] == "config"]
    assert volume["name"] == made.config_map["metadata"]["name"]
    for item in volume["items"]:  # as the kubelet lays them
        file = tmp_path / "pod" / mount.lstrip("/") / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(made.config_map["data"][item["key"]])
    words = [
        word.replace(mount, f"{tmp_path}/pod{mount}") for word in words_of_the_run(made.rayjob["spec"]["entrypoint"])
    ]
    (composed,) = compose(words)
    assert composed == here


def test_the_plan_is_made_for_the_gpus_that_the_overlay_asks_for() -> None:
    found = pool_hardware(manifest(asked("cluster.overlay=gpu")).rayjob)

    assert (found.device, found.gpus, found.compute_capability) == ("gpu", 1, 9.0)
    assert "H100" in (found.gpu_name or "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster.overlay=nightly",), "suspended RayJob, the template of a schedule"),
        (("cluster.overlay=gpus",), "cluster.overlay=gpus is neither a folder with a kustomization.yaml nor one of "),
        (("tracking=mlflow", "tracking.uri=https://me:geheim@host"), "tracking.uri=… holds what looks like a secret"),
        (("source.uri=corpus",), "source.uri=corpus is a path below this folder"),
        (("--multirun", "seed=1,2"), "--multirun starts several runs"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(typed: Shell, words: tuple[str, ...], said: str) -> None:
    assert typed("dry_run=true", *words) == 2
    assert said in typed.err
    assert typed.err.count("\n") == 1
    assert "geheim" not in typed.err


def overlay(folder: Path, *operations: Document) -> str:
    """An overlay of one's own, with a JSON patch of the RayJob of dev."""
    folder.mkdir()
    (folder / "k8s").symlink_to(Path(__file__).resolve().parents[3] / "k8s")
    patch = {"target": {"kind": "RayJob"}, "patch": yaml.safe_dump(list(operations))}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["k8s/overlays/dev"], "patches": [patch]}))
    return f"cluster.overlay={folder}"


def test_a_secret_in_an_overlay_is_refused(typed: Shell, tmp_path: Path) -> None:
    env = "/spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/env/-"
    mine = overlay(tmp_path / "mine", {"op": "add", "path": env, "value": {"name": "HF_TOKEN", "value": "geheim"}})

    assert typed("dry_run=true", mine) == 2
    assert "a secret stands in the manifest" in typed.err
    assert "geheim" not in typed.out + typed.err


# ------------------------------------------------------------------------------------------------------ to its end


@pytest.mark.parametrize(
    ("code", "state", "job"),
    [
        (0, "Complete", "SUCCEEDED"),
        (3, "Complete", "STOPPED"),
        (4, "Complete", "STOPPED"),
        (4, "Complete", "SUCCEEDED"),
    ],
)
def test_a_run_is_created_and_shown_and_its_exit_code_arrives(
    typed: Shell, there: Kubernetes, code: int, state: str, job: str
) -> None:
    there.plays = [{}, status("Initializing"), *[status("Running", "RUNNING")] * 5, status(state, job)]
    there.pods, there.logs = [pod("submitter-1")], {"submitter-1": [HALF, LOG % code]}

    ended = typed("plan=false", "yes=true")

    assert ended == code
    assert words_of_the_run(there.jobs["batch-pipelines"]["spec"]["entrypoint"]) == [*RUN, *PLACES]
    shown = typed.out.partition("submitted as RayJob batch-pipelines/batch-pipelines\n")[2].splitlines()
    assert [line for line in shown if not line.startswith("RayJob ")] == (LOG % code).decode().splitlines()
    assert [line for line in shown if line.startswith("RayJob ")] == [
        f"RayJob batch-pipelines: {words}" for words in ("new", "Initializing", "Running, RUNNING", f"{state}, {job}")
    ]
    assert there.asked[:3] == ["POST ?dryRun", "GET /batch-pipelines", "GET /batch-pipelines"]


def test_the_code_is_that_of_the_last_attempt(typed: Shell, there: Kubernetes) -> None:
    running = status("Running", "RUNNING")
    first, second = ({**running, "+pod": pod(f"submitter-{number}")} for number in (1, 2))
    retrying, complete = status("Retrying", "FAILED"), status("Complete", "STOPPED")
    there.plays = [{}, first, *[running] * 5, retrying, second, *[running] * 5, complete]
    there.logs = {"submitter-1": [LOG % 1], "submitter-2": [LOG % 3]}

    assert typed("plan=false", "yes=true") == 3
    assert typed.out.count("half of a line") == 2


def test_an_attempt_that_has_failed_for_good_is_a_failure_with_kuberays_reason(typed: Shell, there: Kubernetes) -> None:
    there.plays = [{}, {**status("Failed", "FAILED"), "reason": "AppFailed", "message": "Job failed"}]

    assert typed("plan=false", "yes=true") == 1
    assert typed.err == "failed: RayJob batch-pipelines has failed: AppFailed Job failed\n"


def test_a_run_at_work_is_not_touched(typed: Shell, there: Kubernetes) -> None:
    typed_name = "name=mine"
    there.plays = [{}, status("Complete", "SUCCEEDED")]
    assert typed("plan=false", "yes=true", typed_name) == 0
    there.plays = [status("Running", "RUNNING")]
    before = len(there.asked)

    assert typed("plan=false", "yes=true", typed_name) == 2
    assert "is at work (Running)" in typed.err
    assert not any(line.startswith(("DELETE", "POST /", "PATCH")) for line in there.asked[before:])


def test_a_run_that_has_ended_gives_its_place_and_what_differs_is_shown(typed: Shell, there: Kubernetes) -> None:
    there.plays = [{}, status("Complete", "SUCCEEDED")]
    assert typed("plan=false", "yes=true") == 0
    uid = there.jobs["batch-pipelines"]["metadata"]["uid"]
    there.plays = [status("Complete", "SUCCEEDED")] * 3

    assert typed("plan=false", "yes=true", "seed=7") == 0

    assert there.jobs["batch-pipelines"]["metadata"]["uid"] != uid
    changed = [line.strip() for line in typed.out.splitlines() if line.startswith(("  +", "  -"))]
    assert len(changed) == 2
    assert changed[0].startswith("-")
    assert changed[1].endswith("seed=7")


def test_a_field_that_kuberay_does_not_know_is_refused_before_anything_is_there(
    typed: Shell, there: Kubernetes, tmp_path: Path
) -> None:
    mine = overlay(tmp_path / "mine", {"op": "add", "path": "/spec/backOffLimit", "value": 1})

    assert typed("plan=false", "yes=true", mine) == 2
    assert "400" in typed.err and "backOffLimit" in typed.err
    assert there.jobs == {}


def test_a_stop_suspends_and_ends_with_the_code_that_the_run_wrote_down(
    typed: Shell, there: Kubernetes, tmp_path: Path
) -> None:
    places = (f"source.uri={tmp_path}/in", f"sink.uri={tmp_path}/out")
    there.plays = [{}, status("Complete", "SUCCEEDED")]
    assert typed("plan=false", "yes=true", places=places) == 0
    there.plays, there.suspended = [status("Running", "RUNNING")], status("Suspended")
    left = RunSummary(
        run_id="29991231T000000Z-abc",
        job="classify",
        model="smollm2",
        fingerprint="0" * 64,
        state="ended",
        exit_code=4,
        started_at="2999-12-31T00:00:00.000+00:00",
    )
    run_summary.keep(f"{tmp_path}/out", left)
    storage.put(f"{tmp_path}/out/runs/{left.run_id}/manifest.json", b"{ a manifest that nobody should read")

    assert typed("action=stop", places=places) == 4
    assert there.jobs["batch-pipelines"]["spec"]["suspend"] is True
    assert "submit the same command again to go on" in typed.out


def test_status_and_logs_tell_what_is_there(typed: Shell, there: Kubernetes) -> None:
    assert typed("action=status") == 2
    assert "is not there: nothing was submitted by this name" in typed.err
    there.plays = [{}, status("Complete", "SUCCEEDED")]
    assert typed("plan=false", "yes=true") == 0
    there.pods, there.logs = [pod("submitter-1")], {"submitter-1": [LOG % 3]}

    assert typed("action=status") == 0
    assert "Complete, SUCCEEDED" in typed.out
    assert typed("action=logs") == 0
    assert typed.out == (LOG % 3).decode()


def test_a_token_that_is_refused_is_one_line(
    typed: Shell, there: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(there.kubeconfig(tmp_path / "other", token="another")))

    assert typed("plan=false", "yes=true") == 2
    assert "401 Unauthorized" in typed.err
    assert typed.err.count("\n") == 1


def test_nothing_is_submitted_unasked(typed: Shell, there: Kubernetes) -> None:
    assert typed("plan=false") == 2
    assert "say yes=true to submit" in typed.err
    assert there.jobs == {}
