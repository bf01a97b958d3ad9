"""What a probe makes of the reports and receipts of its engine: how it goes is told here second by second."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.accounts.probed import Answered
from pipelines.compose import compose
from pipelines.config import RunFailed
from pipelines.engine_choice import detect
from pipelines.engine_probe import _config, _Course
from pipelines.preparation import survey
from pipelines.sample import over_sample, put_sample, scratch
from tests.receipts import receipt
from tests.runs import LABELS, write_texts
from tests.unit.accounts.test_probed import CACHED, OUTPUT, PROMPT, Host

UNIT = receipt(
    stop=52,
    rows_in=52,
    rows_ok=50,
    rows_error=2,
    errors_by_type={"empty": 2},
    rows_shared=10,
    prompt_tokens=40 * PROMPT,
    cached_tokens=40 * CACHED,
    output_tokens=40 * OUTPUT,
    device_seconds=8.0,
)


def course(*, rows_per_s: int = 5, seconds: int = 10, starts_s: int = 3) -> _Course:
    """An engine that serves after a while, and gets its first row a second later."""
    found = _Course(held_since=0.0)
    for now in range(1, seconds + 1):
        ended = max(0, now - starts_s - 1) * rows_per_s
        serving = Host(100.0 + now, ended, rows_in_flight=20 if now > starts_s else 0)
        found.see([serving if now >= starts_s else replace(serving, phase="starting")], float(now))
    return found


def test_time_counts_from_the_first_row_and_start_up_until_the_engine_serves() -> None:
    found = course()

    assert (found.serving_since, found.asked_since) == (3.0, 4.0)
    found.ended = 12.0
    assert found.probed(6.0, began=-5.0, devices=1, grace_s=60.0).startup_s == 8.0


def test_where_all_that_was_begun_has_ended_receipts_tell_it_whole() -> None:
    found = course()
    found.drained, found.ended, found.receipts = 10.0, 12.0, [UNIT, UNIT]

    probed = found.probed(6.0, began=0.0, devices=1, grace_s=60.0)

    assert not probed.cut
    assert probed.whole == Answered(
        seconds=16.0, rows=80, prompt_tokens=80 * PROMPT, cached_tokens=80 * CACHED, output_tokens=80 * OUTPUT
    )
    assert list(probed.tokens_by_unit) == [(OUTPUT, 40), (OUTPUT, 40)]
    assert probed.held_s == 12.0


def test_where_rows_were_cut_off_the_last_report_tells_and_says_so() -> None:
    found = course()
    found.drained, found.ended, found.receipts = 10.0, 16.5, [UNIT]
    found.see([Host(116.0, 33)], 16.0)

    probed = found.probed(6.0, began=0.0, devices=2, grace_s=6.0)

    assert probed.cut
    assert (probed.whole.rows, probed.whole.seconds) == (33, 8.0)  # 16 device-seconds of two devices
    assert probed.held_s == 33.0
    assert len(found.readings) == 8  # the one of after the admission is not of the steady time


@pytest.mark.parametrize(
    "receipts",
    [[], [replace(UNIT, rows_ok=0, rows_shared=0, rows_error=52, errors_by_type={"empty": 52})]],
)
def test_an_engine_that_has_answered_nothing_is_no_plan(receipts: list[object]) -> None:
    found = course(rows_per_s=0)
    found.ended, found.receipts = 12.0, receipts  # type: ignore[assignment]

    with pytest.raises(RunFailed, match=r"plan.probe_s=6: the engine answered no row"):
        found.probed(6.0, began=0.0, devices=1, grace_s=60.0)


def test_the_rows_are_asked_the_same_as_in_the_run_and_in_units_that_end_soon(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(40)]])
    words = [LABELS, "engine=simulated", "tracking=none", "ordering=corpus", "engine.replicas=[1,4]"]
    fields = ['job.messages=[{role: user, content: "{{ fields }}"}]', "job.fields=[id,text]", "prompt.field_order=auto"]
    places = [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
    (config,) = compose([*words, *fields, *places, "batching.max_num_seqs=8", "grace_s=60"])
    prepared = survey(config, hardware=detect, doing=lambda _: None)
    some = pa.table({"id": pa.array([1, 2], pa.int64()), "text": ["text 1", "text 2"]})

    with scratch(prepared.sink_uri, config, name="probe") as folder:
        put_sample(some, folder)
        asked = _config(config, prepared, over_sample(config, prepared.sink_uri, folder), 7.0)
        ready = survey(asked, hardware=lambda: prepared.hardware, doing=lambda _: None)
        (work,) = ready.left(ready.ledger.committed())

        assert ready.fingerprint == prepared.fingerprint
        assert Path(work.shard.uri).is_relative_to(folder)
    assert (asked.engine.pool, asked.ordering, asked.grace_s) == ((1, 1), "window", 7.0)
    assert asked.unit.rows == 5  # 12 rows in the window, half as many more that wait, in 4 units
    assert not Path(folder).exists()
    assert not (tmp_path / "out").exists()
