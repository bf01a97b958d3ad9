"""Limits: the time that some work takes at least on some devices, and what a run made of it.

Symbols and formulas are those of BlendServe (arXiv 2411.16102, section 4.1) and NanoFlow (arXiv 2408.12757, section
3), with p prompt, c cached and d output tokens of a row, F FLOP/s, B bytes/s, W bytes of weights, k bytes of KV a
token, and C the tokens that the KV cache holds:

    computed tokens   (p - c) + (d - 1)         the first output token comes of the last prompt token
    pairs             sum of j for j = c+1 … p+d-1      a token attends to itself and to all before it
    FLOPs             2 x body x computed + 2 x head x d + FLOPs of a pair x pairs
    KV reads          (d - 1) p + (d - 1) d / 2         tokens, each of k bytes; a cache hit does not save them
    steps             at least KV reads / C, d / max_num_seqs, computed / max_num_batched_tokens, the longest d
    T_comp            FLOPs / F
    T_mem             (steps x W + KV reads x k) / B
    T_tail            longest d x (W + k x its tokens) / B      the last row, alone
    ideal             max(T_comp, T_mem)        arithmetic and memory at the same time: no engine does better
    sequential        T_comp + T_mem            one after the other, as an engine without overlap

Tensor parallelism divides arithmetic and bytes; what its devices tell each other is left out. MFU is FLOPs / (seconds x
F), MBU the bytes above / (seconds x B) (Chowdhery et al. 2022, arXiv 2204.02311, appendix B; MBU: Databricks 2023). The
bytes are the fewest possible, so MBU is a lower bound.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from actors.engine import EngineConfig
from pipelines.accounts.devices import Device
from pipelines.accounts.shape import WEIGHT_BYTES, Shape, numbers_of

ACTIVATION_BYTES = 2e9  # of a GPU's memory, for activations and graphs; assumed (research: 1 to 4 GB for 8 B models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What rows ask of an engine, in sums that add up."""

    rows: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    decoded_tokens: float  # output tokens that a decoding step computed: all but each row's first
    prefill_pairs: float  # query-key pairs
    decode_pairs: float
    longest_tokens: float = 0.0  # output tokens of the longest answer
    longest_context: float = 0.0  # prompt tokens of that row

    @classmethod
    def of_rows(
        cls, prompt: npt.NDArray[np.int64], cached: npt.NDArray[np.int64], output: npt.NDArray[np.int64]
    ) -> Self:
        """Exactly, of rows with so many tokens each."""
        p, c, d = (each.astype(np.float64) for each in (prompt, cached, output))
        decoded = np.maximum(d - 1, 0)
        longest = int(d.argmax()) if len(d) else -1
        return cls(
            rows=len(p),
            prompt_tokens=float(p.sum()),
            cached_tokens=float(c.sum()),
            output_tokens=float(d.sum()),
            decoded_tokens=float(decoded.sum()),
            prefill_pairs=float(((p * (p + 1) - c * (c + 1)) / 2).sum()),
            decode_pairs=float((decoded * p + decoded * (decoded + 1) / 2).sum()),
            longest_tokens=float(d[longest]) if len(d) else 0.0,
            longest_context=float(p[longest]) if len(d) else 0.0,
        )

    @classmethod
    def of_totals(cls, *, rows: float, prompt_tokens: float, cached_tokens: float, output_tokens: float) -> Self:
        """As if all rows were alike, which asks least of attention: a lower bound."""
        if not rows:
            return cls(**{field.name: 0.0 for field in fields(cls)})
        each = cls.of_rows(*(np.array([total / rows]) for total in (prompt_tokens, cached_tokens, output_tokens)))
        return each.times(rows)

    def times(self, factor: float) -> Self:
        """So many times as many rows of the same lengths."""
        sums = {field.name: getattr(self, field.name) * factor for field in fields(self)}
        return type(self)(**(sums | {"longest_tokens": self.longest_tokens, "longest_context": self.longest_context}))

    @property
    def prefill_tokens(self) -> float:
        """Prompt tokens that are computed."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def kv_reads(self) -> float:
        """Tokens of KV that decoding reads."""
        return self.decode_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What some work takes at least, on replicas of some devices."""

    device: Device
    devices: float  # replicas, on the mean, x tensor parallel
    flops: float
    bytes: float  # read from memory, at least
    steps: float  # of an engine, all replicas together
    kv_capacity_tokens: float  # of one replica
    kv_bytes_per_token: float
    weight_bytes: float  # of one replica
    prefill_s: float  # arithmetic of prompts, output head included
    decode_s: float  # arithmetic of output tokens
    memory_s: float
    tail_s: float

    @property
    def compute_s(self) -> float:
        """T_comp."""
        return self.prefill_s + self.decode_s

    @property
    def ideal_s(self) -> float:
        """Arithmetic and memory at the same time."""
        return max(self.compute_s, self.memory_s)

    @property
    def sequential_s(self) -> float:
        """One after the other."""
        return self.compute_s + self.memory_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved:
    """What a run made of its limits; shares 0..1 of steady time."""

    ideal: float
    sequential: float
    mfu: float
    mbu: float  # at least


def limits(
    shape: Shape, device: Device, engine: EngineConfig, work: Work, *, replicas: float = 1, quantized: str | None = None
) -> Limits | None:
    """The limits of `work`; None: the device cannot compute in these numbers, or the weights leave no room for KV.

    `quantized`: how the checkpoint is quantized already, if it is; else `engine.quantization` says.
    """
    numbers = numbers_of(engine.dtype, quantized or engine.quantization)
    peak = device.peak(numbers)
    weight = shape.weight_bytes(numbers, engine.dtype)
    kv = shape.kv_bytes_per_token(_kv_element_bytes(engine))
    capacity = kv_capacity(shape, device, engine, weight)
    if peak is None or capacity < 1:
        return None
    of_replica = engine.devices
    devices = replicas * of_replica
    prefill = (
        work.prefill_tokens * shape.flops_per_prompt_token
        + (work.output_tokens - work.decoded_tokens) * 2 * shape.head
        + work.prefill_pairs * shape.flops_per_pair
    )
    decode = work.decoded_tokens * shape.flops_per_output_token + work.decode_pairs * shape.flops_per_pair
    steps = max(
        work.kv_reads / capacity,
        work.output_tokens / engine.max_num_seqs,
        (work.prefill_tokens + work.decoded_tokens) / engine.max_num_batched_tokens,
        work.longest_tokens,
    )
    moved = steps * weight + work.kv_reads * kv
    alone = work.longest_tokens * (weight + kv * (work.longest_context + work.longest_tokens))
    return Limits(
        device=device,
        devices=devices,
        flops=prefill + decode,
        bytes=moved,
        steps=steps,
        kv_capacity_tokens=capacity,
        kv_bytes_per_token=kv,
        weight_bytes=weight,
        prefill_s=prefill / (peak * devices),
        decode_s=decode / (peak * devices),
        memory_s=moved / (device.bytes_per_s * devices),
        tail_s=alone / (device.bytes_per_s * of_replica),
    )


def kv_capacity(shape: Shape, device: Device, engine: EngineConfig, weight_bytes: float) -> float:
    """Tokens that the KV cache of one replica holds; below 1: the weights leave no room for any."""
    kv = shape.kv_bytes_per_token(_kv_element_bytes(engine))
    if engine.device == "cpu":
        return engine.kv_cache_gib * 2**30 / kv
    each = engine.gpu_memory_utilization * device.memory_bytes - ACTIVATION_BYTES
    return max(0.0, each * engine.devices - weight_bytes) / kv


def achieved(found: Limits, steady_s: float) -> Achieved | None:
    """The shares of the limits that a run reached in `steady_s` seconds; None: no time was measured."""
    if steady_s <= 0:
        return None
    compute = found.compute_s / steady_s
    return Achieved(
        ideal=found.ideal_s / steady_s,
        sequential=found.sequential_s / steady_s,
        mfu=compute,
        mbu=found.memory_s / steady_s,
    )


def _kv_element_bytes(engine: EngineConfig) -> float:
    return 1.0 if engine.kv_cache_dtype.startswith("fp8") else WEIGHT_BYTES[engine.dtype]
