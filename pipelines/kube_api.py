"""The API server, as far as a submitted run needs it: RayJobs, config maps, the log of a pod; its refusals in words."""

import codecs
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import urllib3

from pipelines.config import UserError
from pipelines.kustomize import Document

TIMEOUT_S = 30.0  # of one request
RAYJOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
T = TypeVar("T")


class KubernetesApi:
    """One namespace, by Kubernetes' client and a context of the user's kubeconfig. Refusals are UserErrors."""

    def __init__(self, namespace: str, *, context: str | None = None) -> None:
        try:
            from kubernetes import client, config
        except ImportError:
            raise UserError("cluster=kuberay needs Kubernetes' client: install the extra cluster") from None
        settings = client.Configuration()
        try:
            # Named, because the client looks at the variable once, when it is imported.
            file = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(config_file=file, context=context, client_configuration=settings)
        except config.ConfigException as error:
            raise UserError(f"the kubeconfig cannot be used ({error}): say context=… or KUBECONFIG=…") from None
        settings.retries = False
        connection = client.ApiClient(settings)
        self.server = str(settings.host)
        self._refusal = client.ApiException
        self._jobs, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
        self._of = {**RAYJOBS, "namespace": namespace}
        self._namespace = namespace

    def get(self, name: str) -> Document | None:
        """The RayJob; None: there is none."""

        def ask() -> Document | None:
            try:
                found: Document = self._jobs.get_namespaced_custom_object(
                    **self._of, name=name, _request_timeout=TIMEOUT_S
                )
            except self._refusal as error:
                if error.status != 404 or "page not found" in (error.body or ""):  # no such kind: no KubeRay
                    raise
                return None
            return found

        return self._ask(ask)

    def create(self, body: Document, *, dry_run: bool = False) -> Document:
        """Create a RayJob, or with `dry_run` only let it be checked; as the server completes it."""
        more = {"dry_run": "All"} if dry_run else {}
        made: Document = self._ask(
            lambda: self._jobs.create_namespaced_custom_object(
                **self._of, body=body, field_validation="Strict", _request_timeout=TIMEOUT_S, **more
            )
        )
        return made

    def delete(self, name: str, *, uid: str) -> None:
        """Begin to delete the RayJob, if it is still this one."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        self._ask(
            lambda: self._jobs.delete_namespaced_custom_object(
                **self._of, name=name, body=body, _request_timeout=TIMEOUT_S
            )
        )

    def suspend(self, name: str) -> None:
        """Let KubeRay delete the RayJob's cluster, and keep the RayJob."""
        self._ask(
            lambda: self._jobs.patch_namespaced_custom_object(
                **self._of,
                name=name,
                body={"spec": {"suspend": True}},
                _content_type="application/merge-patch+json",
                _request_timeout=TIMEOUT_S,
            )
        )

    def create_config_map(self, body: Document) -> None:
        """Create it, unless one of this name is there."""

        def ask() -> None:
            try:
                self._core.create_namespaced_config_map(self._namespace, body, _request_timeout=TIMEOUT_S)
            except self._refusal as error:
                if error.status != 409:
                    raise

        self._ask(ask)

    def submitter(self, name: str) -> str | None:
        """The newest pod with the log of the RayJob's run, once it has one; KubeRay names its Job after the RayJob."""
        selector = f"batch.kubernetes.io/job-name={name}"
        pods = self._ask(
            lambda: (
                self._core.list_namespaced_pod(
                    self._namespace, label_selector=selector, _request_timeout=TIMEOUT_S
                ).items
            )
        )
        ready = [pod for pod in pods if pod.status.phase in ("Running", "Succeeded", "Failed")]
        newest = max(ready, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        return None if newest is None else str(newest.metadata.name)

    def log(self, pod: str, *, follow: bool) -> Iterator[str]:
        """The pod's log in pieces; with `follow` until it ends, or the connection does."""
        answer = self._ask(
            lambda: self._core.read_namespaced_pod_log(
                pod, self._namespace, container="ray-job-submitter", follow=follow, _preload_content=False
            )
        )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for piece in answer.stream(2**14):
                yield decoder.decode(piece)
        finally:
            answer.close()

    def _ask(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except self._refusal as error:
            raise UserError(f"{self.server}: {error.status} {_said(error)}") from None
        except urllib3.exceptions.HTTPError as error:
            raise UserError(f"the API server {self.server} does not answer ({type(error).__name__})") from None


def _said(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
