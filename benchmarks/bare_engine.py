"""The bare engine: the same rows asked by `vllm.LLM.chat` in one process, with the pipeline's own engine settings.

    python -m benchmarks.bare_engine '{"overrides": ["+job=classify", …], "rows": 2000}'

The last line on standard output is JSON: seconds to load, seconds to answer, rows, labels counted, tokens that the KV
memory holds, peak memory of the process.
"""

import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from actors.engine import EngineConfig, Sampling
from actors.vllm_request import sampling_params
from actors.vllm_settings import engine_args, set_environment
from pipelines.compose import compose
from pipelines.config import RunConfig
from pipelines.engine_choice import choose, detect
from pipelines.job.contract import OutputContract
from pipelines.job.model import cache_dir, resolve
from pipelines.job.template import compile_messages


def settings(overrides: list[str]) -> tuple[RunConfig, EngineConfig]:
    """The run that these words of a command line compose, and its engine."""
    (config,) = compose(overrides)
    files = resolve(config.model, cache=cache_dir())
    return config, choose(config, files, detect(), path=files.folder_or_id)


def conversations(config: RunConfig, rows: int | None = None) -> list[list[dict[str, str]]]:
    """The messages of each row of the corpus, in its order; `rows`: of the first ones."""
    template = compile_messages(config.job.messages, job=config.job.name, fields=config.job.fields)
    table = ds.dataset(Path(config.source.uri), format="parquet").to_table(columns=list(template.columns))
    return [
        [{"role": role, "content": content} for role, content in template.render(row)]
        for row in table.slice(0, rows).to_pylist()
    ]


def answer(overrides: list[str], rows: int | None) -> dict[str, Any]:
    """Load, warm up, answer."""
    config, engine = settings(overrides)
    set_environment(engine)
    if engine.cores:
        os.sched_setaffinity(0, engine.cores)
    import torch
    from vllm import LLM

    torch.set_num_threads(engine.threads)
    began = time.monotonic()
    llm = LLM(**{key: value for key, value in engine_args(engine).items() if key != "disable_log_stats"})
    start_s = time.monotonic() - began

    chats = conversations(config, rows)
    contract = OutputContract.of(config.job.output, job=config.job.name)
    sampling = Sampling(max_tokens=config.job.sampling.max_tokens, temperature=config.job.sampling.temperature)
    params = sampling_params(sampling, contract.constraint, contract.alternatives)
    llm.chat(chats[:32], params, use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.monotonic()
    outputs = llm.chat(chats, params, use_tqdm=False)
    answer_s = time.monotonic() - began
    return {
        "start_s": start_s,
        "answer_s": answer_s,
        "rows": len(outputs),
        "rows_per_s": len(outputs) / answer_s,
        "prefilled": sum(len(output.prompt_token_ids) - (output.num_cached_tokens or 0) for output in outputs),
        "decoded": sum(len(output.outputs[0].token_ids) for output in outputs),
        "kv_tokens": _kv_tokens(llm),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "answers": Counter(output.outputs[0].text for output in outputs).most_common(5),
    }


def _kv_tokens(llm: Any) -> int:
    cache = llm.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(answer(request["overrides"], request.get("rows"))))
