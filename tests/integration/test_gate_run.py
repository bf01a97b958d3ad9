"""pipelines.run before the gate, where its units are answered already: no engine and no Ray is started."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.approve import ApproveAsked, ApproveSink, approve
from pipelines.compose import compose
from pipelines.config import Exit, ModelConfig, RunConfig, UserError
from pipelines.engine_choice import detect
from pipelines.job.model import resolve
from pipelines.preparation import survey
from pipelines.run import run
from tests.in_process import INPUT, Order, Place, Session
from tests.runs import data
from tests.unit.job.models import bytes_bpe

JOB = """# @package job
name: mine
messages: [{role: user, content: "{{ text }}"}]
output: {kind: text, column: answer}
sampling: {max_tokens: 8}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "conf" / "job").mkdir(parents=True)
    (tmp_path / "conf" / "job" / "mine.yaml").write_text(JOB)
    (tmp_path / "in").mkdir()
    rows = [{"version": 1, "text": f"text {row}"} for row in range(20)]
    pq.write_table(pa.Table.from_pylist(rows, INPUT), tmp_path / "in" / "a.parquet")
    files = resolve(ModelConfig(name="mine", path=str(bytes_bpe(tmp_path / "model"))), cache=tmp_path / "cache")
    return Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=files)


def configured(place: Place, *words: str) -> RunConfig:
    fixed = ["+job=mine", "engine=simulated", "tracking=none", "precision=fp32", f"source.uri={place.source}"]
    model = [f"model.path={place.source.parent / 'model'}", "model.max_model_len=512", "model.dtype=float32"]
    where = [f"sink.uri={place.sink}", "--config-dir", str(place.source.parent / "conf")]
    (config,) = compose([*fixed, *model, *where, *words])
    return config


def test_a_run_that_does_not_pass_ends_with_3_and_says_why_until_somebody_approves(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = survey(configured(place), hardware=detect, doing=lambda _: None).fingerprint.digest
    answered = Session(place, Order(fingerprint=fingerprint, gate=True, run="before"))
    answered.open()
    answered.output.commit(list(answered.units()))
    answered.close()

    assert run(configured(place, "publish=gate", "gate.approval=true")) is Exit.TOO_MANY_ERRORS

    words = capsys.readouterr().out
    assert "done, and not published" in words
    assert "nobody has approved" in words
    assert data(place.sink) == []
    newest = max((Path(place.sink) / "runs").iterdir())
    told = json.loads((newest / "manifest.json").read_text())["summary"]
    assert (told["exit_code"], told["gate"]["passed"]) == (3, False)
    with pytest.raises(UserError, match="nobody has approved"):
        run(configured(place))
    approve(ApproveAsked(sink=ApproveSink(uri=place.sink), run=newest.name, by="anna"))
    assert run(configured(place, "publish=gate", "gate.approval=true")) is Exit.DONE
    assert len(data(place.sink)) == 20
    assert run(configured(place)) is Exit.DONE  # nothing waits any more
