"""What is kept of a run's log when its machine is gone: the end, without secrets, and never at the price of the run."""

from pathlib import Path

import pytest

from pipelines.accounts import quiet


def test_the_end_of_a_log_is_kept_and_no_secret_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-this-test")
    monkeypatch.setattr(quiet, "KEPT_BYTES", 60)
    (tmp_path / "run.log").write_text(f"{'old ' * 100}\nthe core writes a-secret-of-this-test\n")

    quiet.keep(tmp_path / "run.log", f"{tmp_path}/out/runs/one/run.log")

    assert (tmp_path / "out/runs/one/run.log").read_text().splitlines()[-1] == "the core writes ***"
    assert len((tmp_path / "out/runs/one/run.log").read_bytes()) < 60


def test_a_store_that_takes_no_log_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.log").write_text("said\n")
    (tmp_path / "out").write_text("a file where a folder should be")

    quiet.keep(tmp_path / "run.log", f"{tmp_path}/out/run.log")

    assert "the log stays in" in caplog.text


def test_a_log_that_was_taken_away_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet.keep(tmp_path / "gone" / "run.log", f"{tmp_path}/out/run.log")

    assert "run.log is gone: No such file or directory" in caplog.text
    assert not (tmp_path / "out").exists()
