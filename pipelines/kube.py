"""A run as a RayJob of KubeRay: created, followed, suspended, by Kubernetes' client and the user's kubeconfig.

Only the RayJob and the user's own config folder are created. Whatever else the overlay has (network policies, service
account, …) is there before, by `kubectl apply -k`. Rights needed: rayjobs get, create, delete, patch; configmaps
create; pods list; pods/log get.
"""

import threading
import time
from contextlib import suppress
from typing import Any

import urllib3
import yaml

from pipelines import storage
from pipelines.accounts import run_summary
from pipelines.config import Exit, RunFailed, UserError
from pipelines.engine_choice import Hardware
from pipelines.kube_api import KubernetesApi
from pipelines.kustomize import Document
from pipelines.rayjob import concerns, manifest, pool_hardware
from pipelines.submission import LogReader, Say, Submission, changed, exit_of

LOOK_EVERY_S = 2.0
GONE_WITHIN_S = 600.0  # for a RayJob that is deleted: its pods drain first
LOST_S = 120.0  # for which the API server may be away
LOG_ENDS_WITHIN_S = 30.0  # after the run: what its submitter still says
ENDED = ("Complete", "Failed", "ValidationFailed")  # of status.jobDeploymentStatus; all others may still do something
PAUSED = "Suspended"
QUEUE = "kueue.x-k8s.io/queue-name"


class KubeRay:
    """One RayJob, and what stands in its place in a cluster."""

    def __init__(self, asked: Submission, *, context: str | None = None) -> None:
        self._asked = asked
        self._made = manifest(asked)
        self._name: str = self._made.rayjob["metadata"]["name"]
        self._namespace: str = self._made.rayjob["metadata"]["namespace"]
        self._context = context
        self._opened: KubernetesApi | None = None

    @property
    def where(self) -> str:
        return f"RayJob {self._namespace}/{self._name} at {self._api.server}"

    def hardware(self) -> Hardware:
        return pool_hardware(self._made.rayjob)

    def rendered(self) -> str:
        return self._made.text()

    def concerns(self) -> list[str]:
        return list(concerns(self._made.rayjob, self._asked.config))

    def difference(self) -> list[str]:
        """From the RayJob that is there, both as the API server completes them; it refuses here what it would later."""
        metadata = {key: value for key, value in self._made.rayjob["metadata"].items() if key != "name"}
        probe = {**self._made.rayjob, "metadata": {**metadata, "generateName": f"{self._name}-"}}
        would = self._api.create(probe, dry_run=True)
        there = self._api.get(self._name)
        return changed(_yaml(there["spec"]) if there else "", _yaml(would["spec"])) if there else []

    def submit(self, say: Say) -> None:
        there = self._api.get(self._name)
        if there is not None:
            state = _state(there)
            if state not in (*ENDED, PAUSED):
                raise UserError(
                    f"{self.where} is at work ({state or 'new'}): follow it by action=logs, stop it by action=stop"
                )
            say(f"deleting RayJob {self._name}, which is {state}")
            self._remove(there["metadata"]["uid"])
        if self._made.config_map is not None:
            self._api.create_config_map(self._made.config_map)
        self._api.create(self._made.rayjob)
        say(f"submitted as RayJob {self._namespace}/{self._name}")

    def follow(self, say: Say) -> Exit:
        log, told, ran = LogReader(say), "", False
        pod_log = _PodLog(log)
        while True:
            there = self._patiently()
            if there is None:
                raise RunFailed(f"{self.where} was deleted; what its run committed is safe")
            words = _words(there)
            if words != told:
                say(f"RayJob {self._name}: {words}")
                told = words
            state = _state(there)
            ran = ran or state in ("Initializing", "Running", "Suspending")
            if state in ENDED or (state == PAUSED and (ran or QUEUE not in there["metadata"].get("labels", {}))):
                break
            pod_log.look(self._api, self._name)
            time.sleep(LOOK_EVERY_S)
        pod_log.look(self._api, self._name)
        pod_log.close(self._api, LOG_ENDS_WITHIN_S)
        return self._exit(there, log.exit_code, say)

    def status(self) -> list[tuple[str, str]]:
        there = self._known()
        found = [("rayjob", f"{self._namespace}/{self._name}"), ("state", _words(there))]
        status = there.get("status", {})
        for label, key in (("began", "startTime"), ("ended", "endTime"), ("failed", "failed"), ("message", "message")):
            if status.get(key):
                found.append((label, str(status[key])))
        return [*found, ("command", there["spec"].get("entrypoint", ""))]

    def logs(self, say: Say) -> None:
        self._known()
        pod = self._api.submitter(self._name)
        if pod is None:
            raise UserError(f"{self.where} has no log: its submitter's pod is not there yet, or no more")
        log = LogReader(say)
        for piece in self._api.log(pod, follow=False):
            log.feed(piece)
        log.close()

    def stop(self, say: Say) -> Exit:
        """Suspend it: KubeRay deletes the cluster, whose head drains its run first. To submit again is to go on."""
        there = self._known()
        if _state(there) not in (*ENDED, PAUSED):
            self._api.suspend(self._name)
            say(f"RayJob {self._name}: suspended; its run finishes what is in the engines")
        return self.follow(say)

    @property
    def _api(self) -> KubernetesApi:
        """Not before it is asked: to render takes no cluster."""
        if self._opened is None:
            self._opened = KubernetesApi(self._namespace, context=self._context)
        return self._opened

    def _known(self) -> Document:
        there = self._api.get(self._name)
        if there is None:
            raise UserError(f"{self.where} is not there: nothing was submitted by this name")
        return there

    def _patiently(self) -> Document | None:
        """What is there, asked again for a while where the API server is away: the run does not need it."""
        since = time.monotonic()
        while True:
            try:
                return self._api.get(self._name)
            except UserError as error:
                if time.monotonic() - since > LOST_S:
                    raise RunFailed(f"{error}; the run may be at work: ask again with action=status") from None
                time.sleep(LOOK_EVERY_S)

    def _remove(self, uid: str) -> None:
        self._api.delete(self._name, uid=uid)
        until = time.monotonic() + GONE_WITHIN_S
        while self._api.get(self._name) is not None:
            if time.monotonic() > until:
                raise RunFailed(f"{self.where} was deleted and is still there: look at its finalizers")
            time.sleep(LOOK_EVERY_S)

    def _exit(self, there: Document, told: int | None, say: Say) -> Exit:
        """How the run ended: by its own last line, else by its summary beside the output, else by KubeRay's status."""
        state, status = _state(there), there.get("status", {})
        code = told if told is not None else self._by_summary(there)
        if state == PAUSED:
            say("suspended: what was finished is committed; submit the same command again to go on")
            return Exit.STOPPED if code is None else exit_of(code)
        if state != "Complete":
            raise RunFailed(f"RayJob {self._name} has failed: {status.get('reason', '')} {status.get('message', '')}")
        if code is not None:
            return exit_of(code)
        return {"SUCCEEDED": Exit.DONE, "STOPPED": Exit.STOPPED}.get(str(status.get("jobStatus")), Exit.FAILED)

    def _by_summary(self, there: Document) -> int | None:
        """The exit code that the newest run since then wrote down; None: it wrote none that can be read from here."""
        since = str(there["metadata"].get("creationTimestamp", "")).replace("-", "").replace(":", "")
        sink = storage.absolute(self._asked.config.sink.uri)
        with suppress(storage.StoreFailed, UserError):
            for run in run_summary.newest(sink, 1):
                return run.exit_code if run.run_id >= since else None
        return None


class _PodLog:
    """Reads the newest submitter's log beside the loop that looks at the RayJob."""

    def __init__(self, log: LogReader) -> None:
        self._log = log
        self._pod: str | None = None
        self._thread: threading.Thread | None = None

    def look(self, api: KubernetesApi, name: str) -> None:
        """Begin to read, or begin again where a connection broke or another attempt has a pod of its own."""
        if self._thread is not None and self._thread.is_alive():
            return
        with suppress(UserError):  # away: at the next look
            pod = api.submitter(name)
            if pod is None:
                return
            if pod != self._pod:
                self._log.another()
            self._log.anew()
            self._pod = pod
            self._thread = threading.Thread(target=self._read, args=(api, pod), name="pod log", daemon=True)
            self._thread.start()

    def close(self, api: KubernetesApi, seconds: float) -> None:
        """Wait for the end of the log, for so long at most, and read it once more: the connection may have broken."""
        if self._thread is not None and self._pod is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._log.anew()
                self._read(api, self._pod, follow=False)
        self._log.close()

    def _read(self, api: KubernetesApi, pod: str, *, follow: bool = True) -> None:
        with suppress(UserError, urllib3.exceptions.HTTPError, OSError):
            for piece in api.log(pod, follow=follow):
                self._log.feed(piece)


def _state(there: Document) -> str:
    return str(there.get("status", {}).get("jobDeploymentStatus", ""))


def _words(there: Document) -> str:
    status = there.get("status", {})
    parts = [_state(there) or "new", status.get("jobStatus"), status.get("reason"), status.get("message")]
    return ", ".join(" ".join(str(part).split())[:200] for part in parts if part)


def _yaml(spec: Any) -> str:
    return str(yaml.safe_dump(spec, sort_keys=True, width=120))
