"""A whole run from and to a real S3 server, with every ugliness in one prefix, and no secret anywhere."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipelines.config import Exit
from tests.conftest import SECRET, S3Server
from tests.corpora import KINDS, ugly_prefix, ugly_rows, write
from tests.runs import data, errors, job, ledger

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _upload(weed: S3Server, bucket: str, folder: Path) -> None:
    client = weed.client()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(file), bucket, f"corpus/{file.relative_to(folder)}")


def test_formats_and_uglinesses_of_one_prefix_on_s3_add_up(tmp_path: Path, weed: S3Server, s3_bucket: str) -> None:
    rows = ugly_prefix(tmp_path / "in")
    more, dead_rows = ugly_rows(tmp_path / "in")
    rows |= more
    dead_rows |= {("lines.jsonl.gz", 3): "unreadable", ("ragged.csv", 1): "unreadable", ("ragged.csv", 2): "unreadable"}
    _upload(weed, s3_bucket.removeprefix("s3://"), tmp_path / "in")
    options = {
        "AWS_ENDPOINT_URL": weed.endpoint,
        "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }

    exit_code = job(
        *("max_error_rate=1", "unit.rows=64", "source.max_row_bytes=100000"),
        'job.messages=[{role: user, content: "{{ text }}{% if tags is not none %}{{ tags[0] }}{% endif %}"}]',
        source=f"{s3_bucket}/corpus",
        sink=f"{s3_bucket}/labelled",
    )

    assert exit_code is Exit.TOO_MANY_ERRORS  # two shards broke off
    sink = f"{s3_bucket}/labelled"
    answered, dead = data(sink, options), errors(sink, options)
    places = [(row["_shard"], row["_row"]) for row in [*answered, *dead]]
    assert len(places) == len(set(places))
    by_shard = {shard: sum(1 for place in places if place[0] == shard) for shard, _ in places}
    assert {shard: count for shard, count in by_shard.items() if shard in rows} == rows
    broken = sorted(row["_shard"] for row in dead if row["_error_type"] == "unreadable_shard")
    assert broken == ["broken.parquet", "cut.jsonl.gz"]
    by_row = {(row["_shard"], row["_row"]): row["_error_type"] for row in dead}
    assert {place: kind for place, kind in by_row.items() if kind != "unreadable_shard"} == dead_rows
    asked = {(row["_shard"], row["_row"]): row["text"] for row in answered}
    assert [asked["cells.jsonl.zst", row] for row in (4, 5)] == ["7", '["a",1]']
    kinds = [row for row in answered if row["_shard"] == "kinds.parquet"]
    assert {name: [row[name] for row in kinds] for name in KINDS} == KINDS
    receipts = ledger(sink, options)
    assert sum(r["rows_in"] for r in receipts) == len(places)
    assert sum(r["rows_ok"] for r in receipts) == len(answered)
    files = pl.read_delta(f"{sink}/data", storage_options=options)
    listed = weed.client().list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"), Prefix="labelled/data/part")
    assert len(files) == len(answered)
    assert all("/" not in key["Key"].removeprefix("labelled/data/") for key in listed.get("Contents", []))


def test_no_secret_is_in_any_byte_that_a_run_leaves(tmp_path: Path, s3_bucket: str) -> None:
    """With a Ray of its own, so that its processes have the secrets, and their logs are this run's."""
    secrets = {
        "HF_TOKEN": "hf_SENTINELaaaabbbbccccdddd",
        "AWS_SESSION_TOKEN": "SENTINELsessiontoken1234567890",
        "SOME_PASSWORD": "SENTINELpassword99",
    }
    write(tmp_path / "in" / "a.jsonl", b'{"text": "fine"}\n{"text": null}\nbroken\n')
    write(
        tmp_path / "mine" / "tracking" / "away.yaml", b"uri: http://me:SENTINELinurl12345@127.0.0.1:9/\nexperiment: x\n"
    )
    (tmp_path / "here").mkdir()
    words = [
        "+job=classify",
        "engine=simulated",
        "max_error_rate=1",
        "tracking=away",
        "--config-dir",
        f"{tmp_path}/mine",
    ]
    words += [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}", "cluster.num_cpus=1"]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.run", *words],
        cwd=tmp_path / "here",
        env={**alone, **secrets, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert ended.returncode == Exit.DONE, ended.stderr
    ray_logs = re.search(r"engines and workers: (\S+)", ended.stderr)
    assert ray_logs
    folders = [tmp_path / "here", tmp_path / "out", Path(ray_logs[1]).parent]
    left = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert any(path.name == "manifest.json" for path in left)
    assert any(path.name.startswith("worker-") for path in left)
    left |= {Path("stdout"): ended.stdout.encode(), Path("stderr"): ended.stderr.encode()}
    for path, content in left.items():
        for secret in (*secrets.values(), "SENTINELinurl12345", SECRET):
            assert secret.encode() not in content, f"{secret} is in {path}"


def test_mlflow_has_parameters_metrics_and_artifacts_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(50)))
    database = tmp_path / "mlflow.db"

    job(
        *("tracking=mlflow", f"tracking.uri=sqlite:///{database}", "tracking.experiment=figures"),
        source=tmp_path / "in",
        sink=tmp_path / "out",
    )

    with sqlite3.connect(database) as connection:
        metrics = dict(connection.execute("select key, value from latest_metrics").fetchall())
        parameters = dict(connection.execute("select key, value from params").fetchall())
    assert metrics["rows_in"] == metrics["rows_ok"] == 50
    assert metrics["usd"] > 0
    assert metrics["usd_per_million_total"] > 0
    assert "gpu_utilization" not in metrics
    assert parameters["model.name"] == "smollm2-135m-instruct"
    assert parameters["fingerprint"] == ledger(tmp_path / "out")[0]["fingerprint"]
