"""What is refused before anything starts, whatever the job; what is found out of the model."""

import json
from pathlib import Path

import pytest

from pipelines.compose import compose
from pipelines.config import RunConfig, UserError
from pipelines.engine_choice import detect
from pipelines.preparation import UNSAFE, survey
from tests.runs import LABELS, write_texts
from tests.unit.job.models import bytes_bpe


@pytest.fixture
def config() -> RunConfig:
    (composed,) = compose(["+job=classify", "source.uri=nowhere", "sink.uri=nowhere-else"])
    return composed


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("value", ["1", "true", " TRUE ", "yes"])
def test_a_switch_that_lets_files_of_the_corpus_run_code_is_refused(
    config: RunConfig, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match=rf"{name} lets files of the corpus run code .*: unset it"):
        survey(config, hardware=detect, doing=lambda _: None)


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_a_switch_that_is_off_is_none(config: RunConfig, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNSAFE:
        monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match="there is nothing there"):
        survey(config, hardware=detect, doing=lambda _: None)


def test_a_model_that_is_computed_another_way_in_a_long_context_has_a_fingerprint_for_each(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"]])
    model = bytes_bpe(tmp_path / "model")
    rope = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 128}
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | rope))

    def context(max_model_len: int) -> str:
        words = [LABELS, "engine.device=cpu", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
        (composed,) = compose([*words, f"model.path={model}", f"model.max_model_len={max_model_len}"])
        return survey(composed, hardware=detect, doing=lambda _: None).fingerprint.parts["context"]

    assert [context(length) for length in (100, 128, 129, 512)] == ["short", "short", "long", "long"]
