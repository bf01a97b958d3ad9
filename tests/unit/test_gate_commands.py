"""What the commands of the gate do to an output, and what they refuse, on real tables."""

import json
from pathlib import Path

import pytest

from pipelines.accounts.gate import judge
from pipelines.accounts.texts import Look
from pipelines.approve import ApproveAsked, ApproveSink, approve
from pipelines.compose import compose
from pipelines.config import UserError
from pipelines.diff import DiffAsked, DiffSink, diff
from pipelines.gate_config import GateConfig, GateLimit
from pipelines.publish import PublishAsked, PublishSink, publish
from pipelines.rollback import RollbackAsked, RollbackSink, rollback
from pipelines.sink.audit import audit
from pipelines.sink.publications import Publications
from tests.unit.sink.test_gate import NEW, OLD, answered, blocked, first_version, opened
from tests.unit.sink.test_tables import rows


def back(sink: str, to: str | None = None) -> None:
    rollback(RollbackAsked(sink=RollbackSink(uri=sink), by="bea", reason="no", to=to))


def shown(sink: str, run: str | None = None) -> None:
    publish(PublishAsked(sink=PublishSink(uri=sink), by="anna", reason="yes", run=run))


def test_what_waits_is_published_by_command_and_no_rollback_is_promised_once_files_are_gone(tmp_path: Path) -> None:
    sink = str(tmp_path)
    first_version(sink, retain_hours=1)
    blocked(sink, retain_hours=1)
    assert [check.findings for check in audit(sink, retain_hours=1).checks if check.found] == []
    shown(sink)
    assert rows(sink) == NEW
    with pytest.raises(UserError, match="3 of its files are gone"):
        back(sink)  # no run left a config, so replaced files are kept for 0 h
    assert rows(sink) == NEW


def test_an_output_that_never_had_a_gate_goes_back_to_the_end_of_an_earlier_run(store: str) -> None:
    one = opened(store, "f", gate=False)
    one.commit(answered(store, "f"))
    one.close(retain_hours=1)
    two = opened(store, "g", gate=False, retain_hours=1)
    two.commit(answered(store, "g", run="second"))
    two.close(retain_hours=1)
    assert rows(store) == NEW

    with pytest.raises(UserError, match="there is no version of that run"):
        back(store, to="nobody")
    back(store)

    assert rows(store) == OLD
    assert [check.findings for check in audit(store, retain_hours=1).checks if check.found] == []
    with pytest.raises(UserError, match="there is no version before"):
        back(store)
    shown(store)
    assert rows(store) == NEW


def test_commands_refuse_what_is_not_there_and_change_nothing(tmp_path: Path) -> None:
    sink = str(tmp_path)
    first_version(sink)
    before = Publications.open(sink).decisions()

    with pytest.raises(UserError, match="nothing waits"):
        shown(sink)
    with pytest.raises(UserError, match="nothing waits"):
        approve(ApproveAsked(sink=ApproveSink(uri=sink), run="run-f", by="anna"))
    blocked(sink)
    before = Publications.open(sink).decisions()
    with pytest.raises(UserError, match="run=nobody: nothing of it waits"):
        approve(ApproveAsked(sink=ApproveSink(uri=sink), run="nobody", by="anna"))
    victim = next((tmp_path / "data" / "_waiting").iterdir())
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        shown(sink)
    assert Publications.open(sink).decisions() == before
    assert rows(sink) == OLD


def test_the_diff_tells_which_answers_moved_with_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = str(tmp_path)
    first_version(sink)
    blocked(sink)

    diff(DiffAsked(sink=DiffSink(uri=sink), examples=2, format="json"))

    told = json.loads(capsys.readouterr().out)
    label = told["moved"]["columns"]["label"]
    assert label["moves"] == [{"from": "f", "to": "g", "rows": 6}]
    assert (label["examples"][0]["text"], told["moved"]["lost"], told["moved"]["found"]) == ("t0", 1, 1)
    assert (told["units_new"], told["units_gone"], told["shown"]["rows_ok"]) == (2, 2, 7)
    diff(DiffAsked(sink=DiffSink(uri=sink)))
    words = capsys.readouterr().out
    assert "f → g" in words
    assert "block by gate: drift" in words


def test_the_gate_names_what_is_wrong_and_an_approval_lifts_what_a_person_may_answer_for(tmp_path: Path) -> None:
    sink = str(tmp_path)
    first_version(sink)
    blocked(sink)
    loose = GateConfig(max_error_rate=0.2)

    output = opened(sink, "g")
    assert judge(output, loose).passed
    assert judge(opened(sink, "f"), loose).empty
    output = opened(sink, "g")
    strict = judge(output, GateConfig(max_error_rate=0.05, approval=True))
    assert not strict.passed
    assert "1 of 8 rows are dead letters" in strict.words()
    approve(ApproveAsked(sink=ApproveSink(uri=sink), run="run-g", by="anna", note="seen"))
    output = opened(sink, "g")
    assert not judge(output, GateConfig(max_error_rate=0.05, approval=True)).passed
    assert "approved by anna: seen" in judge(output, GateConfig(max_error_rate=0.2, approval=True)).words()
    assert judge(output, GateConfig(max_error_rate=0.2, approval=True)).passed

    torn = next((tmp_path / "data" / "_waiting").iterdir())
    torn.write_bytes(torn.read_bytes()[:-9])
    assert torn.name in judge(output, loose).words()
    assert judge(output, GateConfig(max_error_rate=0.2, verify=False)).passed


def test_a_figure_beyond_its_limit_or_not_measured_keeps_a_candidate_back_until_somebody_approves(
    tmp_path: Path,
) -> None:
    sink = str(tmp_path)
    first_version(sink)
    blocked(sink)

    def said(**limits: GateLimit) -> str:
        gate = GateConfig(max_error_rate=0.2, limits=limits)  # type: ignore[arg-type]  # its keys are literals
        return judge(opened(sink, "g"), gate, look=Look(answers=("label",), inputs=("text",))).words()

    assert said(relevance=GateLimit(at_least=0.5)) == "relevance 0, gate.limits.relevance.at_least=0.5"
    assert said(error_rate_change=GateLimit(at_most=-0.1)) == (
        "error_rate_change 0, gate.limits.error_rate_change.at_most=-0.1"
    )
    assert said(relevance=GateLimit(at_least=0, at_most=0.5), error_rate_change=GateLimit(at_most=0.01)) == "passed"
    assert said(accuracy=GateLimit(at_least=0.9)) == "accuracy was not measured, gate.limits.accuracy"
    assert (
        said(accuracy_change=GateLimit(at_least=0)) == "accuracy_change was not measured, gate.limits.accuracy_change"
    )
    approve(ApproveAsked(sink=ApproveSink(uri=sink), run="run-g", by="anna", note="seen"))
    assert said(accuracy=GateLimit(at_least=0.9)).endswith("approved by anna: seen")


def test_what_is_compared_with_readers_version_passes_where_they_have_none(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    output.commit(answered(str(tmp_path), "f"))

    verdict = judge(output, GateConfig(max_error_rate=0.2, limits={"error_rate_change": GateLimit(at_most=-1)}))

    assert verdict.passed


def test_a_limit_is_said_on_the_command_line_and_one_of_no_figure_is_refused() -> None:
    words = ["+job=classify", "source.uri=in", "sink.uri=out", "publish=gate"]
    (config,) = compose([*words, "gate.limits={accuracy: {at_least: 0.9}, relevance: {at_most: 1}}"])
    assert config.gate.limits == {"accuracy": GateLimit(at_least=0.9), "relevance": GateLimit(at_most=1)}
    for wrong, told in (
        ("gate.limits={wit: {at_least: 0.9}}", "accuracy"),
        ("gate.limits={accuracy: {}}", "at_least, at_most or both"),
        ("gate.limits={accuracy: {above: 1}}", "above"),
    ):
        with pytest.raises(UserError, match=told):
            compose([*words, wrong])
