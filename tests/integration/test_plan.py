"""Plans beside the runs that they are plans of: real corpora, ledgers and tables, the simulated engine."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.model import folder as model_folder
from pipelines import planned
from pipelines.cli import command_with_keys
from pipelines.compose import compose
from pipelines.config import Exit
from pipelines.engine_choice import detect
from pipelines.job.chat import open_chat
from pipelines.job.fingerprint import row_key
from pipelines.plan import EXITS, KEYS, plan
from pipelines.planned import Plan
from pipelines.planner import PlanKeys, plan_of
from pipelines.preparation import survey
from tests.runs import LABELS, data, errors, job, ledger, write_texts

WORDS = ("unit.rows=32", "max_error_rate=0.5")


def planned_for(*overrides: str, sink: Path, source: Path) -> Plan:
    """The plan of what `tests.runs.job` would do with the same words."""
    words = [LABELS, "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}", *overrides]
    (config,) = compose(words)
    prepared = survey(config, hardware=detect, doing=lambda _: None)
    return plan_of(config, prepared, PlanKeys(), doing=lambda _: None)


def said(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as ended:
        command_with_keys(plan, PlanKeys, doc="d", keys=KEYS, exits=EXITS, argv=list(words))
    out, err = capsys.readouterr()
    return int(str(ended.value.code)), out, err


def left_at(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of everything below a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def ugly(folder: Path) -> Path:
    """A corpus with doubled, empty and overlong rows, and a shard without any."""
    texts: list[list[str | None]] = [
        [f"text {number}" for number in range(70)],
        ["good", None, "  ", "word " * 9000, "good", "bad", "good"],
        [],
    ]
    write_texts(folder, texts)
    return folder


@dataclass(frozen=True)
class Done:
    """A run that was planned before."""

    source: Path
    sink: Path
    before: Plan


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Done:
    folder = tmp_path_factory.mktemp("done")
    source, sink = ugly(folder / "in"), folder / "out"
    before = planned_for(*WORDS, source=source, sink=sink)
    assert not sink.exists()
    job(*WORDS, source=source, sink=sink)
    return Done(source, sink, before)


def test_what_was_planned_is_what_the_run_then_does(done: Done) -> None:
    before, receipts = done.before, ledger(done.sink)

    assert before.ahead.rows == sum(r["rows_in"] for r in receipts) == 77
    assert before.ahead.units == len(receipts)
    assert before.ahead.units_exact
    assert before.drawn.errors == Counter(row["_error_type"] for row in errors(done.sink))
    assert before.drawn.duplicates == 2
    assert before.outlook.expected is not None
    assert before.outlook.expected.rows_sent == len({row["_key"] for row in data(done.sink)})
    assert before.outlook.expected.prompt_tokens.middle == pytest.approx(sum(r["prompt_tokens"] for r in receipts))
    assert before.outlook.expected.output_tokens.middle == pytest.approx(sum(r["output_tokens"] for r in receipts))
    assert before.outlook.forecast is None  # nothing tells yet how fast the simulated engine is
    assert before.outlook.why is not None


def test_a_second_plan_finds_nothing_to_do_and_leaves_the_output_byte_for_byte(
    done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = done.sink / "runs" / "20260101T000000Z-dead00" / "alive.json"
    dead.parent.mkdir()
    dead.write_text(json.dumps({"run": dead.parent.name}))  # of a run that was killed: a plan takes nothing away
    before = left_at(done.sink)

    words = (LABELS, "engine=simulated", "tracking=none", f"source.uri={done.source}", f"sink.uri={done.sink}")
    code, out, err = said(*words, capsys=capsys)

    assert code == Exit.DONE
    assert "nothing to do" in out
    assert "77 rows cost nothing, 3 of them dead letters" in out
    assert "Traceback" not in err
    assert left_at(done.sink) == before


def test_earlier_runs_of_the_output_tell_what_more_rows_take(done: Done, tmp_path: Path) -> None:
    source = shutil.copytree(done.source, tmp_path / "in")  # with its times of change: the shards are the same
    write_texts(tmp_path / "more", [[f"more {number}" for number in range(144)]])
    (tmp_path / "more" / "part-0.parquet").rename(source / "part-9.parquet")

    found = planned_for("budget.usd=0.000001", "budget.finish_by=1h", source=source, sink=done.sink)

    here = found.outlook.forecast
    assert here is not None
    assert here.basis == "earlier runs"
    summary = json.loads(next(done.sink.glob("runs/*/manifest.json")).read_text())["summary"]
    work = max(summary["steady_s"] or 0.0, float(summary["this_run"]["device_seconds"]))
    held = float(summary["bill"]["device_seconds"]) - work
    rows = summary["this_run"]["rows_ok"] - summary["this_run"]["rows_shared"]  # doubled rows are asked once
    assert here.device_seconds.middle == pytest.approx(144 / rows * work + held, rel=1e-3)
    assert here.usd_low < here.usd < here.usd_high
    assert found.outlook.deadline is not None
    assert found.outlook.deadline.replicas == 1
    assert found.outlook.rows_within is not None
    assert found.outlook.rows_within.middle < 144
    whole = (f"budget.usd={summary['bill']['usd']}", "budget.scope=output")
    spent = planned_for(*whole, source=source, sink=done.sink).outlook.rows_within
    assert spent is not None
    assert spent.high == 0  # all of it went into the run before; as a run's own it pays for them all
    assert planned_for(whole[0], source=source, sink=done.sink).outlook.rows_within.high > 0  # type: ignore[union-attr]


def test_a_changed_prompt_is_planned_with_what_it_costs_and_the_refusal_that_a_run_would_meet(done: Done) -> None:
    other = 'job.messages=[{role: user, content: "Other: {{ text }}"}]'

    refused = planned_for(other, source=done.source, sink=done.sink)
    allowed = planned_for(other, "on_change=reprocess", source=done.source, sink=done.sink)

    assert "on_change=reprocess" in refused.refusals[0]
    assert allowed.refusals == ()
    for found in (refused, allowed):
        # The shard without rows has a unit too: the one that says so.
        assert planned.to_dict(found)["todo"]["changed"] == {"shards": 3, "rows": 77, "units": 5}


@pytest.mark.usefixtures("ray_cluster")
def test_new_changed_failed_unchanged_and_removed_are_told_apart_and_come_true(tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    write_texts(source, [["a", "b", None, "c"], ["d", "e"], ["f"], ["g", "h"]])
    job("unit.rows=3", "max_error_rate=1", source=source, sink=sink)
    seen = {receipt["run"] for receipt in ledger(sink)}
    pq.write_table(pa.table({"id": [4, 9], "text": ["d", "new"]}), source / "part-1.parquet")
    (source / "part-2.parquet").unlink()
    pq.write_table(pa.table({"id": [10], "text": ["more"]}), source / "part-4.parquet")
    words = ("unit.rows=3", "max_error_rate=1", "retry_errors=true")

    found = planned_for(*words, source=source, sink=sink)
    job(*words, source=source, sink=sink)

    told = planned.to_dict(found)["todo"]
    assert told["new"] == {"shards": 1, "rows": 1, "units": 1}
    assert told["changed"] == {"shards": 1, "rows": 2, "units": 1}
    assert told["failed"] == {"shards": 1, "rows": 1, "units": 1}
    assert told["rows_kept"] == 2
    assert told["unchanged"] == {"shards": 1, "rows": 3}
    assert told["removed"] == {"shards": 1, "rows": 1}
    assert found.drawn.carried == 1  # "d" is in the output already
    after = [receipt for receipt in ledger(sink) if receipt["run"] not in seen and not receipt["removed"]]
    assert len(after) == told["units"]
    assert sum(r["rows_in"] for r in after) == told["rows"] + told["rows_kept"]


def test_the_json_document_has_the_keys_that_programs_count_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(100)]])
    words = [LABELS, "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
    words += ["budget.usd=1", "budget.finish_by=6h", "plan.sample=40", "format=json"]

    code, out, _ = said(*words, capsys=capsys)

    document = json.loads(out)
    assert code == Exit.DONE
    assert out.count("\n") == 1
    assert _keys(document) == SCHEMA
    assert document["sample"]["whole"] is False
    assert not (tmp_path / "out").exists()


def test_a_preflight_tries_the_store_and_leaves_nothing_there(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"]])
    (config,) = compose([LABELS, "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"])
    prepared = survey(config, hardware=detect, doing=lambda _: None)

    found = plan_of(config, prepared, PlanKeys(preflight=True), doing=lambda _: None)

    verdicts = {finding.name: finding.verdict for finding in found.preflight}
    assert verdicts == dict.fromkeys(("source", "template", "sink", "other runs", "model", "memory", "engine"), "ok")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plan.sampel=5", "plan.sampel"),
        ("plan.sample=0", "plan.sample=0"),
        ("format=xml", "format=xml"),
        ("source.uri=/no/such/folder", "/no/such/folder"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, expected: str
) -> None:
    write_texts(tmp_path / "in", [["a"]])
    words = [LABELS, "engine=simulated", "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'o'}"]

    code, out, err = said(*words, word, capsys=capsys)

    assert code == Exit.USAGE
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert expected in line


def _keys(value: Any, path: str = "") -> set[str]:
    """Every path of keys in a JSON document; of a list, those of its first element."""
    if isinstance(value, dict):
        return {one for key, inner in value.items() for one in _keys(inner, f"{path}.{key}".lstrip("."))}
    if isinstance(value, list) and value:
        return _keys(value[0], f"{path}[]")
    return {path}


SCHEMA = set(
    """
    deadline.replicas deadline.replicas_high deadline.seconds elsewhere[].device elsewhere[].devices
    elsewhere[].estimated elsewhere[].hours.high elsewhere[].hours.low elsewhere[].hours.middle
    elsewhere[].price.date elsewhere[].price.source elsewhere[].price.usd_per_hour elsewhere[].usd.high
    elsewhere[].usd.low elsewhere[].usd.middle expected.cached_basis expected.cached_share expected.output_basis
    expected.output_tokens.high expected.output_tokens.low expected.output_tokens.middle
    expected.prompt_tokens.high expected.prompt_tokens.low expected.prompt_tokens.middle expected.rows_sent
    fields fingerprint forecast.basis forecast.device_seconds.high forecast.device_seconds.low
    forecast.device_seconds.middle forecast.devices forecast.estimated forecast.hours.high forecast.hours.low
    forecast.hours.middle forecast.price.date forecast.price.source forecast.price.usd_per_hour forecast.replicas
    forecast.rests_on forecast.startup_s forecast.usd.high forecast.usd.low forecast.usd.middle forecast_missing
    limits.bytes limits.compute_s limits.decode_s limits.device limits.device_date limits.device_source
    limits.flops limits.ideal_s limits.kv_bytes_per_token limits.kv_capacity_tokens limits.memory_s
    limits.prefill_s limits.sequential_s limits.tail_s limits.weight_bytes model nothing_to_do plan
    preflight[].name preflight[].verdict preflight[].words probe providers[].batch_price.date
    providers[].batch_price.input_usd_per_million providers[].batch_price.output_usd_per_million
    providers[].batch_price.source providers[].batch_usd providers[].estimated providers[].model providers[].note
    providers[].provider providers[].standard_price.date providers[].standard_price.input_usd_per_million
    providers[].standard_price.output_usd_per_million providers[].standard_price.source providers[].standard_usd
    refusals rows_within_budget.high rows_within_budget.low rows_within_budget.middle sample.carried
    sample.duplicate_tokens sample.duplicates sample.places sample.prefix_reuse.blocks_of_16
    sample.prefix_shared_tokens.blocks_of_16 sample.prefix_shared_tokens.blocks_of_32
    sample.prefix_reuse.blocks_of_32 sample.prompt_tokens.histogram[].high sample.prompt_tokens.histogram[].low
    sample.prompt_tokens.histogram[].rows sample.prompt_tokens.max sample.prompt_tokens.mean
    sample.prompt_tokens.mean_95[] sample.prompt_tokens.p50 sample.prompt_tokens.p90 sample.prompt_tokens.p99
    sample.prompt_tokens.sum sample.row_bytes sample.rows sample.rows_sent sample.seed sample.shards
    sample.needs_corpus_order sample.static_prefix_tokens sample.whole sink_uri source_uri
    todo.changed.rows todo.changed.shards
    todo.changed.units todo.failed.rows todo.failed.shards todo.failed.units todo.new.rows todo.new.shards
    todo.new.units todo.removed.rows todo.removed.shards todo.rows todo.rows_exact todo.rows_kept todo.shards
    todo.shards_with_work todo.unchanged.rows todo.unchanged.shards todo.units todo.units_exact
    """.split()  # noqa: SIM905
)


def test_an_order_of_fields_is_found_once_said_in_the_plan_and_followed_by_every_prompt(
    tmp_path: Path, ray_cluster: str
) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    write_texts(source, [["a text that comes back", "another one, likewise"] * 8])
    given = ('job.messages=[{role: user, content: "Sort: {{ fields }}"}]', "job.fields=[id,text]")
    words = (*given, "prompt.field_order=auto")

    before = planned_for(*words, source=source, sink=sink)
    assert before.fields is not None
    assert before.fields.fields == ("text", "id")
    assert dict(planned.lines(before))["fields"].startswith("text, id (found from 16 rows; sorted, ")
    job(*words, source=source, sink=sink)
    write_texts(source, [["text"] * 16, [f"text {n}" for n in range(16)]])  # where ids would come first
    after = planned_for(*words, source=source, sink=sink)

    assert after.fields is not None
    assert (after.fields.fields, after.fields.words) == (("text", "id"), "as this output's newest run had them")
    assert after.fingerprint == before.fingerprint
    assert planned_for(*given, source=source, sink=sink).fingerprint != before.fingerprint
    chat = open_chat(str(model_folder()), 49152)
    (row, *_) = data(sink)
    asked = chat.tokens([("user", 'Sort: {"text": "a text that comes back", "id": 0}')])
    assert row["_key"] == row_key(before.fingerprint, asked)
