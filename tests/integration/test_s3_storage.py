"""Storage against real servers: SeaweedFS, moto, and a proxy that breaks connections at a chosen moment."""

import io
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.counting_proxy import counting_proxy
from pipelines import s3, s3_pages, storage
from pipelines.config import SourceConfig, UserError
from pipelines.probe import ROUNDS, check_store
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import list_shards
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, read_units
from tests.conftest import S3Server, free_ports
from tests.corpora import csv_text, jsonl, packed, parquet
from tests.proxies import Answer, Request, Rule, forward, proxy


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_all_below_a_prefix_is_listed_and_neighbours_are_not(s3_bucket: str) -> None:
    names = {"a.jsonl", "day=1/b c.jsonl", "tief/é/ü%20+.csv"} | {f"n/{i:04}" for i in range(1100)}
    for name in names:
        storage.put(f"{s3_bucket}/in/{name}", name.encode())
    storage.put(f"{s3_bucket}/inside", b"a neighbour")

    found = {one.path: one for one in storage.listing(f"{s3_bucket}/in")}

    assert set(found) == names
    assert {one.path for one in storage.listing(f"{s3_bucket}/in/")} == names
    for name in ("day=1/b c.jsonl", "tief/é/ü%20+.csv"):
        assert storage.get(found[name].uri) == name.encode()
        assert found[name].size == len(name.encode())
    (single,) = storage.listing(f"{s3_bucket}/in/tief/é/ü%20+.csv")
    assert single.path == "ü%20+.csv"
    assert single.etag == found["tief/é/ü%20+.csv"].etag


def test_a_page_of_a_listing_is_what_botocore_makes_of_it(s3_bucket: str) -> None:
    bucket = s3_bucket.removeprefix("s3://").partition("/")[0]
    for name in ("plain.jsonl", "a b/ü%20+&amp;<Contents>.csv", "quote\"'.txt"):
        storage.put(f"{s3_bucket}/page/{name}", name.encode())
    client, event = s3.client(), "before-parse.s3.ListObjectsV2"

    ours: Any = client.list_objects_v2(Bucket=bucket, MaxKeys=2)
    client.meta.events.unregister(event, s3_pages.parse)
    try:
        theirs: Any = client.list_objects_v2(Bucket=bucket, MaxKeys=2)
    finally:
        client.meta.events.register(event, s3_pages.parse)

    columns = ("Key", "Size", "ETag", "LastModified")
    assert len(ours["Contents"]) == 2
    assert [[one[name] for name in columns] for one in ours["Contents"]] == [
        [one[name] for name in columns] for one in theirs["Contents"]
    ]
    rest = {name for name in theirs if name not in ("Contents", "ResponseMetadata")}
    assert {name: ours[name] for name in rest} == {name: theirs[name] for name in rest}
    assert ours["IsTruncated"]


def test_a_key_that_looks_like_a_way_out_is_a_key_like_any_other(moto_bucket: str) -> None:
    for name in ("x/../y.txt", "../../z.txt", "a//b"):
        storage.put(f"{moto_bucket}/in/{name}", name.encode())

    found = {one.path: storage.get(one.uri) for one in storage.listing(f"{moto_bucket}/in")}

    assert found == {name: name.encode() for name in ("x/../y.txt", "../../z.txt", "a//b")}


def test_put_get_delete_and_the_etag_of_the_listing(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a/b.bin"

    etag = storage.put(uri, b"one")

    (found,) = storage.listing(f"{s3_bucket}/a")
    assert (found.etag, found.size, storage.get(uri), storage.exists(uri)) == (etag, 3, b"one", True)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError):
        storage.get(uri)
    for number in range(3):
        storage.put(f"{s3_bucket}/many/{number}", b"")
    storage.delete_all([f"{s3_bucket}/many/{number}" for number in range(4)])
    assert list(storage.listing(f"{s3_bucket}/many", missing_ok=True)) == []


def test_a_copy_is_made_by_the_store_and_its_bytes_do_not_travel(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(5).randbytes(300_000)
    storage.put(f"{s3_bucket}/from/ü b+.bin", content)
    with counting_proxy(os.environ["AWS_ENDPOINT_URL"]) as counted, monkeypatch.context() as inside:
        inside.setenv("AWS_ENDPOINT_URL", counted.endpoint)

        storage.copy(f"{s3_bucket}/from/ü b+.bin", f"{s3_bucket}/to/c.bin")

        assert [request.words.partition(" ")[0] for request in counted.requests] == ["PUT"]
        assert counted.bytes_read() < 4096
        with pytest.raises(FileNotFoundError):
            storage.copy(f"{s3_bucket}/from/none.bin", f"{s3_bucket}/to/none.bin")
    assert storage.get(f"{s3_bucket}/to/c.bin") == storage.get(f"{s3_bucket}/from/ü b+.bin") == content
    assert not storage.exists(f"{s3_bucket}/to/none.bin")


@pytest.mark.parametrize("size", [1, 200_000, storage.WHOLE_BYTES, 3_000_000])
def test_random_seeks_and_reads_give_the_same_bytes_as_memory(s3_bucket: str, size: int) -> None:
    dice = random.Random(size)
    content = dice.randbytes(size)
    storage.put(f"{s3_bucket}/x", content)
    memory = io.BytesIO(content)

    with storage.open_input(f"{s3_bucket}/x") as file:
        for _ in range(200):
            if dice.random() < 0.5:
                at = dice.randrange(len(content) + 10)
                assert file.seek(at) == memory.seek(at)
            length = dice.choice([0, 1, 100, 70_000, 600_000])
            assert file.read(length) == memory.read(length)
        assert file.seek(-1, io.SEEK_END) == len(content) - 1
        assert file.read() == content[-1:]
        assert file.read() == b""


def test_a_parquet_footer_is_one_request_and_a_straight_read_few(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"x": np.random.default_rng(2).integers(0, 2**62, 1_500_000)})  # 12 MB
    out = io.BytesIO()
    pq.write_table(table, out, compression="none", use_dictionary=False)
    storage.put(f"{s3_bucket}/x.parquet", out.getvalue())
    asked: list[Any] = []
    real = s3.body

    def counted(*args: Any, **request: Any) -> bytes:
        asked.append(request["Range"])
        return real(*args, **request)

    monkeypatch.setattr(s3, "body", counted)

    with storage.open_input(f"{s3_bucket}/x.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_rows == 1_500_000
    assert len(asked) == 1
    asked.clear()
    with storage.open_input(f"{s3_bucket}/x.parquet") as file:
        assert pa.table(pq.read_table(file)).equals(table)
    assert len(asked) <= 2 + len(out.getvalue()) // storage.WINDOW_MIN_BYTES // 4
    asked.clear()
    with storage.open_input(f"{s3_bucket}/x.parquet") as file:
        while file.read(65536):
            pass
    assert len(asked) <= 6  # 0.25 + 1 + 4 + 7 MiB


def test_no_byte_of_a_small_shard_is_sent_twice_whatever_its_format(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(4)
    rows = [{"id": str(number), "text": dice.randbytes(50).hex()} for number in range(5_000)]
    written = {
        "a.parquet": parquet(pa.Table.from_pylist(rows), row_group_size=1_000),
        "b.jsonl": jsonl(rows),
        "c.jsonl.gz": packed(jsonl(rows), ".gz"),
        "d.csv": csv_text(rows),
    }
    with counting_proxy(os.environ["AWS_ENDPOINT_URL"]) as counted:
        monkeypatch.setenv("AWS_ENDPOINT_URL", counted.endpoint)
        for name, content in written.items():
            assert storage.WINDOW_MIN_BYTES < len(content) < storage.WHOLE_BYTES
            storage.put(f"{s3_bucket}/{name[0]}/{name}", content)
            config = SourceConfig(uri=f"{s3_bucket}/{name[0]}")
            shards = list_shards(config)
            schema = corpus_schema(shards, config, ())
            counted.requests.clear()
            spec = ReadSpec(schema=schema, size=UnitSize(rows=512, bytes=2**20), max_row_bytes=2**20)
            assert sum(parcel.rows.num_rows for parcel in read_units(shards[0], spec)) == len(rows)
            sent = counted.bytes_read(rf"GET .*/{name}")
            assert len(content) <= sent < len(content) + 4096, name  # headers


def test_an_object_that_changes_while_it_is_read_is_told(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/x"
    storage.put(uri, b"a" * 2_000_000)
    (found,) = storage.listing(uri)

    with storage.open_input(uri, etag=found.etag) as file:
        assert file.read(10) == b"a" * 10
        storage.put(uri, b"b" * 2_000_000)
        with pytest.raises(storage.Changed):
            file.read()
    with pytest.raises(storage.Changed):
        storage.open_input(uri, etag=found.etag)
    with storage.open_input(uri) as file:
        file.read(10)
        storage.delete(uri)
        with pytest.raises(storage.Changed):
            file.read()
    with pytest.raises(storage.Changed):
        storage.open_input(uri, etag=found.etag)
    with pytest.raises(FileNotFoundError):
        storage.open_input(uri)


def test_what_is_wrong_is_one_line_before_the_start(
    s3_bucket: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as told:
        storage.listing("s3://no-such-bucket-here/x")
    assert "no bucket 'no-such-bucket-here'" in one_line(told.value)
    with pytest.raises(UserError) as told:
        check_store("s3://no-such-bucket-here/x")
    assert "no-such-bucket-here" in one_line(told.value)
    with pytest.raises(UserError, match="nothing there"):
        storage.listing(f"{s3_bucket}/nothing")
    check_store(f"{s3_bucket}/sink")
    assert list(storage.listing(f"{s3_bucket}/sink", missing_ok=True)) == []

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError) as told:
        storage.listing(s3_bucket)
    assert "does not accept these credentials" in one_line(told.value)
    with pytest.raises(UserError):
        check_store(s3_bucket)

    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    with pytest.raises(UserError) as told:
        storage.listing(s3_bucket)
    assert "access denied" in one_line(told.value)
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError) as told:
        storage.listing(s3_bucket)
    assert "no AWS credentials" in one_line(told.value)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError) as told:
        storage.listing(s3_bucket)
    assert "AWS_PROFILE" in one_line(told.value)


def test_an_endpoint_that_does_not_answer_is_one_line_within_seconds(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(UserError) as told:
        storage.listing(s3_bucket)
    assert "does not answer" in one_line(told.value)


def test_a_profile_names_keys_and_endpoint(
    s3_bucket: str, weed: S3Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put(f"{s3_bucket}/x", b"x")
    key, secret = weed.environment()["AWS_ACCESS_KEY_ID"], weed.environment()["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "config").write_text(
        f"[profile mine]\nregion = eu-central-1\nendpoint_url = {weed.endpoint}\n"
        f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")

    assert storage.get(f"{s3_bucket}/x") == b"x"
    options = storage.delta_options(s3_bucket) or {}
    assert (options["aws_region"], options["aws_endpoint"]) == ("eu-central-1", weed.endpoint)
    assert (options["aws_access_key_id"], options["aws_secret_access_key"]) == (key, secret)


def test_the_reader_pays_where_the_environment_says_so(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    sent: list[str | None] = []
    s3.client().meta.events.register(
        "before-send.s3", lambda request, **_: sent.append(request.headers.get("x-amz-request-payer"))
    )

    storage.put(f"{moto_bucket}/a/x", b"x")
    assert [one.path for one in storage.listing(f"{moto_bucket}/a")] == ["x"]
    with storage.open_input(f"{moto_bucket}/a/x") as file:
        assert file.read() == b"x"
    storage.exists(f"{moto_bucket}/a/x")
    storage.delete(f"{moto_bucket}/a/x")

    assert len(sent) >= 6
    assert {value if isinstance(value, str) else (value or b"").decode() for value in sent} == {"requester"}
    assert (storage.delta_options(moto_bucket) or {})["aws_request_payer"] == "true"


def test_a_public_bucket_is_read_without_credentials(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(f"{moto_bucket}/x", b"x")
    s3.client().put_object_acl(Bucket=moto_bucket.removeprefix("s3://"), Key="x", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    sent: list[Any] = []
    s3.client().meta.events.register("before-send.s3", lambda request, **_: sent.append(request.headers))

    assert storage.get(f"{moto_bucket}/x") == b"x"

    assert sent
    assert all("Authorization" not in headers for headers in sent)
    assert (storage.delta_options(moto_bucket) or {})["aws_skip_signature"] == "true"


@contextmanager
def broken_proxy(server: S3Server, *, cut: list[int | None]) -> Iterator[str]:
    """An address before `server`; of its answers, in order, so many bytes come through (None: all) before the end."""
    target = server.endpoint.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    clients: list[socket.socket] = []

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((target[0], int(target[1])), timeout=20) as upstream:
            while True:
                request = _message(client)
                if not request:
                    return
                upstream.sendall(re.sub(rb"(?i)expect: 100-continue\r\n", b"", request))
                answer = _message(upstream, head_only=request.startswith(b"HEAD"))
                allowed = cut.pop(0) if cut else None
                client.sendall(answer if allowed is None else answer[:allowed])
                if allowed is not None:
                    return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            clients.append(client)
            threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
            threads[-1].start()

    threads.append(threading.Thread(target=accept, daemon=True))
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # A client keeps its connections for later: what waits on one for a request ends here, not in another test.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join(20)
        for client in clients:
            with suppress(OSError):  # it has ended by itself
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads[1:]:
            thread.join(20)


def _message(connection: socket.socket, *, head_only: bool = False) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if b"100-continue" in head.lower() and not body:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = int(sizes[0].split(b":")[1]) if sizes and not head_only else 0
    while len(body) < size:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_a_put_whose_answer_was_lost_is_done_again_and_ends_well(
    s3_bucket: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broken_proxy(weed, cut=[0, 0]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        etag = storage.put(f"{s3_bucket}/x.parquet", b"whole" * 1000)

    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    (found,) = storage.listing(s3_bucket)
    assert (found.size, found.etag) == (5000, etag)


def test_a_body_that_breaks_off_is_asked_for_again(
    s3_bucket: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(3).randbytes(1_000_000)
    storage.put(f"{s3_bucket}/x", content)

    with broken_proxy(weed, cut=[None, 100_000, 0, 50_000]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with storage.open_input(f"{s3_bucket}/x") as file:
            assert file.read() == content


@pytest.mark.parametrize("server", ["s3_bucket", "moto_bucket"])
def test_a_store_with_conditional_writes_passes_the_probe_and_nothing_of_it_stays(
    server: str, request: pytest.FixtureRequest
) -> None:
    bucket: str = request.getfixturevalue(server)

    check_store(f"{bucket}/out")

    assert list(storage.listing(bucket, missing_ok=True)) == []


def _stored(server: S3Server, request: Request) -> Answer:
    """Store it whatever the condition. The condition is signed, so a client of the proxy's own does it."""
    bucket, _, key = request.path.removeprefix("/").partition("/")
    server.client().put_object(Bucket=bucket, Key=key, Body=request.body)
    return Answer(200)


def _ignores_it(server: S3Server) -> Rule:
    return lambda request: _stored(server, request) if "if-none-match" in request.headers else None


def _races(server: S3Server) -> Rule:
    """As SeaweedFS 4.16: of those that come at one moment two pass the check, and then both write."""
    came: list[str] = []
    gate, lock = threading.Barrier(2), threading.Lock()

    def rule(request: Request) -> Answer | None:
        if "if-none-match" not in request.headers or not request.path.endswith("-1"):
            return None
        with lock:
            came.append(request.path)
            passes = len(came) <= 2
        if not passes:
            return Answer(412, "PreconditionFailed")
        gate.wait(60)
        return _stored(server, request)

    return rule


def _answers(status: int, code: str) -> Callable[[S3Server], Rule]:
    return lambda server: lambda request: Answer(status, code) if "if-none-match" in request.headers else None


@pytest.mark.parametrize(
    ("behaves", "words"),
    [
        (_ignores_it, "was overwritten"),
        (_races, "2 of 8 writers were told that they had created one and the same object"),
        (_answers(501, "NotImplemented"), "the store answered NotImplemented to a conditional write"),
        (_answers(400, "InvalidArgument"), "the store answered InvalidArgument to a conditional write"),
        (_answers(412, "PreconditionFailed"), "none of 8 writers could create an object that was not there"),
    ],
    ids=["ignores it", "races", "501", "400", "always 412"],
)
def test_a_store_that_cannot_create_an_object_once_is_refused_with_what_it_did(
    s3_bucket: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch, behaves: Callable[[S3Server], Rule], words: str
) -> None:
    with proxy(weed) as between:
        between.rule = behaves(weed)
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        with pytest.raises(UserError) as told:
            check_store(f"{s3_bucket}/out")

    assert words in one_line(told.value)
    assert "Use a store with conditional writes" in str(told.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    assert list(storage.listing(s3_bucket, missing_ok=True)) == []


def test_the_probe_takes_its_own_write_for_its_own_when_the_answer_to_it_was_lost(
    s3_bucket: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: set[str] = set()
    lock = threading.Lock()

    def lost(request: Request) -> Answer | None:
        """The first write of each race arrives, and its answer does not."""
        if "if-none-match" not in request.headers:
            return None
        with lock:
            if request.path in stored:
                return None
            stored.add(request.path)
            forward(weed, request)
            return Answer(503, "ServiceUnavailable")

    with proxy(weed) as between:
        between.rule = lost
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        check_store(f"{s3_bucket}/out")

    assert len(stored) == 1 + ROUNDS
