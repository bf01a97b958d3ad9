"""What is made of a judge's verdicts: shares, examples, how far the judge can be believed; and what is kept of them."""

from pathlib import Path

import pytest

from pipelines.accounts import judged
from pipelines.accounts.agreement import wilson
from pipelines.accounts.judged import Judged

TOLD = {
    "run_id": "one", "job": "judge", "model": "m", "fingerprint": "f", "at": "2026-11-30T00:00:00Z", "good": "good",
}  # fmt: skip


def test_a_share_is_of_the_rows_with_a_verdict_and_what_did_not_pass_is_named() -> None:
    found = Judged.of([("a", 0, "good", None), ("a", 3, "bad", None), ("b", 1, "good", None)], drawn=5, **TOLD)

    assert (found.rows, found.verdicts, found.examples) == (3, {"good": 2, "bad": 1}, (("a", 3, "bad"),))
    assert found.share == pytest.approx(2 / 3)
    low, high = wilson(2, 3)
    assert found.words() == f"66.7% good, of 3 answers ({low:.1%} to {high:.1%} at 95 %); 2 more got no verdict"
    assert found.of_gold() is None


def test_a_judge_is_right_where_it_passes_right_answers_and_no_wrong_one() -> None:
    rows = [("a", 0, "good", True), ("a", 1, "good", False), ("a", 2, "bad", False), ("a", 3, "bad", None)]

    found = Judged.of(rows, drawn=4, **TOLD)

    assert (found.gold_rows, found.gold_agreed) == (3, 2)
    assert (found.of_gold() or "").startswith("right itself in 66.7% of 3 rows")


def test_without_a_verdict_there_is_no_share() -> None:
    found = Judged.of([], drawn=2, **TOLD)

    assert (found.share, found.words()) == (None, "none of 2 answers drawn got a verdict")


def test_what_is_kept_is_read_again_by_run_and_what_is_torn_is_left_out(tmp_path: Path) -> None:
    found = Judged.of([("ä", 0, "good", None), ("b", 1, "bad", True)], drawn=2, **TOLD)
    judged.keep(str(tmp_path), found)
    other = Judged.of([], drawn=1, **{**TOLD, "job": "another"})
    judged.keep(str(tmp_path), other)
    (tmp_path / "runs" / "one" / "judged-torn.json").write_text('{"run_id": ')

    assert judged.of_run(str(tmp_path), "one") == [other, found]
    assert judged.of_run(str(tmp_path), "two") == []
