"""The IAM policy of docs/operations.md allows each request that a run makes of its store, and nothing that none needs.

Runs of tests/in_process.py: all but Ray and the engine is real. moto answers; what AWS would say of the policy is
worked out here, as far as this policy goes: actions, resources with *, and the condition on s3:prefix.
"""

import fnmatch
import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.config import ModelConfig
from pipelines.job.model import resolve
from pipelines.probe import check_store
from pipelines.sink import alive
from tests.conftest import KEY, SECRET, S3Server
from tests.in_process import INPUT, Order, Place, Session, run
from tests.proxies import Proxy, Request
from tests.unit.job.models import bytes_bpe

DOC = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
NOT_SEEN = {"s3:AbortMultipartUpload"}  # the document says so


def statements() -> list[dict[str, Any]]:
    """The policy of the document, for the test's one bucket."""
    (block,) = re.findall(r"```json\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    told = block.replace("CORPUS-BUCKET", "the-bucket").replace("OUTPUT-BUCKET", "the-bucket")
    found: list[dict[str, Any]] = json.loads(told)["Statement"]
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request needs the right to do."""

    action: str
    arn: str
    prefix: str | None  # of a listing


def needed(request: Request) -> list[Asked]:
    """The rights that a request needs, by S3's table of actions."""
    url = urlsplit(request.path)
    query = parse_qs(url.query, keep_blank_values=True)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    match request.method, bool(key):
        case "GET" | "HEAD", False:
            return [Asked("s3:ListBucket", arn, query.get("prefix", [""])[0])]
        case "GET" | "HEAD", True:
            return [Asked("s3:GetObject", f"{arn}/{key}", None)]
        case "PUT", True:
            source = request.headers.get("x-amz-copy-source")
            read = [Asked("s3:GetObject", f"arn:aws:s3:::{unquote(source).lstrip('/')}", None)] if source else []
            return [*read, Asked("s3:PutObject", f"{arn}/{key}", None)]
        case "POST", True:
            return [Asked("s3:PutObject", f"{arn}/{key}", None)]  # a multipart upload begun or completed
        case "POST", False if "delete" in query:
            keys = re.findall(rb"<Key>(.*?)</Key>", request.body)
            return [Asked("s3:DeleteObject", f"{arn}/{unquote(each.decode())}", None) for each in keys]
        case "DELETE", True:
            return [
                Asked("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", f"{arn}/{key}", None)
            ]
    raise NotImplementedError(f"{request.method} {request.path}")


def allows(statement: dict[str, Any], asked: Asked) -> bool:
    """Whether a statement gives the right."""
    prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
    return (
        asked.action in statement["Action"]
        and any(fnmatch.fnmatchcase(asked.arn, resource) for resource in statement["Resource"])
        and (asked.prefix is None or any(fnmatch.fnmatchcase(asked.prefix, prefix) for prefix in prefixes))
    )


@dataclass(slots=True)
class Store:
    """A bucket behind a proxy that notes what is asked of it."""

    client: Any  # of the test's own: it goes round the proxy
    asked: list[Asked] = field(default_factory=list)

    def put(self, shard: str, *texts: str) -> None:
        """Store a shard of the corpus."""
        table, body = pa.table({"version": [1] * len(texts), "text": list(texts)}, INPUT), io.BytesIO()
        pq.write_table(table, body)
        self.client.put_object(Bucket="the-bucket", Key=f"corpus/{shard}.parquet", Body=body.getvalue())


@pytest.fixture
def store(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    client = boto3.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=moto.endpoint)
    client.create_bucket(Bucket="the-bucket")
    found = Store(client)

    def note(request: Request) -> None:
        found.asked.extend(needed(request))

    proxy = Proxy(moto, rule=note)
    proxy.up()
    for name, value in (moto.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    yield found
    proxy.down()


def test_the_policy_allows_what_runs_ask_of_their_store_and_nothing_besides(store: Store, tmp_path: Path) -> None:
    folder = bytes_bpe(tmp_path / "model")
    model = resolve(ModelConfig(name="mine", path=str(folder)), cache=tmp_path / "cache")
    source, sink = "s3://the-bucket/corpus", "s3://the-bucket/answers"
    place = Place(source=cast(Path, source), sink=sink, model=model)
    dice = random.Random(0)
    for shard in ("a", "b", "c"):
        store.put(shard, *(f"{shard} text {number}" for number in range(7)), "bad")

    check_store(sink)
    with alive.beating(sink, "one"):
        run(Session(place, Order(fingerprint=32 * "1", refused={"bad": "engine"})), dice)
        storage.put(f"{sink}/runs/one/manifest.json", b"{}")
    store.put("a", "a text 1", "another")  # changed
    store.client.delete_object(Bucket="the-bucket", Key="corpus/b.parquet")  # deleted
    run(Session(place, Order(fingerprint=32 * "1")), dice)
    last = Session(place, Order(fingerprint=32 * "2", retry=True))
    run(last, dice)

    assert len(last.asked) > 0
    refused = [asked for asked in store.asked if not any(allows(each, asked) for each in statements())]
    assert refused == []
    used = {(each["Sid"], asked.action) for each in statements() for asked in store.asked if allows(each, asked)}
    given = {(each["Sid"], action) for each in statements() for action in each["Action"] if action not in NOT_SEEN}
    assert given == used


@pytest.mark.parametrize(
    "asked",
    [
        Asked("s3:PutObject", "arn:aws:s3:::the-bucket/corpus/a.parquet", None),
        Asked("s3:DeleteObject", "arn:aws:s3:::the-bucket/corpus/a.parquet", None),
        Asked("s3:GetObject", "arn:aws:s3:::the-bucket/elsewhere/a.parquet", None),
        Asked("s3:ListBucket", "arn:aws:s3:::the-bucket", ""),
        Asked("s3:ListBucket", "arn:aws:s3:::another", "corpus/"),
    ],
    ids=lambda asked: f"{asked.action} {asked.arn} {asked.prefix}",
)
def test_the_policy_refuses_what_no_run_needs(asked: Asked) -> None:
    assert not any(allows(each, asked) for each in statements())
