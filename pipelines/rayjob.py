"""An overlay's RayJob with a run of one's own in it: what KubeRay is given, and what is odd about the two together."""

import copy
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from pipelines.accounts.devices import device_of
from pipelines.config import RunConfig, UserError, finish_by
from pipelines.config_folder import CONF
from pipelines.engine_choice import Hardware, detect
from pipelines.kustomize import Document, Unknown, render
from pipelines.redact import redacted
from pipelines.submission import Submission

OVERLAYS = CONF.parent / "k8s" / "overlays"
CONFIG_DIR = "/etc/batch-pipelines"  # of the head, where the user's own folder is
LAST_COMMIT_S = 30.0  # after grace_s; as in k8s/base/rayjob.yaml
ENDS_BEFORE_S = 600.0  # the run's own deadline before activeDeadlineSeconds, which ends it without order
# By NVIDIA's table of CUDA GPUs, from memory: what a plan must know of a GPU that it cannot ask.
_CAPABILITY = {"B200": 10.0, "H200": 9.0, "H100": 9.0, "H100 NVL": 9.0, "H100 PCIe": 9.0, "A100": 8.0}
_CAPABILITY |= {"A100 40GB": 8.0, "L40S": 8.9, "L4": 8.9, "A10G": 8.6, "T4": 7.5}
_SECRET = re.compile(r"(?:^|_)(SECRET|TOKEN|PASSWORD|KEY)(?:_|$)")
_GPU_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is created, in this order."""

    config_map: Document | None  # the user's own folder
    rayjob: Document

    def documents(self) -> list[Document]:
        return [each for each in (self.config_map, self.rayjob) if each is not None]

    def text(self) -> str:
        """All of it as YAML."""
        return str(yaml.safe_dump_all(self.documents(), sort_keys=False, width=120))


def manifest(asked: Submission) -> Manifest:
    """The RayJob of the overlay that `cluster.overlay` names, with this run as its entrypoint.

    Raises:
        UserError: there is no such overlay, it has no RayJob that may start, or a secret stands in it.
    """
    overlay = _folder(asked.config.cluster.overlay or "")
    found = [each for each in _rendered(overlay) if each["kind"] == "RayJob"]
    if len(found) != 1:
        raise UserError(f"cluster.overlay={overlay} has {len(found)} RayJobs, and not one that a run can become")
    made = copy.deepcopy(found[0])
    if made["spec"].get("suspend"):
        raise UserError(
            f"cluster.overlay={overlay} has a suspended RayJob, the template of a schedule: apply it by kubectl, and "
            "submit with the overlay that it stands on"
        )
    metadata, spec = made["metadata"], made["spec"]
    metadata["name"] = asked.name or metadata["name"]
    spec["entrypoint"] = shlex.join(asked.command("/app/k8s/bin/entrypoint.py", CONFIG_DIR))
    config_map = _config_map(asked, metadata) if asked.files else None
    if config_map is not None:
        _mount(config_map, spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"])
    whole = Manifest(config_map=config_map, rayjob=made)
    text = whole.text()
    if redacted(text) != text or any(_secret_values(spec)):
        raise UserError(f"a secret stands in the manifest of {overlay}: let pods take it from a Secret (secretKeyRef)")
    return whole


def concerns(made: Document, config: RunConfig) -> Iterator[str]:
    """What of this run and this RayJob do not go well together, a line each."""
    spec = made["spec"]
    most_s = spec.get("activeDeadlineSeconds")
    within = finish_by(config.budget.finish_by) if config.budget.finish_by else None
    if most_s is not None and within is None:
        yield f"no budget.finish_by: KubeRay deletes the cluster after {most_s:,} s, whatever it does then"
    elif most_s is not None and isinstance(within, timedelta) and within + _order(config) > timedelta(seconds=most_s):
        yield f"budget.finish_by={config.budget.finish_by} is not well before activeDeadlineSeconds={most_s:,}"
    drain_s = _environment(_ray(_head(spec))).get("DRAIN_S")
    if drain_s is not None and float(drain_s) < config.grace_s + LAST_COMMIT_S:
        yield f"grace_s={config.grace_s:g} does not fit into the pods' DRAIN_S={drain_s}: a stop would cut it short"
    workers = sum(group.get("maxReplicas", 0) * max(1, _gpus(group)) for group in _groups(spec))
    if config.engine.pool[1] * config.model.tensor_parallel * config.model.pipeline_parallel > workers:
        yield f"engine.replicas={config.engine.pool[1]} is more than the overlay's nodes can hold ({workers})"
    has_gpus = any(_gpus(group) for group in _groups(spec))
    if has_gpus and config.engine.kind != "simulated" and config.engine.device != "gpu":
        yield f"engine.device={config.engine.device}, though the overlay's nodes have GPUs: say engine.device=gpu"
    told = config.tracking.uri is None or not config.tracking.uri.startswith("sqlite:///")
    if not told and "MLFLOW_TRACKING_URI" not in _environment(_ray(_head(spec))):
        yield "no MLflow server (tracking.uri, or MLFLOW_TRACKING_URI of the head): its records go with the pod"


def _order(config: RunConfig) -> timedelta:
    """What it takes a run to end in order."""
    return timedelta(seconds=config.grace_s + ENDS_BEFORE_S)


def pool_hardware(made: Document) -> Hardware:
    """What an engine has on the overlay's nodes, by their GPUs' labels; CPUs are taken to be like this machine's."""
    for group in _groups(made["spec"]):
        if count := _gpus(group):
            name = next(_gpu_names(group), None)
            known = device_of(name)
            capability = None if known is None else _CAPABILITY.get(known.name)
            return Hardware(device="gpu", gpu_name=name or "GPU", gpus=count, compute_capability=capability)
    here = detect()
    return Hardware(device="cpu", cpu_flags=here.cpu_flags, cores=here.cores)


def _folder(said: str) -> Path:
    known = sorted(folder.name for folder in OVERLAYS.iterdir()) if OVERLAYS.is_dir() else []
    folder = OVERLAYS / said if said in known else Path(said)
    if not (folder / "kustomization.yaml").is_file():
        raise UserError(
            f"cluster.overlay={said} is neither a folder with a kustomization.yaml nor one of {', '.join(known)}"
        )
    return folder


def _rendered(folder: Path) -> list[Document]:
    """By our own few lines, or where the overlay wants more than they know, by kubectl."""
    try:
        return render(folder)
    except Unknown as error:
        if shutil.which("kubectl") is None:
            raise UserError(f"{error}, which takes kubectl to render, and there is none") from None
    words = ("kubectl", "kustomize", str(folder))
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 – no shell; a path as given
    if done.returncode:
        raise UserError(f"kubectl kustomize {folder}: {' '.join(done.stderr.split())}")
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def _config_map(asked: Submission, metadata: dict[str, Any]) -> Document:
    """The user's own folder; its name says what is in it, so that a run keeps the one that it was given."""
    digest = hashlib.sha256(repr(sorted(asked.files.items())).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{metadata['name']}-{digest}",
            "namespace": metadata["namespace"],
            "labels": dict(metadata.get("labels", {})),
        },
        "data": {path.replace("/", "."): text for path, text in asked.files.items()},
        "immutable": True,
    }


def _mount(config_map: Document, pod: dict[str, Any]) -> None:
    items = [{"key": key, "path": key.replace(".", "/", 1)} for key in config_map["data"]]
    source = {"name": config_map["metadata"]["name"], "items": items}
    pod.setdefault("volumes", []).append({"name": "config", "configMap": source})
    mounts = pod["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": "config", "mountPath": CONFIG_DIR, "readOnly": True})


def _head(spec: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return pod


def _ray(pod: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod["containers"][0]
    return container


def _groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return list(spec["rayClusterSpec"].get("workerGroupSpecs", ()))


def _gpus(group: dict[str, Any]) -> int:
    limits = _ray(group["template"]["spec"]).get("resources", {}).get("limits", {})
    return int(limits.get("nvidia.com/gpu", 0))


def _gpu_names(group: dict[str, Any]) -> Iterator[str]:
    pod = group["template"]["spec"]
    yield from (pod["nodeSelector"][label] for label in _GPU_LABELS if label in pod.get("nodeSelector", {}))
    needed = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in needed.get("nodeSelectorTerms", ()):
        for one in term.get("matchExpressions", ()):
            if one["key"] in _GPU_LABELS and one.get("values"):
                yield str(one["values"][0])


def _environment(container: dict[str, Any]) -> dict[str, str | None]:
    """Variables by name; None: the value comes from elsewhere."""
    return {each["name"]: each.get("value") for each in container.get("env", ())}


def _secret_values(node: Any) -> Iterator[str]:
    """Variables that are called like a secret and have their value in the manifest."""
    if isinstance(node, list):
        for each in node:
            yield from _secret_values(each)
    elif isinstance(node, dict):
        name = node.get("name")
        if isinstance(name, str) and "value" in node and _SECRET.search(name) and not name.endswith("_FILE"):
            yield name
        for inner in node.values():
            yield from _secret_values(inner)
