"""What the nightly CronJob does: make a RayJob from a suspended template, unless the last one is still at work.

    python /app/k8s/bin/schedule.py TEMPLATE NAME

The name is fixed, so of two that try at one moment the API server lets one create it: runs do not overlap. One that has
ended is replaced; its answers, receipts and report are in its output, its logs wherever the cluster's logs go.
Exit code 0: made, or left alone because one is at work. Needs the pod's token and the standard library alone.
"""

import http.client
import json
import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
ENDED = ("Complete", "Failed", "ValidationFailed")  # of status.jobDeploymentStatus; all others may still do something
GONE_WITHIN_S = 600.0  # for a RayJob that is deleted: its pods drain first
LOOK_EVERY_S = float(os.environ.get("LOOK_EVERY_S", "5"))
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # of the template: it would speak of another object


class Refused(Exception):
    """The API server's answer was neither what was asked for nor one that is expected."""


def main(template: str, name: str) -> int:
    """Make the RayJob; the exit code."""
    try:
        found = ask("GET", name)
        status = (found or {}).get("status", {}).get("jobDeploymentStatus", "")
        if found and status not in ENDED:
            say(f"{name} is at work ({status or 'new'}): this night has no run of its own")
            return 0
        if found:
            remove(name, uid=found["metadata"]["uid"])
        made_of = ask("GET", template)
        if made_of is None:
            raise Refused(f"there is no RayJob {template} to make {name} from: apply k8s/overlays/nightly")
        if ask("POST", "", rayjob(made_of, name)) is None:
            say(f"{name} was made by somebody else meanwhile")
            return 0
    except Refused as error:
        say(f"failed: {error}")
        return 1
    say(f"{name} is made")
    return 0


def rayjob(template: dict[str, Any], name: str) -> dict[str, Any]:
    """The template as a RayJob that runs."""
    metadata = template["metadata"]
    labels = dict(metadata.get("labels", {}))
    if os.environ.get("QUEUE_NAME"):
        labels["kueue.x-k8s.io/queue-name"] = os.environ["QUEUE_NAME"]
    annotations = {key: value for key, value in metadata.get("annotations", {}).items() if key != LAST_APPLIED}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {key: value for key, value in template["spec"].items() if key not in ("suspend", "jobId")},
    }


def remove(name: str, uid: str) -> None:
    """Delete a RayJob that has ended, if it is still that one, and wait until it is gone."""
    ask("DELETE", name, {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}})
    until = time.monotonic() + GONE_WITHIN_S
    while ask("GET", name) is not None:
        if time.monotonic() > until:
            raise Refused(f"{name} was deleted and is still there after {GONE_WITHIN_S:.0f} s: look at its finalizers")
        time.sleep(LOOK_EVERY_S)


def ask(method: str, name: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the API server answers about RayJobs; None where there is none of that name, or, for POST, already one.

    Raises:
        Refused: any other answer, or none.
    """
    try:
        namespace = (ACCOUNT / "namespace").read_text().strip()
        token = (ACCOUNT / "token").read_text().strip()
    except OSError as error:
        raise Refused(f"no token of the API server ({error}): the pod needs automountServiceAccountToken") from error
    path = f"/apis/ray.io/v1/namespaces/{quote(namespace)}/rayjobs" + (f"/{quote(name)}" if name else "")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    server = connection()
    try:
        server.request(method, path, None if body is None else json.dumps(body), headers)
        answer = server.getresponse()
        said = answer.read()
    except OSError as error:
        raise Refused(f"the API server does not answer ({type(error).__name__}: {error})") from error
    finally:
        server.close()
    if (answer.status == 404 and method != "POST") or (answer.status == 409 and method == "POST"):
        return None
    if answer.status >= 300:
        raise Refused(f"{method} {path}: {answer.status} {' '.join(said.decode(errors='replace').split())[:300]}")
    document: dict[str, Any] = json.loads(said)
    return document


def connection() -> http.client.HTTPSConnection:
    """To the API server that Kubernetes names in every pod, trusted by the cluster's own authority alone."""
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    return http.client.HTTPSConnection(host, port, timeout=30, context=trust)


def say(text: str) -> None:
    """One line into the pod's log."""
    sys.stdout.write(f"schedule: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        say("usage: schedule.py TEMPLATE NAME")
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
