"""What models ask and devices allow: the figures expected here are worked out by hand from data sheets."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.engine import EngineConfig
from pipelines.accounts.devices import device_of, measured_cpu, remember, remembered, with_memory
from pipelines.accounts.limits import Limits, Work, achieved, limits
from pipelines.accounts.shape import Shape, numbers_of

SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
GPT_OSS_20B = {
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
}
DEEPSEEK_V2_LITE = {
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "vocab_size": 102400,
}


def shape(config: Mapping[str, object]) -> Shape:
    found = Shape.of(config)
    assert found is not None
    return found


def on_h100(work: Work) -> Limits:
    """The limits of Llama 8B in bfloat16 on an H100, where no setting of the engine stands in the way."""
    engine = EngineConfig(
        kind="vllm",
        model="m",
        model_name="m",
        device="gpu",
        dtype="bfloat16",
        max_num_seqs=10**9,
        max_num_batched_tokens=10**9,
    )
    device = device_of("NVIDIA H100 80GB HBM3")
    assert device is not None
    found = limits(shape(LLAMA_8B), device, engine, work)
    assert found is not None
    return found


def row(prompt: int, cached: int, output: int) -> Work:
    return Work.of_rows(np.array([prompt]), np.array([cached]), np.array([output]))


def test_parameters_are_those_that_the_models_are_published_with() -> None:
    assert shape(SMOLLM2).parameters == 134_515_008  # 538,060,032 bytes of tensors in its float32 model.safetensors
    assert shape(LLAMA_8B).parameters == 8_030_261_248
    assert shape(GPT_OSS_20B).parameters == pytest.approx(20.9e9, rel=0.005)
    assert shape(DEEPSEEK_V2_LITE).parameters == pytest.approx(15.7e9, rel=0.005)


def test_a_mixture_of_experts_computes_with_the_experts_that_a_token_meets() -> None:
    assert shape(GPT_OSS_20B).body + shape(GPT_OSS_20B).head == pytest.approx(3.6e9, rel=0.02)  # "3.6 B active"
    assert shape(DEEPSEEK_V2_LITE).body == pytest.approx(2.2e9, rel=0.03)  # 2.4 B with the head


def test_kv_of_a_token_is_two_vectors_a_layer_for_each_kv_head_or_one_latent() -> None:
    assert shape(LLAMA_8B).kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2 == 131_072
    assert shape(SMOLLM2).kv_bytes_per_token(4) == 2 * 30 * 3 * 64 * 4 == 46_080
    assert shape(DEEPSEEK_V2_LITE).kv_bytes_per_token(2) == 27 * (512 + 64) * 2


def test_flops_of_a_row_are_those_worked_out_by_hand_for_llama() -> None:
    body = 32 * (4096 * 128 * (32 + 16) + 4096 * 4096 + 3 * 4096 * 14336)
    head = 4096 * 128256
    pairs_of_prompt, pairs_of_answer = 1000 * 1001 / 2, 9 * 1000 + 9 * 10 / 2
    by_hand = 2 * body * (1000 + 9) + 2 * head * 10 + 4 * 32 * 4096 * (pairs_of_prompt + pairs_of_answer)

    found = on_h100(row(1000, 0, 10))

    assert found.flops == by_hand
    assert found.compute_s == pytest.approx(by_hand / 989.4e12)


def test_flops_of_a_row_are_those_worked_out_by_hand_for_smollm2_with_a_cached_prefix() -> None:
    body = 30 * (884_736 + 2_654_208)  # attention: 576 x 64 x (9 + 6) + 576 x 576; MLP: 3 x 576 x 1536
    pairs = (190 * 191 - 160 * 161) / 2 + 190 + 1  # prompt tokens 161 to 190; then one decoding step over 191
    by_hand = 2 * body * (30 + 1) + 2 * 576 * 49152 * 2 + 4 * 30 * 576 * pairs
    cpu = with_memory(device_of("NVIDIA H100"), 1e12)  # type: ignore[arg-type]
    engine = EngineConfig(kind="vllm", model="m", model_name="m", dtype="float32", kv_cache_gib=1.0)

    found = limits(shape(SMOLLM2), cpu, engine, row(190, 160, 2))

    assert found is not None
    assert found.flops == by_hand
    assert found.kv_capacity_tokens == 2**30 / 46_080


def test_a_cache_hit_saves_arithmetic_and_no_reading_of_kv() -> None:
    cold, warm = on_h100(row(1000, 0, 100)), on_h100(row(1000, 900, 100))

    assert warm.prefill_s < cold.prefill_s / 5
    assert (warm.memory_s, warm.decode_s) == (cold.memory_s, cold.decode_s)


def test_memory_time_is_that_of_sweeps_over_weights_and_kv() -> None:
    many = row(300, 0, 1000).times(10_000)

    found = on_h100(many)

    capacity = (0.9 * 80e9 - 2e9 - 16_060_522_496) / 131_072  # 412k, as research/performance.md has it
    reads = 10_000 * (999 * 300 + 999 * 1000 / 2)
    assert found.kv_capacity_tokens == pytest.approx(capacity)
    assert found.steps == pytest.approx(reads / capacity)
    assert found.memory_s == pytest.approx((reads / capacity * 16_060_522_496 + reads * 131_072) / 3.35e12)
    assert found.ideal_s == max(found.compute_s, found.memory_s)
    assert found.sequential_s == found.compute_s + found.memory_s


def test_the_last_row_alone_takes_a_reading_of_the_weights_for_each_of_its_tokens() -> None:
    found = on_h100(row(10, 0, 2000))

    assert found.steps == 2000
    assert found.tail_s == pytest.approx(2000 * (16_060_522_496 + 131_072 * 2010) / 3.35e12)


def test_two_replicas_take_half_the_time_and_their_last_row_as_long_as_before() -> None:
    work = row(300, 0, 200).times(1000)
    device = device_of("H100")
    engine = EngineConfig(kind="vllm", model="m", model_name="m", device="gpu", dtype="bfloat16")
    assert device is not None

    one, two = (limits(shape(LLAMA_8B), device, engine, work, replicas=count) for count in (1, 2))

    assert one is not None
    assert two is not None
    assert two.sequential_s == pytest.approx(one.sequential_s / 2)
    assert two.tail_s == one.tail_s


def test_weights_that_leave_no_room_have_no_limits_and_two_devices_may_hold_them() -> None:
    work, t4 = row(10, 0, 10), device_of("Tesla T4")
    engine = EngineConfig(kind="vllm", model="m", model_name="m", device="gpu", dtype="float16")
    assert t4 is not None

    assert limits(shape(LLAMA_8B), t4, engine, work) is None
    assert limits(shape(LLAMA_8B), t4, replace(engine, tensor_parallel=2), work) is not None
    assert limits(shape(LLAMA_8B), t4, replace(engine, dtype="bfloat16", tensor_parallel=2), work) is None


def test_fp8_computes_twice_as_fast_on_h100_and_as_fast_as_bfloat16_on_a100_which_has_no_units_for_it() -> None:
    h100, a100 = device_of("NVIDIA H100 80GB HBM3"), device_of("NVIDIA A100-SXM4-80GB")
    assert h100 is not None
    assert a100 is not None

    assert h100.peak("fp8") == pytest.approx(2 * h100.flops["bfloat16"], rel=1e-3)
    assert a100.peak("fp8") == a100.peak("bfloat16") == 312e12
    assert numbers_of("bfloat16", "fp8_per_tensor") == "fp8"
    assert numbers_of("bfloat16", "auto_gptq") == numbers_of("bfloat16", "awq_marlin") == "int4"


def test_a_device_is_known_by_whole_words_of_its_name() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A10G": "A10G",
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "NVIDIA A10": None,
        "NVIDIA GH200": None,
    }
    assert {name: getattr(device_of(name), "name", None) for name in names} == names


def test_totals_ask_for_no_more_than_the_rows_that_they_are_sums_of() -> None:
    lengths = np.array([10, 500, 90]), np.array([0, 160, 32]), np.array([1, 40, 7])
    rows, totals = Work.of_rows(*lengths), Work.of_totals(rows=3, **dict(zip(TOKENS, map(sum, lengths), strict=True)))

    assert totals.prompt_tokens == rows.prompt_tokens
    assert totals.prefill_pairs <= rows.prefill_pairs
    assert totals.decode_pairs <= rows.decode_pairs


TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")


def test_shares_of_the_limits_are_limits_over_steady_time_and_absent_without_one() -> None:
    found = on_h100(row(1000, 0, 10).times(1000))

    shares = achieved(found, 4 * found.compute_s)

    assert shares is not None
    assert shares.mfu == pytest.approx(0.25)
    assert shares.mbu == pytest.approx(found.memory_s / found.compute_s / 4)
    assert achieved(found, 0.0) is None


def test_this_cpu_is_measured_and_remembered_for_this_cpu_alone(tmp_path: Path) -> None:
    found = measured_cpu(bfloat16=True)

    assert 1e9 < found.flops["float32"] < 1e14
    assert 1e8 < found.bytes_per_s < 1e12
    assert found.flops["bfloat16"] == 2 * found.flops["float32"]
    remember(found, tmp_path, "2 cores")
    assert remembered(tmp_path, "2 cores") == found
    assert remembered(tmp_path, "64 cores") is None
