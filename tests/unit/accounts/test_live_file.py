"""The live file of a run: renewed while it works, telling how it ended; of no consequence where it cannot be kept."""

import threading
from pathlib import Path

import pytest

from pipelines.accounts import live_file
from pipelines.accounts.live import Live
from pipelines.accounts.summary import Totals
from pipelines.config import Exit, RunFailed, UserError


def test_the_file_follows_the_run_and_says_how_it_ended(store: str) -> None:
    live = Live(run="r1", job="classify", model="m")
    with live_file.kept(live, store, "r1", every_s=0.01):
        live.see(Totals(units=1, rows_in=7, rows_ok=7))
        seen = None
        while seen is None or seen.rows_in < 7:  # bounded by the test's own limit
            seen = live_file.read(store, "r1")
        live.finish(Exit.DONE)
    last = live_file.read(store, "r1")

    assert (seen.state, seen.job) == ("running", "classify")
    assert last is not None
    assert (last.state, last.exit_code, last.rows_in) == ("ended", 0, 7)
    assert live_file.runs(store) == ["r1"]
    assert live_file.read(store, "r2") is None


@pytest.mark.parametrize(("error", "code"), [(RunFailed("x"), 1), (ValueError("x"), 1), (KeyboardInterrupt(), 4)])
def test_what_ended_the_run_goes_on_to_whoever_handles_it(error: BaseException, code: int, tmp_path: Path) -> None:
    with pytest.raises(type(error)), live_file.kept(Live(run="r1"), str(tmp_path), "r1"):
        raise error
    last = live_file.read(str(tmp_path), "r1")

    assert last is not None
    assert last.exit_code == code


def test_a_place_that_cannot_be_written_costs_the_sign_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with live_file.kept(Live(run="r1"), str(tmp_path), "r1", every_s=0.001):
        pass

    assert [record.levelname for record in caplog.records] == ["WARNING"]  # and no second one of the last renewal
    assert "live.json is not renewed" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "live-file"]


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "runs" / "r1").mkdir(parents=True)
    (tmp_path / "runs" / "r1" / "live.json").write_text('{"run": "r1"')

    with pytest.raises(UserError, match=r"r1/live\.json is not understood"):
        live_file.read(str(tmp_path), "r1")
