"""Finding an adapter, reading its rank, and refusing what the engine could not take or what could run code."""

import json
import pickle
from pathlib import Path

import pytest

from pipelines.config import ModelConfig, RunFailed, UserError
from pipelines.job.adapter import AdapterFiles, resolve_adapter
from pipelines.job.model import located, resolve
from tests.conftest import S3Server
from tests.unit.job.models import bytes_bpe

LORA = {"peft_type": "LORA", "r": 5, "bias": "none", "use_dora": False, "modules_to_save": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(LORA))
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


def found(path: Path | str, cache: Path) -> AdapterFiles:
    return resolve_adapter(str(path), cache=cache)


def test_a_folder_says_what_the_adapter_is_and_other_bytes_are_another_one(folder: Path, tmp_path: Path) -> None:
    files = found(folder, tmp_path / "cache")

    assert (files.folder, files.rank) == (str(folder), 5)
    assert pickle.loads(pickle.dumps(files)) == files
    (folder / "adapter_model.safetensors").write_bytes(b"trained on")
    assert found(folder, tmp_path / "cache").identity != files.identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "of kind IA3; the engine takes LORA"),
        ({"r": 1000}, "its rank r is 1000; the engine has room for 1 to 512"),
        ({"r": None}, "its rank r is None"),
        ({"use_dora": True, "bias": "all"}, "has use_dora, bias, which the engine cannot take"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map, which loads code"),
    ],
)
def test_what_the_engine_cannot_take_is_refused_before_it_starts(
    folder: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, **changes}))
    with pytest.raises(UserError, match=words):
        found(folder, tmp_path / "cache")


@pytest.mark.parametrize(("name", "words"), [("adapter_model.bin", "pickled weights"), ("hook.py", "holds code")])
def test_what_may_hold_code_is_refused(folder: Path, tmp_path: Path, name: str, words: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        found(folder, tmp_path / "cache")


def test_what_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.adapter=.*nowhere: there is no such folder"):
        found(tmp_path / "nowhere", tmp_path / "cache")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors; save the adapter there"):
        found(folder, tmp_path / "cache")


def test_an_adapter_on_s3_is_fetched_on_the_engines_node_as_long_as_it_is_the_one_that_was_found(
    folder: Path, tmp_path: Path, weed: S3Server, s3_bucket: str
) -> None:
    def put() -> None:
        for path in folder.iterdir():
            weed.client().put_object(
                Bucket=s3_bucket.removeprefix("s3://"), Key=f"a/{path.name}", Body=path.read_bytes()
            )

    put()
    model = ModelConfig(name="mine", path=str(bytes_bpe(tmp_path / "model")), adapter=f"{s3_bucket}/a")
    files = resolve(model, cache=tmp_path / "cache")

    here = located(files)

    assert here.model == str(tmp_path / "model")
    assert here.adapter
    assert (Path(here.adapter) / "adapter_model.safetensors").read_bytes() == b"weights"
    (folder / "adapter_model.safetensors").write_bytes(b"trained on")
    put()
    with pytest.raises(RunFailed, match="was changed since the run began"):
        located(files)
