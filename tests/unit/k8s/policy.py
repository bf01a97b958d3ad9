"""What the security officer asks of every manifest, as rules: each finds what breaks it, in words.

A rule sees all documents of an overlay. What KubeRay will make of a RayJob is as far in `pods` as its source says
(v1.7.0): the autoscaler's container beside the head's, the wait container with the worker's own security.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.kustomize import Document

RAY_ROLES = ("head", "worker")
SECRET_NAME = re.compile(r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|KEY|CREDENTIALS?)(?:_|$)")
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that comes of an overlay."""

    where: str  # for people
    role: str  # head, worker, submitter, schedule
    spec: dict[str, Any]
    annotations: dict[str, str]

    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def ray_jobs(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each RayJob spec, with the name of what holds it."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "RayJob":
            yield name, document["spec"]
        elif document["kind"] == "RayCronJob":
            yield name, document["spec"]["jobTemplate"]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Each pod that comes of the documents."""
    for name, spec in ray_jobs(documents):
        cluster = spec["rayClusterSpec"]
        head = cluster["headGroupSpec"]["template"]
        if cluster.get("enableInTreeAutoscaling"):
            autoscaler = {"name": "autoscaler", "image": head["spec"]["containers"][0]["image"]}
            containers = [*head["spec"]["containers"], autoscaler | cluster.get("autoscalerOptions", {})]
            head = {**head, "spec": {**head["spec"], "containers": containers}}
        yield _pod(name, head)
        yield from (_pod(name, group["template"]) for group in cluster["workerGroupSpecs"])
        yield _pod(name, spec["submitterPodTemplate"])
    for document in documents:
        if document["kind"] == "CronJob":
            name = f"CronJob {document['metadata']['name']}"
            yield _pod(name, document["spec"]["jobTemplate"]["spec"]["template"])


def _pod(owner: str, template: dict[str, Any]) -> Pod:
    role = template["metadata"]["labels"]["app.kubernetes.io/component"]
    return Pod(f"{owner}, {role}", role, template["spec"], template["metadata"].get("annotations", {}))


Rule = Callable[[list[Document]], Iterator[str]]


def _each_container(
    wrong: Callable[[Pod, dict[str, Any]], bool],
) -> Rule:
    def rule(documents: list[Document]) -> Iterator[str]:
        for pod in pods(documents):
            for container in pod.containers():
                if wrong(pod, container):
                    yield f"{pod.where}, {container['name']}"

    return rule


def _each_pod(wrong: Callable[[Pod], bool]) -> Rule:
    return lambda documents: (pod.where for pod in pods(documents) if wrong(pod))


def _each_ray_job(wrong: Callable[[dict[str, Any]], bool]) -> Rule:
    return lambda documents: (name for name, spec in ray_jobs(documents) if wrong(spec))


def _security(container: dict[str, Any]) -> dict[str, Any]:
    security: dict[str, Any] = container.get("securityContext", {})
    return security


def _mounts(container: dict[str, Any]) -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}


def _volumes(pod: Pod) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in pod.spec.get("volumes", ())}


def _cannot_write(pod: Pod, container: dict[str, Any]) -> bool:
    """A container that lacks a mount which it writes to, the rest being read-only."""
    needed = {"/tmp"}
    if pod.role in RAY_ROLES and container["name"].startswith("ray-"):
        needed |= {"/dev/shm", "/cache", "/work"}
    return not needed <= set(_mounts(container)) or not set(_mounts(container).values()) <= set(_volumes(pod))


def _unbounded(pod: Pod) -> bool:
    return any("sizeLimit" not in volume["emptyDir"] for volume in _volumes(pod).values() if "emptyDir" in volume)


def _no_shared_memory(pod: Pod) -> bool:
    if pod.role not in RAY_ROLES:
        return False
    name = _mounts(pod.spec["containers"][0]).get("/dev/shm", "")
    return bool(_volumes(pod).get(name, {}).get("emptyDir", {}).get("medium") != "Memory")


def _on_the_host(pod: Pod) -> bool:
    ports = any("hostPort" in port for container in pod.containers() for port in container.get("ports", ()))
    paths = any("hostPath" in volume for volume in _volumes(pod).values())
    return ports or paths or any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))


def _token_mounted(pod: Pod, container: dict[str, Any]) -> bool:
    """The API server's token, anywhere but in the autoscaler and the schedule."""
    automatic = pod.spec.get("automountServiceAccountToken", True) and pod.role != "schedule"
    by_hand = TOKEN_PATH in _mounts(container) and container["name"] != "autoscaler"
    return automatic or by_hand


def _secret_in_env(pod: Pod, container: dict[str, Any]) -> bool:
    return any(
        SECRET_NAME.search(variable["name"]) and not variable["name"].endswith("_FILE") and "value" in variable
        for variable in container.get("env", ())
    )


def _tag_moves(pod: Pod, container: dict[str, Any]) -> bool:
    name, _, tag = container["image"].rpartition(":")
    return not name or tag == "latest"


def _resources_open(pod: Pod, container: dict[str, Any]) -> bool:
    resources = container.get("resources", {})
    asked, granted = resources.get("requests", {}), resources.get("limits", {})
    # Memory beyond what was asked is taken back by killing; a GPU cannot be had otherwise.
    return not {"cpu", "memory"} <= set(asked) or (asked["memory"] != granted.get("memory") and pod.role in RAY_ROLES)


def _killed_undrained(pod: Pod) -> bool:
    if pod.role not in RAY_ROLES:
        return False
    ray = pod.spec["containers"][0]
    hook = ray.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    drain_s = next((float(variable["value"]) for variable in ray["env"] if variable["name"] == "DRAIN_S"), 0.0)
    drains = hook == ["python", "/app/k8s/bin/drain.py", pod.role]
    return not drains or not 0 < drain_s < pod.spec["terminationGracePeriodSeconds"]


def _head_is_in_the_way(spec: dict[str, Any]) -> bool:
    """A head that takes a run's tasks or a GPU."""
    head = spec["rayClusterSpec"]["headGroupSpec"]
    limits = head["template"]["spec"]["containers"][0]["resources"]["limits"]
    told = head["rayStartParams"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:  # tasks without a CPU ask for it: pipelines/cluster.py
        if '"work":' not in group["rayStartParams"].get("resources", "").replace("\\", ""):
            return True
    if "work" in told.get("resources", ""):
        return True
    return told.get("num-cpus") != "0" or told.get("num-gpus") != "0" or any("gpu" in name for name in limits)


def _open_cluster(spec: dict[str, Any]) -> bool:
    auth = spec["rayClusterSpec"].get("authOptions", {})
    return auth.get("mode") != "token" or not auth.get("secretName")


def _spends_for_ever(spec: dict[str, Any]) -> bool:
    """A RayJob that keeps its nodes, has no end, or is tried again without measure or where it must not be."""
    return (
        spec.get("submissionMode") != "K8sJobMode"
        or not spec.get("shutdownAfterJobFinishes")
        or spec.get("ttlSecondsAfterFinished", 10**9) > 600
        or not spec.get("activeDeadlineSeconds")
        or spec.get("backoffLimit", 10**9) > 2
        or not spec["entrypoint"].startswith("python /app/k8s/bin/entrypoint.py python -m pipelines.run ")
    )


def _nobody_tracks(spec: dict[str, Any]) -> bool:
    """A run whose parameters and metrics would go into a file of its pod, and with it."""
    env = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    server = next((each.get("value", "") for each in env if each["name"] == "MLFLOW_TRACKING_URI"), "")
    return "tracking=none" not in spec["entrypoint"] and not server.startswith(("http://", "https://"))


def _no_mail(documents: list[Document]) -> Iterator[str]:
    """Alerts by mail that cannot leave the head."""
    ports = {
        port["port"]
        for each in documents
        if each["kind"] == "NetworkPolicy" and "schedule" not in str(each["spec"]["podSelector"])
        for allowed in each["spec"].get("egress", ())
        for port in allowed.get("ports", ())
    }
    if not {465, 587} <= ports:
        yield "no policy lets mail out"


def _open_network(documents: list[Document]) -> Iterator[str]:
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    denies = [
        each
        for each in policies
        if each["spec"]["podSelector"] == {} and set(each["spec"]) == {"podSelector", "policyTypes"}
    ]
    if not any(set(each["spec"]["policyTypes"]) == {"Ingress", "Egress"} for each in denies):
        yield "no policy denies all that no other allows"
    for each in policies:
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for allowed in each["spec"].get(direction, ()):
                if not allowed.get(peers) or not allowed.get("ports"):
                    yield f"{each['metadata']['name']} allows {direction} with anybody, or at any port"
                if any(peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" for peer in allowed.get(peers, ())):
                    excepted = [cidr for peer in allowed[peers] for cidr in peer["ipBlock"].get("except", ())]
                    if direction == "ingress" or "169.254.0.0/16" not in excepted:
                        yield f"{each['metadata']['name']} reaches the node's metadata service, or is reached by all"


def _secrets_in_manifests(documents: list[Document]) -> Iterator[str]:
    return (each["metadata"]["name"] for each in documents if each["kind"] == "Secret")


def _wide_rights(documents: list[Document]) -> Iterator[str]:
    for each in documents:
        if each["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            yield f"{each['kind']} {each['metadata']['name']}"
        for rule in each.get("rules", ()) if each["kind"] == "Role" else ():
            if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"] or "secrets" in rule["resources"]:
                yield f"Role {each['metadata']['name']}"
        if each["kind"] == "ServiceAccount" and each.get("automountServiceAccountToken", True):
            yield f"ServiceAccount {each['metadata']['name']} mounts its token everywhere"


def _head_evicted(documents: list[Document]) -> Iterator[str]:
    budgets = [each["spec"] for each in documents if each["kind"] == "PodDisruptionBudget"]
    kept = [each["selector"]["matchLabels"].get("app.kubernetes.io/component") for each in budgets]
    if kept != ["head"] or budgets[0].get("maxUnavailable") != 0:
        yield "no budget keeps the head, or one keeps more than it"
    for pod in pods(documents):
        if pod.role == "head" and pod.annotations.get("karpenter.sh/do-not-disrupt") != "true":
            yield pod.where


def _namespace_lax(documents: list[Document]) -> Iterator[str]:
    enforced = [
        each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        for each in documents
        if each["kind"] == "Namespace"
    ]
    if enforced != ["restricted"]:
        yield "the namespace does not enforce the restricted pod security standard"


def _overlapping(documents: list[Document]) -> Iterator[str]:
    for each in documents:
        if each["kind"] == "CronJob" and each["spec"].get("concurrencyPolicy") != "Forbid":
            yield each["metadata"]["name"]


RULES: dict[str, Rule] = {
    "every pod runs as a user that is not root": _each_pod(
        lambda pod: (
            pod.spec.get("securityContext", {}).get("runAsNonRoot") is not True
            or pod.spec["securityContext"].get("runAsUser", 0) < 1000
        )
    ),
    "every container says so too": _each_container(lambda _, each: _security(each).get("runAsNonRoot") is not True),
    "no container may gain privileges": _each_container(
        lambda _, each: (
            _security(each).get("allowPrivilegeEscalation") is not False or _security(each).get("privileged") is True
        )
    ),
    "every container has lost all capabilities": _each_container(
        lambda _, each: _security(each).get("capabilities") != {"drop": ["ALL"]}
    ),
    "every container's root file system is read-only": _each_container(
        lambda _, each: _security(each).get("readOnlyRootFilesystem") is not True
    ),
    "every container can write where it must": _each_container(_cannot_write),
    "no scratch volume is without bound": _each_pod(_unbounded),
    "Ray's pods have shared memory": _each_pod(_no_shared_memory),
    "every pod and container has the runtime's seccomp profile": _each_container(
        lambda pod, each: (
            {
                _security(each).get("seccompProfile", {}).get("type"),
                pod.spec.get("securityContext", {}).get("seccompProfile", {}).get("type"),
            }
            != {"RuntimeDefault"}
        )
    ),
    "no pod shares anything with its host": _each_pod(_on_the_host),
    "no token of the API server but for autoscaler and schedule": _each_container(_token_mounted),
    "no service's address leaks into environments": _each_pod(
        lambda pod: pod.spec.get("enableServiceLinks") is not False
    ),
    "no secret stands in an environment": _each_container(_secret_in_env),
    "no secret stands in a manifest": _secrets_in_manifests,
    "every image has a tag that stays": _each_container(_tag_moves),
    "every container asks for what it needs and is held to it": _each_container(_resources_open),
    "every pod gives way to serving": _each_pod(lambda pod: pod.spec.get("priorityClassName") != "batch-pipelines"),
    "no pod is restarted in place": _each_pod(lambda pod: pod.spec.get("restartPolicy") != "Never"),
    "Ray's pods drain before they are killed": _each_pod(_killed_undrained),
    "the head takes neither tasks nor GPUs": _each_ray_job(_head_is_in_the_way),
    "a cluster wants a token": _each_ray_job(_open_cluster),
    "a RayJob ends, leaves nothing, and is tried again with measure": _each_ray_job(_spends_for_ever),
    "a run's tracking has an address": _each_ray_job(_nobody_tracks),
    "an alert by mail can leave": _no_mail,
    "the network is closed but for named peers and ports": _open_network,
    "rights are few and named": _wide_rights,
    "the head is not evicted": _head_evicted,
    "the namespace enforces the restricted standard": _namespace_lax,
    "a schedule forbids overlapping": _overlapping,
}


def broken(documents: list[Document]) -> dict[str, list[str]]:
    """The rules that the documents break, each with where."""
    found = {name: list(rule(documents)) for name, rule in RULES.items()}
    return {name: where for name, where in found.items() if where}
