"""What a start over an output asks of its store, counted by a proxy before a real one."""

import os
import re
from pathlib import Path

import pytest

from benchmarks.counting_proxy import CountingProxy, Request, counting_proxy
from pipelines.sink import ledger
from pipelines.sink.fenced import CONFIGURATION
from pipelines.sink.found import Found
from pipelines.sink.output import Output
from tests.unit.sink.test_tables import DATA, ERRORS, done

COMMITS_LEFT = int(CONFIGURATION["delta.checkpointInterval"])  # the most that a log has behind its newest checkpoint
READ_OF_A_COMMIT = 3  # times: delta-rs takes two to open a table, and one to look an epoch up
BESIDES = 35  # of each table: its checkpoint, listings, the commit that begins an epoch
MOST_REQUESTS = 3 * (COMMITS_LEFT * READ_OF_A_COMMIT + BESIDES)
MOST_BYTES = 1_200_000  # where a commit is of one unit


def opened(sink: str, found: Found | None = None) -> Output:
    return Output.open(
        sink,
        data_schema=DATA,
        errors_schema=ERRORS,
        fingerprint="f",
        identities={"a.parquet": "v1"},
        retain_hours=0,
        found=found,
    )


def filled(sink: Path, commits: int) -> None:
    """An output of so many commits; its run was killed."""
    output = opened(str(sink))
    for number in range(commits):
        output.commit([done(str(sink), 4 * number, 4 * number + 4, bad=[4 * number])])


def copied(folder: Path, proxy: CountingProxy, bucket: str) -> str:
    """`folder` at the store behind the proxy, which only counts what comes after."""
    import boto3

    client = boto3.client("s3", endpoint_url=proxy.endpoint)
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), bucket.removeprefix("s3://"), f"{folder.name}/{file.relative_to(folder)}")
    proxy.requests.clear()
    return f"{bucket}/{folder.name}"


def test_what_a_start_asks_of_its_store_does_not_grow_with_the_commits_that_are_there(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its commits would bring the ledger's log to a checkpoint while it is counted, which reads the log once more.
    monkeypatch.setattr(ledger, "COMPACT_EVERY", 3 * COMMITS_LEFT)
    with counting_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for commits in (COMMITS_LEFT - 4, 2 * COMMITS_LEFT - 4):
            filled(tmp_path / f"{commits}", commits)
            sink = copied(tmp_path / f"{commits}", proxy, s3_bucket)
            found = Found.at(sink)
            found.ledger.committed()
            assert found.input_schema() is not None
            found.check(DATA, ERRORS)
            output = opened(sink, found)
            assert len(list(output.view.current())) == commits
            asked = [request for request in proxy.requests if not _is_of_a_receipt(request)]
            assert len(asked) <= MOST_REQUESTS
            assert sum(request.bytes_back for request in asked) <= MOST_BYTES


def _is_of_a_receipt(request: Request) -> bool:
    """A file of the ledger itself, of which there are as many as commits until the ledger is compacted."""
    return re.search(r"/ledger/part-", request.words) is not None


def test_an_output_may_lie_in_a_folder_whose_name_an_address_would_encode(tmp_path: Path) -> None:
    sink = tmp_path / "my output, 100% of ä=1 #2"
    filled(sink, 2)

    after = opened(str(sink))

    assert sorted((receipt.start, receipt.stop) for receipt in after.view.current()) == [(0, 4), (4, 8)]
    assert len(list((sink / "data").glob("*.parquet"))) == 2
    after.close(retain_hours=0)
    assert len(list(opened(str(sink)).view.current())) == 2
