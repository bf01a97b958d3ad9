"""A stand-in for a Kubernetes API server at the HTTP boundary, for machines that have none: TLS, a token, RayJobs.

Written from the API's documentation, not recorded. What is created is validated as strictly as KubeRay's CRDs (where
they lie beside the checkout) and Kubernetes' own schemas allow, and is completed with the CRDs' defaults. Whether a
real server, a real operator and real pods behave like this is not shown by any test here.
"""

import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CRDS = Path(__file__).resolve().parents[2] / "shared" / "crds"  # third-party data, never in this repository
NAMESPACE = "batch-pipelines"
JOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
TOKEN = "the-token"
Document = dict[str, Any]


@cache
def crd(kind: str) -> Any:
    """KubeRay's schema of a kind, as the CRD has it."""
    file = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip("KubeRay's CRDs are not beside this checkout, and no package has them")
    versions = yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1"]
    return schema


@cache
def closed_crd(kind: str) -> Any:
    """The same, in which no field is allowed that it does not name."""
    return _closed(crd(kind))


def _closed(schema: Any) -> Any:
    """The schema, strict: the API server drops unknown fields in silence, and a misspelt one would be such."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


def against_kuberay(document: Document) -> None:
    """Raise jsonschema.ValidationError for what the CRD does not allow."""
    plain = {**document, "metadata": {}}  # the CRD leaves its fields open
    jsonschema.Draft202012Validator(closed_crd(document["kind"])).validate(plain)


def completed(value: Any, schema: Any) -> Any:
    """The value with the defaults of its schema, as the server stores it."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found = {key: completed(inner, known.get(key, {})) for key, inner in value.items()}
        return found | {key: each["default"] for key, each in known.items() if "default" in each and key not in found}
    if isinstance(value, list):
        return [completed(inner, schema.get("items", {})) for inner in value]
    return value


@dataclass(slots=True)
class Kubernetes:
    """What the server has, and was asked."""

    port: int
    ca: Path  # the certificate to trust it by
    strict: bool
    jobs: dict[str, Document] = field(default_factory=dict)
    config_maps: dict[str, Document] = field(default_factory=dict)
    pods: list[Document] = field(default_factory=list)
    logs: dict[str, list[bytes]] = field(default_factory=dict)  # of each pod, a list item for each time it is asked
    # Statuses that a RayJob takes, one each time it is looked at; "+pod": one that is there from then on.
    plays: list[Document] = field(default_factory=list)
    suspended: Document = field(default_factory=dict)  # the status that follows on spec.suspend
    asked: list[str] = field(default_factory=list)

    def job(self, name: str) -> Document | None:
        """A RayJob as somebody looks at it: at each look a little later."""
        found = self.jobs.get(name)
        if found is not None and "deletionTimestamp" in found["metadata"]:
            del self.jobs[name]  # seen once more while its pods drain
        elif found is not None and found["spec"].get("suspend") and self.suspended:
            found["status"] = self.suspended
        elif found is not None and self.plays:
            found["status"] = dict(self.plays.pop(0))
            if new := found["status"].pop("+pod", None):
                self.pods.append(new)
        return found

    def kubeconfig(self, file: Path, token: str = TOKEN) -> Path:
        """Write a kubeconfig that leads here."""
        server = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.ca)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": server}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        file.write_text(yaml.safe_dump(content))
        return file


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kubernetes: Kubernetes

    def answer(self, status: int, document: Document) -> None:
        self.send(status, json.dumps(document).encode(), "application/json")

    def send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        shown = url.path.removeprefix(JOBS) if url.path.startswith(JOBS) else url.path.removeprefix(CORE)
        self.kubernetes.asked.append(f"{self.command} {shown}{'?dryRun' if 'dryRun' in query else ''}")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif url.path == JOBS and self.command == "POST":
            self.create(body, query)
        elif url.path.startswith(f"{JOBS}/"):
            self.one(url.path.removeprefix(f"{JOBS}/"), body)
        elif url.path == f"{CORE}/configmaps" and self.command == "POST":
            kubernetes_validate.validate(body, "1.37", strict=True)
            taken = body["metadata"]["name"] in self.kubernetes.config_maps
            self.kubernetes.config_maps.setdefault(body["metadata"]["name"], body)
            self.refuse(409, "already exists") if taken else self.answer(201, body)
        elif url.path == f"{CORE}/pods":
            key, _, value = query["labelSelector"].partition("=")
            found = [pod for pod in self.kubernetes.pods if pod["metadata"]["labels"].get(key) == value]
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})
        elif url.path.endswith("/log"):
            pieces = self.kubernetes.logs[url.path.split("/")[-2]]
            self.send(200, pieces.pop(0) if len(pieces) > 1 else pieces[0], "text/plain")
        else:
            self.send(404, b"404 page not found\n", "text/plain")

    def create(self, body: Document, query: dict[str, str]) -> None:
        metadata = body["metadata"]
        if self.kubernetes.strict:
            try:
                if query.get("fieldValidation") == "Strict":  # else unknown fields are dropped in silence
                    against_kuberay(body)
            except jsonschema.ValidationError as error:
                self.refuse(400, f"RayJob in version v1 cannot be handled: {error.message}")
                return
            body = {**body, "spec": completed(body["spec"], crd("RayJob")["properties"]["spec"])}
        if metadata.get("namespace", NAMESPACE) != NAMESPACE:
            self.refuse(400, "the namespace of the object does not match the request")
        elif query.get("dryRun") == "All":
            self.answer(201, body)
        elif metadata["name"] in self.kubernetes.jobs:
            self.refuse(409, f'rayjobs.ray.io "{metadata["name"]}" already exists')
        else:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            uid = f"uid-{len(self.kubernetes.asked)}"
            self.kubernetes.jobs[metadata["name"]] = {
                **body,
                "metadata": {**metadata, "uid": uid, "creationTimestamp": now},
            }
            self.answer(201, self.kubernetes.jobs[metadata["name"]])

    def one(self, name: str, body: Document) -> None:
        found = self.kubernetes.job(name) if self.command == "GET" else self.kubernetes.jobs.get(name)
        if found is None:
            self.refuse(404, f'rayjobs.ray.io "{name}" not found')
        elif self.command == "DELETE" and body["preconditions"]["uid"] != found["metadata"]["uid"]:
            self.refuse(409, "the UID in the precondition does not match")
        elif self.command == "DELETE":
            found["metadata"]["deletionTimestamp"] = "now"
            self.answer(200, found)
        elif self.command == "PATCH":
            if self.headers["Content-Type"] != "application/merge-patch+json":
                self.refuse(415, "the body of the request was in an unknown format")
                return
            found["spec"] |= body["spec"]
            if self.kubernetes.strict:
                against_kuberay(found)
            self.answer(200, found)
        else:
            self.answer(200, found)

    do_GET = do_POST = do_DELETE = do_PATCH = handle_one  # noqa: N815 – http.server asks for these names

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def kubernetes(folder: Path, *jobs: Document, strict: bool = True) -> Iterator[Kubernetes]:
    """A server on this machine; its certificate lies in the folder. `strict`: bodies are validated by the CRDs."""
    if strict:
        crd("RayJob")  # skips the test where it is not there
    ca, own = _certificates(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(own)
    server.socket = trust.wrap_socket(server.socket, server_side=True)
    there = Kubernetes(server.server_address[1], ca, strict, {each["metadata"]["name"]: each for each in jobs})
    server.RequestHandlerClass = type("Handler", (_Handler,), {"kubernetes": there})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself and this machine's address, and the same with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's API server")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.crt").write_bytes(public)
    (folder / "server.pem").write_bytes(private + public)
    return folder / "ca.crt", folder / "server.pem"
