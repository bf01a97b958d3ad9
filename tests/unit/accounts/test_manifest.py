"""The manifest of a run, as it lies beside the output."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from actors.engine import EngineConfig
from pipelines import storage
from pipelines.accounts.manifest import Evidence, code_sha256, evidence, host, versions
from pipelines.config import Exit, RunFailed, UserError
from pipelines.job.fingerprint import Fingerprint
from pipelines.job.model import ModelFiles
from tests.accounts_samples import receipt, summary

ROOT = Path(__file__).resolve().parents[3]
SECRET = 'planted-"secret"-4711'
PARTS = ("prompt template", "output contract", "sampling", "engine", "model", "chat template", "precision")
GROUPS = ("job", "model", "source", "sink", "engine", "batching", "precision", "unit", "seed")
CONFIG = "".join(f"{name}: {{name: m}}\n" for name in GROUPS)
MODEL = ModelFiles(
    source="s3://models/m",
    folder_or_id="/cache/m",
    tokenizer_folder="/cache/m",
    cache="/cache",
    revision=None,
    context_length=2048,
    vocab_size=100,
    dtype="float32",
    quantization=None,
    file_hashes={"model.safetensors": "12 abc"},
    identity="files 1",
    weights_location="s3://models/m",
)
HARDWARE = {
    "device": "gpu",
    "gpu_name": "NVIDIA H200",
    "gpus": 1,
    "compute_capability": 9.0,
    "cpu_flags": "avx2 avx512f",
    "cores": 16,
}


def begun(sink: Path, **changes: Any) -> "AbstractContextManager[Evidence]":
    values: dict[str, Any] = {
        "run_id": "run-1",
        "started_at": 0.0,
        "fingerprint": Fingerprint(dict.fromkeys(PARTS, "p")),
        "seed": 7,
        "model": MODEL,
        "engine": EngineConfig(kind="vllm", model="/cache/m", model_name="m"),
        "hardware": HARDWARE,
        "inputs": {"a/b.parquet": "etag-1", "new.parquet": "etag-2"},
    }
    return evidence(str(sink), CONFIG, **(values | changes))


def told(sink: Path) -> dict[str, Any]:
    """The manifest as it lies there; it is what the published schema says."""
    found: dict[str, Any] = json.loads((sink / "runs" / "run-1" / "manifest.json").read_text())
    validator().validate(found)
    return found


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_an_ended_run_says_what_ran_when_on_what_and_with_which_outcome(tmp_path: Path) -> None:
    own = receipt(0, 300, shard="a/b.parquet", errors={"empty": 3}, data_file="b.parquet")
    own = replace(own, errors_file="b.parquet", errors_bytes=9, errors_sha256="11" * 32)
    earlier = receipt(300, 310, shard="a/b.parquet", data_file="c.parquet")
    with begun(tmp_path) as found:
        found.finish(summary(), finished_at=86400.25, current=[own, earlier], committed=[own])

    manifest = told(tmp_path)

    assert (manifest["state"], manifest["exit_code"], manifest["error"]) == ("ended", 0, None)
    assert manifest["started_at"] == "1970-01-01T00:00:00.000+00:00"
    assert manifest["finished_at"] == "1970-01-02T00:00:00.250+00:00"
    assert manifest["fingerprint"] == Fingerprint(dict.fromkeys(PARTS, "p")).digest
    assert manifest["fingerprint_parts"] == dict.fromkeys(PARTS, "p")
    assert manifest["counts"]["this_run"] == {"rows_in": 300, "rows_ok": 297, "rows_error": 3}
    assert manifest["counts"]["output"] == {"rows_in": 310, "rows_ok": 307, "rows_error": 3}
    assert manifest["inputs"] == [
        {"shard": "a/b.parquet", "identity": "etag-1", "rows_in": 310, "rows_ok": 307, "rows_error": 3},
        {"shard": "new.parquet", "identity": "etag-2", "rows_in": 0, "rows_ok": 0, "rows_error": 0},
    ]
    assert manifest["files"] == [
        {"file": "data/b.parquet", "bytes": 100, "sha256": "00" * 32, "rows": 297},
        {"file": "errors/b.parquet", "bytes": 9, "sha256": "11" * 32, "rows": 3},
    ]
    assert manifest["summary"]["bill"]["usd"] == "0.04"
    assert set(manifest["config"]) == set(GROUPS)
    assert (manifest["seed"], manifest["hardware"]["gpu_name"]) == (7, "NVIDIA H200")


def test_a_run_under_way_has_left_what_it_asks_and_a_killed_one_leaves_it_so(tmp_path: Path) -> None:
    with begun(tmp_path) as found:
        manifest = told(tmp_path)
        found.finish(summary(exit_code=Exit.STOPPED), finished_at=1.0, current=[], committed=[])

    assert (manifest["state"], manifest["finished_at"], manifest["exit_code"]) == ("running", None, None)
    assert manifest["fingerprint_parts"] == dict.fromkeys(PARTS, "p")
    assert [one["shard"] for one in manifest["inputs"]] == ["a/b.parquet", "new.parquet"]
    assert told(tmp_path)["exit_code"] == 4


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailed("no engine"), 1),
        (UserError("no engine"), 2),
        (OSError("no engine"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_failed_says_why_and_how_it_ended(error: BaseException, code: int, tmp_path: Path) -> None:
    with pytest.raises(type(error)), begun(tmp_path):
        raise error

    manifest = told(tmp_path)

    assert (manifest["state"], manifest["exit_code"]) == ("failed", code)
    assert manifest["error"] == f"{type(error).__name__}: no engine"


def test_a_run_that_is_interrupted_has_ended_and_not_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begun(tmp_path):
        raise KeyboardInterrupt

    manifest = told(tmp_path)

    assert (manifest["state"], manifest["exit_code"], manifest["error"]) == ("ended", 4, None)


def test_a_run_that_failed_and_could_tell_of_itself_has_counts_as_well(tmp_path: Path) -> None:
    own = receipt(0, 300, shard="a/b.parquet", errors={"empty": 3}, data_file="b.parquet")
    with pytest.raises(RunFailed), begun(tmp_path) as found:
        failed = summary(exit_code=Exit.FAILED, error="RunFailed: no engine")
        found.finish(failed, finished_at=1.0, current=[own], committed=[own])
        raise RunFailed("no engine")

    manifest = told(tmp_path)

    assert (manifest["state"], manifest["exit_code"], manifest["error"]) == ("failed", 1, "RunFailed: no engine")
    assert manifest["counts"]["this_run"] == {"rows_in": 300, "rows_ok": 297, "rows_error": 3}
    assert [file["rows"] for file in manifest["files"]] == [297]


def test_a_run_whose_store_is_gone_fails_with_its_own_reason_and_at_once(tmp_path: Path) -> None:
    with pytest.raises(storage.StoreFailed, match="gone"), begun(tmp_path):
        raise storage.StoreFailed("the store is gone")

    assert told(tmp_path)["state"] == "running"


def test_a_failure_after_the_end_leaves_the_end_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), begun(tmp_path) as found:
        found.finish(summary(), finished_at=1.0, current=[], committed=[])
        raise RuntimeError("the terminal is gone")

    assert told(tmp_path)["state"] == "ended"


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({}, "etag"),
        ({"weights_location": None}, "sha256"),
        ({"weights_location": None, "revision": "c0ffee"}, "commit"),
    ],
)
def test_the_model_is_told_with_what_its_files_are_known_by(changes: dict[str, Any], by: str, tmp_path: Path) -> None:
    with begun(tmp_path, model=replace(MODEL, **changes)):
        model = told(tmp_path)["model"]

    assert model["weights_known_by"] == by
    assert model["files"] == {"model.safetensors": "12 abc"}


def test_each_shard_has_a_line_of_its_own(tmp_path: Path) -> None:
    with begun(tmp_path, inputs={f"shard-{number}": "i" for number in range(500)}):
        lines = (tmp_path / "runs" / "run-1" / "manifest.json").read_text().splitlines()

    assert sum('"shard": "shard-' in line for line in lines) == 500
    assert len(lines) < 650


def test_the_schema_refuses_a_manifest_without_counts_with_more_keys_or_in_no_known_state(tmp_path: Path) -> None:
    with begun(tmp_path) as found:
        found.finish(summary(), finished_at=1.0, current=[], committed=[])
    whole = told(tmp_path)

    def errors(**changes: Any) -> Iterator[Any]:
        return validator().iter_errors(whole | changes)

    assert not list(errors())
    assert list(errors(counts=None))
    assert list(errors(more=1))
    assert list(errors(state="odd"))
    assert list(errors(files=[{"file": "../x.parquet", "bytes": 1, "sha256": "00" * 32, "rows": 1}]))
    assert list(errors(started_at="yesterday"))


def test_versions_are_those_installed_and_what_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.setattr("pipelines.accounts.manifest._LIBRARIES", ("pyarrow", "no-such-library"))

    assert versions()["pyarrow"] == pa.__version__
    assert "no-such-library" not in versions()


def test_the_host_tells_its_kind() -> None:
    found = host()

    assert found["cores"] >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 2**28


def test_code_that_differs_in_one_byte_or_one_name_has_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.accounts.manifest._ROOT", tmp_path)
    seen = {hashlib.sha256().hexdigest()}
    for name, text in (("pipelines/a.py", "x"), ("pipelines/a.py", "y"), ("actors/a.py", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        assert code_sha256() not in seen
        assert code_sha256() == code_sha256()
        seen.add(code_sha256())


def test_no_secret_is_in_manifest_or_config_however_it_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    parts = Fingerprint({**dict.fromkeys(PARTS, "p"), "model": SECRET})
    with pytest.raises(RunFailed), begun(tmp_path, fingerprint=parts, inputs={f"{SECRET}.parquet": "i"}):
        texts = [path.read_text() for path in (tmp_path / "runs" / "run-1").iterdir()]
        raise RunFailed(f"no engine with {SECRET}")
    texts += [path.read_text() for path in (tmp_path / "runs" / "run-1").iterdir()]

    assert len(texts) == 6  # config, manifest and summary, at work and at the end
    for text in texts:
        assert "planted-" not in text
        assert "4711" not in text
