"""Finding a model, reading what it is, and refusing what could run code."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from actors.engine import ModelHere
from pipelines.config import ModelConfig, RunFailed, UserError
from pipelines.job.model import ModelFiles, cache_dir, located, resolve, tokenizer_here
from tests.conftest import S3Server, free_ports
from tests.proxies import Answer, Request, proxy
from tests.unit.job.models import bytes_bpe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bytes_bpe(tmp_path / "model")


def found(path: Path | str, cache: Path, **settings: object) -> ModelFiles:
    return resolve(ModelConfig(name="mine", path=str(path), **settings), cache=cache)  # type: ignore[arg-type]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_says_what_the_model_is(folder: Path, tmp_path: Path) -> None:
    files = found(folder, tmp_path / "cache")
    assert (files.folder_or_id, files.tokenizer_folder, files.weights_location) == (str(folder), str(folder), None)
    assert (files.context_length, files.dtype, files.quantization, files.revision) == (512, "float32", None, None)
    assert files.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= files.file_hashes.keys()
    assert pickle.loads(pickle.dumps(files)) == files
    assert tokenizer_here(files) == str(folder)
    assert located(files) == ModelHere(model=str(folder))


def test_a_model_that_says_null_for_its_quantization_has_none(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", quantization_config=None)

    assert found(folder, tmp_path / "cache").quantization is None


@pytest.mark.parametrize(
    ("said", "long_above"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 256}}, None),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {"type": "su", "original_max_position_embeddings": 4096}}, 4096),
        ({"rope_parameters": {"full": {"rope_type": "longrope", "original_max_position_embeddings": 64}}}, 64),
        ({"model_type": "llama4_text"}, 32_768),
    ],
)
def test_a_model_that_is_computed_another_way_in_a_long_context_says_from_where(
    folder: Path, tmp_path: Path, said: dict[str, object], long_above: int | None
) -> None:
    edit(folder / "config.json", **said)

    assert found(folder, tmp_path / "cache").long_above == long_above


def test_the_identity_follows_the_bytes_of_weights_and_tokenizer_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = found(folder, tmp_path / "cache").identity
    elsewhere = folder.rename(tmp_path / "elsewhere")
    assert found(elsewhere, tmp_path / "cache").identity == first
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        before = found(elsewhere, tmp_path / "cache").identity
        with (elsewhere / name).open("a") as file:
            file.write(" ")
        assert found(elsewhere, tmp_path / "cache").identity != before, name


def test_weights_are_hashed_once_and_again_when_they_change(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = found(folder, cache)
    remembered = json.loads((cache / "hashes.json").read_text())
    key = next(key for key in remembered if "model.safetensors" in key)
    (cache / "hashes.json").write_text(json.dumps({**remembered, key: "remembered"}))
    assert found(folder, cache).file_hashes["model.safetensors"] == "remembered"
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert found(folder, cache).file_hashes["model.safetensors"] not in (
        "remembered",
        first.file_hashes["model.safetensors"],
    )
    (cache / "hashes.json").write_text("torn{")
    assert found(folder, cache).file_hashes["tokenizer.json"] == first.file_hashes["tokenizer.json"]


@pytest.mark.parametrize(
    "name",
    ["modeling.py", "deep/er/hook.PY", "pytorch_model.bin", "old/consolidated.00.pth", "x.pt", "x.pkl", "x.ckpt"],
)
def test_a_folder_with_code_or_pickles_is_refused_by_the_files_name(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        found(folder, tmp_path / "cache")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "sub/other.json", "broken.json"])
def test_auto_map_in_any_json_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.is_file() else "{}"
    path.write_text(json.dumps({**json.loads(text), "deep": [{"auto_map": {"AutoModel": "evil--repo.Model"}}]}))
    if name == "broken.json":
        path.write_text('{"auto_map": ')
    with pytest.raises(UserError, match="auto_map"):
        found(folder, tmp_path / "cache")


def test_auto_map_as_a_mere_word_is_not_refused(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", note="no auto_map here")
    assert found(folder, tmp_path / "cache").context_length == 512


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
    ],
)
def test_a_config_that_does_not_describe_a_text_model_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, None], said: str
) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(UserError, match=said):
        found(folder, tmp_path / "cache")


def test_context_and_dtype_are_found_where_models_keep_them(folder: Path, tmp_path: Path) -> None:
    inner = {"vocab_size": 77, "max_position_embeddings": 4096, "dtype": "bfloat16"}
    (folder / "config.json").write_text(
        json.dumps({"text_config": inner, "quantization_config": {"quant_method": "fp8"}})
    )
    edit(folder / "tokenizer_config.json", model_max_length=2048)
    files = found(folder, tmp_path / "cache")
    assert (files.vocab_size, files.context_length, files.dtype, files.quantization) == (77, 2048, "bfloat16", "fp8")


def test_more_context_than_the_model_has_is_refused_with_both_numbers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_model_len=600: .* 512 tokens"):
        found(folder, tmp_path / "cache", max_model_len=600)


def test_a_folder_without_weights_or_config_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        found(folder, tmp_path / "cache")
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        found(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    "path", ["no/such/folder", "./nothing", "nothing", "embedded://nothing", "embedded://../../etc"]
)
def test_what_is_no_model_is_refused_in_one_line(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        found(path, tmp_path / "cache")
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_model_is_refused_in_one_line_where_the_hub_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError) as caught:
        found("nobody/nothing", tmp_path / "cache")
    assert "nobody/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "batch-pipelines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "batch-pipelines"


def test_a_worker_without_the_folder_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    files = found(folder, tmp_path / "cache")
    folder.rename(tmp_path / "gone")
    with pytest.raises(RunFailed, match="not on this node"):
        tokenizer_here(files)


# ------------------------------------------------------------------------------------------------- s3


def put(server: S3Server, bucket: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"models/mine/{path.relative_to(folder).as_posix()}"
            server.client().upload_file(str(path), bucket.removeprefix("s3://"), key)


def test_a_model_on_s3_gives_its_small_files_at_once_and_its_weights_to_the_engines_node(
    folder: Path, tmp_path: Path, weed: S3Server, s3_bucket: str
) -> None:
    put(weed, s3_bucket, folder)
    uri = f"{s3_bucket}/models/mine"
    files = found(uri, tmp_path / "cache")
    assert (Path(files.tokenizer_folder) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (Path(files.tokenizer_folder) / "model.safetensors").exists()

    fetched = Path(located(files).model)
    assert sorted(path.name for path in fetched.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert (fetched / "model.safetensors").read_bytes() == b"weights"
    assert located(files) == ModelHere(model=str(fetched))

    (Path(files.tokenizer_folder) / "tokenizer.json").unlink()  # as on another node
    assert (Path(tokenizer_here(files)) / "tokenizer.json").is_file()


def test_engines_of_one_node_that_start_at_once_fetch_their_weights_from_s3_once(
    folder: Path, tmp_path: Path, weed: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 4_000_000)
    put(weed, s3_bucket, folder)
    fetched: list[str] = []

    def count(request: Request) -> Answer | None:
        if request.method == "GET" and "model.safetensors" in request.path:
            fetched.append(request.headers.get("range", ""))
        return None

    with proxy(weed) as between:
        between.rule = count
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        alone = found(f"{s3_bucket}/models/mine", tmp_path / "alone")
        located(alone)
        once, fetched[:] = sorted(fetched), []
        shared = found(f"{s3_bucket}/models/mine", tmp_path / "shared")
        together = threading.Barrier(4)

        def start() -> str:
            together.wait()
            return located(shared).model

        with ThreadPoolExecutor(4) as engines:
            folders = {engine.result() for engine in [engines.submit(start) for _ in range(4)]}

    assert sorted(fetched) == once
    assert len(folders) == 1
    assert (Path(folders.pop()) / "model.safetensors").stat().st_size == 4_000_000


def test_a_model_on_s3_that_changes_has_another_identity_and_is_not_mixed_into_the_run(
    folder: Path, tmp_path: Path, weed: S3Server, s3_bucket: str
) -> None:
    put(weed, s3_bucket, folder)
    files = found(f"{s3_bucket}/models/mine", tmp_path / "cache")
    (folder / "model.safetensors").write_bytes(b"changed")
    put(weed, s3_bucket, folder)
    with pytest.raises(RunFailed, match="changed"):
        located(files)
    assert found(f"{s3_bucket}/models/mine", tmp_path / "cache").identity != files.identity


def test_a_model_on_s3_with_code_is_refused(folder: Path, tmp_path: Path, weed: S3Server, s3_bucket: str) -> None:
    (folder / "modeling.py").write_text("open('/tmp/never', 'w')")
    put(weed, s3_bucket, folder)
    with pytest.raises(UserError, match=r"modeling\.py"):
        found(f"{s3_bucket}/models/mine", tmp_path / "cache")
