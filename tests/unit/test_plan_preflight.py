"""What would keep a run from starting, or end it: found before it starts."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.compose import compose
from pipelines.engine_choice import detect
from pipelines.planner import PlanKeys, plan_of
from pipelines.preflight import Finding, affecting
from pipelines.preparation import survey
from pipelines.s3 import clock_ahead_s
from tests.runs import LABELS, write_texts
from tests.unit.job.models import bytes_bpe

Look = Callable[..., dict[str, Finding]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The findings before a run of a small model's folder, with these words besides."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_texts(tmp_path / "in", [["a", "b"]])
    model = bytes_bpe(tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    (model / "config.json").write_text(json.dumps(about | sizes))

    def findings(*overrides: str) -> dict[str, Finding]:
        words = [LABELS, "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
        words += [f"model.path={model}", "model.max_model_len=512", "engine.kv_cache_gib=0.1", *overrides]
        (config,) = compose(words)
        prepared = survey(config, hardware=detect, doing=lambda _: None)
        found = plan_of(config, prepared, PlanKeys(), doing=lambda _: None)
        return {finding.name: finding for finding in found.preflight}

    return findings


def test_a_run_that_may_start_has_nothing_to_fear_and_the_store_was_not_tried(look: Look) -> None:
    verdicts = {name: finding.verdict for name, finding in look().items()}

    assert verdicts.pop("sink") == "not tried"
    assert set(verdicts.values()) == {"ok"}


def test_weights_that_the_index_names_and_the_folder_lacks_are_named(look: Look, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))

    found = look()["model"]

    assert found.verdict == "wrong"
    assert "lacks model-00002-of-00002.safetensors: fetch it again" in found.words


def test_a_kv_cache_that_is_larger_than_the_memory_is_wrong(look: Look) -> None:
    found = look("engine.kv_cache_gib=100000")["memory"]

    assert found.verdict == "wrong"
    assert "lower engine.kv_cache_gib" in found.words


def test_a_kv_cache_that_does_not_hold_one_row_is_wrong(look: Look) -> None:
    found = look("engine.kv_cache_gib=0.0001", "precision=fp32")["memory"]  # 107,374 bytes, 2 x 2 x 64 x 4 a token

    assert found.verdict == "wrong"
    assert "the KV cache holds 105 tokens, a row may have 512" in found.words
    assert "raise engine.kv_cache_gib" in found.words


def test_a_sign_of_life_of_another_run_is_told(look: Look, tmp_path: Path) -> None:
    sign = tmp_path / "out" / "runs" / "20260101T000000Z-abc" / "alive.json"
    sign.parent.mkdir(parents=True)
    sign.write_text("{}")

    found = look()["other runs"]

    assert found.verdict == "warning"
    assert "20260101T000000Z-abc" in found.words


def test_rows_that_the_template_fails_for_are_counted(look: Look, tmp_path: Path) -> None:
    tags = pa.table({"text": ["a", "b"], "tags": pa.array([["x"], []], pa.list_(pa.string()))})
    pq.write_table(tags, tmp_path / "in" / "part-0.parquet")

    found = look('job.messages=[{role: user, content: "{{ text }} {{ tags[0] }}"}]')["template"]

    assert (found.verdict, found.words) == ("warning", "rendered for 1 of 2 rows")


@pytest.mark.parametrize(
    ("version", "ids"),
    [
        ("0.32.0", []),
        ("0.30.1", ["CVE-2026-114051"]),
        ("0.25.1", ["CVE-2026-114051", "CVE-2026-105757"]),
        ("main", []),
    ],
)
def test_an_engine_is_held_against_the_advisories_for_its_version(version: str, ids: list[str]) -> None:
    assert [advisory.id for advisory in affecting(version)] == ids


def test_the_clock_is_compared_with_the_stores_own(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_bucket.removeprefix("s3://")

    apart = clock_ahead_s(bucket)

    assert apart is not None
    assert -2 < apart < 30
    now = time.time
    monkeypatch.setattr("pipelines.s3.time.time", lambda: now() + 3600)
    assert (clock_ahead_s(bucket) or 0) > 3000
