"""Whole runs on the real engine and the embedded model: what the jobs that ship make of real text."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from pipelines.config import Exit
from tests.runs import data, errors, job

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.engine]

TEXTS = [
    "The parcel came two weeks late and the box was torn. I want my money back.",
    "Wonderful service, friendly people, and the cake was delicious. We will come again!",
    "I hate this phone. The battery dies after an hour and support never answers.",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    rows = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
    (tmp_path / "in" / "texts.jsonl").write_text(rows)
    return tmp_path / "in"


def test_classify_is_read_alike_by_every_reader(tmp_path: Path, corpus: Path) -> None:
    sink = tmp_path / "out"
    assert job("engine=vllm", "precision=fp32", source=corpus, sink=sink) is Exit.DONE

    rows = data(sink)
    assert [row["label"] for row in rows] == ["negative", "positive", "negative"]
    assert all(0.5 <= row["confidence"] <= 1 for row in rows)
    assert all(row["_prompt_tokens"] > 20 and row["_output_tokens"] >= 1 for row in rows)
    readers = {
        "deltalake": DeltaTable(str(sink / "data")).to_pyarrow_table().to_pylist(),
        "polars": pl.read_delta(str(sink / "data")).to_dicts(),
        "pyarrow": ds.dataset(sink / "data", format="parquet").to_table().to_pylist(),
        "duckdb": duckdb.read_parquet(f"{sink}/data/*.parquet").to_arrow_table().to_pylist(),
    }
    for name, read in readers.items():
        assert sorted(read, key=lambda row: row["_row"]) == rows, name


def test_extract_writes_typed_columns_that_duckdb_reads(tmp_path: Path, corpus: Path) -> None:
    sink = tmp_path / "out"
    job("+job=extract", "engine=vllm", "max_error_rate=1", source=corpus, sink=sink)

    read = duckdb.read_parquet(f"{sink}/data/*.parquet")
    types = dict(zip(read.columns, map(str, read.types), strict=True))
    assert {name: types[name] for name in ("topic", "sentiment", "recommends", "keywords")} == {
        "topic": "VARCHAR",
        "sentiment": "VARCHAR",
        "recommends": "BOOLEAN",
        "keywords": "VARCHAR[]",
    }
    rows = data(sink)
    assert len(rows) + len(errors(sink)) == len(TEXTS)
    assert len(rows) >= 1
    assert {row["sentiment"] for row in rows} <= {"negative", "neutral", "positive"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summarize", "generate"])
def test_text_jobs_answer_each_row_with_text(tmp_path: Path, corpus: Path, name: str) -> None:
    sink = tmp_path / "out"
    assert job(f"+job={name}", "engine=vllm", "job.sampling.max_tokens=12", source=corpus, sink=sink) is Exit.DONE
    rows = data(sink)
    written = next(key for key in rows[0] if key not in ("id", "text") and not key.startswith("_"))
    assert len(rows) == len(TEXTS)
    assert all(row[written].strip() and row["_output_tokens"] <= 12 for row in rows)


def test_a_job_in_a_users_own_folder_runs(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "mine" / "job").mkdir(parents=True)
    (tmp_path / "mine" / "job" / "triage.yaml").write_text(
        "# @package job\n"
        "name: triage\n"
        "messages:\n"
        "  - {role: system, content: You sort messages to a shop. Answer with one word.}\n"
        '  - {role: user, content: "Is this a complaint or a praise?\\n\\n{{ text }}"}\n'
        "output: {kind: labels, labels: [complaint, praise]}\n"
        "sampling: {max_tokens: 8}\n"
    )
    sink = tmp_path / "out"
    words = ("--config-dir", str(tmp_path / "mine"), "+job=triage", "engine=vllm")
    assert job(*words, source=corpus, sink=sink) is Exit.DONE
    assert {row["label"] for row in data(sink)} <= {"complaint", "praise"}
    assert len(data(sink)) == len(TEXTS)
