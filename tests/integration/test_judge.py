"""The command that lets a second model judge an output: over runs of a real Ray, and on the real engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.accounts import judged
from pipelines.compose import compose
from pipelines.config import Exit, UserError
from pipelines.judge import DRAWN, JudgeKeys, judge
from pipelines.report import ReportConfig, ReportSink, report
from pipelines.sink.audit import audit
from tests.runs import LABELS, data, job, write_texts

TEXTS: list[list[str | None]] = [[f"text {number}" for number in range(40)], ["<b>last</b>", None]]
WORDS = ("tracking=none", "job.gold=null", LABELS)


@pytest.fixture
def output(ray_cluster: str, tmp_path: Path) -> Path:
    """Of a run whose labels are of no use; one row is a dead letter."""
    write_texts(tmp_path / "in", TEXTS)
    assert job("max_error_rate=0.5", source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE
    return tmp_path / "out"


def run_of(output: Path) -> str:
    (manifest,) = (output / "runs").glob("*/manifest.json")
    return manifest.parent.name


def told(output: Path, *overrides: str, **keys: Any) -> Exit:
    words = ["+job=judge", "engine=simulated", "tracking=none", DRAWN, f"sink.uri={output}"]
    (config,) = compose([*words, *overrides])
    return judge(config, JudgeKeys(**keys))


def test_a_sample_is_judged_by_question_and_answer_and_kept_with_the_run(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(output)
    before = sorted(path for path in output.rglob("*") if path.is_file())
    capsys.readouterr()

    assert told(output, sample=30) is Exit.DONE

    (found,) = judged.of_run(str(output), run)
    assert (found.drawn, found.rows, found.job, found.good) == (30, 30, "judge", "good")
    assert set(found.verdicts) == {"good", "bad"}  # the simulated engine's are another for each prompt
    said = capsys.readouterr().out
    assert found.words() in said
    assert re.search(r"\d+\.\d% good, of 30 answers", said)
    places = {(row["_shard"], row["_row"]) for row in data(output)}
    assert {(shard, row) for shard, row, _ in found.examples} <= places
    assert len(found.examples) == min(judged.EXAMPLES, found.verdicts["bad"])
    after = {path for path in output.rglob("*") if path.is_file()}
    assert after - set(before) == {output / "runs" / run / "judged-judge.json"}
    assert [check.findings for check in audit(str(output), retain_hours=0).checks if check.found] == []

    report(ReportConfig(sink=ReportSink(uri=str(output))))
    assert found.words() in (output / "runs" / run / "report.html").read_text()


def test_the_same_sample_is_drawn_again_and_too_small_a_share_is_an_exit_code(output: Path) -> None:
    assert told(output, sample=30) is Exit.DONE
    run = run_of(output)
    (first,) = judged.of_run(str(output), run)

    assert told(output, sample=30, at_least=1.0) is Exit.FAILED
    assert told(output, sample=30, good="bad", at_least=0.0) is Exit.DONE

    (again,) = judged.of_run(str(output), run)
    assert again.verdicts == first.verdicts
    assert first.share is not None
    assert again.share == pytest.approx(1 - first.share)


def test_the_judge_is_held_against_gold_where_the_answers_job_has_it(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", TEXTS)
    words = ("max_error_rate=0.5", "job.gold=text", "job.output.labels=[text 1,text 2]")
    assert job(*words, source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE
    right = {row["_row"] for row in data(tmp_path / "out") if row["label"] == row["text"]}

    told(tmp_path / "out", sample=1000)

    run = run_of(tmp_path / "out")
    (found,) = judged.of_run(str(tmp_path / "out"), run)
    assert found.gold_rows == found.rows == 41
    bad = found.verdicts["bad"]
    assert abs(found.gold_agreed - bad) <= len(right)  # an answer is hardly ever right: who says bad agrees
    assert "right itself in" in capsys.readouterr().out


def test_what_cannot_be_judged_is_told_before_anything_starts(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a judge's job has output\.kind=labels"):
        told(output, "job.output={kind: text, column: words}")
    with pytest.raises(UserError, match="good=fine is none of the labels of job judge: good, bad"):
        told(output, good="fine")
    with pytest.raises(UserError, match="no run left its config there"):
        told(tmp_path / "none")


@pytest.mark.engine
def test_a_real_model_judges_answers_of_another_prompt(output: Path) -> None:
    words = ["+job=judge_safety", "tracking=none", DRAWN, f"sink.uri={output}"]
    (config,) = compose([*words, "model.max_num_seqs=8", "engine.kv_cache_gib=0.25"])

    assert judge(config, JudgeKeys(sample=8)) is Exit.DONE

    run = run_of(output)
    (found,) = judged.of_run(str(output), run)
    assert (found.rows, found.job) == (8, "judge_safety")
    assert set(found.verdicts) <= {"safe", "harmful"}
    assert json.loads((output / "runs" / run / "judged-judge_safety.json").read_text())["model"] == config.model.name
