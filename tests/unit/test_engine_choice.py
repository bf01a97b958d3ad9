"""Which engine opens, and which wish is refused: by model, precision, batching and hardware, none of them present."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from actors.engine import EngineConfig, Speculation
from pipelines.compose import compose
from pipelines.config import RunConfig, UserError
from pipelines.engine_choice import Hardware, _cores, _cpu_flags, _visible, choose, detect
from pipelines.job.adapter import AdapterFiles

AVX2 = Hardware(device="cpu", cpu_flags=frozenset({"avx2"}), cores=8)
AVX512 = Hardware(device="cpu", cpu_flags=frozenset({"avx2", "avx512f"}), cores=8)
BF16 = Hardware(device="cpu", cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16"}), cores=8)
AMX = Hardware(device="cpu", cpu_flags=frozenset({"amx_bf16"}), cores=8)
T4 = Hardware(device="gpu", gpu_name="Tesla T4", gpus=1, compute_capability=7.5, cores=8)
A100 = Hardware(device="gpu", gpu_name="NVIDIA A100-SXM4-80GB", gpus=8, compute_capability=8.0, cores=8)
H100 = Hardware(device="gpu", gpu_name="NVIDIA H100 80GB HBM3", gpus=8, compute_capability=9.0, cores=8)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model's files say, without the files."""

    revision: str | None = "abc"
    dtype: str | None = "bfloat16"
    quantization: str | None = None
    context_length: int | None = 4096
    adapter: AdapterFiles | None = None


@pytest.fixture
def told(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.yaml").write_text(
        "messages: [{role: user, content: '{{ text }}'}]\noutput: {kind: text}\n", "utf-8"
    )
    return tmp_path


def config_of(told: Path, *words: str) -> RunConfig:
    (config,) = compose(["--config-dir", str(told), "+job=mine", "model=qwen3_8b", *words])
    return config


def chosen(told: Path, hardware: Hardware, *words: str, facts: Facts | None = None) -> EngineConfig:
    return choose(config_of(told, *words), facts or Facts(), hardware, path="/models/some")


@pytest.mark.parametrize(
    ("hardware", "made_in", "dtype"),
    [
        (AVX2, "bfloat16", "float32"),
        (AVX512, "bfloat16", "float32"),
        (BF16, "float32", "bfloat16"),
        (AMX, "float16", "bfloat16"),
        (H100, "bfloat16", "bfloat16"),
        (H100, "float16", "float16"),
        (H100, "float32", "float32"),
        (H100, "int8", "bfloat16"),  # not a type that an engine computes in: the model config's
        (A100, "bfloat16", "bfloat16"),
        (T4, "bfloat16", "float16"),
        (T4, "float32", "float32"),
    ],
)
def test_auto_computes_in_what_the_hardware_is_fast_in_and_the_checkpoint_was_made_for(
    hardware: Hardware, made_in: str, dtype: str, told: Path
) -> None:
    assert chosen(told, hardware, facts=Facts(dtype=made_in)).dtype == dtype


@pytest.mark.parametrize(
    ("precision", "hardware", "checkpoint", "dtype", "quantization"),
    [
        ("fp32", AVX2, None, "float32", None),
        ("fp16", AVX2, None, "float16", None),
        ("fp16", T4, None, "float16", None),
        ("bf16", AVX2, None, "bfloat16", None),
        ("bf16", A100, None, "bfloat16", None),
        ("fp8", H100, None, "bfloat16", "fp8_per_tensor"),
        ("fp8", H100, "fp8", "bfloat16", None),
        ("int8", A100, "compressed-tensors", "bfloat16", None),
        ("int8", BF16, "compressed-tensors", "bfloat16", None),
        ("int4_gptq", A100, "gptq", "bfloat16", None),
        ("int4_gptq", AVX512, "gptq", "float32", None),
        ("int4_gptq", A100, "gptq_marlin", "bfloat16", None),
        ("int4_awq", T4, "awq", "float16", None),
        ("int4_awq", BF16, "awq", "bfloat16", None),
        ("auto", H100, "mxfp4", "bfloat16", None),
        ("auto", AVX512, "awq", "float32", None),
    ],
)
def test_a_precision_that_fits_is_passed_on_and_what_a_checkpoint_has_is_not_made_again(
    precision: str, hardware: Hardware, checkpoint: str | None, dtype: str, quantization: str | None, told: Path
) -> None:
    engine = chosen(told, hardware, f"precision={precision}", facts=Facts(quantization=checkpoint))

    assert (engine.dtype, engine.quantization) == (dtype, quantization)


@pytest.mark.parametrize(
    ("precision", "hardware", "checkpoint", "said"),
    [
        ("bf16", T4, None, "precision=bf16 needs .*; Tesla T4 has compute capability 7.5, below 8.0"),
        ("fp8", AVX512, None, "precision=fp8 needs a GPU of compute capability 8.9 .*; this run is on CPU"),
        ("fp8", A100, None, "precision=fp8 needs .*; NVIDIA A100-SXM4-80GB has compute capability 8.0, below 8.9"),
        ("int8", H100, None, "precision=int8 needs a checkpoint .*; Qwen/Qwen3-8B is not quantized"),
        ("int4_gptq", H100, None, "precision=int4_gptq needs a GPTQ .*; Qwen/Qwen3-8B is not quantized"),
        ("int4_gptq", H100, "awq", "precision=int4_gptq needs .*; Qwen/Qwen3-8B is quantized as awq"),
        ("int4_awq", H100, "gptq", "precision=int4_awq needs .*; Qwen/Qwen3-8B is quantized as gptq"),
        ("bf16", H100, "mxfp4", "precision=bf16 needs .*; .* is quantized as mxfp4; precision=auto takes it as it is"),
        ("fp8", H100, "awq", "precision=fp8 needs .*; .* is quantized as awq; precision=auto takes it as it is"),
        ("int4_awq", AVX2, "awq", "model=qwen3-8b is quantized as awq, whose kernels need a CPU with AVX-512"),
        (
            "auto",
            AVX512,
            "mxfp4",
            "model=qwen3-8b is quantized as mxfp4, which needs a GPU; on CPU vLLM reads awq, gptq",
        ),
    ],
)
def test_a_precision_that_model_or_hardware_cannot_is_refused_with_what_it_needs_and_what_was_found(
    precision: str, hardware: Hardware, checkpoint: str | None, said: str, told: Path
) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        chosen(told, hardware, f"precision={precision}", facts=Facts(quantization=checkpoint))

    assert "\n" not in str(refusal.value)


def test_a_quantized_model_is_known_by_its_files_even_if_the_config_is_silent(told: Path) -> None:
    with pytest.raises(UserError, match="quantized as gptq"):
        chosen(told, H100, "precision=bf16", facts=Facts(quantization="gptq"))


def test_on_cpu_the_engine_is_eager_with_small_blocks_and_shares_the_cores(told: Path) -> None:
    engine = chosen(told, BF16, "engine.replicas=[1,3]")

    assert (engine.device, engine.enforce_eager, engine.block_size, engine.threads) == ("cpu", True, 32, 2)
    assert chosen(told, BF16, "engine.replicas=20").threads == 1
    assert chosen(told, BF16, "engine.threads=5").threads == 5


def test_on_gpu_the_engine_keeps_its_own_blocks_and_graphs(told: Path) -> None:
    engine = chosen(told, H100, "model.tensor_parallel=4")

    assert (engine.device, engine.enforce_eager, engine.block_size, engine.tensor_parallel) == ("gpu", False, None, 4)


def test_a_gpu_machine_can_be_told_to_use_its_cpu(told: Path) -> None:
    assert chosen(told, H100, "engine.device=cpu").device == "cpu"


@pytest.mark.parametrize(
    ("words", "hardware", "said"),
    [
        (["engine.device=gpu"], AVX512, "engine.device=gpu, but NVML finds no NVIDIA GPU"),
        (["model.tensor_parallel=2"], AVX512, "model.tensor_parallel=2 needs GPUs, this run is on CPU"),
        (["model.tensor_parallel=2"], T4, "model.tensor_parallel=2, but a machine here has 1 GPUs"),
    ],
)
def test_devices_that_are_not_there_are_refused(words: list[str], hardware: Hardware, said: str, told: Path) -> None:
    with pytest.raises(UserError, match=said):
        chosen(told, hardware, *words)


def test_batching_overrides_the_models_own_sizes(told: Path) -> None:
    own = chosen(told, H100)
    overridden = chosen(told, H100, "batching.max_num_seqs=7", "batching.max_num_batched_tokens=512")

    assert (own.max_num_seqs, own.max_num_batched_tokens) == (256, 8192)
    assert (overridden.max_num_seqs, overridden.max_num_batched_tokens) == (7, 512)


@pytest.mark.parametrize(
    ("wanted", "made_for", "found"),
    [("2048", 4096, 2048), ("8192", 4096, 4096), ("null", 4096, 4096), ("2048", None, 2048)],
)
def test_the_context_is_the_smaller_of_what_is_wanted_and_what_the_model_was_made_for(
    wanted: str, made_for: int | None, found: int, told: Path
) -> None:
    engine = chosen(told, H100, f"model.max_model_len={wanted}", facts=Facts(context_length=made_for))

    assert engine.max_model_len == found


def test_a_model_that_tells_no_context_needs_one_from_the_config(told: Path) -> None:
    with pytest.raises(UserError, match=r"set model\.max_model_len"):
        chosen(told, H100, "model.max_model_len=null", facts=Facts(context_length=None))


def test_answers_longer_than_the_model_are_refused(told: Path) -> None:
    with pytest.raises(
        UserError, match=r"job\.sampling\.max_tokens=4096 leaves no room for a prompt in the 4096 tokens"
    ):
        chosen(told, H100, "job.sampling.max_tokens=4096")


@pytest.mark.parametrize("precision", ["auto", "fp8", "int4_awq"])
def test_the_simulated_engine_opens_anywhere_in_any_precision(precision: str, told: Path) -> None:
    words = ["engine=simulated", f"precision={precision}", "model.tensor_parallel=8", "engine.simulated.latency_s=0.5"]

    engine = chosen(told, AVX2, *words)

    assert (engine.kind, engine.device, engine.quantization, engine.tensor_parallel) == ("simulated", "cpu", None, 1)
    assert engine.simulated.latency_s == 0.5


def test_the_engine_opens_the_files_that_were_found_at_their_pinned_revision(told: Path) -> None:
    engine = chosen(told, H100, facts=Facts(revision="0123"))

    assert (engine.model, engine.revision, engine.model_name) == ("/models/some", "0123", "qwen3-8b")


def test_this_machine_is_seen_as_its_kernel_describes_it() -> None:
    hardware = detect()

    flags = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
    )
    assert hardware.cpu_flags == frozenset(flags.partition(":")[2].split())
    assert hardware.cores >= 1
    assert (hardware.device == "gpu") == (hardware.gpus > 0) == (hardware.gpu_name is not None)


def test_flags_are_read_on_arm_and_are_none_where_the_kernel_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text("processor : 0\nFeatures\t: fp asimd bf16\n", "utf-8")

    assert _cpu_flags(tmp_path / "arm") == {"fp", "asimd", "bf16"}
    assert _cpu_flags(tmp_path / "none") == frozenset()


def test_a_containers_quota_counts_not_its_hosts_cores(tmp_path: Path) -> None:
    all_cores = _cores(tmp_path / "none")
    for text, cores in [("100000 100000\n", 1), ("50000 100000", 1), ("max 100000", all_cores), ("odd", all_cores)]:
        (tmp_path / "cpu.max").write_text(text, "utf-8")
        assert _cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(
    ("said", "count"), [(None, 4), ("", 0), ("-1", 0), ("1,3", 2), ("7", 0), ("GPU-aaaa,GPU-bbbb", 2), (" 2 ", 1)]
)
def test_only_gpus_that_the_process_may_use_count(
    said: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)

    assert len(_visible(4)) == count


class Nvml(ModuleType):
    """NVML at its library's boundary, with the GPUs of a machine that is not here."""

    class NVMLError(Exception):
        pass

    def __init__(self, names: list[str | bytes], capability: tuple[int, int] = (9, 0), driver: bool = True) -> None:
        super().__init__("pynvml")
        self.names, self.capability, self.driver, self.open = names, capability, driver, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return self.capability


@pytest.mark.parametrize(
    ("nvml", "visible", "found"),
    [
        (Nvml(["NVIDIA H100 80GB HBM3"] * 8), None, ("gpu", "NVIDIA H100 80GB HBM3", 8, 9.0)),
        (Nvml(["NVIDIA H100 80GB HBM3"] * 8), "2,3", ("gpu", "NVIDIA H100 80GB HBM3", 2, 9.0)),
        (Nvml(["NVIDIA T400", "NVIDIA L4"], (8, 9)), "1", ("gpu", "NVIDIA L4", 1, 8.9)),
        (Nvml([b"Tesla T4"], (7, 5)), None, ("gpu", "Tesla T4", 1, 7.5)),
        (Nvml(["NVIDIA L4"]), "", ("cpu", None, 0, None)),
        (Nvml([]), None, ("cpu", None, 0, None)),
        (Nvml(["NVIDIA L4"], driver=False), None, ("cpu", None, 0, None)),
    ],
)
def test_gpus_are_found_by_nvml_and_none_is_made_up(
    nvml: Nvml, visible: str | None, found: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    hardware = detect()

    assert (hardware.device, hardware.gpu_name, hardware.gpus, hardware.compute_capability) == found
    assert nvml.open == 0


# ------------------------------------------------------------------------------------------------ options of the engine


def test_guessing_is_refused_where_a_label_is_all_that_is_decoded(told: Path) -> None:
    config = config_of(told, "engine.speculation={method: ngram}", "job=classify")
    with pytest.raises(UserError, match=r"engine\.speculation: job classify answers with a label"):
        choose(config, Facts(), BF16, path="/models/some")


def test_guessing_chunks_and_an_adapter_reach_the_engine(told: Path) -> None:
    adapter = AdapterFiles(source="a", folder="/here/a", cache="c", rank=5, file_hashes={}, identity="files x")
    words = ["engine.speculation={method: ngram, tokens: 3}", "engine.chunked_prefill=false", "seed=1"]

    engine = chosen(told, BF16, *words, facts=Facts(adapter=adapter))

    assert engine.speculation == Speculation(method="ngram", tokens=3, lookup_min=2, lookup_max=4)
    assert (engine.chunked_prefill, engine.adapter, engine.adapter_rank) == (False, "/here/a", 5)


def test_an_engine_takes_as_many_gpus_as_tensor_and_pipeline_parallel_make(told: Path) -> None:
    assert chosen(told, H100, "model.tensor_parallel=2", "model.pipeline_parallel=4").devices == 8
    with pytest.raises(UserError, match=r"tensor_parallel=4 and model\.pipeline_parallel=4, but a machine here has 8"):
        chosen(told, H100, "model.tensor_parallel=4", "model.pipeline_parallel=4")
    with pytest.raises(UserError, match="pipeline_parallel=2 needs GPUs"):
        chosen(told, BF16, "model.pipeline_parallel=2")
