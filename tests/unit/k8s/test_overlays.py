"""Every overlay renders, is what Kubernetes' and KubeRay's schemas allow, and agrees with config and locks."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.compose import compose
from pipelines.config import RunConfig, finish_by
from pipelines.kustomize import Document, by_identity, render
from tests.kubernetes_api import against_kuberay
from tests.unit.k8s.policy import pods, ray_jobs

ROOT = Path(__file__).resolve().parents[3]
OVERLAYS = {folder.name: folder for folder in sorted((ROOT / "k8s" / "overlays").iterdir())}
COMPONENTS = sorted(set((ROOT / "k8s" / "components").iterdir()) - {ROOT / "k8s" / "components" / "monitoring"})
KUBERNETES = ("1.31", "1.37")  # the oldest and the newest that the manifests are checked against
AUTOSCALER = ("version", "upscalingMode", "idleTimeoutSeconds")  # of autoscalerOptions; the rest is its container's
NO_SCHEMA = {"PodMonitor", "PrometheusRule"}  # the Prometheus Operator's: no package brings their schemas
of_overlays = pytest.mark.parametrize("name", OVERLAYS)


@cache
def rendered(name: str) -> list[Document]:
    return render(OVERLAYS[name])


@cache
def kubectl_is_there() -> bool:
    return (
        shutil.which("kubectl") is not None
        and not subprocess.run(
            ("kubectl", "kustomize", ROOT / "k8s" / "base"), capture_output=True, check=False
        ).returncode
    )


def by_kubectl(folder: Path) -> list[Document]:
    if not kubectl_is_there():
        pytest.skip("no kubectl with kustomize here")
    done = subprocess.run(("kubectl", "kustomize", folder), capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@of_overlays
def test_what_tests_render_is_what_kubectl_renders(name: str) -> None:
    assert by_identity(rendered(name)) == by_identity(by_kubectl(OVERLAYS[name]))


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda folder: folder.name)
def test_a_component_can_be_added_to_an_overlay(component: Path, tmp_path: Path) -> None:
    kustomization = {
        "resources": [str(Path("k8s") / "overlays" / "gpu")],
        "components": [str(Path("k8s") / "components" / component.name)],
    }
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    documents = render(tmp_path)

    assert by_identity(documents) != by_identity(rendered("gpu"))
    for document in documents:
        valid(document)
    shutil.copytree(ROOT / "k8s", tmp_path / "copied")  # kubectl follows no link out of its folder
    (tmp_path / "k8s").unlink()
    (tmp_path / "copied").rename(tmp_path / "k8s")
    assert by_identity(documents) == by_identity(by_kubectl(tmp_path))


def valid(document: Document) -> None:
    """Check a document against Kubernetes' schemas; of KubeRay's kinds, the pods. Unknown fields are errors."""
    for version in KUBERNETES:
        if document["kind"] in ("RayJob", "RayCronJob"):
            for pod in pods([document]):
                containers = [
                    {key: each[key] for key in each if key not in AUTOSCALER} for each in pod.spec["containers"]
                ]
                spec = {**pod.spec, "containers": containers}
                shown = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
                kubernetes_validate.validate(shown, version, strict=True)
        elif document["kind"] not in NO_SCHEMA:
            kubernetes_validate.validate(document, version, strict=True)


@of_overlays
def test_every_document_and_every_pod_is_what_kubernetes_allows(name: str) -> None:
    for document in rendered(name):
        valid(document)


def test_a_misspelt_field_of_a_pod_is_found() -> None:
    (job,) = [each for each in render(OVERLAYS["dev"]) if each["kind"] == "RayJob"]
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod["terminationGraceSeconds"] = pod.pop("terminationGracePeriodSeconds")

    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        valid(job)


@of_overlays
def test_every_ray_document_is_what_kuberay_allows(name: str) -> None:
    found = [each for each in rendered(name) if each["apiVersion"] == "ray.io/v1"]

    assert len(found) == 1
    against_kuberay(found[0])


@pytest.mark.parametrize("field", ["backOffLimit", "submitterPodTemplates"])
def test_a_misspelt_field_of_a_rayjob_is_found(field: str) -> None:
    (job,) = [each for each in render(OVERLAYS["dev"]) if each["kind"] == "RayJob"]
    job["spec"][field] = 1

    with pytest.raises(jsonschema.ValidationError, match=field):
        against_kuberay(job)


@of_overlays
def test_what_kuberay_refuses_beyond_its_schema_is_not_asked_of_it(name: str) -> None:
    for holder, spec in ray_jobs(rendered(name)):
        cluster = spec["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        # validation.go of v1.7.0, by hand: the schema does not say it
        assert len(holder.split()[1]) <= (47 if holder.startswith("RayJob") else 36)
        assert "deletionStrategy" not in spec and "clusterSelector" not in spec
        assert not spec.get("suspend") or spec["shutdownAfterJobFinishes"]
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)  # for authOptions.mode: token
        assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)  # autoscaler v2
        assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
        assert not any("labels" in group["rayStartParams"] for group in groups)


# ------------------------------------------------------------------------------------- what they say about the run


def words_of_the_run(entrypoint: str) -> list[str]:
    """The words of pipelines.run after the shells on their way: the submitter's, and that of Ray's supervisor."""
    show = shlex.join((sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"))
    submitted = subprocess.run(
        ("/bin/bash", "-ce", f"{show} {entrypoint} ;"), capture_output=True, text=True, check=True
    )
    joined = shlex.join(json.loads(submitted.stdout))  # `ray job submit` of Ray 2.60 does this
    started = subprocess.run(("/bin/sh", "-c", f"{show} {joined}"), capture_output=True, text=True, check=True)
    words: list[str] = json.loads(started.stdout)
    assert words[:5] == ["python", "/app/k8s/bin/entrypoint.py", "python", "-m", "pipelines.run"]
    return words[5:]


def config_of(name: str) -> tuple[RunConfig, dict[str, Any]]:
    """The run that an overlay's RayJob asks for, and the RayJob's spec."""
    ((_, spec),) = ray_jobs(rendered(name))
    (config,) = compose(words_of_the_run(spec["entrypoint"]))
    return config, spec


@of_overlays
def test_the_entrypoint_is_a_run_that_can_be_composed(name: str) -> None:
    config, spec = config_of(name)
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = workers["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")

    assert config.cluster.address == "auto"  # a Ray of its own on the head would have no engine's CPUs
    assert config.engine.device == ("gpu" if gpus else "cpu")
    assert config.engine.pool[0] >= workers["minReplicas"]
    assert config.engine.pool[1] * config.model.tensor_parallel <= workers["maxReplicas"] * int(gpus or 1)
    assert (config.pricing.name == "spot") == (name == "spot")
    assert (config.engine.device == "gpu") == (config.budget.usd is not None)


@of_overlays
def test_the_run_ends_in_order_before_kuberay_ends_it(name: str) -> None:
    config, spec = config_of(name)

    if name == "dev":
        return  # ends when it ends; 400 rows
    within = finish_by(config.budget.finish_by or "")
    assert isinstance(within, timedelta)
    assert within.total_seconds() + config.grace_s + 600 <= spec["activeDeadlineSeconds"]


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.startswith("nightly")])
def test_a_night_has_a_budget_of_its_own_and_calls_somebody(name: str) -> None:
    config, spec = config_of(name)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]

    assert config.budget.scope == "run"  # of the output it would be spent after some nights
    assert config.alerts.rules and config.alerts.path
    assert head["envFrom"] == [{"secretRef": {"name": "batch-pipelines-alerts"}}]
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (created,) = re.findall(r"secret generic batch-pipelines-alerts (.*?)```", operations, re.DOTALL)
    assert all(f"--from-literal={variable}=" in created for variable in config.alerts.channels.values())


@of_overlays
def test_every_grace_is_long_enough_for_the_runs(name: str) -> None:
    config, spec = config_of(name)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    env = {each["name"]: each["value"] for each in head["containers"][0]["env"] if "value" in each}

    assert float(env["DRAIN_S"]) == config.grace_s + 30  # for the last commit, after what is in the engines
    assert float(env["RAY_JOB_STOP_WAIT_TIME_S"]) == config.grace_s + 30
    assert head["terminationGracePeriodSeconds"] == config.grace_s + 60


@of_overlays
def test_every_version_is_that_of_lock_and_project(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    device = "cpu" if name == "dev" else "gpu"
    locked = (ROOT / "requirements" / f"image-{device}.lock").read_text("utf-8").splitlines()

    for _, spec in ray_jobs(rendered(name)):
        assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in locked
    images = {each["image"] for pod in pods(rendered(name)) for each in pod.containers()}
    assert images == {f"batch-pipelines:{version}-{device}"}


@of_overlays
def test_the_network_policies_open_exactly_the_ports_that_ray_is_told(name: str) -> None:
    policy = by_identity(rendered(name))["NetworkPolicy", "batch-pipelines", "ray"]["spec"]
    opened = {
        port
        for allowed in policy["ingress"][0]["ports"]
        for port in range(allowed["port"], allowed.get("endPort", allowed["port"]) + 1)
    }

    for _, spec in ray_jobs(rendered(name)):
        head = spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
        workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]
        told = {int(head[key]) for key in head if re.fullmatch(r"port|.*-port", key)}
        told -= {int(head["metrics-export-port"])}
        told |= set(range(int(head["min-worker-port"]), int(head["max-worker-port"]) + 1))
        shared = set(workers) - {"num-cpus", "num-gpus", "resources"}
        assert opened == told | {8265}  # the dashboard's default
        assert {key: workers[key] for key in shared} == {key: head[key] for key in shared}
        assert {key for key in head if "port" in key} - shared == {"port"}


@of_overlays
def test_all_objects_that_pods_name_are_in_the_overlay(name: str) -> None:
    there = set(by_identity(rendered(name)))

    for pod in pods(rendered(name)):
        assert ("ServiceAccount", "batch-pipelines", pod.spec["serviceAccountName"]) in there
        assert ("PriorityClass", None, pod.spec["priorityClassName"]) in there
        for volume in pod.spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", "batch-pipelines", claim) in there


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name in ("gpu", "spot", "nightly")])
def test_prometheus_reaches_the_run_at_the_port_that_its_entrypoint_names(name: str) -> None:
    there = by_identity(rendered(name))
    allowed = there["NetworkPolicy", "batch-pipelines", "metrics"]["spec"]["ingress"][0]["ports"]
    asked = there["PodMonitor", "batch-pipelines", "batch-pipelines"]["spec"]["podMetricsEndpoints"]

    for _, spec in ray_jobs(rendered(name)):
        (told,) = re.findall(r"metrics\.port=(\d+) metrics\.host=0\.0\.0\.0", spec["entrypoint"])
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
        (port,) = [each for each in head if each["containerPort"] == int(told)]
        assert {"protocol": "TCP", "port": int(told)} in allowed
        assert port["name"] in {each["port"] for each in asked}
