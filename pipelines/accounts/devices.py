"""Devices: what one can do at most, each figure with its source; and this machine's CPU, by measuring.

FLOP/s are dense (data sheets print twice as much, with sparsity), of the matrix units where there are any.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

_T = 1e12
_GB = 1e9
_SHEET = "data sheet, dense, from memory and compared with a spec table at rooflinenotes.dev or hmc-tech.com"
_READ = "2026-11-24"
_MEASURE_S = 0.15  # for each of the two kernels
_GEMM = 1024  # rows and columns: 4 MiB a matrix, past the level-2 caches
_ARRAY = 2**23  # float64 of one array: 64 MiB, past the level-3 caches


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one device can do at most."""

    name: str
    words: tuple[str, ...]  # all of them stand in the device's name as the driver tells it
    flops: Mapping[str, float]  # FLOP/s by number format; those that it has no units for are absent
    bytes_per_s: float  # of its memory
    memory_bytes: float
    source: str
    date: str  # of the source, or when it was read; ISO

    def peak(self, numbers: str) -> float | None:
        """FLOP/s in these numbers; weight-only formats are multiplied as 16-bit ones. None: it cannot."""
        if numbers in self.flops:
            return self.flops[numbers]
        wide = "bfloat16" if "bfloat16" in self.flops else "float16"
        return self.flops.get(wide) if numbers in ("int4", "mxfp4", "fp8", "int8") else None


def _gpu(
    name: str,
    words: tuple[str, ...],
    bf16: float,
    fp8: float | None,
    int8: float,
    fp32: float,
    gb_per_s: float,
    memory_gb: float,
    sheet: str,
    *,
    has_bf16: bool = True,
) -> Device:
    half = {"float16": bf16 * _T, **({"bfloat16": bf16 * _T} if has_bf16 else {})}
    flops = {"float32": fp32 * _T, **half, **({} if fp8 is None else {"fp8": fp8 * _T}), "int8": int8 * _T}
    return Device(
        name=name,
        words=words,
        flops=MappingProxyType(flops),
        bytes_per_s=gb_per_s * _GB,
        memory_bytes=memory_gb * _GB,
        source=f"{sheet} {_SHEET}",
        date=_READ,
    )


# The first whose words all stand in a name is the one: the special before the general.
DEVICES = (
    _gpu("B200", ("b200",), 2250, 4500, 4500, 75, 8000, 180, "NVIDIA HGX B200"),
    _gpu("H200", ("h200",), 989.4, 1978.9, 1978.9, 66.9, 4800, 141, "NVIDIA H200 SXM"),
    _gpu("H100 NVL", ("h100", "nvl"), 835.5, 1670.5, 1670.5, 60, 3938, 94, "NVIDIA H100 NVL"),
    _gpu("H100 PCIe", ("h100", "pcie"), 756, 1513, 1513, 51, 2039, 80, "NVIDIA H100 PCIe"),
    _gpu("H100", ("h100",), 989.4, 1978.9, 1978.9, 66.9, 3350, 80, "NVIDIA H100 SXM"),
    _gpu("A100 40GB", ("a100", "40gb"), 312, None, 624, 19.5, 1555, 40, "NVIDIA A100 40GB"),
    _gpu("A100", ("a100",), 312, None, 624, 19.5, 2039, 80, "NVIDIA A100 80GB SXM"),
    _gpu("L40S", ("l40s",), 362.05, 733, 733, 91.6, 864, 48, "NVIDIA L40S"),
    _gpu("L4", ("l4",), 121, 242.5, 242.5, 30.3, 300, 24, "NVIDIA L4"),
    _gpu("A10G", ("a10g",), 70, None, 140, 35, 600, 24, "NVIDIA A10G (AWS G5)"),
    _gpu("T4", ("t4",), 65, None, 130, 8.1, 320, 16, "NVIDIA T4", has_bf16=False),
    _gpu("MI300X", ("mi300x",), 1307.4, 2614.9, 2614.9, 163.4, 5300, 192, "AMD Instinct MI300X"),
)


def device_of(name: str | None) -> Device | None:
    """The device that a driver calls `name`; None: it is not in the table, or there is no GPU."""
    parts = set(re.findall(r"[a-z0-9]+", (name or "").lower()))
    return next((device for device in DEVICES if parts.issuperset(device.words)), None)


def with_memory(device: Device, memory_bytes: float) -> Device:
    """The same with the memory that was found instead of the data sheet's."""
    return Device(
        name=device.name,
        words=device.words,
        flops=device.flops,
        bytes_per_s=device.bytes_per_s,
        memory_bytes=memory_bytes,
        source=device.source,
        date=device.date,
    )


# ------------------------------------------------------------------------------------------------------ this CPU


def measured_cpu(*, bfloat16: bool, cores: int | None = None, clock: Callable[[], float] = time.perf_counter) -> Device:
    """What this machine's CPU does: the best of a few matrix products and of a few sums of arrays, some 0.4 s in all.

    Matrix products by numpy's BLAS in float32; memory as STREAM's Add (a = b + c, 24 bytes an element, McCalpin
    1995), in a thread for each core. `bfloat16`: the CPU has instructions for it, which do twice as many products an
    instruction; that factor is taken, not measured. What else runs on the machine lowers the figures.
    """
    threads = cores or _cores()
    gemm = _best(_matrix_product(), clock)
    memory = _best(_sum_of_arrays(threads), clock)
    flops = {"float32": gemm} | ({"bfloat16": 2 * gemm} if bfloat16 else {})
    return Device(
        name="cpu",
        words=(),
        flops=MappingProxyType(flops),
        bytes_per_s=memory,
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        source=f"measured here: matrix product in float32, sum of arrays, {threads} threads"
        + ("; bfloat16 taken as twice float32" if bfloat16 else ""),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def remember(device: Device, folder: Path, key: str) -> None:
    """Keep a measured device in `folder`, so that a run need not measure; a folder that cannot be written is let be."""
    plain = {
        "key": key,
        "flops": dict(device.flops),
        "bytes_per_s": device.bytes_per_s,
        "memory_bytes": device.memory_bytes,
        "source": device.source,
        "date": device.date,
    }
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".cpu-{os.getpid()}"
        part.write_text(json.dumps(plain))
        part.replace(folder / "cpu.json")


def remembered(folder: Path, key: str) -> Device | None:
    """The CPU as it was measured last; None: it was not, or that was another (`key`)."""
    try:
        plain = json.loads((folder / "cpu.json").read_text())
        if plain.pop("key") != key:
            return None
        return Device(name="cpu", words=(), **(plain | {"flops": MappingProxyType(plain["flops"])}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _best(kernel: Callable[[], float], clock: Callable[[], float]) -> float:
    """The highest rate of a kernel that says how much it did; it runs twice at least, the first time to warm up."""
    kernel()
    best, until = 0.0, clock() + _MEASURE_S
    while True:
        began = clock()
        done = kernel()
        ended = clock()
        best = max(best, done / max(ended - began, 1e-9))
        if ended >= until:
            return best


def _matrix_product() -> Callable[[], float]:
    left = np.ones((_GEMM, _GEMM), np.float32)
    out = np.empty_like(left)

    def kernel() -> float:
        np.matmul(left, left, out=out)
        return 2.0 * _GEMM**3

    return kernel


def _sum_of_arrays(threads: int) -> Callable[[], float]:
    one, two, out = np.ones(_ARRAY), np.ones(_ARRAY), np.zeros(_ARRAY)
    each = -(-_ARRAY // threads)
    parts = [slice(number * each, (number + 1) * each) for number in range(threads)]

    def kernel() -> float:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: np.add(one[part], two[part], out=out[part]), parts))
        return 24.0 * _ARRAY

    return kernel
