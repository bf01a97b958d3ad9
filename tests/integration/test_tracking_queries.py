"""The questions of docs/sharing.md to MLflow, run as they stand there, on a real SQLite store with figures known."""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.accounts.account import tokens_of
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.cost import bill
from pipelines.accounts.delivery import Tracked
from pipelines.accounts.manifest import inputs_sha256
from pipelines.accounts.tracking import track
from pipelines.config import Exit, RunConfig
from tests.accounts_samples import PRICE, run_config, summary

DOCS = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text("utf-8")
CORPUS = {"a.jsonl": "v1", "b.jsonl": "v1"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    before = mlflow.get_tracking_uri()
    yield tmp_path / "mlflow.db"
    mlflow.set_tracking_uri(before)


def answer(after: str, database: Path, **words: str) -> Any:
    """What the block behind these words finds, in the store and the experiment of the test."""
    blocks = [DOCS[DOCS.index("## Questions to MLflow") :], DOCS[DOCS.index(after) :]]
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0] for text in blocks)
    for word, value in words.items():
        code = code.replace(word, value)
    found: dict[str, Any] = {}
    exec(code.replace("sqlite:///out/mlflow.db", f"sqlite:///{database}"), found)
    return found["answer"]


def ran(database: Path, run: str, model: str = "smollm2", **more: Any) -> Tracked:
    """A run of 41,000 tokens that cost $0.04, a quarter of it failed, unless told otherwise."""
    config: RunConfig = run_config(database.parent)
    tracking = replace(
        config.tracking, uri=f"sqlite:///{database}", experiment="out/classify", **more.pop("tracking", {})
    )
    config = replace(config, tracking=tracking, model=replace(config.model, name=model))
    inputs, resumed_from = more.pop("inputs", CORPUS), more.pop("resumed_from", None)
    seconds: int = more.pop("seconds", 400)
    parts = Parts(prefill=seconds * NS // 2, decode=seconds * NS // 4, failed=seconds * NS // 4)
    totals = replace(summary().totals, gold_correct=more.pop("gold_correct", 198))
    made = bill(parts, PRICE, tokens_of(totals), device_name=None)
    end = summary(run_id=run, model=model, bill=made, totals=totals, **more)
    with track(
        config, run_id=run, fingerprint="f", parts={}, config_yaml="", inputs=inputs, resumed_from=resumed_from
    ) as tracker:
        tracker.finish(end)
    assert tracker.tracked is not None
    assert tracker.tracked.not_logged == ()
    return tracker.tracked


def test_dollars_per_million_by_model_are_of_the_last_month_and_weighed_by_tokens(database: Path) -> None:
    ran(database, "r1", "small")
    ran(database, "r2", "small", seconds=1200)
    ran(database, "r3", "large", seconds=4000)
    old = ran(database, "r4", "small", seconds=400_000)
    with sqlite3.connect(database) as connection:
        connection.execute("update runs set start_time = 1 where run_uuid = ?", (old.run_id,))

    found = answer("Dollars per million tokens by model", database)

    assert found.to_dict() == pytest.approx({"small": 0.16 / 0.082, "large": 0.4 / 0.041})
    assert list(found.index) == ["small", "large"]
    assert answer("What was spent on failed", database).to_dict() == pytest.approx(
        {"classify": (0.04 * 1004 + 0.4) / 4}
    )


def test_runs_over_one_corpus_are_found_by_its_digest_the_most_accurate_first(database: Path) -> None:
    ran(database, "r1", gold_correct=100)
    ran(database, "r2", inputs={"a.jsonl": "v2"})
    ran(database, "r3", gold_correct=200)
    other = mlflow.MlflowClient(f"sqlite:///{database}")
    (run,) = [one for one in other.search_runs(["1"]) if one.data.tags["pipelines.run_id"] == "r3"]
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    digest = inputs_sha256(CORPUS.items())[:32]

    found = answer("All runs over one corpus", database, DIGEST=digest)

    assert (dataset.dataset.digest, dataset.dataset.source_type) == (digest, "local")
    assert dataset.dataset.name == run_config(database.parent).source.uri
    assert found["tags.pipelines.run_id"].tolist() == ["r3", "r1"]


def test_a_run_that_was_resumed_is_linked_to_the_one_before_and_both_say_how_they_ended(database: Path) -> None:
    ran(database, "r1", exit_code=Exit.STOPPED, stopped_by="budget.usd=5")
    ran(database, "r2", exit_code=Exit.FAILED, error="RunFailed: no engine", resumed_from="r1")
    ran(database, "r3", resumed_from="r2")

    found = answer("How a night came to its end", database).sort_values("tags.pipelines.run_id")

    assert found.to_numpy().tolist() == [["r1", "r2", "FAILED", "1"], ["r2", "r3", "FINISHED", "0"]]
    tags = {
        run.data.tags["pipelines.run_id"]: run.data.tags
        for run in mlflow.MlflowClient(f"sqlite:///{database}").search_runs(["1"])
    }
    assert tags["r1"]["pipelines.stopped_by"] == "budget.usd=5"
    assert tags["r2"]["pipelines.error"] == "RunFailed: no engine"


def test_runs_of_a_multirun_are_nested_and_the_one_above_ends_as_they_do(database: Path) -> None:
    shared = {"multirun": "m1"}
    ran(database, "r1", seconds=1200, tracking={**shared, "run_name": "batching=static"})
    states = [parent(database).info.status]
    ran(database, "r2", exit_code=Exit.FAILED, tracking={**shared, "run_name": "batching=dynamic"}, seconds=400)
    states.append(parent(database).info.status)
    ran(database, "r3", tracking={**shared, "run_name": "batching=continuous"}, seconds=800)
    states.append(parent(database).info.status)
    ran(database, "alone")

    found = answer("The runs of the newest", database)

    assert states == ["FINISHED", "FAILED", "FAILED"]
    assert found["tags.mlflow.runName"].tolist() == ["batching=dynamic", "batching=continuous", "batching=static"]


def parent(database: Path) -> Any:
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    (found,) = client.search_runs(["1"], "tags.`pipelines.kind` = 'multirun'")
    return found
