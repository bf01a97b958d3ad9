"""What tests/integration/test_engine_options.py looks at, acted out in a process of its own, as in vllm_scenes.py.
`python option_scenes.py MODEL OUT` writes what was seen to OUT, as JSON.
"""

import asyncio
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.engine import Constraint, EngineConfig, EngineLoad, Speculation
from actors.vllm_engine import VllmEngine
from actors.vllm_settings import set_environment
from pipelines.job.adapter import resolve_adapter
from pipelines.job.chat import open_chat
from tests.integration.vllm_scenes import config, not_started, prompt, said

ECHOES = (
    "Say it again: the cat sat on the mat, the cat sat on the mat, the cat sat on the",
    "Count on: 1 2 3 4 5 6 7 8 9 10 11 12 13",
    "Repeat the list: apple, banana, cherry. apple, banana, cherry. apple,",
    "Write a poem about the sea and the sky, the sea and the wind, the sea and the ships.",
    "Why is the sky blue, and why is the sea blue, and why is the grass green?",
)
RANK, ALPHA = 5, 20


def write_adapter(model: Path, folder: Path) -> None:
    """A LoRA of random numbers over the queries and values of every layer, as PEFT saves one."""
    import torch
    from safetensors.torch import save_file

    shape = json.loads((model / "config.json").read_text())
    width = shape["hidden_size"]
    values = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    source, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(shape["num_hidden_layers"]):
        for name, out in (("q_proj", width), ("v_proj", values)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, width, generator=source) * 0.05
            tensors[f"{place}.lora_B.weight"] = torch.randn(out, RANK, generator=source) * 0.05
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def merge(model: Path, adapter: Path, folder: Path) -> None:
    """The model with the adapter added to its weights, by hand: W + B A alpha / r."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights, low = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in low if name.endswith("lora_A.weight")]:
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        product = low[name.replace("lora_A", "lora_B")] @ low[name]
        weights[target] = weights[target] + product.to(weights[target].dtype) * (ALPHA / RANK)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def answers(settings: EngineConfig) -> tuple[list[str], EngineLoad]:
    """What an engine so set up says to the echoes, and its figures then."""
    chat = open_chat(settings.model, 49_152)
    prompts = [prompt(chat.tokens([("user", text)]), Constraint(), max_tokens=40) for text in ECHOES]
    engine = VllmEngine(settings)
    texts = [answer.text for answer in asyncio.run(said(engine, prompts))]
    load = engine.load()
    engine.close()
    return texts, load


def main(model: Path, out: Path) -> None:
    settings = config(str(model))
    set_environment(settings)
    plain, load = answers(settings)
    seen: dict[str, Any] = {"plain": plain, "plain_drafted": load.drafted}

    seen["guessed"], load = answers(replace(settings, speculation=Speculation(method="ngram", tokens=3)))
    seen["drafted"], seen["rejected"] = load.drafted, load.rejected

    small = replace(settings, max_num_batched_tokens=16, max_num_seqs=8)
    seen["chunked"], _ = answers(replace(small, chunked_prefill=True))
    seen["not_chunked"] = not_started(replace(small, chunked_prefill=False))

    adapter = out.parent / "adapter"
    write_adapter(model, adapter)
    found = resolve_adapter(str(adapter), cache=out.parent / "cache")
    seen["adapted"], _ = answers(replace(settings, adapter=found.folder, adapter_rank=found.rank))
    merge(model, adapter, out.parent / "merged")
    seen["merged"], _ = answers(replace(settings, model=str(out.parent / "merged")))
    out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
