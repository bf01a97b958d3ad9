"""What runs tell of their answers, over real Ray: equal to a recount of the output, an alert where the mix shifts."""

import json
from importlib.util import find_spec
from math import floor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.accounts.quality import Measures
from pipelines.accounts.quality_files import Quality
from pipelines.config import Exit
from pipelines.sink.ledger import Ledger
from pipelines.sink.measures import CONFIDENCE_BINS
from tests.alert_servers import web_server
from tests.runs import data, job

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = 600
GOLD = ("positive", "negative", "mixed", None)


def write(source: Path, shard: str, texts: list[str | None]) -> None:
    source.mkdir(exist_ok=True)
    gold = [GOLD[place % len(GOLD)] for place in range(len(texts))]
    table = {"text": pa.array(texts, pa.string()), "wanted": pa.array(gold, pa.string())}
    pq.write_table(pa.table(table), source / f"{shard}.parquet")


def test_measures_equal_a_recount_and_only_a_shifted_mix_raises_the_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    words = ("job.gold=wanted", "unit.rows=128", "alerts=default", "alerts.path=[{to: [oncall], after_s: 0}]")
    runs: list[str] = []

    def after(shard: str, texts: list[str | None]) -> Quality:
        """What the run over one more shard has left."""
        write(source, shard, texts)
        assert job(*words, "max_error_rate=0.1", source=source, sink=sink) is Exit.DONE
        (new,) = {path.parent.name for path in (sink / "runs").glob("*/quality.json")} - set(runs)
        runs.append(new)
        return Quality.from_json((sink / "runs" / new / "quality.json").read_text("utf-8"))

    with web_server() as web:
        for name in ("ONCALL", "LEAD"):
            monkeypatch.setenv(f"PIPELINES_ALERT_{name}", web.url(name.lower()))
        first = after("a", [*(f"text {number}" for number in range(ROWS)), None, " ", "text 1"])
        assert (first.against, first.drift) == (None, None)
        assert (first.measures.rows_in, first.measures.rows_error) == (ROWS + 3, 2)
        second = after("b", [f"more {number}" for number in range(ROWS)])
        assert second.against == runs[0]
        assert second.figures()["significant_psi"] == 0.0
        assert raised(sink / "runs") == set()

        mostly = [row["text"] for row in data(sink) if row["label"] == "positive" or row["_row"] < 40]
        third = after("c", mostly)
        assert third.against == runs[1]
        assert third.figures()["significant_psi"] == third.figures()["labels_psi"]
        assert raised(sink / "runs") == {(runs[2], "drift")}
        assert web.next()["title"] == "[warning] classify: drift"

    recounted(sink, Measures.of([]) + first.measures + second.measures + third.measures)
    ledger = Ledger.open(str(sink), create=False)
    recounted(sink, Measures.of(ledger.measured(ledger.committed().current())))

    page = (sink / "runs" / runs[2] / "report.html").read_text("utf-8")
    assert "Answers: labels, accuracy, drift" in page
    assert f"run {runs[1]}, with {ROWS:,} answered rows" in page
    manifest = json.loads((sink / "runs" / runs[2] / "manifest.json").read_text("utf-8"))
    assert manifest["summary"]["quality"]["labels_psi"] == third.figures()["labels_psi"]


def raised(runs: Path) -> set[tuple[str, str]]:
    """Run and rule of each alert that stands."""
    files = [path for path in runs.glob("*/alerts/*.json") if not path.name.endswith(".ack.json")]
    return {(path.parts[-3], path.stem) for path in files if json.loads(path.read_text("utf-8"))["raised_at"]}


def recounted(sink: Path, measures: Measures) -> None:
    """See that these measures are what SQL counts in the output's files."""
    with duckdb.connect() as connection:

        def ask(sql: str) -> list[tuple[Any, ...]]:
            return connection.sql(sql.replace("data", f"read_parquet('{sink}/data/*.parquet')")).fetchall()

        counts = measures.counts
        assert [(measures.rows_ok, counts.rows)] == ask("select count(*), count(*) from data")
        assert sorted(counts.labels["label"].items()) == ask("select label, count(*) from data group by 1 order by 1")
        for name in ("prompt_tokens", "output_tokens"):
            bins = ask(f"select ceil(log2(_{name} + 1))::int, count(*) from data group by 1 order by 1")
            assert [(place, rows) for place, rows in enumerate(getattr(counts, name)) if rows] == bins
        told = [(gold, label, rows) for gold, answered in counts.confusion.items() for label, rows in answered.items()]
        gold = "case when wanted in ('positive', 'negative') then wanted else '' end"
        assert sorted(told) == ask(
            f"select {gold}, label, count(*) from data where wanted is not null group by 1, 2 order by 1, 2"
        )
        assert [(measures.gold_rows, measures.gold_correct)] == ask(
            "select count(wanted), count(*) filter (wanted = label) from data"
        )
        rows: dict[int, list[float]] = {}
        for sure, wanted, label in ask("select confidence, wanted, label from data"):
            one = rows.setdefault(min(CONFIDENCE_BINS - 1, floor(sure * CONFIDENCE_BINS)), [0, 0.0, 0, 0])
            one[0] += 1
            one[1] += sure
            one[2] += wanted is not None
            one[3] += wanted == label
        for place, bin_ in enumerate(counts.confidence):
            number, total, of_gold, correct = rows.get(place, [0, 0.0, 0, 0])
            assert (bin_.rows, bin_.gold_rows, bin_.gold_correct) == (number, of_gold, correct)
            assert bin_.millionths == pytest.approx(total * 1e6, abs=bin_.rows)


def test_answers_in_free_text_are_looked_at_when_their_run_has_ended(tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    write(source, "a", [f"The flight number {number} was late again, and nobody told us." for number in range(30)])

    assert job("+job=summarize", source=source, sink=sink) is Exit.DONE

    (left,) = (sink / "runs").glob("*/quality.json")
    seen = Quality.from_json(left.read_text("utf-8")).texts
    assert seen is not None
    assert seen.rows == 10  # of the one unit
    assert seen.relevance is not None
    assert (seen.sentiment is None) == (find_spec("textblob") is None)  # absent without the extra, and not zero
    told = json.loads((left.parent / "manifest.json").read_text("utf-8"))["summary"]["quality"]
    assert told["relevance"] == seen.relevance
    assert "ROUGE-1" in (left.parent / "report.html").read_text("utf-8")
