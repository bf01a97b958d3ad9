"""What the command refuses, as a process: exit 2, one line that says what to do, nothing written, no Ray started.

A process takes seconds to import what it needs, so only one case of each kind is in CI; the others are slow.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.sink.ledger import Ledger
from tests.conftest import S3Server
from tests.corpora import jsonl, reviews, write
from tests.proxies import Answer, Proxy, Request, proxy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def denying(weed: S3Server) -> Iterator[Proxy]:
    with proxy(weed) as made:
        yield made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.jsonl", jsonl(reviews(3)))
    return tmp_path / "in"


def refused(tmp_path: Path, source: Path | str, *words: str, **environment: str) -> str:
    """The line in which a run says why it does not start."""
    sink, here = tmp_path / "sink", tmp_path / "here"
    here.mkdir()
    before = files(sink)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    words = ("+job=classify", "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}", *words)
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.run", *words],
        cwd=here,
        env={**inherited, "PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert [line for line in said if line.startswith("error: ")] == said[-1:], ended.stderr
    assert "Traceback" not in ended.stderr
    assert files(sink) == before
    left = [here / path for path in files(here)]
    assert [path.parent for path in left] == [here / "out" / "logs"] * len(left)  # the log, and nothing else
    assert not any("local Ray" in path.read_text() for path in left)
    return said[-1]


def files(folder: Path) -> dict[Path, bytes]:
    """What is in a folder, by relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reached(server: S3Server, endpoint: str) -> dict[str, str]:
    return {**server.environment(), "AWS_ENDPOINT_URL": endpoint}


def test_a_bucket_that_is_not_there(tmp_path: Path, weed: S3Server) -> None:
    said = refused(tmp_path, "s3://nobody-made-this/in", **weed.environment())

    assert "s3://nobody-made-this/in" in said


def test_a_source_that_is_not_there_beside_an_output_of_before(tmp_path: Path) -> None:
    Ledger.open(str(tmp_path / "sink"), create=True)

    assert f"{tmp_path}/nowhere" in refused(tmp_path, tmp_path / "nowhere")


@pytest.mark.slow
def test_no_credentials(tmp_path: Path, weed: S3Server) -> None:
    said = refused(tmp_path, "s3://some-bucket/in", AWS_ENDPOINT_URL=weed.endpoint, HOME=str(tmp_path))

    assert "credentials" in said


@pytest.mark.parametrize("denied", [pytest.param("list", marks=pytest.mark.slow), "get"])
def test_a_prefix_that_may_not_be_listed_and_objects_that_may_not_be_read(
    tmp_path: Path, weed: S3Server, denying: Proxy, s3_bucket: str, denied: str
) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    weed.client().put_object(Bucket=bucket, Key="in/a.jsonl", Body=jsonl(reviews(3)))

    def rule(request: Request) -> Answer | None:
        object_of_it = "/in/a.jsonl" in request.path
        asked = object_of_it if denied == "get" else not object_of_it
        return Answer(403, "AccessDenied") if asked and request.method in ("GET", "HEAD") else None

    denying.rule = rule
    said = refused(tmp_path, f"{s3_bucket}/in", **reached(weed, denying.endpoint))

    assert f"{s3_bucket}/in" in said
    assert "denied" in said.lower()


def test_an_output_column_that_the_corpus_has_already(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", jsonl([{"text": "fine", "label": "mine"}]))

    assert "'label'" in refused(tmp_path, tmp_path / "in")


@pytest.mark.slow
def test_a_column_of_the_prompt_that_no_shard_has(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", jsonl([{"texts": "fine"}]))

    said = refused(tmp_path, tmp_path / "in")

    assert "'text'" in said
    assert "'texts'" in said


def test_a_switch_that_lets_files_run_code(tmp_path: Path, corpus: Path) -> None:
    name = "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE"

    assert f"{name} lets files of the corpus run code" in refused(tmp_path, corpus, **{name: "1"})


@pytest.mark.slow
def test_a_model_that_is_not_there(tmp_path: Path, corpus: Path) -> None:
    said = refused(tmp_path, corpus, "model.path=no-such/model", HF_HUB_OFFLINE="1")

    assert "model.path=no-such/model" in said
