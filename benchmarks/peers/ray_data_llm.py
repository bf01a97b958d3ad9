"""Ray Data's LLM processor, as its guide has it, with the pipeline's engine settings: Request as JSON in, Parquet out.

It gets what its guide recommends and this machine needs: blocks of as many rows as a batch has, logical CPUs for each
of its stages. Its workers inherit OMP_NUM_THREADS, where Ray by itself would give the engine's actor one thread.

The last line on standard output is JSON.
"""

import json
import math
import time
from typing import Any

import pyarrow.dataset as ds
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from benchmarks.peers.request import Request

BATCH_ROWS = 64
STAGES = 6  # actors and tasks of one CPU each that run side by side


def main(request: Request) -> dict[str, Any]:
    ray.init(address="local", num_cpus=STAGES, include_dashboard=False)
    config = vLLMEngineProcessorConfig(
        model_source=request.model,
        engine_kwargs=dict(request.engine),
        placement_group_config={"bundles": [{"CPU": 1}]},  # else it asks for a GPU
        concurrency=1,
        batch_size=BATCH_ROWS,
        log_engine_metrics=False,  # they need ray[serve] beside vLLM, which no lock here has
    )
    sampling = {"temperature": 0, "max_tokens": request.max_tokens, **request.structured}

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}]
        return {**row, "messages": messages, "sampling_params": sampling}

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        kept = {key: row[key] for key in ("system", "user")}
        return {
            **kept,
            "answer": row["generated_text"],
            "prompt_tokens": row["num_input_tokens"],
            "output_tokens": row["num_generated_tokens"],
            "answered_at": time.time(),
            "took_s": row["time_taken_llm"],
        }

    blocks = max(1, math.ceil(request.rows / BATCH_ROWS))
    rows = ray.data.read_parquet(request.corpus, override_num_blocks=blocks)
    build_processor(config, preprocess=ask, postprocess=keep)(rows).write_parquet(request.answers)
    answered = ds.dataset(request.answers, format="parquet").to_table().to_pydict()
    asked_at = min(at - took for at, took in zip(answered["answered_at"], answered["took_s"], strict=True))
    return {
        "rows": len(answered["answer"]),
        "rows_per_s": len(answered["answer"]) / (max(answered["answered_at"]) - asked_at),
        "prompt_tokens": sum(answered["prompt_tokens"]),
        "decoded": sum(answered["output_tokens"]),
    }


if __name__ == "__main__":
    print(json.dumps(main(Request.from_command_line())))
