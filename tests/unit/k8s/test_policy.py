"""Every overlay keeps every rule of policy.py, and every rule is broken here, once or more, on rendered manifests."""

import copy
from pathlib import Path
from typing import Any

import pytest

from pipelines.kustomize import Document, operate, render
from tests.unit.k8s.policy import RULES, broken

K8S = Path(__file__).resolve().parents[3] / "k8s"
OVERLAYS = sorted((K8S / "overlays").iterdir())

HEAD = "/spec/rayClusterSpec/headGroupSpec"
WORKERS = "/spec/rayClusterSpec/workerGroupSpecs/0"
POD = "/template/spec"
RAY = "/template/spec/containers/0"


def _add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _remove(path: str) -> dict[str, Any]:
    return {"op": "remove", "path": path}


# Which rule, in which document of overlays/nightly, is broken by which change.
BREAKS: list[tuple[str, tuple[str, str], dict[str, Any]]] = [
    (rule, ("RayJob", "batch-pipelines-nightly-template"), operation)
    for rule, operation in [
        ("every pod runs as a user that is not root", _add(f"{HEAD}{POD}/securityContext/runAsUser", 0)),
        ("every pod runs as a user that is not root", _remove("/spec/submitterPodTemplate/spec/securityContext")),
        ("every container says so too", _remove(f"{WORKERS}{RAY}/securityContext/runAsNonRoot")),
        ("no container may gain privileges", _add(f"{WORKERS}{RAY}/securityContext/allowPrivilegeEscalation", True)),
        ("no container may gain privileges", _add(f"{HEAD}{RAY}/securityContext/privileged", True)),
        (
            "every container has lost all capabilities",
            _add(f"{WORKERS}{RAY}/securityContext/capabilities/add", ["SYS_PTRACE"]),
        ),
        (
            "every container's root file system is read-only",
            _add("/spec/rayClusterSpec/autoscalerOptions/securityContext/readOnlyRootFilesystem", False),
        ),
        ("every container's root file system is read-only", _remove("/spec/rayClusterSpec/autoscalerOptions")),
        ("every container can write where it must", _remove(f"{WORKERS}{RAY}/volumeMounts/2")),
        ("every container can write where it must", _remove(f"{WORKERS}{POD}/volumes/3")),
        ("no scratch volume is without bound", _remove(f"{WORKERS}{POD}/volumes/0/emptyDir/sizeLimit")),
        ("Ray's pods have shared memory", _remove(f"{WORKERS}{POD}/volumes/1/emptyDir/medium")),
        (
            "every pod and container has the runtime's seccomp profile",
            _add(f"{HEAD}{POD}/securityContext/seccompProfile/type", "Unconfined"),
        ),
        ("no pod shares anything with its host", _add(f"{WORKERS}{POD}/hostIPC", True)),
        (
            "no pod shares anything with its host",
            _add(f"{WORKERS}{POD}/volumes/-", {"name": "host", "hostPath": {"path": "/"}}),
        ),
        (
            "no token of the API server but for autoscaler and schedule",
            _remove(f"{WORKERS}{POD}/automountServiceAccountToken"),
        ),
        (
            "no token of the API server but for autoscaler and schedule",
            _add(
                f"{HEAD}{RAY}/volumeMounts/-",
                {"name": "api-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ),
        ),
        ("no service's address leaks into environments", _remove(f"{HEAD}{POD}/enableServiceLinks")),
        (
            "no secret stands in an environment",
            _add(f"{HEAD}{RAY}/env/-", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        ),
        ("every image has a tag that stays", _add(f"{WORKERS}{RAY}/image", "batch-pipelines")),
        ("every image has a tag that stays", _add(f"{WORKERS}{RAY}/image", "batch-pipelines:latest")),
        (
            "every container asks for what it needs and is held to it",
            _add(f"{WORKERS}{RAY}/resources/limits/memory", "128Gi"),
        ),
        ("every pod gives way to serving", _remove("/spec/submitterPodTemplate/spec/priorityClassName")),
        ("no pod is restarted in place", _add(f"{HEAD}{POD}/restartPolicy", "Always")),
        ("Ray's pods drain before they are killed", _remove(f"{HEAD}{RAY}/lifecycle")),
        ("Ray's pods drain before they are killed", _add(f"{WORKERS}{POD}/terminationGracePeriodSeconds", 30)),
        ("the head takes neither tasks nor GPUs", _remove(f"{HEAD}/rayStartParams/num-cpus")),
        ("the head takes neither tasks nor GPUs", _add(f"{HEAD}{RAY}/resources/limits/nvidia.com~1gpu", "1")),
        ("the head takes neither tasks nor GPUs", _remove(f"{WORKERS}/rayStartParams/resources")),
        ("a cluster wants a token", _remove("/spec/rayClusterSpec/authOptions")),
        ("a RayJob ends, leaves nothing, and is tried again with measure", _remove("/spec/activeDeadlineSeconds")),
        ("a RayJob ends, leaves nothing, and is tried again with measure", _add("/spec/backoffLimit", 6)),
        (
            "a RayJob ends, leaves nothing, and is tried again with measure",
            _add("/spec/entrypoint", "python -m pipelines.run +job=classify"),
        ),
        ("a run's tracking has an address", _add(f"{HEAD}{RAY}/env/3/value", "sqlite:///out/mlflow.db")),
        ("the head is not evicted", _remove(f"{HEAD}/template/metadata/annotations/karpenter.sh~1do-not-disrupt")),
    ]
] + [
    ("every image has a tag that stays", ("CronJob", "batch-pipelines-nightly"),
     _add("/spec/jobTemplate/spec/template/spec/containers/0/image", "batch-pipelines:latest")),
    ("no secret stands in a manifest", ("Namespace", "batch-pipelines"), _add("/kind", "Secret")),
    ("the network is closed but for named peers and ports", ("NetworkPolicy", "default-deny"),
     _add("/spec/policyTypes", ["Ingress"])),
    ("the network is closed but for named peers and ports", ("NetworkPolicy", "ray"), _remove("/spec/ingress/0/from")),
    ("the network is closed but for named peers and ports", ("NetworkPolicy", "tracking"),
     _remove("/spec/egress/0/ports")),
    ("the network is closed but for named peers and ports", ("NetworkPolicy", "https"),
     _remove("/spec/egress/0/to/0/ipBlock/except")),
    ("an alert by mail can leave", ("NetworkPolicy", "mail"), _remove("/spec/egress/0/ports/1")),
    ("rights are few and named", ("Role", "batch-pipelines-schedule"), _add("/rules/0/verbs", ["*"])),
    ("rights are few and named", ("ServiceAccount", "batch-pipelines"), _remove("/automountServiceAccountToken")),
    ("the head is not evicted", ("PodDisruptionBudget", "batch-pipelines-head"), _add("/spec/maxUnavailable", 1)),
    ("the namespace enforces the restricted standard", ("Namespace", "batch-pipelines"),
     _add("/metadata/labels/pod-security.kubernetes.io~1enforce", "baseline")),
    ("a schedule forbids overlapping", ("CronJob", "batch-pipelines-nightly"), _remove("/spec/concurrencyPolicy")),
]  # fmt: skip


@pytest.fixture(scope="module")
def nightly() -> list[Document]:
    return render(K8S / "overlays" / "nightly")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda folder: folder.name)
def test_every_overlay_keeps_every_rule(overlay: Path) -> None:
    assert broken(render(overlay)) == {}


@pytest.mark.parametrize(("rule", "which", "operation"), BREAKS, ids=lambda value: str(value)[:60])
def test_a_manifest_that_breaks_a_rule_is_found(
    nightly: list[Document], rule: str, which: tuple[str, str], operation: dict[str, Any]
) -> None:
    documents = copy.deepcopy(nightly)
    (changed,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == which]

    operate(changed, copy.deepcopy(operation))

    assert rule in broken(documents)


def test_every_rule_is_broken_by_some_test() -> None:
    assert {rule for rule, _, _ in BREAKS} == set(RULES)
