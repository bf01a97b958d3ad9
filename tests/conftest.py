"""What many tests share: a real S3 server, moto's server, an environment that is as it was after each test.

Both servers start once per session, on free ports of the loopback address, and are stopped at its end. Should
pytest be killed, the kernel stops weed with it (PR_SET_PDEATHSIG), so no orphan stays.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from xdist.scheduler import LoadScopeScheduling

KEY, SECRET = "test-key", "test-secret"
START_S = 60


class _Rooms(LoadScopeScheduling):  # type: ignore[misc]
    """For `pytest -n`: what starts Rays stays in one process, one after the other; a file's tests stay together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "on a Ray" if Path(file).parent.name in ("integration", "faults") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # Marks of groups do not reach xdist 3.8 from pytest 9.2.
    return _Rooms(config, log)


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3 server, and who may talk to it."""

    endpoint: str
    process: "subprocess.Popen[bytes] | None" = None  # None: a thread of this process

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A client that shares nothing with the code under test."""
        return boto3.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=self.endpoint)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def weed_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS's `weed mini` over `folder`, ready for requests; stopped at the end."""
    kinds = ("master", "filer", "volume", "s3", "admin")
    ports = free_ports(2 * len(kinds))
    flags = [f"-{kind}.port={port}" for kind, port in zip(kinds, ports, strict=False)]
    flags += [f"-{kind}.port.grpc={port}" for kind, port in zip(kinds, ports[len(kinds) :], strict=True)]
    flags += [f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"]
    off = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    off += ["-s3.autoCreateBucket=false"]  # a missing bucket is an error, as on AWS
    off += ["-volume.max=10000"]  # a bucket has a volume of its own; else as many as the free disk has room for
    weed = Path(sys.executable).with_name("weed")
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "TMPDIR": str(folder)}
    (folder / "data").mkdir()
    with (folder / "weed.log").open("wb") as out:
        process = subprocess.Popen(
            [weed, "mini", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags, *off],
            stdout=out,
            stderr=out,
            cwd=folder,
            env=environment,
            preexec_fn=_die_with_parent,
        )
    try:
        server = S3Server(endpoint=f"http://127.0.0.1:{ports[3]}", process=process)
        _wait_until_ready(server, process, folder / "weed.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: S3Server, process: "subprocess.Popen[bytes]", out: Path) -> None:
    deadline = time.monotonic() + START_S
    client = server.client()
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="x", Body=b"x")  # only once a volume server has joined
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"weed did not start: {out.read_text(errors='replace')[-2000:]}") from error
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server. Use `s3_bucket` for a bucket of one's own and the environment set."""
    with weed_server(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """An S3 double over HTTP, for what weed cannot show: requester pays, and whatever AWS does differently."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_ports(1)[0], verbose=False)
    server.start()
    yield S3Server(endpoint=f"http://127.0.0.1:{server._port}")
    server.stop()


@pytest.fixture
def s3_bucket(weed: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """`s3://…`, a new bucket on SeaweedFS, gone after the test; the environment says how to reach it."""
    client, uri = weed.client(), _bucket(weed, monkeypatch, request)
    yield uri
    client.delete_bucket(Bucket=uri.removeprefix("s3://"))  # a bucket holds volumes, and weed has so many


@pytest.fixture
def moto_bucket(moto: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """`s3://…`, a new bucket on moto's server; the environment says how to reach it."""
    return _bucket(moto, monkeypatch, request)


def _bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:30].strip("-")
    bucket = f"{readable}-{uuid.uuid4().hex[:8]}"
    server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place, once on the local disk and once on SeaweedFS."""
    if request.param == "local":
        return str(tmp_path / "store")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/some/store"


@pytest.fixture(scope="module")
def ray_cluster(weed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray of four logical CPUs that the runs of a module share; its workers can reach `weed`."""
    import ray
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 – as in a run; else the tests beside these go before them
    os.environ.update(weed.environment())  # workers take their environment from the node's processes
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": 2**28},
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
