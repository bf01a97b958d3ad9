"""verify over outputs that real runs left, whole and with faults planted in them."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.cli import command_of_few_keys
from pipelines.compose import few, recorded
from pipelines.config import Exit, UserError
from pipelines.config_keys import leaves
from pipelines.sink.fenced import FencedTable
from pipelines.sink.ledger import Ledger
from pipelines.verify import EXITS, KEYS, VerifyConfig, verify
from tests.conftest import S3Server
from tests.runs import job, write_texts

ROOT = Path(__file__).resolve().parents[2]
ROWS: list[list[str | None]] = [
    [f"text {number}" for number in range(20)],
    ["good", None, "bad"],
    [f"more {number}" for number in range(9)],
]


@pytest.fixture(scope="module")
def whole(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus `in` and a run's output `out`: units of 8 rows, one dead letter."""
    folder = tmp_path_factory.mktemp("whole")
    write_texts(folder / "in", ROWS)
    assert job("unit.rows=8", "max_error_rate=0.5", source=folder / "in", sink=folder / "out") is Exit.DONE
    return folder


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be harmed: the same bytes and times."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


Found = dict[str, dict[str, Any]]


def verified(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Exit, Found]:
    """The exit code, and the checks by name."""
    capsys.readouterr()
    asked = few([f"sink.uri={folder / 'out'}", f"source.uri={folder / 'in'}", "format=json", *words], VerifyConfig)
    code = verify(asked)
    told = json.loads(capsys.readouterr().out)
    assert told["proved"] is (code is Exit.DONE)
    return code, {check["name"]: check for check in told["checks"]}


def wrong(found: Found) -> dict[str, str]:
    """What was found, by check, as one text each."""
    return {name: " | ".join(check["findings"]) for name, check in found.items() if check["found"]}


def data_file(folder: Path, rows: int) -> Path:
    """A data file with so many rows."""
    files = sorted((folder / "out" / "data").glob("*.parquet"))
    return next(path for path in files if pq.read_metadata(path).num_rows == rows)


def test_a_whole_output_is_proved_and_every_check_has_looked_at_something(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = verified(whole, capsys)

    assert code is Exit.DONE, wrong(found)
    assert [name for name, check in found.items() if not check["checked"]] == []
    assert (found["input rows"]["checked"], found["rows"]["checked"], found["input"]["checked"]) == (32, 32, 3)
    assert found["units"]["checked"] == found["table data"]["checked"] == 6


def test_an_output_that_a_new_column_joined_is_proved(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"id": [99], "text": ["new"], "stars": [5]}), output / "in" / "later.parquet")
    job("unit.rows=8", "max_error_rate=0.5", source=output / "in", sink=output / "out")

    code, found = verified(output, capsys)

    assert code is Exit.DONE, wrong(found)
    assert found["table data"]["notes"] == ["stars joined later; null in the rows of older files"]


def test_an_interrupt_between_the_ledger_and_the_tables_leaves_a_ledger_that_verify_believes(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(output / "in" / "more", [["later one", "later two"]])
    commit, cut = FencedTable.commit, [True]

    def cut_once(table: FencedTable, *words: Any, **more: Any) -> None:
        if table.uri.endswith("/data") and cut:
            cut.clear()
            raise KeyboardInterrupt
        commit(table, *words, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FencedTable, "commit", cut_once)
        job("unit.rows=8", "max_error_rate=0.5", source=output / "in", sink=output / "out")
    job("unit.rows=8", "max_error_rate=0.5", source=output / "in", sink=output / "out")

    code, found = verified(output, capsys)
    assert code is Exit.DONE, wrong(found)


def test_without_source_uri_the_input_is_where_the_newest_run_read_it(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert verify(few([f"sink.uri={whole / 'out'}"], VerifyConfig)) is Exit.DONE
    assert "proved  (exit 0)" in capsys.readouterr().out


def test_a_deleted_file_is_named_with_its_rows(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = data_file(output, 4)
    gone.unlink()

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert (
        wrong(found)["files"]
        == f"data/{gone.name} is not there; it holds part-0.parquet rows 16 to 20; run the job's command again"
    )


def test_a_deleted_file_of_dead_letters_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (gone,) = (output / "out" / "errors").glob("*.parquet")
    gone.unlink()

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert f"errors/{gone.name} is not there" in wrong(found)["files"]


def test_a_duplicated_row_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = data_file(output, 4)
    rows = pq.read_table(file)
    pq.write_table(pa.concat_tables([rows, rows.slice(2, 1)]), file)

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found)["rows"] == "part-0.parquet rows 16 to 20: row 18 twice or more"
    assert "5 + 0 rows in its files, 4 ok + 0 errors told" in wrong(found)["counts"]
    assert wrong(found)["footers"] == f"data/{file.name}: no receipt"


def test_a_row_that_stands_in_data_and_in_errors_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dead,) = (output / "out" / "errors").glob("*.parquet")
    rows = pq.read_table(dead)
    pq.write_table(rows.set_column(rows.schema.get_field_index("_row"), "_row", pa.array([0], pa.int64())), dead)

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert "part-1.parquet rows 0 to 3: row 0 twice or more" in wrong(found)["rows"]
    assert "row 1 missing" in wrong(found)["rows"]


def test_a_flipped_byte_is_found_though_size_and_rows_are_right(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data_file(output, 4)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 1
    file.write_bytes(whole)

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert f"data/{file.name} is not what was written" in wrong(found)["files"]


def test_a_receipt_without_data_is_found(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.open(str(output / "out"), create=True)
    first = next(ledger.receipts())
    ledger.begin_epoch()
    name = "part-9.parquet-000000000000.0-3.ffffffffff.parquet"
    counts: dict[str, Any] = {"start": 0, "stop": 3, "rows_in": 3, "rows_ok": 3, "rows_error": 0, "errors_by_type": {}}
    ledger.append(
        [replace(first, shard="part-9.parquet", attempt="f" * 10, data_file=name, errors_file=None, **counts)]
    )

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert (
        wrong(found)["files"]
        == f"data/{name} is not there; it holds part-9.parquet rows 0 to 3; run the job's command again"
    )
    assert wrong(found)["table data"].startswith(f"does not name {name}, which is current")
    assert wrong(found)["input"].startswith("part-9.parquet is gone from the input")


def test_data_without_a_receipt_is_found_and_told_what_becomes_of_it(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data_file(output, 4)
    name = file.name[: -len("0123456789.parquet")] + "eeeeeeeeee.parquet"
    shutil.copy(file, file.with_name(name))
    (output / "out" / "data" / "mine.parquet").write_bytes(b"x")
    (output / "out" / "errors" / ".half.parquet.0123456789.part").write_bytes(b"x")

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert set(wrong(found)) == {"strays"}
    assert set(found["strays"]["findings"]) == {
        f"data/{name}: of no receipt; the next run takes it over if it is a finished unit, or else removes it",
        "data/mine.parquet: not written by a run; take it away",
        "errors/.half.parquet.0123456789.part: half a file, left by a killed writer; the next run removes it",
    }


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("touch", "part-1.parquet has changed since it was read: run the job's command again"),
        ("delete", "part-1.parquet is gone from the input"),
        ("add", "part-9.parquet is new: run the job's command again"),
    ],
)
def test_a_changed_input_is_found(harm: str, told: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = output / "in" / "part-1.parquet"
    if harm == "touch":
        pq.write_table(pq.read_table(shard).slice(0, 2), shard)
    elif harm == "delete":
        shard.unlink()
    else:
        shutil.copy(shard, shard.with_name("part-9.parquet"))

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert set(wrong(found)) == {"input"}
    assert wrong(found)["input"].startswith(told)


def test_an_input_with_more_rows_than_were_read_is_found_though_its_identity_is_the_same(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An identity is size and time: here both lie, and only the rows tell.
    shard = output / "in" / "part-2.parquet"
    ledger = Ledger.open(str(output / "out"), create=True)
    longer = pq.read_table(shard)
    pq.write_table(pa.concat_tables([longer, longer.slice(0, 1)]), shard)
    identity = f"{shard.stat().st_size}-{shard.stat().st_mtime_ns}:{shard.stat().st_size}"
    table = pl.read_delta(str(output / "out" / "ledger")).with_columns(
        identity=pl.when(pl.col("shard") == shard.name).then(pl.lit(identity)).otherwise(pl.col("identity"))
    )
    write_deltalake(ledger.uri, table.to_arrow(), mode="overwrite")

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found)["input rows"] == "part-2.parquet: rows 9 to 10 are not done; run the job's command again"


def test_a_cost_that_nobody_was_billed_is_found(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = DeltaTable(output / "out" / "costs")
    lines = table.to_pyarrow_table()
    (price,) = set(lines["usd_per_hour"].to_pylist())
    more = lines.slice(0, 1).to_pylist()[0] | {"device_ns": 36 * 10**11, "usd": price, "part": "idle"}
    write_deltalake(table, pa.Table.from_pylist([more], lines.schema), mode="append")

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found).keys() == {"costs"}
    assert "its parts in the table of costs add up to" in wrong(found)["costs"]


def test_a_delta_table_that_names_a_foreign_file_is_found(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pq.read_table(data_file(output, 4))
    write_deltalake(output / "out" / "data", rows.slice(0, 1), mode="append")
    (foreign,) = {path for path in DeltaTable(output / "out" / "data").file_uris() if "part-0000" in path}

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found)["table data"] == f"names {Path(foreign).name}, which is of no current receipt"
    assert wrong(found)["strays"] == f"data/{Path(foreign).name}: not written by a run; take it away"


def test_a_receipt_that_was_counted_twice_is_found(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.open(str(output / "out"), create=True)
    first = next(ledger.receipts())
    ledger.begin_epoch()
    ledger.append([first])

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found) == {"ledger": f"attempt {first.attempt} of {first.shard} was counted 2 times"}


def test_a_commit_that_was_written_twice_counts_once_and_is_told(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(output / "out" / "ledger")
    write_deltalake(uri, DeltaTable(uri).to_pyarrow_table().slice(0, 2), mode="append")

    code, found = verified(output, capsys)

    assert code is Exit.DONE
    assert "2 receipts stand there twice" in found["ledger"]["notes"][0]


def test_a_receipt_that_does_not_add_up_is_found_and_nothing_else_is_believed(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(output / "out" / "ledger")
    table = pl.read_delta(uri)
    lost = table.with_columns(rows_ok=pl.when(pl.col("stop") == 20).then(3).otherwise(pl.col("rows_ok")))
    write_deltalake(uri, lost.to_arrow(), mode="overwrite")

    code, found = verified(output, capsys)

    assert code is Exit.FAILED
    assert wrong(found) == {"ledger": "part-0.parquet from row 16: rows_in=4, rows_ok=3, rows_error=0"}
    assert list(found) == ["ledger"]


def test_replaced_files_that_sink_retain_hours_keeps_are_accounted_for_and_others_are_not(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [["a", "b", "c"]])
    again = ("on_change=reprocess", 'job.messages=[{role: user, content: "Other: {{ text }}"}]')
    job(source=tmp_path / "in", sink=tmp_path / "out")
    job("sink.retain_hours=2", *again, source=tmp_path / "in", sink=tmp_path / "out")

    code, found = verified(tmp_path, capsys)

    assert code is Exit.DONE, wrong(found)
    assert found["strays"]["notes"] == ["1 files were replaced and are kept for 2 h (sink.retain_hours)"]


def test_a_limited_run_is_proved_for_the_rows_that_it_was_asked_for(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [["a", "b", "c"], ["d"]])
    job("source.limit=2", source=tmp_path / "in", sink=tmp_path / "out")

    code, found = verified(tmp_path, capsys)

    assert code is Exit.DONE, wrong(found)
    assert found["input rows"]["checked"] == 2
    assert found["input rows"]["notes"] == ["1 more rows of these shards lie behind source.limit=2"]


def test_an_output_that_a_run_is_writing_says_so(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "out" / "runs" / "99990101T000000Z-000000").mkdir()
    (output / "out" / "runs" / "99990101T000000Z-000000" / "alive.json").write_text("{}")

    _, found = verified(output, capsys)

    assert found["strays"]["notes"][0].startswith("run 99990101T000000Z-000000 is at work, or was killed")


def test_the_manifest_of_a_real_run_is_what_the_published_schema_says_and_matches_the_output(whole: Path) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    (path,) = (whole / "out" / "runs").glob("*/manifest.json")
    manifest = json.loads(path.read_text())

    jsonschema.Draft202012Validator(schema).validate(manifest)

    assert manifest["counts"]["output"] == {"rows_in": 32, "rows_ok": 31, "rows_error": 1}
    assert [one["rows_in"] for one in manifest["inputs"]] == [20, 3, 9]
    there = {str(file.relative_to(whole / "out")): file for file in (whole / "out").glob("[de]*/*.parquet")}
    told = {one["file"]: one["sha256"] for one in manifest["files"]}
    assert told == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in there.items()}
    config = recorded(path.with_name("config.yaml").read_text(), "config.yaml")
    assert json.loads(json.dumps(asdict(config), default=str)) == manifest["config"]


def test_a_sample_is_answered_again_and_agrees_on_the_same_engine(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in (whole / "out").rglob("*"))

    code, found = verified(whole, capsys, "sample=7", "seed=3")

    assert code is Exit.DONE
    assert found["sample"]["checked"] == 7
    assert found["sample"]["notes"] == ["label: 7 of 7 the same", "confidence: 7 of 7 the same"]
    assert sorted(path for path in (whole / "out").rglob("*")) == before


def test_a_sample_of_answers_that_were_not_the_engines_disagrees(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(6)]])
    job("+job=generate", "engine.simulated.output_tokens=4", source=tmp_path / "in", sink=tmp_path / "out")
    (config,) = (tmp_path / "out" / "runs").glob("*/config.yaml")
    config.write_text(config.read_text().replace("output_tokens: 4", "output_tokens: 5"))

    code, found = verified(tmp_path, capsys, "sample=6")

    assert code is Exit.DONE
    assert found["sample"]["notes"][0].endswith("0 of 6 the same")


def test_a_sample_under_a_changed_prompt_is_not_compared_and_says_what_changed(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = (output / "out" / "runs").glob("*/config.yaml")
    config.write_text(config.read_text().replace("{{ text }}", "Other: {{ text }}"))

    code, found = verified(output, capsys, "sample=3")

    assert code is Exit.DONE
    assert found["sample"]["checked"] == 0
    assert "not compared" in found["sample"]["notes"][0]
    assert "Other" in found["sample"]["notes"][0]


def test_a_shard_that_broke_off_is_proved_with_the_dead_letter_that_stands_for_the_rest(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    whole = gzip.compress(b"".join(b'{"text": "row %d %s"}\n' % (n, os.urandom(20).hex().encode()) for n in range(500)))
    (tmp_path / "in" / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    job("max_error_rate=1", "unit.rows=50", source=tmp_path / "in", sink=tmp_path / "out")

    code, found = verified(tmp_path, capsys)

    assert code is Exit.DONE, wrong(found)
    dead = found["rows"]["checked"] - 1
    assert found["input rows"]["notes"] == [
        f"cut.jsonl.gz cannot be read from row {dead} on; a dead letter stands for the rest"
    ]


def test_an_output_on_s3_is_proved_and_a_sample_of_it_leaves_nothing_behind(
    ray_cluster: str, s3_bucket: str, weed: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(6)]}), rows)
    bucket, client = s3_bucket.removeprefix("s3://"), weed.client()
    client.put_object(Bucket=bucket, Key="in/a.parquet", Body=rows.getvalue().to_pybytes())
    job("unit.rows=4", source=f"{s3_bucket}/in", sink=f"{s3_bucket}/out")

    def keys() -> list[str]:
        return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]

    before = keys()
    capsys.readouterr()
    code = verify(few([f"sink.uri={s3_bucket}/out", "sample=3", "format=json"], VerifyConfig))

    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code is Exit.DONE, wrong(checks)
    assert checks["sample"]["notes"] == ["label: 3 of 3 the same", "confidence: 3 of 3 the same"]
    assert keys() == before
    client.delete_object(Bucket=bucket, Key=next(key for key in before if key.startswith("out/data/a.parquet")))
    assert verify(few([f"sink.uri={s3_bucket}/out", "format=json"], VerifyConfig)) is Exit.FAILED


@pytest.mark.parametrize(
    ("line", "told"),
    [("colour: blue", r"runs/.*/config.yaml: there is no key colour \(=blue\)"), ("_target_: os.system", "_target_")],
)
def test_a_recorded_config_is_read_with_the_same_suspicion_as_any_other(output: Path, line: str, told: str) -> None:
    (config,) = (output / "out" / "runs").glob("*/config.yaml")
    config.write_text(f"{config.read_text()}{line}\n")

    with pytest.raises(UserError, match=told):
        verify(few([f"sink.uri={output / 'out'}"], VerifyConfig))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sink.uri=nowhere"], "error: sink.uri=nowhere: there is no such folder; check the path"),
        (["sink.uri=empty"], "there is no output, no ledger in it; check the path"),
        (["sink.uri=a-file"], "error: sink.uri=a-file: there is no such folder; check the path"),
        ([], "error: sink.uri is missing: say sink.uri=…"),
        (["sink.url=x"], "error: there is no key sink.url (=x), the nearest is sink.uri; --help lists them"),
        (["sink.uri=empty", "sample=-1"], "error: sample=-1 is not at least 0"),
        (["sink.uri=empty", "+job=classify"], "error: there is no key job (=classify)"),
        (["out"], "error: cannot read 'out' as key=value"),
        (["sink.uri=a,b"], "error: sink.uri=a,b is more than one value"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("x")

    with pytest.raises(SystemExit) as ended:
        command_of_few_keys(verify, VerifyConfig, doc="", keys=KEYS, exits=EXITS, argv=words)

    assert ended.value.code == Exit.USAGE
    said = capsys.readouterr().err.strip().splitlines()
    assert line in said[-1]
    assert [one for one in said if one.startswith("error")] == [said[-1]]


def test_the_command_prints_one_table_and_ends_with_1_where_a_file_is_gone(output: Path) -> None:
    gone = data_file(output, 4)
    gone.unlink()
    words = (sys.executable, "-m", "pipelines.verify", f"sink.uri={output / 'out'}", f"source.uri={output / 'in'}")

    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "200"}
    )

    assert done.returncode == Exit.FAILED, done.stderr
    assert f"data/{gone.name} is not there" in done.stdout
    assert "not proved: " in done.stdout


def test_help_names_every_key_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_of_few_keys(verify, VerifyConfig, doc="Prove it.", keys=KEYS, exits=EXITS, argv=["--help"])

    said = capsys.readouterr().out
    assert ended.value.code == Exit.DONE
    assert set(KEYS) == set(leaves(VerifyConfig))
    assert all(f"  {key} " in said for key in KEYS)
    assert all(f"  {int(code)} {meaning}" in said for code, meaning in EXITS.items())
